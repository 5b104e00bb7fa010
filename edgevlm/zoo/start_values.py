"""The random weights that a nano model starts from.

In: a `NanoVLM` and a seed. The model's weights are changed in place.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgevlm.models.decoder import Decoder
from edgevlm.models.qformer import QFormerProjector
from edgevlm.models.vit import Vit, VitLayer
from edgevlm.zoo.clip import ClipVision, sincos_positions
from edgevlm.zoo.nano import NanoVLM


def initialise(model: NanoVLM, seed: int) -> None:
    """Start values that keep the variance through every block; seeded.

    Depthwise mixers start as the identity, a ViT's table of positions as sines and cosines; the decoder starts as Qwen2
    does, with a larger embedding (its rows also are the head), queries equal to keys up to the layer in which nouns
    look for things, so that attention begins as a comparison of contents (in the spirit of arXiv 2305.09828), and
    residual branches scaled down by depth.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, std: float) -> None:
        with torch.no_grad():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            mixer = module.groups == module.in_channels == module.out_channels and module.stride == (1, 1)
            if mixer and "convffn" not in name:
                normal(module.weight, 0.1 / math.sqrt(fan_in))
                centre = module.kernel_size[0] // 2
                with torch.no_grad():
                    module.weight[:, 0, centre, centre] += 1.0
            else:
                normal(module.weight, math.sqrt((1.0 if "convffn" in name or "se." in name else 2.0) / fan_in))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            normal(module.weight, 1 / math.sqrt(module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            normal(module.weight, 1 / math.sqrt(module.embedding_dim))
    if isinstance(model.vision, ClipVision | Vit):
        _initialise_vit(model.vision if isinstance(model.vision, Vit) else model.vision.vit, normal)
    if model.text is not None:
        normal(model.text.positions, 0.5 / math.sqrt(model.text.spec.hidden_size))
        _quieten(model.text.layers)
    if isinstance(model.projector, QFormerProjector):
        with torch.no_grad():
            model.projector.queries.copy_(sincos_positions(*model.spec.regions, model.projector.queries.shape[-1]))
    _initialise_decoder(model.decoder, model.spec.pointing[0][0])


def _initialise_vit(vit: Vit, normal: Callable[[Tensor, float], None]) -> None:
    """Positions as sines and cosines, a class token, quiet branches."""
    normal(vit.class_token, 0.5)
    with torch.no_grad():
        vit.positions[1:] = sincos_positions(vit.spec.grid, vit.spec.grid, vit.spec.hidden_size)
    _quieten(vit.layers)


def _quieten(layers: nn.ModuleList) -> None:
    """Scale residual branches down by depth."""
    with torch.no_grad():
        for layer in layers:
            assert isinstance(layer, VitLayer)
            layer.attention.out_proj.weight.mul_(1 / math.sqrt(2 * len(layers)))
            layer.fc2.weight.mul_(1 / math.sqrt(2 * len(layers)))


def _initialise_decoder(module: Decoder, comparing: int) -> None:
    """Quiet branches, queries equal to keys up to layer `comparing`, and a head that begins as the embedding."""
    decoder, weights = module.spec, dict(module.named_parameters())
    group, quiet = (
        decoder.num_attention_heads // decoder.num_key_value_heads,
        1 / math.sqrt(2 * decoder.num_hidden_layers),
    )
    # A norm behind the attention undoes any scale but its own.
    branches = (
        "mlp.down_proj" if decoder.mlp == "swiglu" else "mlp.fc2",
        "self_attn.o_proj" if decoder.post_attention_norm == "none" else "attention_branch_norm",
    )
    with torch.no_grad():
        if not decoder.tied_embeddings:
            module.lm_head.weight.copy_(module.embed_tokens.weight)
        for index in range(decoder.num_hidden_layers):
            for branch in branches:
                weights[f"layers.{index}.{branch}.weight"].mul_(quiet)
            if index <= comparing:
                queries, keys = (weights[f"layers.{index}.self_attn.{p}_proj.weight"] for p in "qk")
                heads = keys.view(-1, decoder.head_dim, decoder.hidden_size).repeat_interleave(group, dim=0)
                queries.copy_(heads.reshape(-1, decoder.hidden_size))
