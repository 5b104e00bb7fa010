"""nanoVLM against transformers' Idefics3, which computes the same from tiles and tokens prepared as nanoVLM does."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_models import edit
from PIL import Image
from safetensors.torch import load_file, save_file
from tiled_models import QUESTIONS, TEXT, Oracle, check_bundle, check_run, fast_tokenizer, pictures, randomise
from torch.nn import functional as F

from edgevlm import pipeline
from edgevlm.errors import CheckpointError, InputError
from edgevlm.exporters.gguf.mmproj import supports
from edgevlm.imageio import load_image
from edgevlm.models import load
from edgevlm.preprocess import prepare
from edgevlm.recipe import Recipe

TILE, PATCH, FACTOR, LONGEST = 32, 8, 2, 96
TOKENS = (TILE // PATCH // FACTOR) ** 2
ROWS = range(1, LONGEST // TILE + 1)
EXTRA = {
    "image_token": "<|image|>",
    "global_image_token": "<|global_image|>",
    **{f"r{row}c{column}": f"<row_{row}_col_{column}>" for row in ROWS for column in ROWS},
}
SINGLE = tuple(name for name in QUESTIONS if name != "two")
#: As the published configuration has it.
TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def new_size(width: int, height: int, enlarge: bool) -> tuple[int, int]:
    """Width and height of the grid, in the published code's terms."""
    long, short = max(width, height), min(width, height)
    target = LONGEST if enlarge else min(LONGEST, math.ceil(long / TILE) * TILE)
    other = max(math.ceil(short * (target / long) / TILE) * TILE, TILE)
    return (target, other) if width >= height else (other, target)


class Processor:
    """nanoVLM's preprocessing and image string."""

    def __init__(self, tokenizer: Any, extra: dict[str, str], enlarge: bool) -> None:
        self.tokenizer, self.enlarge = tokenizer, enlarge
        self.tiles, self.token = "global_image_token" in extra, extra.get("image_token", "<image>")

    def apply_chat_template(self, conversation: Any, **options: Any) -> str:
        """The image's place is left open."""
        (_, text) = conversation[0]["content"]
        if self.token == "<image>":
            return "{image}Question: " + str(text["text"]) + " Answer:"
        message = {"role": "user", "content": "{image}" + text["text"]}
        rendered: str = self.tokenizer.apply_chat_template([message], tokenize=False, **options)
        return rendered

    def __call__(self, text: Sequence[str], images: Any, **options: Any) -> dict[str, torch.Tensor]:
        """Ids and pixels as transformers' Idefics3 takes them."""
        del options
        image = images[0][0]
        if self.tiles:
            canvas = image.resize(new_size(image.width, image.height, self.enlarge), Image.Resampling.BICUBIC)
        else:
            canvas = image.resize((TILE, TILE), Image.Resampling.BILINEAR)
        columns, rows = canvas.width // TILE, canvas.height // TILE
        views = [canvas.resize((TILE, TILE), Image.Resampling.BILINEAR)]
        string = ("<|global_image|>" if self.tiles else "") + self.token * TOKENS
        if rows * columns > 1:
            for row in range(rows):
                for column in range(columns):
                    left, top = column * TILE, row * TILE
                    views.append(canvas.crop((left, top, left + TILE, top + TILE)))
                    string += f"<row_{row + 1}_col_{column + 1}>" + self.token * TOKENS
        ids = self.tokenizer(text[0].replace("{image}", string), return_tensors="pt").input_ids
        pixels = torch.from_numpy(np.stack([np.asarray(view) for view in views])).permute(0, 3, 1, 2).float() / 255
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels[None]}


def nano_name(name: str) -> str | None:
    """A tensor of transformers' Idefics3 as nanoVLM's; None for q, k and v, which it holds as one."""
    for theirs, ours in (
        ("model.vision_model.embeddings.patch_embedding", "vision_encoder.patch_embedding.conv"),
        (
            "model.vision_model.embeddings.position_embedding.weight",
            "vision_encoder.patch_embedding.position_embedding",
        ),
        ("model.vision_model.encoder.layers.", "vision_encoder.blocks."),
        ("model.vision_model.post_layernorm", "vision_encoder.layer_norm"),
        ("model.connector.modality_projection.proj", "MP.proj"),
        ("model.text_model.embed_tokens", "decoder.token_embedding"),
        ("model.text_model.layers.", "decoder.blocks."),
        ("model.text_model.norm", "decoder.norm"),
        ("lm_head", "decoder.head"),
        (".layer_norm1", ".ln1"),
        (".layer_norm2", ".ln2"),
        (".input_layernorm", ".norm1"),
        (".post_attention_layernorm", ".norm2"),
        (".self_attn.o_proj", ".attn.out_proj"),
        (".self_attn.", ".attn."),
    ):
        name = name.replace(theirs, ours)
    is_part = name.startswith("vision_encoder") and any(f".{part}_proj." in name for part in "qkv")
    return None if is_part else name


