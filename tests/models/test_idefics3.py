"""Idefics3 and SmolVLM against transformers, whole and piece by piece."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiled_models import QUESTIONS, SHAPES, TEXT, Oracle, check_bundle, check_run, fast_tokenizer, randomise

from edgevlm import pipeline
from edgevlm.errors import CheckpointError, InputError
from edgevlm.models import load
from edgevlm.models.idefics3 import position_order
from edgevlm.recipe import Recipe

#: As SmolVLM's checkpoints have it.
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SPECIAL = (
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
TILE, PATCH, FACTOR = 32, 8, 2
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": TILE,
    "patch_size": PATCH,
}


def make(
    folder: Path,
    kind: str,
    *,
    text: dict[str, Any] | None = None,
    split: bool = True,
    seed: int = 0,
    tile: int = TILE,
    patch: int = PATCH,
    factor: int = FACTOR,
) -> Oracle:
    """A checkpoint of either model type."""
    tokenizer = fast_tokenizer(folder, SPECIAL)
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3Processor,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
    )
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    classes: Any = {
        "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration),
        "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration),
    }
    config_class, model_class = classes[kind]
    config = config_class(
        vision_config={**VISION, "image_size": tile, "patch_size": patch},
        text_config={"model_type": "llama", **TEXT, **(text or {})},
        scale_factor=factor,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    model = model_class(config)
    randomise(model, seed)
    model.save_pretrained(folder)
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 3 * tile}, max_image_size={"longest_edge": tile}, do_image_splitting=split
    )
    # SmolVLM's own processor needs a package for videos alone; for images both do the same.
    processor = Idefics3Processor(images, tokenizer, image_seq_len=(tile // patch // factor) ** 2)
    processor.save_pretrained(folder)
    return Oracle(folder, model, processor)


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make(tmp_path_factory.mktemp("smolvlm"), "smolvlm", seed=6)


@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_smolvlm_equals_transformers(sizes: list[tuple[int, int]], smolvlm: Oracle) -> None:
    check_run(smolvlm, load(smolvlm.folder), TEMPLATE, sizes)


def test_positions_that_are_not_in_order_equal_transformers(tmp_path: Path) -> None:
    """On a grid of 19 by 19 transformers gives two rows of patches the positions of one."""
    oracle = make(tmp_path, "idefics3", split=False, tile=38, patch=2, factor=19)
    check_run(oracle, load(tmp_path), TEMPLATE, QUESTIONS["portrait"])


def test_idefics3_equals_transformers(tmp_path: Path) -> None:
    """With Llama 3.1's rotary scaling, grouped heads, and images that are not split."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    oracle = make(tmp_path, "idefics3", text={"rope_parameters": rope}, split=False)
    model = load(tmp_path)
    check_run(oracle, model, TEMPLATE, QUESTIONS["two"])
    assert (model.spec.model_type, model.spec.model_class) == ("idefics3", "Idefics3ForConditionalGeneration")


@pytest.mark.parametrize("grid", [*range(1, 28), 31, 32, 61])
def test_patches_take_the_positions_that_transformers_gives_them(grid: int) -> None:
    """Published grids (14, 26, 27, 32) number their patches in order; 19, 25 and 61 do not."""
    from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings

    config: Any = SimpleNamespace(hidden_size=1, image_size=grid, patch_size=1, num_channels=3)
    embeddings = Idefics3VisionEmbeddings(config).eval()
    with torch.no_grad():
        embeddings.patch_embedding.weight.zero_()
        embeddings.patch_embedding.bias.zero_()
        embeddings.position_embedding.weight.copy_(torch.arange(grid**2)[:, None])
        taken = embeddings(torch.zeros(1, 3, grid, grid), torch.ones(1, grid, grid, dtype=torch.bool))[0, :, 0]
    assert torch.equal(position_order(grid), taken.long())
    assert torch.equal(taken.long(), torch.arange(grid**2)) == (grid not in (19, 25, 31, 61))


@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_bundles_answer_like_transformers(form: Any, smolvlm: Oracle, tmp_path: Path) -> None:
    recipe = Recipe(model=str(smolvlm.folder), format=form, precision="fp32")
    pipeline.compile_recipe(recipe, tmp_path / "out", progress=lambda *_: None)
    check_bundle(smolvlm, tmp_path / "out", TEMPLATE)


def copied(oracle: Oracle, folder: Path) -> Path:
    shutil.copytree(oracle.folder, folder, dirs_exist_ok=True)
    return folder


def test_older_checkpoints_load(smolvlm: Oracle, tmp_path: Path) -> None:
    """With the image processor in a file of its own, and a vision type that repeats the model's."""
    folder = copied(smolvlm, tmp_path)
    processor = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor.pop("image_processor")))
    (folder / "processor_config.json").write_text(json.dumps(processor))
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["model_type"] = "idefics3"
    (folder / "config.json").write_text(json.dumps(config))
    found, expected = load(folder), load(smolvlm.folder)
    assert found.spec.preprocess == expected.spec.preprocess
    assert found.spec.vision == expected.spec.vision


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("processor_config.json", {"image_seq_len": 64}, "image_seq_len is 64 here, but config.json amounts to 4"),
        ("config.json", {"scale_factor": 3}, "scale_factor 3 does not divide 4"),
        ("config.json", {"image_token_id": 7}, "image_token_id 7 is not supported"),
        ("config.json", {"vision_config": {**VISION, "image_size": 64}}, "image_seq_len is 4 here"),
        ("config.json", {"text_config": {**TEXT, "model_type": "mamba"}}, "'mamba' is not supported"),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    file: str, change: dict[str, Any], message: str, smolvlm: Oracle, tmp_path: Path
) -> None:
    folder = copied(smolvlm, tmp_path)
    data = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**data, **change}))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_image_size": {"longest_edge": 64}}, "max_image_size is 64 here, but config.json amounts to 32"),
        ({"rescale_factor": 1.0}, "rescale_factor 1.0"),
        ({"do_normalize": False}, "do_normalize"),
        ({"size": {"longest_edge": 100_000}}, "longest_edge"),
    ],
)
def test_image_processors_that_do_something_else_are_refused(
    change: dict[str, Any], message: str, smolvlm: Oracle, tmp_path: Path
) -> None:
    folder = copied(smolvlm, tmp_path)
    data = json.loads((folder / "processor_config.json").read_text())
    data["image_processor"].update(change)
    (folder / "processor_config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_unknown_tensors_and_other_resolutions_are_refused(smolvlm: Oracle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cuts images into tiles of 32 pixels"):
        load(smolvlm.folder, resolution=64)
    folder = copied(smolvlm, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.connector.perceiver.weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unknown tensor model\.connector\.perceiver"):
        load(folder)
