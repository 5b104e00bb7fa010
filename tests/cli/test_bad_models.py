"""Bad models of every family through the command line: one clear message, exit code 2, nothing written.

Each row takes a good checkpoint (tiny, in its published layout), spoils one thing, and names what the message must say.
A field that changes the computation and is not supported must be named; silence would be a bundle that answers wrongly.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from refusals import Refused, refusal, refused_export

from edgevlm.models import load
from edgevlm.zoo.synth import synth

#: Checkpoints by the family that loads them.
SYNTHETIC = {
    "fastvlm": "fastvlm-0.5b",
    "tinygptv": "tinygpt-v",
    "llava_mini": "llava-mini-8b",
    "llava": "llava-1.5-7b",
    "llava_onevision": "llava-onevision-0.5b",
    "idefics3": "smolvlm-256m",
    "internvl": "internvl3-1b",
    "qwen2_vl": "qwen2-vl-2b",
}
CONFIG, IMAGES, PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The good checkpoint of a family, written once."""
    root, written = tmp_path_factory.mktemp("checkpoints"), dict[str, Path]()

    def get(family: str) -> Path:
        if family not in written:
            synth(SYNTHETIC[family], root / family, tiny=True)
            written[family] = root / family
        return written[family]

    return get


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    return refusal(capsys)


def copied(checkpoint: Path, folder: Path) -> Path:
    return Path(shutil.copytree(checkpoint, folder / "checkpoint"))


def edit(file: Path, section: str, changes: dict[str, Any]) -> None:
    """Change fields of a JSON file, or of an object in it; None takes one away. An absent file begins empty."""
    data = json.loads(file.read_text()) if file.is_file() else {}
    target = data.setdefault(section, {}) if section else data
    target.update(changes)
    for field in [field for field, value in changes.items() if value is None]:
        del target[field]
    file.write_text(json.dumps(data))


@pytest.mark.parametrize("family", SYNTHETIC)
def test_what_the_rows_below_spoil_is_good(family: str, checkpoints: Callable[[str], Path]) -> None:
    assert load(checkpoints(family)).spec.family == family


