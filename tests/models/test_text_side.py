"""The text side of a CLIP is found in a checkpoint and computes what transformers' `CLIPModel` does."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_models import ROOM, clip_tokenizer, text_side, write_clip
from llava_models import VISION, make
from reducer_models import CLIP, SIGLIP, vision_spec
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from edgevlm.errors import CheckpointError
from edgevlm.models import load, resolve
from edgevlm.models.text_side import find_text_side
from edgevlm.models.vit_names import read_vit
from edgevlm.question import QuestionReader
from edgevlm.spec import ModelSpec, VisionSpec
from edgevlm.tokenizer import Tokenizer

QUESTIONS = ["How many RED  circles are there?", "What number is on it", "?", "Élève 42's cat -- naïve 北京"]


def vision() -> VisionSpec:
    """The encoder that `write_clip` is asked for."""
    encoder = read_vit({**VISION, "model_type": "clip_vision_model"}, "config.json", feature_layer=-2)
    return vision_spec(encoder, side=4)


@pytest.mark.parametrize("place", ["clip", "vision_tower"])
def test_a_clip_in_a_subfolder_gives_the_vectors_of_transformers(place: str, tmp_path: Path) -> None:
    clip, tokenizer = write_clip(tmp_path / place, VISION)
    side = find_text_side(tmp_path, vision())
    assert side is not None
    reader = side.reader()
    for question in QUESTIONS:
        ids = tokenizer(question, truncation=True, max_length=ROOM)["input_ids"]
        with torch.inference_mode():
            wanted = clip.get_text_features(torch.tensor([ids])).pooler_output.numpy()
        found = side.text(torch.tensor([reader.pieces(question)[0]])).numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        if len(reader.pieces(question)) == 1:
            np.testing.assert_allclose(reader.embed(question), wanted / np.linalg.norm(wanted), atol=1e-5)
    features = torch.randn(2, 16, VISION["hidden_size"])
    with torch.inference_mode():
        expected = clip.visual_projection(clip.vision_model.post_layernorm(features))
    torch.testing.assert_close(side.patches(features), expected, atol=1e-4, rtol=0)


def test_questions_are_tokenised_as_clips_tokenizer_does(tmp_path: Path) -> None:
    theirs = clip_tokenizer()
    theirs.save_pretrained(tmp_path)
    begin, end = theirs.bos_token_id, theirs.eos_token_id
    spec = dataclasses.replace(text_side(CLIP, tmp_path).spec, begin_token_id=begin, end_token_id=end)
    spec = dataclasses.replace(spec, max_position_embeddings=77)
    reader = QuestionReader(spec, Tokenizer(tmp_path / "tokenizer.json"), text_side(CLIP, tmp_path).engine())
    for question in QUESTIONS:
        assert reader.pieces(question) == [theirs(question)["input_ids"]]
    typed = reader.pieces("red <|endoftext|> circle")[0]
    assert typed.count(end) == 1, "a special token that a user types is text"


def test_the_shipped_model_has_both_towers() -> None:
    folder = resolve("zoo:nano-llava")
    model = load(folder)
    side = model.text_side
    assert side is not None
    assert model.spec.text_tower == side.spec
    clip = CLIPModel(CLIPConfig(**json.loads((folder / "text_tower.json").read_text()))).eval().float()
    tensors = load_file(folder / "text_tower.safetensors")
    for name, value in load_file(folder / "model.safetensors").items():
        if name.startswith("vision_tower."):
            tensors[name.replace("vision_tower.", "vision_model.")] = value
    clip.load_state_dict({name: value.float() for name, value in tensors.items()})
    for question in ("How many red circles are there?", "What number is shown?"):
        (ids,) = side.reader().pieces(question)
        with torch.inference_mode():
            wanted = clip.get_text_features(torch.tensor([ids])).pooler_output[0].numpy()
        np.testing.assert_allclose(side.engine().encode(np.array(ids, np.int32)), wanted, atol=1e-4)
    features = torch.randn(1, 9, 128)
    with torch.inference_mode():
        expected = clip.visual_projection(clip.vision_model.post_layernorm(features))
    torch.testing.assert_close(side.patches.float()(features), expected, atol=1e-4, rtol=0)


def test_a_llava_with_a_clip_beside_it_knows_its_text_tower_and_does_not_write_it(tmp_path: Path) -> None:
    folder = make(tmp_path, "qwen2").folder
    assert load(folder).text_side is None
    write_clip(folder / "clip", VISION)
    model = load(folder)
    assert model.text_side is not None
    assert model.spec.text_tower == model.text_side.spec
    assert "text_tower" not in model.spec.to_dict()
    assert ModelSpec.from_dict(model.spec.to_dict()) == model.spec


def test_there_is_none_without_text_or_tokenizer_or_beside_another_encoder(tmp_path: Path) -> None:
    assert find_text_side(tmp_path, vision()) is None
    clip, _ = write_clip(tmp_path / "clip", VISION)
    assert find_text_side(tmp_path, vision_spec(SIGLIP)) is None
    shutil.move(tmp_path / "clip" / "tokenizer.json", tmp_path)
    assert find_text_side(tmp_path, vision()) is None
    shutil.move(tmp_path / "tokenizer.json", tmp_path / "clip")
    alone = {name: value for name, value in clip.state_dict().items() if name.startswith("vision_model.")}
    save_file({name: value.contiguous() for name, value in alone.items()}, tmp_path / "clip" / "model.safetensors")
    assert find_text_side(tmp_path, vision()) is None


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", {**VISION, "hidden_size": 64})
    with pytest.raises(CheckpointError, match=r"post_layernorm\.(bias|weight) has shape \[64\] instead of \[32\]"):
        find_text_side(tmp_path, vision())
