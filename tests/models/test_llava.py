"""LLaVA-1.5 against transformers, in every layout."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from llava_models import SIZE, TEMPLATES, VISION, edit, make, older_hub_name, same_model
from safetensors.torch import load_file, save_file
from tiled_models import QUESTIONS, Oracle, check_bundle, check_run

from edgevlm import pipeline
from edgevlm.errors import CheckpointError
from edgevlm.models import load
from edgevlm.models.llava import current_name, ir_name, read_encoder, read_spec
from edgevlm.models.loading import build_checked, named_tensors
from edgevlm.models.tokenizer_files import TokenizerFacts
from edgevlm.recipe import Recipe

LAYOUT = Path(__file__).parents[1] / "data" / "layouts" / "hf_llava15_7b.json"


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make(tmp_path_factory.mktemp("llava"), "llama", seed=5)


@pytest.mark.parametrize("sizes", QUESTIONS.values(), ids=QUESTIONS)
def test_llava_equals_transformers(sizes: list[tuple[int, int]], llava: Oracle) -> None:
    check_run(llava, load(llava.folder), TEMPLATES["llama"], sizes)


@pytest.mark.parametrize(
    ("kind", "tower", "config"),
    [
        ("qwen2", "siglip", {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}),
        ("mistral", "clip", {}),
        ("phi", "clip", {"vision_feature_layer": 1, "vision_feature_select_strategy": "full"}),
        ("phi", "siglip", {"vision_feature_select_strategy": "full"}),
    ],
)
def test_other_towers_and_decoders_equal_transformers(
    kind: str, tower: str, config: dict[str, Any], tmp_path: Path
) -> None:
    oracle = make(tmp_path, kind, tower, **config)
    check_run(oracle, load(tmp_path), TEMPLATES[kind], QUESTIONS["two"])


@pytest.mark.parametrize("sizes", QUESTIONS.values(), ids=QUESTIONS)
def test_padding_in_the_mean_colour_equals_transformers(sizes: list[tuple[int, int]], tmp_path: Path) -> None:
    oracle = make(tmp_path, "llama", pad=True)
    model = load(tmp_path)
    assert model.spec.preprocess.fit == "pad"
    assert model.spec.preprocess.pad_colour == (122, 116, 104)
    check_run(oracle, model, TEMPLATES["llama"], sizes)


@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_bundles_answer_like_transformers(form: Any, llava: Oracle, tmp_path: Path) -> None:
    recipe = Recipe(model=str(llava.folder), format=form, precision="fp32")
    pipeline.compile_recipe(recipe, tmp_path / "out", progress=lambda *_: None)
    check_bundle(llava, tmp_path / "out", TEMPLATES["llama"])


def test_every_published_tensor_is_accepted(tmp_path: Path) -> None:
    """With the fields that the hub's `config.json` leaves out, since they are the defaults."""
    layout = {name: tuple(shape) for name, shape in json.loads(LAYOUT.read_text()).items()}
    config = {
        "model_type": "llava",
        "image_token_index": 32000,
        "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
        "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096},
    }
    encoder = read_encoder(config, "config.json")
    names = named_tensors(layout, lambda name: ir_name(name, encoder), "")
    shapes = {name: layout[published] for name, published in names.items()}
    tokenizer = TokenizerFacts({}, {"<s>": 1, "</s>": 2, "<image>": 32000}, 32002, (2,), "unknown")
    spec = read_spec(tmp_path, config, shapes, tied=False, tokenizer=tokenizer)
    vision, decoder = build_checked(spec, shapes, names, "layout")
    assert spec.vision.image_tokens == 576
    assert spec.decoder.vocab_size == 32064
    assert (spec.prompt.bos_token_id, spec.prompt.stop_token_ids) == (1, (2,))
    parameters = sum(p.numel() for module in (vision, decoder) for p in module.parameters())
    # One of 24 layers and the norm behind them are not used.
    unused = sum(math.prod(layout[name]) for name in layout if name not in names.values())
    assert parameters == 7_063_427_072 - unused


def copied(oracle: Oracle, folder: Path) -> Path:
    shutil.copytree(oracle.folder, folder, dirs_exist_ok=True)
    return folder


def original_name(name: str) -> str:
    """As the LLaVA code base has it."""
    name = re.sub(r"^model\.language_model\.", "model.", name)
    name = re.sub(r"^model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model.", name)
    match = re.fullmatch(r"model\.multi_modal_projector\.linear_([12])\.(.+)", name)
    return f"model.mm_projector.{2 * int(match[1]) - 2}.{match[2]}" if match else name


def rename(folder: Path, change: Callable[[str], str]) -> None:
    tensors = load_file(folder / "model.safetensors")
    renamed = {change(current_name(name)): value for name, value in tensors.items()}
    assert len(renamed) == len(tensors)
    save_file(renamed, folder / "model.safetensors")


def test_the_older_hub_layout_is_the_same_model(llava: Oracle, tmp_path: Path) -> None:
    folder = copied(llava, tmp_path)
    rename(folder, lambda name: older_hub_name(name.replace("vision_model.", "")))
    processor = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor.pop("image_processor")))
    (folder / "processor_config.json").write_text(json.dumps(processor))
    found, expected = load(folder), load(llava.folder)
    same_model(found, expected)
    assert found.spec.preprocess == expected.spec.preprocess


