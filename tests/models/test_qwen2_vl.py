"""Qwen2-VL against transformers: both layouts, images of any shape, several of them, turns, bundles of both formats."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from edgevlm import models, pipeline, session
from edgevlm.assembly import ImageAssembler
from edgevlm.bundle import open_bundle
from edgevlm.context import image_parts, segments, splice
from edgevlm.errors import CheckpointError
from edgevlm.models import qwen2_vl
from edgevlm.models.loading import build_checked, named_tensors
from edgevlm.models.tokenizer_files import TokenizerFacts
from edgevlm.models.vlm import VlmModel
from edgevlm.preprocess import normalise, prepare, preprocess
from edgevlm.prompt import IMAGE_PLACEHOLDER, Message, PromptFormatter
from edgevlm.recipe import Recipe
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.onnxruntime import OnnxRuntimeVision
from edgevlm.runtimes.openvino import OpenVinoVision
from edgevlm.runtimes.torch import TorchDecoder, TorchVision
from edgevlm.session import Session
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.tokenizer import build_tokenizer, save_tokenizer

VISION_TOKENS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
IMAGE_ID, END, ROWS = 1025, 1022, 1040
SECTIONS = [2, 3, 3]
TEXT = {
    "vocab_size": ROWS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": SECTIONS},
    "eos_token_id": END,
}
VISION = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
MOST = 12 * 28 * 28
PROCESSOR = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=MOST)
TOKENS = 12


def picture(width: int, height: int) -> NDArray[np.uint8]:
    """Large blocks of colour, so that images differ after scaling."""
    blocks = np.random.default_rng(width).integers(0, 256, (5, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))


LANDSCAPE, PORTRAIT = picture(150, 90), picture(60, 130)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint as transformers writes it, with tokenizer and processor."""
    out = tmp_path_factory.mktemp("qwen2-vl") / "tiny"
    # llama.cpp keeps keys and values in float16; with this seed no two tokens are so nearly equal that it matters.
    torch.manual_seed(2)
    config = Qwen2VLConfig(text_config=TEXT, vision_config=VISION, image_token_id=IMAGE_ID, vision_start_token_id=1024)
    model = Qwen2VLForConditionalGeneration(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            # Attention sharp and strong enough for image and question to decide the answer.
            scale = 4 if name.endswith(("q_proj.weight", "v_proj.weight", "attn.qkv.weight")) else 1
            parameter.normal_(std=scale * parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            parameter.normal_(std=0.1)
    model.save_pretrained(out)
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in VISION_TOKENS])
    save_tokenizer(tokenizer, out, 512)
    PROCESSOR.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def original(folder: Path) -> Any:
    return Qwen2VLForConditionalGeneration.from_pretrained(folder).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model(folder: Path) -> VlmModel:
    return models.load(folder)


