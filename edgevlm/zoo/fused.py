"""LLaVA-Mini's pre-fusion over packed questions, as training needs it: several prompts behind one image at once.

In: image embeddings, of which the last are the compressor's, and embeddings of packed prompts in which those last ones
have places. Out: what enters the decoder. Answers are not fused: at generation the pre-fusion runs before there is one.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from edgevlm.models.decoder import rotary_tables
from edgevlm.models.fusion import Fusion
from edgevlm.zoo.batches import IGNORE, Packed


def fuse(fusion: Fusion, image: Tensor, embeds: Tensor, packed: Packed) -> Tensor:
    """Embeddings [B, T, H] of what enters the decoder.

    Args:
        image: embeddings [B, V, H], the compressor's Q last.
        embeds: [B, T, H] of the packed ids; the Q columns of the image are not looked at.
        packed: prompts with Q columns for the image.
    """
    rows, compressed, seen = len(embeds), fusion.image_tokens, image.shape[1]
    start = int((packed.ids[0] == -1).nonzero()[0])
    text = torch.cat((torch.arange(start), torch.arange(start + compressed, embeds.shape[1])))
    x = torch.cat((image, embeds[:, text]), dim=1)
    length = x.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril().repeat(rows, 1, 1, 1)
    mask[:, :, seen:, seen:] = packed.mask[:, :, text][:, :, :, text]
    positions = torch.cat(
        (torch.arange(seen).expand(rows, -1), seen - compressed + _before_image(packed, start)), dim=1
    )
    spec = fusion.spec
    rotary = rotary_tables(positions, spec.rotary_dim, spec.rope_theta, spec.rope_scaling)
    for layer in fusion.layers:
        x, _ = layer(x, rotary, None, mask)
    fused = torch.cat((x[:, seen : seen + start], x[:, seen - compressed : seen], x[:, seen + start :]), dim=1)
    # The token behind one with a label is part of an answer, unless another question begins there.
    same = packed.segment[:, 1:] == packed.segment[:, :-1]
    answers = F.pad((packed.labels[:, :-1] != IGNORE) & same, (1, 0))
    return embeds.where(answers[..., None], fused)


def _before_image(packed: Packed, start: int) -> Tensor:
    """Positions [B, T - Q] of the text, counted as if the image stood before all of it, from Q on."""
    compressed = packed.image_tokens
    before = packed.positions[:, :start] + compressed
    return torch.cat((before, packed.positions[:, start + compressed :]), dim=1)
