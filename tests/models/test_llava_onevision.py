"""LLaVA-OneVision against transformers, whole and piece by piece."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiled_models import (
    QUESTIONS,
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
from edgevlm.models.anyres import ir_name, newline_name
from edgevlm.models.llava_onevision import read_encoder, read_spec
from edgevlm.models.loading import HEAD, build_checked, named_tensors
from edgevlm.models.tokenizer_files import TokenizerFacts
from edgevlm.recipe import Recipe

LAYOUT = Path(__file__).parents[1] / "data" / "layouts" / "hf_llava_ov_05b.json"
#: As the checkpoints have it, without their marks for training.
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: A tile is 33 pixels, its features a grid of 4 by 4: the last pixel is not looked at, as in SigLIP at 384 pixels.
TILE, PATCH = 33, 8
PINPOINTS = [[rows * TILE, columns * TILE] for rows in range(1, 4) for columns in range(1, 5)]
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": TILE,
    "patch_size": PATCH,
    "vision_use_head": False,
}


def make(folder: Path, seed: int = 0, layer: int = -1) -> Oracle:
    """A checkpoint whose budget is two tiles."""
    tokenizer = fast_tokenizer(folder, ["<video>"])
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionProcessor,
    )
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    config = LlavaOnevisionConfig(
        vision_config=VISION,
        text_config={"model_type": "qwen2", **TEXT},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=layer,
        vision_aspect_ratio="anyres_max_2",
        tie_word_embeddings=False,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    randomise(model, seed)
    model.save_pretrained(folder)
    images = LlavaOnevisionImageProcessorPil(
        size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    fields = {
        "num_image_tokens": (TILE // PATCH) ** 2,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_2",
    }
    write_processor(folder, images, **fields)
    return Oracle(folder, model, without_video(LlavaOnevisionProcessor, images, tokenizer, **fields))


@pytest.fixture(scope="module")
def onevision(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make(tmp_path_factory.mktemp("onevision"), seed=7)


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_logits_equal_transformers(sizes: list[tuple[int, int]], onevision: Oracle) -> None:
    check_run(onevision, load(onevision.folder), TEMPLATE, sizes)


def test_an_earlier_layer_equals_transformers(tmp_path: Path) -> None:
    oracle = make(tmp_path, layer=-2)
    model = load(tmp_path)
    assert model.spec.vision.encoder.num_hidden_layers == 2  # type: ignore[union-attr]
    check_run(oracle, model, TEMPLATE, QUESTIONS["portrait"])


@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_bundles_answer_like_transformers(form: Any, onevision: Oracle, tmp_path: Path) -> None:
    recipe = Recipe(model=str(onevision.folder), format=form, precision="fp32")
    bundle = pipeline.compile_recipe(recipe, tmp_path / "out", progress=lambda *_: None)
    newline = bundle.find("image_newline")
    assert newline is not None
    assert newline.bytes == 128 + 4 * 64
    check_bundle(onevision, tmp_path / "out", TEMPLATE)


def copied(oracle: Oracle, folder: Path) -> Path:
    shutil.copytree(oracle.folder, folder, dirs_exist_ok=True)
    return folder


def test_older_names_hold_the_same_model(onevision: Oracle, tmp_path: Path) -> None:
    """As on the hub, with a layer of the tower more, its last norm and its pooling head, which the model ignores."""
    folder = copied(onevision, tmp_path)
    tensors = {}
    for name, value in load_file(folder / "model.safetensors").items():
        old = re.sub(r"^model\.language_model\.", "language_model.model.", name)
        old = re.sub(r"^lm_head\.", "language_model.lm_head.", old)
        old = re.sub(r"^model\.vision_tower\.(?:vision_model\.)?", "vision_tower.vision_model.", old)
        tensors[re.sub(r"^model\.", "", old)] = value
    last = {name: value for name, value in tensors.items() if ".encoder.layers.2." in name}
    tensors |= {name.replace("layers.2.", "layers.3."): value.clone() for name, value in last.items()}
    tensors["vision_tower.vision_model.post_layernorm.weight"] = torch.zeros(32)
    tensors["vision_tower.vision_model.head.probe"] = torch.zeros(1, 1, 32)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 4
    config["vision_feature_layer"] = -2
    (folder / "config.json").write_text(json.dumps(config))
    found, expected = load(folder), load(onevision.folder)
    assert found.spec.vision == expected.spec.vision
    wanted = expected.vision.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in found.vision.state_dict().items())
    assert found.image_newline is not None
    assert expected.image_newline is not None
    assert torch.equal(found.image_newline, expected.image_newline)


def test_every_published_tensor_is_accepted(tmp_path: Path) -> None:
    """The 0.5B model's names and shapes, with the numbers of its configuration."""
    published = {name: tuple(shape) for name, shape in json.loads(LAYOUT.read_text())["tensors"].items()}
    raw = {
        "model_type": "llava_onevision",
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "rope_theta": 1e6,
        },
        "image_token_index": 151646,
    }
    encoder = read_encoder(raw, "config.json")
    names = named_tensors(published, lambda name: ir_name(name, encoder), "published")
    names.pop(HEAD, None)
    shapes = {name: published[source] for name, source in names.items()}
    tokenizer = TokenizerFacts(
        {}, {"<image>": 151646, "<|im_start|>": 151644, "<|im_end|>": 151645}, 151648, (151645,), "unknown"
    )
    spec = read_spec(tmp_path, raw, shapes, tied=True, tokenizer=tokenizer)
    vision, decoder = build_checked(spec, shapes, names, "published")
    assert spec.vision.image_tokens == 729
    assert newline_name(published, 896, "published") == "model.image_newline"
    assert {parameter.device.type for parameter in [*vision.parameters(), *decoder.parameters()]} == {"meta"}


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy"),
        ("config.json", {"vision_aspect_ratio": "anyres"}, "vision_aspect_ratio 'anyres' is not supported"),
        ("config.json", {"vision_feature_layer": [-2, -1]}, "vision_feature_layer"),
        ("config.json", {"image_grid_pinpoints": [[33, 40]]}, "image_grid_pinpoints"),
        ("config.json", {"image_token_index": 5}, "image_token_index 5 is not supported"),
        ("config.json", {"multimodal_projector_bias": False}, "multimodal_projector_bias False"),
        ("config.json", {"vision_config": {**VISION, "model_type": "clip_vision_model"}}, "class token"),
        ("processor_config.json", {"num_image_tokens": 729}, "num_image_tokens is 729 here, .* amounts to 16"),
        (
            "processor_config.json",
            {"vision_aspect_ratio": "anyres_max_9"},
            "vision_aspect_ratio is 'anyres_max_9' here",
        ),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    file: str, change: dict[str, Any], message: str, onevision: Oracle, tmp_path: Path
) -> None:
    folder = copied(onevision, tmp_path)
    data = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**data, **change}))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_canvases_must_be_made_of_whole_tiles(onevision: Oracle, tmp_path: Path) -> None:
    folder = copied(onevision, tmp_path)
    (folder / "processor_config.json").unlink()
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "image_grid_pinpoints": [[33, 40]]}))
    with pytest.raises(CheckpointError, match="33 x 40 pixels is not made of tiles of 33"):
        load(folder)


def test_a_missing_or_mis_shaped_newline_is_named(onevision: Oracle, tmp_path: Path) -> None:
    folder = copied(onevision, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("image_newline"))
    save_file({**tensors, name: torch.zeros(63)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"image_newline has shape \[63\] instead of \[64\]"):
        load(folder)
    save_file({key: value for key, value in tensors.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="image_newline is missing"):
        load(folder)
