"""InternVL against transformers, whole and piece by piece, in both layouts."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiled_models import (
    SHAPES,
    TEXT,
    Oracle,
    check_bundle,
    check_run,
    fast_tokenizer,
    randomise,
    without_video,
    write_processor,
)

from edgevlm import pipeline
from edgevlm.errors import CheckpointError
from edgevlm.models import load
from edgevlm.models.internvl import read_spec
from edgevlm.models.internvl_names import tensor_sources
from edgevlm.models.loading import HEAD, build_checked
from edgevlm.models.projector import pixel_shuffle
from edgevlm.models.tokenizer_files import TokenizerFacts
from edgevlm.recipe import Recipe

LAYOUT = Path(__file__).parents[1] / "data" / "layouts" / "hf_internvl_1b_q05.json"
#: As the checkpoints in transformers' layout have it.
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": [32, 32],
    "patch_size": [8, 8],
    "attention_bias": True,
}
ROPE = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}


def make(folder: Path, seed: int = 0) -> Oracle:
    """A checkpoint in transformers' layout, at most six tiles an image."""
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
    tokenizer = fast_tokenizer(
        folder, ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"], context_image_token="<IMG_CONTEXT>", **named
    )
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    config = InternVLConfig(
        vision_config=VISION,
        text_config={"model_type": "qwen2", **TEXT, "rope_parameters": ROPE},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    model = InternVLForConditionalGeneration(config)
    randomise(model, seed)
    model.save_pretrained(folder)
    images = GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, image_mean=list(MEAN), image_std=list(STD), max_patches=6
    )
    write_processor(folder, images, image_seq_length=4)
    return Oracle(folder, model, without_video(InternVLProcessor, images, tokenizer, image_seq_length=4))