def as_original(llava: Oracle, folder: Path) -> Path:
    """The checkpoint as the LLaVA code base would write it, tower inside."""
    copied(llava, folder)
    rename(folder, lambda name: original_name(name.replace("vision_model.", "")))
    config = json.loads((folder / "config.json").read_text())
    flat = {
        **config["text_config"],
        "model_type": "llava_llama",
        "mm_vision_tower": "openai/clip-vit-tiny",
        "mm_hidden_size": VISION["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad",
        "mm_use_im_start_end": False,
    }
    (folder / "config.json").write_text(json.dumps(flat))
    (folder / "processor_config.json").unlink()
    tower = folder / "vision_tower"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": config["vision_config"]}))
    (tower / "preprocessor_config.json").write_text(json.dumps({"crop_size": SIZE, "size": SIZE, "resample": 3}))
    return folder


def without_tower(folder: Path) -> None:
    """Move the tower's weights into the subfolder, as a CLIP checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    prefix = "model.vision_tower.vision_tower."
    tower = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    tower["text_model.embeddings.token_embedding.weight"] = torch.zeros(2, 2)
    tower["logit_scale"] = torch.zeros(())
    save_file({name: value for name, value in tensors.items() if prefix not in name}, folder / "model.safetensors")
    save_file(tower, folder / "vision_tower" / "model.safetensors")


@pytest.mark.parametrize("inside", [True, False])
def test_the_original_layout_is_the_same_model(inside: bool, llava: Oracle, tmp_path: Path) -> None:
    folder = as_original(llava, tmp_path)
    if not inside:
        without_tower(folder)
    found = load(folder)
    same_model(found, load(llava.folder))
    assert found.spec.preprocess.fit == "pad"
    assert found.spec.preprocess.pad_colour == (122, 116, 104)
    assert (folder / "vision_tower" / "model.safetensors" in found.sources) is not inside


def test_a_missing_tower_is_asked_for_by_name(llava: Oracle, tmp_path: Path) -> None:
    folder = as_original(llava, tmp_path)
    without_tower(folder)
    shutil.rmtree(folder / "vision_tower")
    with pytest.raises(CheckpointError, match="mm_vision_tower 'openai/clip-vit-tiny' is not known"):
        load(folder)
    edit(folder / "config.json", mm_vision_tower="openai/clip-vit-large-patch14-336", mm_hidden_size=1024)
    with pytest.raises(CheckpointError, match="weights of the vision tower") as caught:
        load(folder)
    assert "download openai/clip-vit-large-patch14-336 into a subfolder vision_tower/" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type 'mlp3x_gelu'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end True"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type"),
        ({"mm_hidden_size": 48}, "mm_hidden_size 48"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": None}, "rope scaling 'linear'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_original_configurations_that_ask_for_more_are_refused(
    change: dict[str, Any], message: str, llava: Oracle, tmp_path: Path
) -> None:
    folder = as_original(llava, tmp_path)
    edit(folder / "config.json", **change)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"vision_feature_layer": [-2, -5]}, "vision_feature_layer"),
        ("config.json", {"projector_hidden_act": "relu"}, "projector_hidden_act 'relu'"),
        ("config.json", {"image_seq_length": 17}, "image_seq_length 17"),
        ("config.json", {"image_token_index": 7}, "image_token_index is 7, but <image> is token"),
        ("config.json", {"vision_feature_select_strategy": "full"}, "is 'default' here, but .* 'full'"),
        ("processor_config.json", {"patch_size": 14}, "patch_size is 14 here, but config.json amounts to 8"),
        ("processor_config.json", {"num_additional_image_tokens": 0}, "num_additional_image_tokens is 0 here"),
        ("image_processor", {"crop_size": {"height": 48, "width": 48}}, "image size is 48 here, but .* 32"),
        ("image_processor", {"size": {"shortest_edge": 224}}, "image size is 224 here, but .* 32"),
        ("image_processor", {"rescale_factor": 1.0}, "rescale_factor"),
        ("image_processor", {"do_center_crop": False}, "shortest_edge without do_center_crop"),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    file: str, change: dict[str, Any], message: str, llava: Oracle, tmp_path: Path
) -> None:
    folder = copied(llava, tmp_path)
    if file == "image_processor":
        processor = json.loads((folder / "processor_config.json").read_text())["image_processor"]
        file, change = "processor_config.json", {"image_processor": {**processor, **change}}
    edit(folder / file, **change)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_siglips_first_patch_is_not_dropped_silently(tmp_path: Path) -> None:
    make(tmp_path, "qwen2", "siglip", vision_feature_select_strategy="full")
    edit(tmp_path / "config.json", vision_feature_select_strategy="default")
    with pytest.raises(CheckpointError, match="drops SigLIP's first patch"):
        load(tmp_path)


def test_a_tokenizer_in_its_slow_form_is_told_how_to_be_saved(llava: Oracle, tmp_path: Path) -> None:
    """As the original repositories have it."""
    folder = copied(llava, tmp_path)
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(CheckpointError, match=r"as tokenizer\.model alone") as caught:
        load(folder)
    assert "save_pretrained" in str(caught.value)