def make(
    folder: Path, *, extra: dict[str, str] = EXTRA, enlarge: bool = False, tied: bool = False, seed: int = 0
) -> Oracle:
    """A checkpoint as the published code saves it, and the tokenizer beside it."""
    tokenizer = fast_tokenizer(folder, tuple(extra.values()))
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": TILE,
        "patch_size": PATCH,
    }
    config = Idefics3Config(
        vision_config=vision,
        text_config={"model_type": "llama", **TEXT, "tie_word_embeddings": tied},
        scale_factor=FACTOR,
        image_token_id=tokenizer.convert_tokens_to_ids(extra.get("image_token", "<image>")),
        tie_word_embeddings=tied,
    )
    model = Idefics3ForConditionalGeneration(config)
    randomise(model, seed)
    state = model.state_dict()
    nano = {new: value.contiguous() for name, value in state.items() if (new := nano_name(name)) is not None}
    positions = "vision_encoder.patch_embedding.position_embedding"
    nano[positions] = nano[positions][None]
    for layer in range(2):
        for kind in ("weight", "bias"):
            parts = [state[f"model.vision_model.encoder.layers.{layer}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            nano[f"vision_encoder.blocks.{layer}.attn.qkv_proj.{kind}"] = torch.cat(parts)
    nano["decoder.rotary_embd.inv_freq"] = torch.ones(8)
    if tied:
        del nano["decoder.token_embedding.weight"]
    save_file(nano, folder / "model.safetensors")
    fields = {
        "vit_hidden_dim": 32,
        "vit_inter_dim": 48,
        "vit_patch_size": PATCH,
        "vit_img_size": TILE,
        "vit_n_heads": 2,
        "vit_n_blocks": 2,
        "vit_ln_eps": 1e-6,
        "vit_cls_flag": False,
        "lm_hidden_dim": TEXT["hidden_size"],
        "lm_inter_dim": TEXT["intermediate_size"],
        "lm_rms_eps": config.text_config.rms_norm_eps,
        "lm_re_base": 10000,
        "lm_max_position_embeddings": 512,
        "lm_n_heads": 4,
        "lm_n_kv_heads": 2,
        "lm_n_blocks": 2,
        "lm_attn_scaling": 1.0,
        "lm_tie_weights": tied,
        "lm_tokenizer": "HuggingFaceTB/SmolLM2-360M-Instruct",
        "mp_pixel_shuffle_factor": FACTOR,
        "mp_image_token_length": TOKENS,
        "max_img_size": LONGEST,
        "resize_to_max_side_len": enlarge,
        "vlm_extra_tokens": extra,
    }
    (folder / "config.json").write_text(json.dumps(fields))
    return Oracle(folder, model.eval(), Processor(tokenizer, extra, enlarge))


@pytest.mark.parametrize(
    ("extra", "enlarge", "tied"),
    [(EXTRA, False, True), (EXTRA, True, False), ({"image_token": "<|image|>"}, False, True), ({}, False, True)],
    ids=["tiles", "enlarged", "square", "question"],
)
def test_nanovlm_equals_transformers(extra: dict[str, str], enlarge: bool, tied: bool, tmp_path: Path) -> None:
    oracle = make(tmp_path, extra=extra, enlarge=enlarge, tied=tied)
    model = load(tmp_path)
    assert model.spec.decoder.tied_embeddings is tied
    for name in SINGLE:
        check_run(oracle, model, TEMPLATE, QUESTIONS[name])


def test_the_whole_view_is_within_one_step_of_the_published_one(tmp_path: Path) -> None:
    """Which interpolates numbers that are not rounded to bytes."""
    make(tmp_path)
    spec = load(tmp_path).spec.preprocess
    image = pictures([(150, 70)])[0]
    tiles = prepare(load_image(image), spec).tiles
    canvas = Image.fromarray(image).resize(new_size(150, 70, False), Image.Resampling.BICUBIC)
    exact = torch.from_numpy(np.asarray(canvas).copy()).permute(2, 0, 1).float()[None]
    whole = F.interpolate(exact, size=(TILE, TILE), mode="bilinear", antialias=True, align_corners=False)
    difference = np.abs(tiles[0].transpose(2, 0, 1).astype(np.float32) - whole[0].numpy())
    assert 0 < difference.max() <= 1


@pytest.fixture(scope="module")
def nanovlm(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make(tmp_path_factory.mktemp("nanovlm"), seed=6)


@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_bundles_answer_like_transformers(form: Any, nanovlm: Oracle, tmp_path: Path) -> None:
    recipe = Recipe(model=str(nanovlm.folder), format=form, precision="fp32")
    pipeline.compile_recipe(recipe, tmp_path / "out", progress=lambda *_: None)
    check_bundle(nanovlm, tmp_path / "out", TEMPLATE, SINGLE)


def test_llama_cpp_would_cut_the_image_otherwise(nanovlm: Oracle) -> None:
    assert supports(load(nanovlm.folder).spec) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vit_cls_flag": True}, "vit_cls_flag"),
        ({"lm_attn_scaling": 2.0}, "lm_attn_scaling"),
        ({"lm_chat_template": "{{ messages[0]['content'] }}"}, "lm_chat_template renders 'a'"),
        ({"lm_chat_template": "{% macro f() %}{% endmacro %}"}, "lm_chat_template cannot be used"),
        ({"mp_image_token_length": 64}, "mp_image_token_length is 64, but an image makes 4 tokens"),
        ({"mp_pixel_shuffle_factor": 3}, "mp_pixel_shuffle_factor does not fit"),
        ({"max_img_size": 100}, "max_img_size 100 is no multiple of vit_img_size 32"),
        ({"vlm_extra_tokens": {**EXTRA, "r9c9": "<row_9_col_9>"}}, "no token <row_9_col_9>"),
        ({"lm_hidden_dim": 128}, "has shape"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    make(tmp_path)
    edit(tmp_path / "config.json", **change)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_missing_tokenizer_is_asked_for_by_name(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer") as caught:
        load(tmp_path)
    assert "save the tokenizer of HuggingFaceTB/SmolLM2-360M-Instruct here" in str(caught.value)


def test_unknown_tensors_and_resolutions_are_refused(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match="tiles of 32 pixels"):
        load(tmp_path, resolution=64)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "MP.extra.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unknown tensor MP\.extra"):
        load(tmp_path)
