"""LLaVA-NeXT against transformers, whole and piece by piece."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_models import LINES, VISION, edit, llama_tokenizer, older_hub_name, same_model, text_config
from llava_models import SIZE as TILE
from llava_models import TEMPLATES as ALIKE
from PIL import Image
from safetensors.torch import load_file, save_file
from tiled_models import QUESTIONS, SHAPES, Oracle, check_bundle, check_run, fast_tokenizer, pictures, randomise

from edgevlm import pipeline
from edgevlm.errors import CheckpointError, EdgeVLMError
from edgevlm.exporters.gguf.mmproj import supports as supports_mmproj
from edgevlm.models import load
from edgevlm.models.anyres import ir_name, newline_name
from edgevlm.models.conversations import LLAMA31_SYSTEM
from edgevlm.models.conversations import VICUNA_SYSTEM as LLAVA15_SYSTEM
from edgevlm.models.llava_next import VICUNA_SYSTEM, read_encoder, read_spec
from edgevlm.models.loading import build_checked, named_tensors
from edgevlm.models.tokenizer_files import TokenizerFacts
from edgevlm.preprocess import normalise, prepare
from edgevlm.prompt import Message, PromptFormatter
from edgevlm.recipe import Recipe
from edgevlm.tokenizer import Tokenizer

LAYOUTS = Path(__file__).parents[1] / "data" / "layouts"
#: Two to four tiles, as published.
PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE], [3 * TILE, TILE], [TILE, 3 * TILE]]
LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
#: The prompts of the model cards.
TEMPLATES = {
    **ALIKE,
    "llama": ALIKE["llama"].replace(LLAVA15_SYSTEM, VICUNA_SYSTEM),
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    + LLAMA31_SYSTEM
    + "<|eot_id|>{% for message in messages %}<|start_header_id|>user<|end_header_id|>\n\n"
    + LINES
    + "<|eot_id|>{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
}


def make(folder: Path, kind: str, *, seed: int = 0, tower: str = "clip") -> Oracle:
    """A checkpoint around one of the decoders that there are, as transformers writes it."""
    if kind == "qwen2":
        tokenizer = fast_tokenizer(folder, ())
    else:
        tokenizer = llama_tokenizer(folder, *(LLAMA3 if kind == "llama3" else ()))
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    strategy = "default" if tower == "clip" else "full"
    config = LlavaNextConfig(
        vision_config={"model_type": f"{tower}_vision_model", **VISION},
        text_config=text_config(kind.removesuffix("3")),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=False,
    )
    model = LlavaNextForConditionalGeneration(config)
    randomise(model, seed)
    model.save_pretrained(folder)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, image_grid_pinpoints=PINPOINTS
    )
    extra = int(tower == "clip")
    processor = LlavaNextProcessor(images, tokenizer, VISION["patch_size"], strategy, num_additional_image_tokens=extra)
    processor.save_pretrained(folder)
    return Oracle(folder, model, processor)


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make(tmp_path_factory.mktemp("mistral"), "mistral", seed=3)


def test_pixels_equal_transformers(mistral: Oracle) -> None:
    spec = load(mistral.folder).spec.preprocess
    for pixels in pictures([size for sizes in SHAPES.values() for size in sizes]):
        image = Image.fromarray(pixels)
        expected = mistral.processor.image_processor(image, return_tensors="np")["pixel_values"][0]
        for images in (1, 2):
            tiles = prepare(image, spec, images).tiles
            np.testing.assert_array_equal(normalise(tiles, spec), expected, err_msg=f"{pixels.shape}")


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_logits_equal_transformers(sizes: list[tuple[int, int]], mistral: Oracle) -> None:
    check_run(mistral, load(mistral.folder), TEMPLATES["mistral"], sizes)


@pytest.mark.parametrize(("kind", "tower"), [("llama", "clip"), ("llama3", "clip"), ("qwen2", "siglip")])
def test_other_decoders_and_towers_equal_transformers(kind: str, tower: str, tmp_path: Path) -> None:
    oracle = make(tmp_path, kind, tower=tower)
    check_run(oracle, load(tmp_path), TEMPLATES[kind], QUESTIONS["two"])


@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_bundles_answer_like_transformers(form: Any, mistral: Oracle, tmp_path: Path) -> None:
    recipe = Recipe(model=str(mistral.folder), format=form, precision="fp32")
    bundle = pipeline.compile_recipe(recipe, tmp_path / "out", progress=lambda *_: None)
    assert bundle.find("image_newline") is not None
    check_bundle(mistral, tmp_path / "out", TEMPLATES["mistral"])


def test_later_turns_and_a_system_text_stand_as_mistral_has_them(mistral: Oracle) -> None:
    model = load(mistral.folder)
    tokenizer = Tokenizer(model.tokenizer_files["tokenizer.json"])
    formatter = PromptFormatter(model.spec.prompt, tokenizer)
    turns = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
    assert formatter.follow_up(turns) == tokenizer.encode("</s>[INST] three [/INST]")
    asked = [*formatter.system_messages("Be brief."), turns[0]]
    begun = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\none [/INST]"
    assert formatter.start(asked) == tokenizer.encode(begun)


def copied(oracle: Oracle, folder: Path) -> Path:
    shutil.copytree(oracle.folder, folder, dirs_exist_ok=True)
    return folder


def test_older_and_current_names_hold_the_same_model(mistral: Oracle, tmp_path: Path) -> None:
    folder, expected = copied(mistral, tmp_path), load(mistral.folder)
    tensors = dict(mistral.model.state_dict())
    assert {"model.image_newline", "model.language_model.norm.weight", "lm_head.weight"} < tensors.keys()
    older = {older_hub_name(name): value for name, value in tensors.items()}
    assert {"image_newline", "language_model.model.norm.weight", "language_model.lm_head.weight"} < older.keys()
    for layout in (tensors, older):
        save_file(layout, folder / "model.safetensors")
        found = load(folder)
        same_model(found, expected)
        assert found.image_newline is not None
        assert torch.equal(found.image_newline, tensors["model.image_newline"])


#: What the hub's `config.json` says of the decoder; what it leaves out is the default.
PUBLISHED = {
    "mistral": {
        "model_type": "mistral",
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": None,
    },
    "vicuna": {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_every_published_tensor_is_accepted(kind: str, tmp_path: Path) -> None:
    """Of the 7B models: Mistral's under the hub's names, Vicuna's under those of transformers 5."""
    if kind == "mistral":
        layout = json.loads((LAYOUTS / "hf_llava_next_mistral_7b.json").read_text())
    else:
        layout = json.loads((LAYOUTS / "hf_llava15_7b.json").read_text()) | {"model.image_newline": [4096]}
    published = {name: tuple(shape) for name, shape in layout.items()}
    raw = {
        "model_type": "llava_next",
        "image_token_index": 32000,
        "use_image_newline_parameter": True,
        "text_config": PUBLISHED[kind],
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": 768, "vocab_size": 32000},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    encoder = read_encoder(raw, "config.json")
    names = named_tensors(published, lambda name: ir_name(name, encoder), "published")
    shapes = {name: published[source] for name, source in names.items()}
    tokenizer = TokenizerFacts({}, {"<s>": 1, "</s>": 2, "<image>": 32000}, 32002, (2,), "apache-2.0")
    spec = read_spec(tmp_path, raw, shapes, tied=False, tokenizer=tokenizer)
    vision, decoder = build_checked(spec, shapes, names, "published")
    assert {parameter.device.type for parameter in [*vision.parameters(), *decoder.parameters()]} == {"meta"}
    assert newline_name(published, 4096, "published") in ("image_newline", "model.image_newline")
    assert (spec.vision.image_size, spec.vision.image_tokens, spec.decoder.vocab_size) == (336, 576, 32064)
    assert spec.decoder.architecture == "llama"
    assert (spec.prompt.bos_token_id, spec.prompt.stop_token_ids) == (1, (2,))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"vision_feature_select_strategy": "full"}, "'full' keeps CLIP's class token"),
        ("config.json", {"vision_feature_layer": [-2, -1]}, "vision_feature_layer"),
        ("config.json", {"image_grid_pinpoints": [[32, 40]]}, "image_grid_pinpoints"),
        ("config.json", {"image_token_index": 5}, "image_token_index is 5, but <image> is token"),
        ("config.json", {"use_image_newline_parameter": False}, "use_image_newline_parameter False"),
        ("config.json", {"projector_hidden_act": "relu"}, "projector_hidden_act 'relu'"),
        ("config.json", {"text_config": {"model_type": "granite"}}, "text model type 'granite' is not supported"),
        ("processor_config.json", {"patch_size": 4}, "patch_size is 4 here, .* amounts to 8"),
        ("processor_config.json", {"num_additional_image_tokens": 0}, "num_additional_image_tokens is 0 here"),
        ("processor_config.json", {"image_processor": {"crop_size": 16}}, "the image size is 16 here"),
        (
            "processor_config.json",
            {"image_processor": {"image_grid_pinpoints": [[32, 64]]}},
            "image_grid_pinpoints is .* amounts to",
        ),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    file: str, change: dict[str, Any], message: str, mistral: Oracle, tmp_path: Path
) -> None:
    folder = copied(mistral, tmp_path)
    edit(folder / file, **change)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_a_sliding_window_is_refused_even_where_it_is_not_written(mistral: Oracle, tmp_path: Path) -> None:
    """Absent, transformers takes one of 4096."""
    folder = copied(mistral, tmp_path)
    text = json.loads((folder / "config.json").read_text())["text_config"]
    assert text.pop("sliding_window") is None
    for config, window in ((text | {"sliding_window": 128}, 128), (text, 4096)):
        edit(folder / "config.json", text_config=config)
        with pytest.raises(CheckpointError, match=f"sliding_window {window} is not supported"):
            load(folder)


