"""Which layers of a vision tower stay in float: those whose rounding costs its features most.

In: a model, how its layers would be rounded, and a few images. Out: names. The features of the images are computed as
rounding leaves them. Only if they are too far off each group of layers is rounded alone, and of the costliest as many
stay in float as are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from edgevlm import reference
from edgevlm.models.vlm import VlmModel
from edgevlm.preprocess import PreparedImage
from edgevlm.progress import Report
from edgevlm.quant.vision.layers import output_multipliers
from edgevlm.quant.vision.plan import StaticLayer, rounded_values, rounded_weight
from edgevlm.quant.vision.probe import per_channel, probed, run, weight_of

#: Images whose features are compared, and how far off they may be: ||f - g|| / ||f||.
COMPARED, MOST_ERROR = 4, 0.1


def keep_costly(
    model: VlmModel,
    layers: Mapping[str, StaticLayer],
    groups: Sequence[tuple[str, ...]],
    images: Sequence[PreparedImage],
    progress: Report,
) -> tuple[tuple[str, ...], float]:
    """The layers that stay in float, and the features' error, ||f - g|| / ||f||, with all others rounded.

    Args:
        model: in float.
        layers: how each layer would be rounded.
        groups: layers that stay or go together.
        images: the first `COMPARED` are looked at.
        progress: called with work done, work in all, and what is being done.
    """
    compared = list(images[:COMPARED])
    progress(2, 3, "features in float")
    exact = [image.rows for image in reference.encoded_images(model, compared)]
    progress(2.1, 3, "features in int8")
    error = _error(rounded(model, layers), compared, exact)
    if error <= MOST_ERROR:
        return (), error
    costs = []
    for index, names in enumerate(groups):
        progress(2.2 + 0.7 * index / len(groups), 3, f"what {names[0]} costs")
        alone = rounded(model, {name: layers[name] for name in names})
        costs.append(_error(alone, compared[:1], exact[:1]))
    order = sorted(range(len(groups)), key=lambda index: (-costs[index], index))

    def left(count: int) -> dict[str, StaticLayer]:
        floating = {name for index in order[:count] for name in groups[index]}
        return {name: layer for name, layer in layers.items() if name not in floating}

    # The fewest that are enough; with none left there is no error.
    too_few, enough, error = 0, len(groups), 0.0
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        progress(2.9, 3, f"without the {middle} costliest of {len(groups)}")
        found = _error(rounded(model, left(middle)), compared, exact)
        if found <= MOST_ERROR:
            enough, error = middle, found
        else:
            too_few = middle
    return tuple(name for name in layers if name not in left(enough)), error


def rounded(model: VlmModel, layers: Mapping[str, StaticLayer]) -> VlmModel:
    """The model with these layers computed as int8 would leave them, in float32."""
    multiplied = output_multipliers(model.vision)

    def compute(name: str, layer: nn.Module, x: Tensor) -> Tensor:
        chosen, weight = layers[name], weight_of(layer).float()
        if chosen.factors is not None:
            factors = torch.from_numpy(chosen.factors)
            x, weight = x / per_channel(layer, factors), weight * per_channel(layer, factors)
        output = run(layer, rounded_values(x, chosen.input_scale), rounded_weight(weight))
        if chosen.output_scale is None:
            return output
        # What is rounded has its layer scale in it; the model multiplies by that once more.
        scale = per_channel(layer, multiplied.get(name, torch.ones(len(weight))))
        narrow = rounded_values(output * scale, chosen.output_scale)
        return torch.where(scale == 0, 0.0, narrow / torch.where(scale == 0, 1.0, scale))

    return probed(model, layers, compute)


def _error(model: VlmModel, images: Sequence[PreparedImage], exact: Sequence[reference.Float32]) -> float:
    """||f - g|| / ||f||, the largest of the images."""
    found = [image.rows for image in reference.encoded_images(model, list(images))]
    pairs = zip(found, exact, strict=True)
    return max(
        float(np.linalg.norm(ours - theirs)) / max(float(np.linalg.norm(theirs)), 1e-30) for ours, theirs in pairs
    )