@pytest.fixture(scope="module")
def internvl(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make(tmp_path_factory.mktemp("internvl"), seed=8)


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_logits_equal_transformers(sizes: list[tuple[int, int]], internvl: Oracle) -> None:
    check_run(internvl, load(internvl.folder), TEMPLATE, sizes)


@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_bundles_answer_like_transformers(form: Any, internvl: Oracle, tmp_path: Path) -> None:
    recipe = Recipe(model=str(internvl.folder), format=form, precision="fp32")
    pipeline.compile_recipe(recipe, tmp_path / "out", progress=lambda *_: None)
    check_bundle(internvl, tmp_path / "out", TEMPLATE)


def test_pixel_shuffle_equals_transformers() -> None:
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
    from transformers.models.internvl.modeling_internvl import InternVLModel

    features = torch.randn(2, 36, 5)
    expected = InternVLModel.pixel_shuffle(None, features.view(2, 6, 6, 5), 0.5)
    assert torch.equal(pixel_shuffle(features, 2), expected.reshape(2, 9, 20))
    expected = Idefics3Connector.pixel_shuffle(None, features, 3)
    assert torch.equal(pixel_shuffle(features, 3), expected)


def original_name(name: str) -> str:
    """A tensor name of transformers' layout as the original's; q, k and v apart."""
    for pattern, replacement in (
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.multi_modal_projector\.layer_norm\.", "mlp1.0."),
        (r"^model\.multi_modal_projector\.linear_1\.", "mlp1.1."),
        (r"^model\.multi_modal_projector\.linear_2\.", "mlp1.3."),
        (r"^model\.vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
        (r"^model\.vision_tower\.embeddings\.cls_token$", "vision_model.embeddings.class_embedding"),
        (r"^model\.vision_tower\.embeddings\.position_embeddings$", "vision_model.embeddings.position_embedding"),
        (r"^model\.vision_tower\.embeddings\.patch_embeddings\.projection", "vision_model.embeddings.patch_embedding"),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.lambda_([12])$", r".ls\1"),
        (r"\.attention\.projection_layer\.", ".attn.proj."),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def original_checkpoint(oracle: Oracle, folder: Path) -> Path:
    """The same weights as the original code would save them."""
    tensors = {}
    state = oracle.model.state_dict()
    for name, value in state.items():
        if match := re.fullmatch(r"model\.vision_tower\.encoder\.layer\.(\d+)\.attention\.q_proj\.(\w+)", name):
            fused = torch.cat([state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            tensors[f"vision_model.encoder.layers.{match[1]}.attn.qkv.{match[2]}"] = fused
        elif not re.search(r"vision_tower.*\.[kv]_proj\.", name):
            tensors[original_name(name)] = value.clone()
    save_file(tensors, folder / "model.safetensors")
    shutil.copy(oracle.folder / "tokenizer.json", folder)
    config = json.loads((oracle.folder / "config.json").read_text())
    vision = {**VISION, "image_size": 448, "patch_size": 8, "qkv_bias": True, "qk_normalization": False}
    text = {**config["text_config"], "rope_parameters": None, "rope_theta": 1e6}
    text["rope_scaling"] = {"type": "dynamic", "rope_type": "dynamic", "factor": 2.0}
    whole = {
        "model_type": "internvl_chat",
        "llm_config": text,
        "vision_config": {key: value for key, value in vision.items() if key != "attention_bias"},
        "force_image_size": 32,
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 6,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "use_thumbnail": True,
    }
    (folder / "config.json").write_text(json.dumps(whole))
    processor = {"feature_extractor_type": "CLIPFeatureExtractor", "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, "resample": 3, "size": 32}))
    return folder


def test_the_original_layout_holds_the_same_model(internvl: Oracle, tmp_path: Path) -> None:
    found, expected = load(original_checkpoint(internvl, tmp_path)), load(internvl.folder)
    assert found.spec.preprocess == expected.spec.preprocess
    assert (found.spec.vision, found.spec.decoder) == (expected.spec.vision, expected.spec.decoder)
    for ours, theirs in ((found.vision, expected.vision), (found.decoder, expected.decoder)):
        wanted = theirs.state_dict()
        assert ours.state_dict().keys() == wanted.keys()
        assert all(torch.equal(value, wanted[name]) for name, value in ours.state_dict().items())
    assert found.spec.prompt.default_system.startswith("你是书生")
    assert not expected.spec.prompt.default_system


def test_every_published_tensor_is_accepted(tmp_path: Path) -> None:
    """InternVL3-1B's names and shapes, with the numbers of its configuration; without biases on q, k and v."""
    published = {name: tuple(shape) for name, shape in json.loads(LAYOUT.read_text())["tensors"].items()}
    sources = tensor_sources(published)
    sources.pop(HEAD, None)
    shapes = {name: source.shape(published[source.published]) for name, source in sources.items()}
    raw = {
        "model_type": "internvl",
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "rope_theta": 1e6,
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        },
        "vision_config": {"image_size": [448, 448], "patch_size": [14, 14]},
        "image_seq_length": 256,
        "image_token_id": 151667,
    }
    added = {"<img>": 151665, "</img>": 151666, "<IMG_CONTEXT>": 151667, "<|im_start|>": 151644, "<|im_end|>": 151645}
    tokenizer = TokenizerFacts({}, added, 151674, (151645,), "unknown")
    spec = read_spec(tmp_path, raw, shapes["decoder.embed_tokens.weight"][0], tied=True, tokenizer=tokenizer)
    names = {name: source.published for name, source in sources.items()}
    vision, decoder = build_checked(spec, shapes, names, "published")
    assert spec.vision.image_tokens == 256
    assert spec.decoder.max_position_embeddings == 32768
    assert {parameter.device.type for parameter in [*vision.parameters(), *decoder.parameters()]} == {"meta"}


def test_names_before_transformers_4_52_are_the_same_tensors() -> None:
    """The models specification, 4.2; a buffer that older files hold is dropped."""
    published = {name: tuple(shape) for name, shape in json.loads(LAYOUT.read_text())["tensors"].items()}
    older = {
        re.sub(
            r"^lm_head", "language_model.lm_head", re.sub(r"^language_model\.", "language_model.model.", name)
        ): shape
        for name, shape in ((name.removeprefix("model."), shape) for name, shape in published.items())
    }
    assert older.keys().isdisjoint(published)
    older["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = (32,)
    assert tensor_sources(older).keys() == tensor_sources(published).keys()


def copied(oracle: Oracle, folder: Path) -> Path:
    shutil.copytree(oracle.folder, folder, dirs_exist_ok=True)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_config": {**VISION, "use_qk_norm": True}}, "use_qk_norm True is not supported"),
        ({"vision_config": {**VISION, "norm_type": "rms_norm"}}, "norm_type 'rms_norm'"),
        ({"vision_config": {**VISION, "image_size": [32, 64]}}, "is not a square"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy 'full'"),
        ({"downsample_ratio": 0.3}, "downsample_ratio 0.3 does not divide"),
        ({"image_seq_length": 16}, "image_seq_length 16 is not supported"),
        ({"image_token_id": 3}, "image_token_id 3 is not supported"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    change: dict[str, Any], message: str, internvl: Oracle, tmp_path: Path
) -> None:
    folder = copied(internvl, tmp_path)
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("template", "Hermes-2", "template 'Hermes-2'"), ("use_thumbnail", False, "use_thumbnail False")],
)
def test_original_models_that_differ_are_refused_by_name(
    field: str, value: Any, message: str, internvl: Oracle, tmp_path: Path
) -> None:
    folder = original_checkpoint(internvl, tmp_path)
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, field: value}))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_processor_files_must_agree(internvl: Oracle, tmp_path: Path) -> None:
    folder = copied(internvl, tmp_path)
    data = json.loads((folder / "processor_config.json").read_text())
    for change, message in (
        ({"image_seq_length": 256}, "image_seq_length is 256 here, but config.json amounts to 4"),
        ({"image_processor": {**data["image_processor"], "size": {"height": 448, "width": 448}}}, "size is"),
        ({"image_processor": {**data["image_processor"], "min_patches": 9}}, "min_patches 9 is above"),
    ):
        (folder / "processor_config.json").write_text(json.dumps({**data, **change}))
        with pytest.raises(CheckpointError, match=message):
            load(folder)


def test_tensors_of_two_layouts_at_once_are_refused(internvl: Oracle, tmp_path: Path) -> None:
    folder = copied(internvl, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    extra = {"mlp1.0.weight": torch.zeros(128)}
    save_file({**tensors, **extra}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="the same layer"):
        load(folder)