#: Nested `text_config`, or the top of the file.
TEXTS = {"llava": "text_config", "llava_onevision": "text_config", "idefics3": "text_config", "internvl": "text_config"}
FLAT = ("fastvlm", "llava_mini", "qwen2_vl")
#: What no decoder here computes, in any family.
TEXT_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"hidden_act": "relu"}, "hidden_act 'relu'"),
    ({"use_sliding_window": True, "sliding_window": 128}, "use_sliding_window True"),
    ({"mlp_bias": True}, "mlp_bias True"),
    ({"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4}"),
    ({"rope_interleaved": True}, "rope_interleaved True"),
    ({"qk_layer_norms": True}, "qk_layer_norms True"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    ({"num_key_value_heads": 3}, "num_key_value_heads does not divide"),
]


@pytest.mark.parametrize(("changes", "message"), TEXT_FIELDS, ids=[message for _, message in TEXT_FIELDS])
@pytest.mark.parametrize("family", [*TEXTS, *FLAT])
def test_a_text_that_computes_otherwise_is_named(
    family: str,
    changes: dict[str, Any],
    message: str,
    refused: Refused,
    checkpoints: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    checkpoint = copied(checkpoints(family), tmp_path)
    edit(checkpoint / CONFIG, TEXTS.get(family, ""), changes)
    assert message in refused_export(refused, checkpoint)


#: Family, file, object in it, changes, and what the message says.
ROWS: list[tuple[str, str, str, dict[str, Any], str]] = [
    # Rotary positions: other scalings, nested forms, and two forms of which one would be ignored.
    ("fastvlm", CONFIG, "", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope scaling 'yarn'"),
    ("llava", CONFIG, "text_config", {"rope_parameters": {"rope_type": "linear", "factor": 2}}, "scaling 'linear'"),
    ("llava_mini", CONFIG, "", {"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, "rope scaling 'dynamic'"),
    ("idefics3", CONFIG, "text_config", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
    ("internvl", CONFIG, "text_config", {"rope_scaling": {"mrope_section": [4, 6, 6]}}, "mrope_section [4, 6, 6]"),
    (
        "llava",
        CONFIG,
        "text_config",
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2}},
        "rope scaling 'linear'",
    ),
    (
        "qwen2_vl",
        CONFIG,
        "",
        {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6], "mrope_interleaved": True}},
        "mrope_interleaved",
    ),
    ("qwen2_vl", CONFIG, "", {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 5]}}, "mrope_section"),
    # Windows and biases that only some decoders have.
    ("llava", CONFIG, "text_config", {"sliding_window": 128}, "sliding_window 128"),
    ("llava_mini", CONFIG, "", {"attention_bias": True}, "attention_bias True"),
    ("llava", CONFIG, "text_config", {"attention_bias": True}, "attention_bias True"),
    ("llava", CONFIG, "text_config", {"model_type": "gemma"}, "text model type 'gemma'"),
    ("llava", CONFIG, "", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("fastvlm", CONFIG, "", {"quantization": {"group_size": 64, "bits": 4}}, "quantization {"),
    # Towers.
    ("llava", CONFIG, "vision_config", {"hidden_act": "relu"}, "hidden_act"),
    ("llava", CONFIG, "vision_config", {"model_type": "dinov2"}, "vision model type 'dinov2'"),
    ("llava_onevision", CONFIG, "vision_config", {"num_channels": 4}, "num_channels 4"),
    ("idefics3", CONFIG, "vision_config", {"hidden_act": "swish"}, "hidden_act"),
    ("internvl", CONFIG, "vision_config", {"use_qk_norm": True}, "use_qk_norm True"),
    ("internvl", CONFIG, "vision_config", {"attention_bias": False}, "unknown tensor"),
    ("qwen2_vl", CONFIG, "vision_config", {"hidden_act": "gelu"}, "hidden_act"),
    ("qwen2_vl", CONFIG, "vision_config", {"in_chans": 4, "in_channels": None}, "in_chan"),
    ("qwen2_vl", CONFIG, "vision_config", {"fullatt_block_indexes": [1]}, "fullatt_block_indexes [1]"),
    ("fastvlm", CONFIG, "", {"mm_hidden_size": 7}, "mm_hidden_size 7"),
    ("llava_mini", CONFIG, "", {"mm_hidden_size": 7}, "mm_hidden_size is 7"),
    # Which features are taken, and what becomes of them.
    ("llava", CONFIG, "", {"vision_feature_select_strategy": "nonsense"}, "vision_feature_select_strategy"),
    ("llava", CONFIG, "", {"vision_feature_layer": [-2, -5]}, "vision_feature_layer"),
    ("llava_onevision", CONFIG, "", {"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy"),
    ("llava_onevision", CONFIG, "", {"use_image_newline_parameter": False}, "use_image_newline_parameter False"),
    ("internvl", CONFIG, "", {"vision_feature_layer": -2}, "vision_feature_layer -2"),
    ("fastvlm", CONFIG, "", {"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy"),
    ("fastvlm", CONFIG, "", {"mm_projector_type": "linear"}, "mm_projector_type 'linear'"),
    ("fastvlm", CONFIG, "", {"mm_resampler_type": "perceiver"}, "mm_resampler_type 'perceiver'"),
    ("fastvlm", CONFIG, "", {"mm_use_im_start_end": True}, "mm_use_im_start_end True"),
    ("fastvlm", CONFIG, "", {"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
    ("fastvlm", CONFIG, "", {"projector_hidden_act": "relu"}, "projector_hidden_act 'relu'"),
    ("llava_mini", CONFIG, "", {"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature 'cls_patch'"),
    ("llava_mini", CONFIG, "", {"resolution_ratio": 3}, "resolution_ratio 3"),
    ("llava_onevision", CONFIG, "", {"projector_hidden_act": "relu"}, "projector_hidden_act 'relu'"),
    ("llava", CONFIG, "", {"multimodal_projector_bias": False}, "multimodal_projector_bias False"),
    ("internvl", CONFIG, "", {"downsample_ratio": 0.3}, "downsample_ratio 0.3"),
    ("idefics3", CONFIG, "text_config", {"pixel_shuffle_factor": 2}, "pixel_shuffle_factor 2"),
    # Image tokens: as many as the encoder makes, and the id that the tokenizer has.
    ("llava", CONFIG, "", {"image_seq_length": 17}, "image_seq_length 17"),
    ("fastvlm", CONFIG, "", {"image_seq_length": 17}, "image_seq_length 17"),
    ("internvl", CONFIG, "", {"image_seq_length": 16}, "image_seq_length 16"),
    ("idefics3", CONFIG, "", {"scale_factor": 3}, "scale_factor 3"),
    ("llava_mini", CONFIG, "", {"compressor_size": 5}, "compressor_size is 5, but the tensors have 1"),
    ("idefics3", PROCESSOR, "", {"image_seq_len": 64}, "image_seq_len is 64 here"),
    ("internvl", PROCESSOR, "", {"image_seq_length": 256}, "image_seq_length is 256 here"),
    ("llava_onevision", PROCESSOR, "", {"num_image_tokens": 729}, "num_image_tokens is 729 here"),
    ("llava", PROCESSOR, "", {"num_additional_image_tokens": 0}, "num_additional_image_tokens is 0 here"),
    ("fastvlm", PROCESSOR, "", {"num_additional_image_tokens": 1}, "num_additional_image_tokens is 1 here"),
    ("llava", CONFIG, "", {"image_token_index": 3}, "image_token_index is 3, but <image> is token"),
    ("llava", CONFIG, "", {"image_token_index": None, "image_token_id": 3}, "image_token_index is 3, but <image>"),
    ("fastvlm", CONFIG, "", {"image_token_index": 3}, "image_token_index is 3, but <image> is token"),
    ("qwen2_vl", CONFIG, "", {"image_token_id": 3}, "image_token_id is 3 here"),
    # Processors that contradict the configuration, or make other pixels.
    ("fastvlm", IMAGES, "", {"crop_size": {"height": 448, "width": 448}}, "the image size is 448 here"),
    ("fastvlm", IMAGES, "", {"patch_size": 32}, "patch_size is 32 here, but config.json amounts to 64"),
    ("fastvlm", IMAGES, "", {"do_normalize": False}, "do_normalize"),
    ("fastvlm", IMAGES, "", {"rescale_factor": 1.0}, "rescale_factor 1.0"),
    ("llava_mini", IMAGES, "", {"size": {"shortest_edge": 10}}, "the image size is 10 here"),
    ("llava_mini", IMAGES, "", {"resample": "bicubic"}, "resample"),
    ("llava", IMAGES, "", {"do_flip_channel_order": True}, "do_flip_channel_order"),
    ("llava", IMAGES, "", {"image_std": [0, 0, 0]}, "is not positive"),
    ("llava", PROCESSOR, "", {"patch_size": 16}, "patch_size is 16 here, but config.json amounts to 14"),
    ("llava", PROCESSOR, "", {"image_token": "<picture>"}, "image_token is '<picture>' here"),
    ("llava_onevision", IMAGES, "", {"image_grid_pinpoints": [[56, 112]]}, "image_grid_pinpoints is"),
    (
        "llava_onevision",
        PROCESSOR,
        "",
        {"vision_aspect_ratio": "anyres_max_4"},
        "vision_aspect_ratio is 'anyres_max_4'",
    ),
    ("idefics3", IMAGES, "", {"max_image_size": {"longest_edge": 384}}, "max_image_size is 384 here"),
    ("internvl", IMAGES, "", {"size": {"height": 448, "width": 448}}, "size is (448, 448) here"),
    ("qwen2_vl", IMAGES, "", {"merge_size": 4}, "merge_size is 4 here"),
    ("qwen2_vl", IMAGES, "", {"size": {"height": 10, "width": 10}}, "size has a field 'height'"),
    # TinyGPT-V's language model.
    ("tinygptv", "phi-2/config.json", "", {"hidden_act": "relu"}, "hidden_act 'relu'"),
    ("tinygptv", "phi-2/config.json", "", {"rope_scaling": {"type": "yarn", "factor": 2}}, "rope scaling"),
    ("tinygptv", "phi-2/config.json", "", {"num_key_value_heads": 1}, "num_key_value_heads"),
    ("tinygptv", "phi-2/config.json", "", {"quantization_config": {"bits": 4}}, "quantization_config"),
]


def _name(row: tuple[str, str, str, dict[str, Any], str]) -> str:
    return f"{row[0]}-{Path(row[1]).stem}-{'-'.join(row[3])}"


@pytest.mark.parametrize(("family", "file", "section", "changes", "message"), ROWS, ids=map(_name, ROWS))
def test_a_file_that_asks_for_more_or_contradicts_is_refused_by_name(
    family: str,
    file: str,
    section: str,
    changes: dict[str, Any],
    message: str,
    refused: Refused,
    checkpoints: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    checkpoint = copied(checkpoints(family), tmp_path)
    edit(checkpoint / file, section, changes)
    assert message in refused_export(refused, checkpoint)


#: The LLaVA code base's layout. The folders hold no weights, so that a good one is refused too, for that.
ORIGINAL = {
    "hidden_size": 64,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
}
NANOVLM = {
    "vit_hidden_dim": 32,
    "vit_inter_dim": 48,
    "vit_patch_size": 8,
    "vit_img_size": 32,
    "vit_n_heads": 2,
    "vit_n_blocks": 2,
    "lm_hidden_dim": 64,
    "lm_inter_dim": 96,
    "lm_re_base": 10000,
    "lm_max_position_embeddings": 512,
    "lm_n_heads": 4,
    "lm_n_kv_heads": 2,
    "lm_n_blocks": 2,
    "mp_pixel_shuffle_factor": 2,
}
NO_WEIGHTS = "no weights"
ORIGINAL_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "llava_llama"}, NO_WEIGHTS),
    ({"model_type": "bunny-phi"}, NO_WEIGHTS),
    ({"model_type": "mobilevlm", "vision_tower_type": "clip"}, NO_WEIGHTS),
    ({"model_type": "llava_llama", "mm_resampler_type": "perceiver"}, "mm_resampler_type 'perceiver'"),
    ({"model_type": "llava_llama", "image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
    ({"model_type": "llava_llama", "mm_vision_select_feature": "cls"}, "mm_vision_select_feature"),
    ({"model_type": "llava_llama", "mm_hidden_size": 48}, "mm_hidden_size 48"),
    ({"model_type": "mobilevlm", "vision_tower_type": "siglip"}, "vision_tower_type 'siglip'"),
    ({"model_type": "bunny-phi", "use_s2": True}, "use_s2 True"),
    (NANOVLM, NO_WEIGHTS),
    ({**NANOVLM, "vit_cls_flag": True}, "vit_cls_flag"),
    ({**NANOVLM, "lm_attn_scaling": 2}, "lm_attn_scaling"),
    ({**NANOVLM, "lm_use_tokens": True}, "lm_use_tokens"),
]


@pytest.mark.parametrize(("fields", "message"), ORIGINAL_ROWS, ids=[str(index) for index in range(len(ORIGINAL_ROWS))])
def test_other_code_bases_fields_are_named(
    fields: dict[str, Any], message: str, refused: Refused, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / CONFIG).write_text(json.dumps(fields if "model_type" not in fields else {**ORIGINAL, **fields}))
    assert message in refused_export(refused, checkpoint)


@pytest.mark.parametrize(
    ("model_type", "nearest"),
    [
        ("llava_onevison", "did you mean llava_onevision?"),
        ("internvl_chatt", "did you mean internvl_chat?"),
        ("qwen3_vl", "among them qwen2_vl"),
        ("paligemma", "known types: "),
        (None, "known types: "),
        (["llava"], "did you mean llava?"),
    ],
)
def test_an_unknown_model_type_names_the_nearest(
    model_type: object, nearest: str, refused: Refused, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / CONFIG).write_text(json.dumps({"model_type": model_type}))
    message = refused_export(refused, checkpoint)
    assert nearest in message
    assert "model_type" in message


# --- The four sources of TinyGPT-V ---


def _replace(folder: Path, file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    content = torch.load(folder / file, weights_only=True)
    change(content.get("model", content))
    torch.save(content, folder / file)


_LAYERS = "llama_model.base_model.model.model.layers."
_NORM, _LORA = f"{_LAYERS}0.input_layernorm.weight", f"{_LAYERS}1.self_attn.query_key_value.lora_A.weight"
SOURCE_ROWS: list[tuple[str, Callable[[dict[str, torch.Tensor]], object], str]] = [
    (
        "stage4.pth",
        lambda tensors: tensors.update(query_tokens=tensors["query_tokens"][:, 1:]),
        r"two sources disagree: query_tokens has shape .* in stage4\.pth and .* in blip2",
    ),
    (
        "stage4.pth",
        lambda tensors: tensors.update({_NORM: torch.zeros(7)}),
        r"two sources disagree: llama_model\..*\.layers\.0\.input_layernorm\.weight has shape \[7\] in stage4\.pth and",
    ),
    (
        "blip2_pretrained_flant5xxl.pth",
        lambda tensors: tensors.update({"ln_vision.weight": torch.zeros(7)}),
        r"ln_vision\.weight of blip2_pretrained_flant5xxl\.pth has shape \[7\]",
    ),
    (
        "stage4.pth",
        lambda tensors: tensors.update({_LORA: torch.cat([tensors[_LORA]] * 2)}),
        r"layer 1 query_key_value\.lora_A has shape \[8, 160\] instead of \[4, 160\]: its rank is not 4",
    ),
]


@pytest.mark.parametrize(("file", "change", "message"), SOURCE_ROWS, ids=["queries", "phi", "norm", "lora"])
def test_sources_that_do_not_fit_each_other(
    file: str,
    change: Callable[[dict[str, torch.Tensor]], object],
    message: str,
    refused: Refused,
    checkpoints: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    checkpoint = copied(checkpoints("tinygptv"), tmp_path)
    _replace(checkpoint, file, change)
    assert re.search(message, refused_export(refused, checkpoint))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_rank": 64}, "its rank is not 64"),
        ({"stage": "../stage4.pth"}, "a relative path leaves the folder"),
        ({"qformer": "absent.pth"}, "a source is missing"),
        ({"low_resource": True}, "low_resource: Extra inputs are not permitted"),
        ({"prompt_template": "vicuna"}, "unknown prompt template 'vicuna'"),
    ],
)
def test_a_sources_file_that_does_not_fit(
    fields: dict[str, Any], message: str, refused: Refused, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = copied(checkpoints("tinygptv"), tmp_path)
    file = checkpoint / "edgevlm-sources.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **fields}))
    assert message in refused_export(refused, checkpoint)


def test_an_unknown_prompt_template_names_the_known(
    refused: Refused, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    message = refused_export(refused, copied(checkpoints("tinygptv"), tmp_path), "--prompt-template", "vicuna")
    assert "unknown prompt template 'vicuna'" in message
    assert "known: stage4, eval_vqa, human" in message


def test_gguf_of_tinygptv_is_refused_with_what_to_use_instead(
    refused: Refused, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    message = refused_export(refused, copied(checkpoints("tinygptv"), tmp_path), "--format", "gguf")
    assert "no q/k norm and no norm on the attention branch" in message
    assert "use the onnx format" in message
