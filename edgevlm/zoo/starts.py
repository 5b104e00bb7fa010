"""Beginning a nano model from another that ships: its decoder, or the whole LLaVA that a LLaVA-Mini grows out of.

In: a freshly initialised `NanoVLM` and the name of a shipped model. The model's weights are changed in place.
"""

import torch
from safetensors import safe_open
from torch import Tensor, nn

from edgevlm.models import load
from edgevlm.models.decoder import DecoderLayer
from edgevlm.zoo import resolve
from edgevlm.zoo.llava_layout import published_name
from edgevlm.zoo.nano import NanoVLM


def start_decoder(model: NanoVLM, name: str) -> None:
    """The decoder of `name`, less the biases that this one does not have."""
    weights = load(resolve(f"zoo:{name}")).decoder.state_dict()
    _assign(model.decoder, {key: weights[key] for key in model.decoder.state_dict()})


def start_fusion(model: NanoVLM, name: str) -> None:
    """Towers and projector of the LLaVA `name`, and its decoder split in two.

    Its layers become the pre-fusion; embeddings and last norm stay the decoder's, whose own layers start as the
    identity. So the pre-fusion's text says from the first step on what the LLaVA would have said next.
    """
    assert model.fusion is not None
    folder = resolve(f"zoo:{name}")
    towers = [key for key in model.state_dict() if key.startswith(("vision.", "text."))]
    found: dict[str, Tensor] = {}
    for file in ("model.safetensors", "text_tower.safetensors"):
        with safe_open(folder / file, framework="pt") as tensors:
            there = set(tensors.keys())
            found |= {key: tensors.get_tensor(published_name(key)) for key in towers if published_name(key) in there}
    llava = load(folder)
    projector, decoder = llava.vision.projector.state_dict(), llava.decoder.state_dict()
    found |= {f"projector.{2 * i}.{kind}": projector[f"linear_{i + 1}.{kind}"] for i in (0, 1) for kind in _KINDS}
    found |= {f"fusion.{key}": value for key, value in decoder.items() if key.startswith("layers.")}
    found |= {f"decoder.{key}": value for key, value in decoder.items() if not key.startswith("layers.")}
    _assign(model, found)
    for layer in model.decoder.layers:
        assert isinstance(layer, DecoderLayer)
        for branch in (layer.self_attn.o_proj, layer.mlp.down_proj):
            assert isinstance(branch, nn.Linear)
            nn.init.zeros_(branch.weight)


_KINDS = ("weight", "bias")


def _assign(module: nn.Module, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        state = module.state_dict()
        for name, value in weights.items():
            state[name].copy_(value)
