"""LLaVA-Mini against the specification's statement of it, and against the published names and shapes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_mini_oracle import CLIP, IMAGE, halve, make_oracle, write_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor

from edgevlm.chat_template import compile_template
from edgevlm.errors import CheckpointError, InputError
from edgevlm.models import load
from edgevlm.models.conversations import VICUNA_SYSTEM, VICUNA_TEMPLATE
from edgevlm.models.llava_mini import build_checked, ir_name, read_spec
from edgevlm.models.loading import named_tensors
from edgevlm.models.tokenizer_files import TokenizerFacts
from edgevlm.models.vlm import VlmModel
from edgevlm.preprocess import prepare, preprocess
from edgevlm.prompt import Message, PromptFormatter
from edgevlm.runtimes.base import Float32
from edgevlm.spec import ModelSpec
from edgevlm.tokenizer import Tokenizer

LAYOUTS = Path(__file__).parents[1] / "data" / "layouts"
#: Token id 0 is masked like the image's placeholder.
IDS = [5, 6, IMAGE, 0, 7, 8, 0, 9, 100, 3]

PUBLISHED = {
    "llavamini_llama31_8b": (
        {"num_key_value_heads": 8, "intermediate_size": 14336, "rope_theta": 500000.0},
        TokenizerFacts({}, {"<|start_header_id|>": 128006, "<|eot_id|>": 128009}, 128256, (128001, 128008), "gpl-3.0"),
    ),
    "llavamini_vicuna_7b": (
        {"num_key_value_heads": 32, "intermediate_size": 11008, "rope_theta": 10000.0},
        TokenizerFacts({}, {"<s>": 1, "</s>": 2}, 32000, (), "gpl-3.0"),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_tensor_is_accepted(name: str, tmp_path: Path) -> None:
    fields, tokenizer = PUBLISHED[name]
    layout = {key: tuple(shape) for key, shape in json.loads((LAYOUTS / f"{name}.json").read_text())["tensors"].items()}
    names = named_tensors(layout, lambda key: ir_name(key, 23), name)
    shapes = {key: layout[published] for key, published in names.items()}
    raw = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32, "bos_token_id": 1, **fields}
    spec = read_spec(tmp_path, raw, shapes, tied=False, layers=24, tokenizer=tokenizer)
    vision, fusion, decoder = build_checked(spec, shapes, names, name)
    assert spec.vision.image_tokens == 577
    assert (spec.vision.image_size, spec.vision.encoder.output_size) == (336, 1024)
    assert {p.device.type for module in (vision, fusion, decoder) for p in module.parameters()} == {"meta"}
    used = sum(p.numel() for module in (vision, fusion, decoder) for p in module.parameters())
    dropped = {key for key in layout if ir_name(key, 23) is None}
    assert all("layers.23." in key or "post_layernorm" in key for key in dropped)
    assert sum(p.numel() for p in fusion.parameters()) == sum(
        int(np.prod(shape)) for key, shape in layout.items() if "prefusion" in key
    )
    assert used == sum(int(np.prod(shape)) for key, shape in layout.items() if key not in dropped)
    assert type(spec).from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    if name == "llavamini_llama31_8b":
        assert spec.prompt.stop_token_ids == (128001, 128008, 128009)
    else:
        assert spec.prompt.bos_token_id == 1


def our_prompt(model: VlmModel, frames: list[Float32], ids: list[int]) -> torch.Tensor:
    """What the language model sees, from our modules: masked positions are left out and put back raw."""
    assert model.fusion is not None
    tokens, texts = [], []
    raw = model.decoder.embed_tokens(torch.tensor(ids).clamp(min=0))
    valid = torch.tensor(ids) > 0
    for parts in frames:
        fused = model.fusion(model.vision(torch.from_numpy(parts)), raw[valid][None])[0]
        tokens.append(fused[: model.fusion.image_tokens])
        text = raw.clone()
        text[valid] = fused[model.fusion.image_tokens :]
        texts.append(text)
    place = ids.index(IMAGE)
    text = torch.stack(texts).mean(0)
    return torch.cat((text[:place], *tokens, text[place + 1 :]))


@pytest.mark.parametrize(
    ("kind", "size", "ratio"), [("llama", 1, 1), ("llama", 2, 1), ("llama", 8, 2), ("qwen", 1, 1), ("llama", 1, 2)]
)
@torch.no_grad()
def test_logits_equal_the_specification(kind: str, size: int, ratio: int, tmp_path: Path) -> None:
    """One image, and a video of three frames."""
    oracle = make_oracle(kind=kind, compressor_size=size, resolution_ratio=ratio)
    model = load(write_checkpoint(oracle, tmp_path, kind=kind))
    side, parts = CLIP["image_size"], 1 if ratio == 1 else 5
    generator = torch.Generator().manual_seed(1)
    frames = [torch.randn(parts, 3, side, side, generator=generator) for _ in range(3)]
    stacked = [frame.transpose(0, 1).reshape(1, 3, parts * side, side).numpy() for frame in frames]
    for count in (1, 3):
        expected = oracle.logits(frames[:count], IDS)
        embeddings = our_prompt(model, stacked[:count], IDS)
        logits, _ = model.decoder(embeddings[None], torch.arange(len(embeddings))[None])
        assert len(embeddings) == len(IDS) - 1 + count * size**2
        assert expected.std() > 0.5
        torch.testing.assert_close(logits[0], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_masked_positions_stay_raw_and_nobody_sees_them() -> None:
    """In the statement with masks: what our leaving them out relies on."""
    oracle = make_oracle(seed=3)
    parts = torch.randn(1, 3, 56, 56)
    _, text = oracle.fuse(parts, IDS)
    raw = oracle.text.get_input_embeddings()(torch.tensor(IDS).clamp(min=0))
    masked = torch.tensor(IDS) <= 0
    assert torch.equal(text[masked], raw[masked])
    assert (text[~masked] - raw[~masked]).abs().amax(-1).min() > 0.1
    before = oracle.fuse(parts, IDS)
    oracle.text.get_input_embeddings().weight[0] += 5
    after = oracle.fuse(parts, IDS)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1][~masked], after[1][~masked])


@pytest.mark.parametrize("size", [(90, 60), (60, 130), (56, 56)])
@pytest.mark.parametrize(("aspect", "ratio"), [("square", 1), ("pad", 1), ("square", 2)])
def test_pixels_equal_transformers(size: tuple[int, int], aspect: str, ratio: int, tmp_path: Path) -> None:
    oracle = make_oracle(resolution_ratio=ratio)
    spec = load(write_checkpoint(oracle, tmp_path, image_aspect_ratio=aspect)).spec.preprocess
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    processor = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    parts = [picture]
    if ratio == 2:
        width, height = size[0] // 2, size[1] // 2
        corners = [(x * width, y * height) for y in range(2) for x in range(2)]
        parts = [*(picture.crop((x, y, x + width, y + height)) for x, y in corners), picture]
    if aspect == "pad":
        square = Image.new("RGB", (max(size), max(size)), (122, 116, 104))
        square.paste(picture, ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))
        parts = [square]
    expected = np.concatenate([processor(part, return_tensors="np")["pixel_values"][0] for part in parts], axis=1)
    found = preprocess(np.asarray(picture), spec)
    assert found.shape == (1, 3, len(parts) * 56, 56)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_an_image_too_small_to_split_is_refused(tmp_path: Path) -> None:
    spec = load(write_checkpoint(make_oracle(resolution_ratio=2), tmp_path)).spec.preprocess
    with pytest.raises(InputError, match="too few to split"):
        prepare(Image.new("RGB", (1, 40)), spec)


@torch.no_grad()
def test_shards_of_mixed_dtypes_load(tmp_path: Path) -> None:
    """The published checkpoint: CLIP in float32, all else in bfloat16."""
    oracle = make_oracle()
    halve(oracle)
    folder = write_checkpoint(oracle, tmp_path)
    file = folder / "model-00001-of-00002.safetensors"
    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file)
    model = load(folder)
    assert model.fusion is not None
    dtypes = {name: value.dtype for name, value in model.vision.state_dict().items()}
    assert dtypes["encoder.vit.patch.weight"] == torch.float32
    assert dtypes["encoder.compressor.q_proj.weight"] == dtypes["projector.linear_1.weight"] == torch.bfloat16
    parts = torch.randn(1, 3, 56, 56)
    patches, compressed = oracle.visual(parts)
    torch.testing.assert_close(model.vision.float()(parts)[0], torch.cat((patches, compressed)), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_clip_beside_the_checkpoint_is_found(tmp_path: Path) -> None:
    oracle = make_oracle()
    folder = write_checkpoint(oracle, tmp_path / "model", mm_vision_tower="clip")
    (folder / "model.safetensors.index.json").unlink()
    tower = folder / "model-00002-of-00002.safetensors"
    tensors = {name.removeprefix("model.vision_tower.vision_tower."): v for name, v in load_file(tower).items()}
    tower.unlink()
    with pytest.raises(CheckpointError, match="no vision tower, and there is no folder 'clip'"):
        load(folder)
    (folder / "clip").mkdir()
    (folder / "clip" / "config.json").write_text("{}")
    save_file({**tensors, "logit_scale": torch.zeros(1)}, folder / "clip" / "model.safetensors")
    model = load(folder)
    parts = torch.randn(1, 3, 56, 56)
    torch.testing.assert_close(model.vision(parts)[0], torch.cat(oracle.visual(parts)), atol=1e-4, rtol=1e-4)
    assert len(model.sources) == 2


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, Tokenizer]:
    model = load(write_checkpoint(make_oracle(), tmp_path_factory.mktemp("mini")))
    return model.spec, Tokenizer(model.tokenizer_files["tokenizer.json"])


def test_the_prompt_is_llama_31s_without_the_header_of_an_answer(spec: tuple[ModelSpec, Tokenizer]) -> None:
    formatter = PromptFormatter(spec[0].prompt, spec[1])
    ids = formatter.start([*formatter.system_messages(None), Message("user", "What is this?", 1)])
    before, after = (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\nYou are a helpful language and vision assistant. You are able to understand the "
        "visual content that the user provides, and assist the user with a variety of tasks using natural language."
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
        "\nWhat is this?<|eot_id|>",
    )
    assert ids == [*spec[1].encode(before), IMAGE, *spec[1].encode(after)]
    assert ids.count(spec[1].encode("<|begin_of_text|>")[0]) == 1
    turns = [Message("user", "What is this?", 1), Message("assistant", "A cat."), Message("user", "Where?")]
    assert formatter.follow_up(turns) == spec[1].encode(
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhere?<|eot_id|>"
    )


def test_vicunas_prompt() -> None:
    messages = [
        {"role": "system", "content": VICUNA_SYSTEM},
        {"role": "user", "content": "<image>\nWhat?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Where?"},
    ]
    text = compile_template(VICUNA_TEMPLATE).render(messages=messages, add_generation_prompt=True)
    assert text == f"{VICUNA_SYSTEM} USER: <image>\nWhat? ASSISTANT: A cat.</s>USER: Where? ASSISTANT:"


def write_shard(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    change(tensors)
    (folder / "model.safetensors.index.json").unlink()
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compressor_size": 2}, "compressor_size is 2, but the tensors have 1"),
        ({"prefusion_layer_num": 4}, "prefusion_layer_num is 4, but the tensors have 2"),
        ({"resolution_ratio": 3}, "resolution_ratio 3 is not supported"),
        ({"mm_projector_type": "linear"}, "mm_projector_type 'linear'"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling 'yarn'"),
    ],
)
def test_what_contradicts_or_is_not_supported_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_checkpoint(make_oracle(), tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_a_processor_for_other_sizes_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(make_oracle(), tmp_path)
    (folder / "preprocessor_config.json").write_text('{"crop_size": {"height": 336, "width": 336}}')
    with pytest.raises(CheckpointError, match="image size is 336 here"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.compressor.attn.in_proj_weight", "in_proj_weight is missing"),
        ("model.prefusion_layers.1.mlp.up_proj.weight", "fusion.layers.1.mlp.up_proj.weight is missing"),
        ("model.surprise.weight", "unknown tensor surprise.weight"),
    ],
)
def test_missing_and_unknown_tensors_are_named(name: str, message: str, tmp_path: Path) -> None:
    folder = write_checkpoint(make_oracle(), tmp_path)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        if tensors.pop(name, None) is None:
            tensors[name] = torch.zeros(1)

    write_shard(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load(folder)
