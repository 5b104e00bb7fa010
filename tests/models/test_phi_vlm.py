"""Phi-2 VLMs against transformers' CLIP, SigLIP and Phi, put together as the published code does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from llava_models import PATCH, SIZE, VICUNA, VISION, edit, text_config
from safetensors.torch import load_file, save_file
from tiled_models import QUESTIONS, Oracle, check_bundle, check_run, randomise
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgevlm import pipeline
from edgevlm.errors import CheckpointError
from edgevlm.models import load
from edgevlm.recipe import Recipe
from edgevlm.zoo.tokenizer import build_tokenizer

TEMPLATE = VICUNA.replace("{start}", "")


def phi_tokenizer(folder: Path) -> Any:
    """Phi-2's form: GPT-2's byte-level BPE, whose only special token ends a text; `<image>` is none of its tokens."""
    from transformers import PreTrainedTokenizerFast

    zoo = json.loads(build_tokenizer().to_str())["model"]
    kept = {token: row for token, row in zoo["vocab"].items() if not token.startswith("<|") and token != "<image>"}
    backend = Tokenizer(models.BPE(kept, [tuple(merge) for merge in zoo["merges"]]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    backend.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def make(folder: Path, kind: str, tower: str, *, seed: int = 0) -> Oracle:
    """A checkpoint of `bunny-phi`, `llava_phi` or `mipha_phi`; transformers' LLaVA computes what it does."""
    tokenizer = phi_tokenizer(folder)
    from transformers import (
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        SiglipVisionConfig,
    )
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    clip = tower == "clip"
    vision: Any = CLIPVisionConfig(**VISION) if clip else SiglipVisionConfig(**VISION)
    text = {**text_config("phi"), "eos_token_id": tokenizer.eos_token_id, "tie_word_embeddings": False}
    strategy = "default" if clip else "full"
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy=strategy,
    )
    model: Any = LlavaForConditionalGeneration(config)
    # Transformers' LLaVA has no bias on the head; PhiForCausalLM and the published models do.
    model.lm_head = torch.nn.Linear(text["hidden_size"], text["vocab_size"])
    randomise(model, seed)
    inside = "model.vision_tower." + ("vision_tower." if kind == "bunny-phi" else "") + "vision_model."
    renames = (
        ("model.language_model.", "model."),
        ("model.vision_tower.", inside),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    )
    state = {}
    for name, value in model.state_dict().items():
        new = next((to + name.removeprefix(old) for old, to in renames if name.startswith(old)), name)
        state[new] = value.contiguous()
    save_file(state, folder / "model.safetensors")
    flat: dict[str, Any] = {**model.config.text_config.to_dict(), "model_type": kind}
    if kind == "bunny-phi":
        flat |= {"mm_vision_tower": f"google/{tower}-tiny", "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu"}
        (folder / "vision_tower").mkdir()
        (folder / "vision_tower" / "config.json").write_text(json.dumps(vision.to_dict()))
    else:
        described = {**vision.to_dict(), "vision_model_name_or_path": f"google/{tower}-tiny"}
        projector = {"mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 32}
        flat["vision_config"] = {"vision_tower": described, "mm_projector": projector}
    (folder / "config.json").write_text(json.dumps(flat))
    if clip:
        images: Any = LlavaImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    else:
        images = SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    (folder / "preprocessor_config.json").write_text(json.dumps(images.to_dict(), default=int))
    processor = LlavaProcessor(images, tokenizer, PATCH, strategy, num_additional_image_tokens=int(clip))
    return Oracle(folder, model, processor)


KINDS = [("bunny-phi", "siglip"), ("bunny-phi", "clip"), ("llava_phi", "clip"), ("mipha_phi", "siglip")]


@pytest.mark.parametrize(("kind", "tower"), KINDS)
def test_phi_vlms_equal_transformers(kind: str, tower: str, tmp_path: Path) -> None:
    oracle = make(tmp_path, kind, tower)
    model = load(tmp_path)
    assert model.spec.decoder.head_bias
    for sizes in QUESTIONS.values():
        check_run(oracle, model, TEMPLATE, sizes)


@pytest.fixture(scope="module")
def bunny(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make(tmp_path_factory.mktemp("bunny"), "bunny-phi", "siglip", seed=6)


@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_bundles_answer_like_transformers(form: Any, bunny: Oracle, tmp_path: Path) -> None:
    recipe = Recipe(model=str(bunny.folder), format=form, precision="fp32")
    pipeline.compile_recipe(recipe, tmp_path / "out", progress=lambda *_: None)
    check_bundle(bunny, tmp_path / "out", TEMPLATE)


def test_bunnys_hub_release_lacks_the_last_layer(tmp_path: Path) -> None:
    """Its code drops the layer behind the features when it saves; the norm behind it stays."""
    make(tmp_path, "bunny-phi", "siglip")
    before = load(tmp_path).vision.state_dict()
    file = tmp_path / "model.safetensors"
    last = f".encoder.layers.{VISION['num_hidden_layers'] - 1}."
    save_file({name: value for name, value in load_file(file).items() if last not in name}, file)
    after = load(tmp_path).vision.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_s2": True}, "use_s2 True"),
        ({"qk_layernorm": True}, "qk_layernorm True"),
        ({"mm_projector_type": "minigpt"}, "mm_projector_type 'minigpt'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "yarn"}}, "rope scaling"),
    ],
)
def test_configurations_that_ask_for_more_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    make(tmp_path, "bunny-phi", "clip")
    edit(tmp_path / "config.json", **change)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)