@pytest.fixture(scope="module")
def compiled(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A verified bundle at full precision, made once a format."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            recipe = Recipe.model_validate({"model": str(folder), "format": kind, "precision": "fp32"})
            made[kind] = pipeline.compile_recipe(
                recipe, tmp_path_factory.mktemp("bundles") / kind, progress=lambda *_: None
            ).path
        return made[kind]

    return make


@pytest.fixture
def reference(model: VlmModel) -> Iterator[Session]:
    """The model in torch, behind the session."""
    tokenizer = Tokenizer(model.tokenizer_files["tokenizer.json"])
    with Session(model.spec, tokenizer, TorchVision(model), TorchDecoder(model, EngineOptions())) as opened:
        yield opened


def their_inputs(ids: list[int], images: list[NDArray[np.uint8]]) -> dict[str, torch.Tensor]:
    """Ids with one image token for each embedding, and the images as transformers prepares them."""
    tokens: list[int] = []
    processed = [PROCESSOR(Image.fromarray(image), return_tensors="pt") for image in images]
    remaining = iter(processed)
    for token in ids:
        count = int(next(remaining)["image_grid_thw"].prod()) // 4 if token == IMAGE_PLACEHOLDER else 1
        tokens += [IMAGE_ID if token == IMAGE_PLACEHOLDER else token] * count
    inputs = {
        "input_ids": torch.tensor([tokens]),
        "attention_mask": torch.ones(1, len(tokens), dtype=torch.long),
        "mm_token_type_ids": torch.tensor([[int(token == IMAGE_ID) for token in tokens]]),
    }
    for name in ("pixel_values", "image_grid_thw") if images else ():
        inputs[name] = torch.cat([one[name] for one in processed])
    return inputs


def prompt_ids(model: VlmModel, text: str, images: int) -> list[int]:
    formatter = PromptFormatter(model.spec.prompt, Tokenizer(model.tokenizer_files["tokenizer.json"]))
    return formatter.start([*formatter.system_messages(None), Message("user", text, images)])


QUESTIONS = {
    "landscape": ("What is this?", [LANDSCAPE]),
    "portrait": ("How many shapes are red?", [PORTRAIT]),
    "two images": ("Which is larger?", [PORTRAIT, LANDSCAPE]),
    "no image": ("Hello there.", []),
}
questions = pytest.mark.parametrize(("text", "images"), QUESTIONS.values(), ids=QUESTIONS)


def test_the_prompt_is_the_published_one(model: VlmModel) -> None:
    tokenizer = Tokenizer(model.tokenizer_files["tokenizer.json"])
    expected = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|>"
        "<|vision_end|><|vision_start|><|image_pad|><|vision_end|>Compare.<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = [IMAGE_ID if token == IMAGE_PLACEHOLDER else token for token in prompt_ids(model, "Compare.", 2)]
    assert ids == tokenizer.encode(expected)


@questions
def test_logits_equal_those_of_transformers(
    original: Any, model: VlmModel, text: str, images: list[NDArray[np.uint8]]
) -> None:
    vision, decoder = TorchVision(model), TorchDecoder(model, EngineOptions())
    assembler = ImageAssembler(model.spec, Tokenizer(model.tokenizer_files["tokenizer.json"]))
    prepared = [prepare(Image.fromarray(image), model.spec.preprocess) for image in images]
    parts = [
        image_parts(assembler.pieces(vision.encode(normalise(one.tiles, model.spec.preprocess)), one), one.key)
        for one in prepared
    ]
    ids = prompt_ids(model, text, len(images))
    inputs = their_inputs(ids, images)
    assert len(ids) - len(images) + sum(map(assembler.positions, prepared)) == inputs["input_ids"].shape[1]
    logits = decoder.prefill(segments(splice(ids, parts)))
    np.testing.assert_allclose(logits, original(**inputs).logits[0, -1].numpy(), atol=1e-4)


def their_answer(original: Any, ids: list[int], images: list[NDArray[np.uint8]]) -> list[int]:
    inputs = their_inputs(ids, images)
    made = original.generate(**inputs, do_sample=False, max_new_tokens=TOKENS, eos_token_id=END, pad_token_id=END)
    return [int(token) for token in made[0, inputs["input_ids"].shape[1] :] if token != END]


@questions
@pytest.mark.parametrize("kind", ["onnx", "gguf"])
def test_bundles_answer_as_transformers_does(
    original: Any,
    model: VlmModel,
    compiled: Callable[[str], Path],
    kind: str,
    text: str,
    images: list[NDArray[np.uint8]],
) -> None:
    expected = their_answer(original, prompt_ids(model, text, len(images)), images)
    assert len(set(expected)) > 2, "an answer that says nothing proves nothing"
    with session.load(compiled(kind), vision_engine="onnxruntime", threads=1) as opened:
        answer = opened.generate(list(images) or None, text, max_tokens=TOKENS)
    assert list(answer.token_ids) == expected


@pytest.mark.parametrize("kind", ["torch", "onnx", "gguf"])
def test_a_conversation_goes_on_behind_its_images(
    original: Any, model: VlmModel, reference: Session, compiled: Callable[[str], Path], kind: str
) -> None:
    """Three turns with an image in the first and the last; only what is new is prefilled."""
    opened = reference if kind == "torch" else session.load(compiled(kind), vision_engine="onnxruntime", threads=1)
    turns = (("What is this?", PORTRAIT), ("And?", None), ("Compare.", LANDSCAPE))
    ids: list[int] = []
    images: list[NDArray[np.uint8]] = []
    with opened:
        chat = opened.chat()
        for text, image in turns:
            known = len(ids)
            if known:
                messages = [Message("assistant", "said"), Message("user", text, int(image is not None))]
                ids += opened.formatter.follow_up(messages)
            else:
                ids += prompt_ids(model, text, 1)
            images += [] if image is None else [image]
            answer = chat.ask(text, image, max_tokens=TOKENS)
            assert list(answer.token_ids) == their_answer(original, ids, images), text
            assert (answer.stats.reused_tokens > 0) == (known > 0)
            ids += answer.token_ids


def test_asking_again_about_the_same_image_reuses_it(reference: Session) -> None:
    first = reference.generate(PORTRAIT, "What is this?", max_tokens=TOKENS)
    other = reference.generate(PORTRAIT, "Where?", max_tokens=TOKENS)
    again = reference.generate(PORTRAIT, "What is this?", max_tokens=TOKENS)
    fresh = reference.generate(PORTRAIT, "What is this?", max_tokens=TOKENS, reuse=False)
    assert other.stats.reused_tokens > first.stats.image_tokens
    assert first.token_ids == again.token_ids == fresh.token_ids


def test_openvino_sees_what_onnxruntime_sees(model: VlmModel, compiled: Callable[[str], Path]) -> None:
    path, options = open_bundle(compiled("onnx")).artifact("vision", ".onnx"), EngineOptions(threads=1)
    ours, theirs = OpenVinoVision(path, model.spec, options), OnnxRuntimeVision(path, model.spec, options)
    tolerance = 1e-4 if ours.precision == "f32" else 0.2
    for image in (LANDSCAPE, PORTRAIT):
        pixels = preprocess(image, model.spec.preprocess)
        np.testing.assert_allclose(ours.encode(pixels), theirs.encode(pixels), atol=tolerance)


def test_the_bundle_describes_its_preprocessing_to_transformers(compiled: Callable[[str], Path]) -> None:
    processor = Qwen2VLImageProcessorPil.from_pretrained(compiled("onnx"))
    for image in (LANDSCAPE, PORTRAIT):
        ours, theirs = (one(Image.fromarray(image), return_tensors="np") for one in (processor, PROCESSOR))
        np.testing.assert_array_equal(ours["pixel_values"], theirs["pixel_values"])
    config = Qwen2VLConfig.from_pretrained(compiled("onnx"))
    assert config.text_config.rope_parameters["mrope_section"] == SECTIONS
    assert config.image_token_id == IMAGE_ID


def hub_layout(folder: Path, out: Path) -> None:
    """Rewrite a checkpoint as the hub's are: flat numbers, older names, bounds by their older keys."""
    shutil.copytree(folder, out)
    renamed = {}
    for name, tensor in load_file(out / "model.safetensors").items():
        name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        renamed[name] = tensor.contiguous()
    save_file(renamed, out / "model.safetensors")
    text = {key: value for key, value in TEXT.items() if key != "rope_parameters"}
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        **text,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": 2,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": SECTIONS},
        "image_token_id": IMAGE_ID,
        "vision_config": {**VISION, "in_chans": 3, "spatial_patch_size": 14, "patch_size": 14},
    }
    (out / "config.json").write_text(json.dumps(config))
    processor = {"min_pixels": 56 * 56, "max_pixels": MOST, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    (out / "preprocessor_config.json").write_text(json.dumps(processor))


def test_the_hub_layout_gives_the_same_model(folder: Path, model: VlmModel, tmp_path: Path) -> None:
    hub_layout(folder, tmp_path / "tiny")
    hub = models.load(tmp_path / "tiny")
    assert hub.spec == model.spec
    for ours, theirs in ((hub.vision, model.vision), (hub.decoder, model.decoder)):
        state = theirs.state_dict()
        assert ours.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


PUBLISHED_2B = {
    "model_type": "qwen2_vl",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "image_token_id": 151655,
    "eos_token_id": 151645,
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "hidden_size": 1536,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    },
}