def test_chatml_around_llama_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "llama")
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 1102, "content": "<|im_start|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="Llama decoder with ChatML"):
        load(tmp_path)


def test_missing_and_unknown_tensors_are_named(mistral: Oracle, tmp_path: Path) -> None:
    folder = copied(mistral, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    newline = tensors["image_newline"]
    for changed, message in (
        ({name: value for name, value in tensors.items() if name != "image_newline"}, "image_newline is missing"),
        ({**tensors, "image_newline": torch.zeros(63)}, r"shape \[63\] instead of \[64\]"),
        ({**tensors, "model.image_newline": newline.clone()}, "image_newline and model.image_newline are the same"),
        ({**tensors, "model.image_divider": newline.clone()}, "unknown tensor model.image_divider"),
    ):
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load(folder)


def test_an_mmproj_is_refused_before_any_work(mistral: Oracle, tmp_path: Path) -> None:
    """Its graph would show llama.cpp one square, as LLaVA-1.5's."""
    assert "without --mmproj" in str(supports_mmproj(load(mistral.folder).spec))
    recipe = Recipe(model=str(mistral.folder), format="gguf", precision="fp32", mmproj=True)
    with pytest.raises(EdgeVLMError, match="no graph for this vision side"):
        pipeline.compile_recipe(recipe, tmp_path / "out", progress=lambda *_: None)
    assert not (tmp_path / "out").exists()
