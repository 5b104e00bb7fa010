"""Which layers of a vision side can run on int8, and what makes their inputs.

In: a `VisionModel`. Out: groups of layers with the same input. Products carry nearly all of the work: linear layers and
convolutions over one pixel. What stays in float: the convolution that reads pixels, depthwise ones, attention's own two
products, Q-Formers, and everything that chooses tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from edgevlm.models.fastvithd import AttentionBlock, ConvFeedForward, RepMixerBlock
from edgevlm.models.projector import MlpProjector
from edgevlm.models.qformer import QFormerProjector
from edgevlm.models.qwen2_vision import Qwen2VisionBlock
from edgevlm.models.vit import VitLayer
from edgevlm.models.vlm import VisionModel


@dataclass(frozen=True)
class Maker:
    """Parameters whose rows (first axis), from `first` on, make the channels of an input one by one."""

    parameters: tuple[str, ...]
    first: int = 0


@dataclass(frozen=True)
class Group:
    """Layers with the same input, by name, and what makes it; None where that cannot be scaled channel by channel."""

    layers: tuple[str, ...]
    maker: Maker | None = None


def products(vision: VisionModel) -> dict[str, nn.Module]:
    """The layers that can run on int8, by name: linear layers and 1x1 convolutions of encoder and projector.

    A Q-Former stays in float: its queries are constants, and behind products of its first layer whose weights are
    int8, OpenVINO 2026.4 writes into what it keeps of them, so that each image sees what the one before left there.
    """
    roots: tuple[str, ...] = ("encoder.", "projector.")
    if isinstance(vision.projector, QFormerProjector):
        roots = ("encoder.",)
    return {name: module for name, module in vision.named_modules() if name.startswith(roots) and _is_product(module)}


def groups(vision: VisionModel) -> list[Group]:
    """All of `products`, each in one group."""
    made = [group for name, module in vision.named_modules() for group in _made(name, module)]
    known = {layer for group in made for layer in group.layers}
    return [*made, *(Group((name,)) for name in products(vision) if name not in known)]


def output_scales(vision: VisionModel) -> dict[str, str]:
    """Learned factors `[C]` of a branch (layer scale), by name, and the layer whose outputs they multiply."""
    scales: dict[str, str] = {}
    for name, module in vision.named_modules():
        if isinstance(module, VitLayer) and module.scaled:
            scales |= {f"{name}.scale1": f"{name}.attention.out_proj", f"{name}.scale2": f"{name}.fc2"}
        elif isinstance(module, RepMixerBlock):
            scales[f"{name}.layer_scale"] = f"{name}.convffn.fc2"
        elif isinstance(module, AttentionBlock):
            scales |= {
                f"{name}.layer_scale_1": f"{name}.token_mixer.proj",
                f"{name}.layer_scale_2": f"{name}.convffn.fc2",
            }
    return scales


def output_multipliers(vision: VisionModel) -> dict[str, Tensor]:
    """The same by the layer's name, float32 `[N]`."""
    parameters = dict(vision.named_parameters())
    return {layer: parameters[scale].detach().float().flatten() for scale, layer in output_scales(vision).items()}


def _is_product(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def _made(name: str, module: nn.Module) -> Iterator[Group]:
    """Groups inside a block whose inputs are made by a norm, a depthwise convolution, or values that attention mixes.

    Mixed values keep their channels, since a head weighs positions only.
    """
    if isinstance(module, VitLayer):
        attention = f"{name}.attention"
        into = tuple(f"{attention}.{part}_proj" for part in "qkv")
        yield Group(into, _rows(module.norm1, f"{name}.norm1"))
        yield Group((f"{attention}.out_proj",), _rows(module.attention.v_proj, into[-1]))
        yield Group((f"{name}.fc1",), _rows(module.norm2, f"{name}.norm2"))
    elif isinstance(module, Qwen2VisionBlock):
        yield Group((f"{name}.attn.qkv",), _rows(module.norm1, f"{name}.norm1"))
        yield Group((f"{name}.attn.proj",), _rows(module.attn.qkv, f"{name}.attn.qkv", module.attn.proj.in_features))
        yield Group((f"{name}.mlp.fc1",), _rows(module.norm2, f"{name}.norm2"))
    elif isinstance(module, AttentionBlock):
        mixer = module.token_mixer
        yield Group((f"{name}.token_mixer.qkv",), _rows(module.norm, f"{name}.norm"))
        maker = _rows(mixer.qkv, f"{name}.token_mixer.qkv", mixer.proj.in_features)
        yield Group((f"{name}.token_mixer.proj",), maker)
    elif isinstance(module, ConvFeedForward) and module.conv.bn is None:
        yield Group((f"{name}.fc1",), _rows(module.conv.conv, f"{name}.conv.conv"))
    elif isinstance(module, MlpProjector) and isinstance(module.norm, nn.LayerNorm):
        yield Group((f"{name}.linear_1",), _rows(module.norm, f"{name}.norm"))


def _rows(module: nn.Module, name: str, values: int = 0) -> Maker:
    """A module's parameters; of queries, keys and values in one matrix the last, of `values` channels."""
    parameters = tuple(f"{name}.{part}" for part, _ in module.named_parameters(recurse=False))
    return Maker(parameters, 2 * values)