def test_names_and_shapes_of_the_2b_model_are_those_of_transformers(tmp_path: Path) -> None:
    with torch.device("meta"):
        theirs = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**PUBLISHED_2B)).state_dict()
    shapes = {name: tuple(value.shape) for name, value in theirs.items() if name != "lm_head.weight"}
    names = named_tensors(shapes, qwen2_vl.ir_name, "meta")
    added = dict(zip(VISION_TOKENS, (151652, 151655, 151653), strict=True))
    facts = TokenizerFacts({}, added, 151657, (), "apache-2.0")
    spec = qwen2_vl.read_spec(tmp_path, PUBLISHED_2B, 151936, tied=True, tokenizer=facts)
    found = {name: shapes[published] for name, published in names.items()}
    assert found[qwen2_vl._KERNEL] == (1280, 3, 2, 14, 14)
    found[qwen2_vl._KERNEL] = (1280, 1176)
    build_checked(spec, found, names, "meta")
    assert (spec.decoder.head_dim, spec.decoder.rope_sections) == (128, (16, 24, 24))
    assert spec.vision.image_tokens == 35**2


def test_the_published_limit_of_pixels_gives_way_and_resolution_moves_it(folder: Path, tmp_path: Path) -> None:
    hub_layout(folder, tmp_path / "tiny")
    (tmp_path / "tiny" / "preprocessor_config.json").write_text(json.dumps({"max_pixels": 12845056}))
    spec = models.load(tmp_path / "tiny").spec
    assert spec.preprocess.patches is not None
    assert spec.preprocess.patches.max_pixels == 1280 * 28 * 28
    assert "12845056" in spec.notes[0]
    moved = models.load(tmp_path / "tiny", resolution=224).spec
    assert moved.preprocess.patches is not None
    assert moved.preprocess.patches.max_pixels == 224**2
    assert moved.vision.image_tokens == 64


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("config.json", {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 4]}}, "mrope_section"),
        ("config.json", {"rope_scaling": {"type": "yarn", "mrope_section": SECTIONS}}, "yarn|type"),
        ("config.json", {"rope_scaling": None}, "mrope_section"),
        ("config.json", {"use_sliding_window": True}, "use_sliding_window"),
        ("config.json", {"image_token_id": 7}, "image_token_id"),
        ("config.json", {"vision_config": {**VISION, "hidden_act": "gelu"}}, "hidden_act"),
        ("config.json", {"vision_config": {**VISION, "depth": 3}}, "blocks.2"),
        ("config.json", {"vision_config": None}, "depth"),
        ("preprocessor_config.json", {"merge_size": 4}, "merge_size"),
        ("preprocessor_config.json", {"do_normalize": False}, "do_normalize"),
        ("preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor"),
        ("preprocessor_config.json", {"min_pixels": MOST + 1}, "pixels"),
    ],
)
def test_what_contradicts_or_is_not_supported_is_named(
    folder: Path, tmp_path: Path, file: str, change: dict[str, Any], reason: str
) -> None:
    hub_layout(folder, tmp_path / "tiny")
    path = tmp_path / "tiny" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=reason):
        models.load(tmp_path / "tiny")


def test_a_tokenizer_without_image_tokens_is_refused(folder: Path, tmp_path: Path) -> None:
    hub_layout(folder, tmp_path / "tiny")
    build_tokenizer().save(str(tmp_path / "tiny" / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"image_pad"):
        models.load(tmp_path / "tiny")


@pytest.mark.parametrize(("model_type", "reason"), [("qwen2_5_vl", "window"), ("qwen3_vl", "DeepStack")])
def test_its_successors_are_refused_by_name(tmp_path: Path, model_type: str, reason: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(CheckpointError, match=reason) as refused:
        models.load(tmp_path)
    assert model_type in str(refused.value)


def test_a_tied_head_is_recognised_by_its_data(folder: Path, tmp_path: Path) -> None:
    hub_layout(folder, tmp_path / "tiny")
    file = tmp_path / "tiny" / "model.safetensors"
    tensors = load_file(file)
    assert not models.load(tmp_path / "tiny").spec.decoder.tied_embeddings
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    tied = models.load(tmp_path / "tiny").spec.decoder
    assert tied.tied_embeddings
    assert replace(tied, tied_embeddings=False) == models.load(folder).spec.decoder
