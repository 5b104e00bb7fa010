"""Make the plan of a vision tower in static int8 from calibration images.

In: a `VlmModel` and samples. Out: a `StaticPlan`. Images go through the model's own preprocessing one by one, twice:
for the largest magnitude of each input channel, then for histograms of whole inputs. In between, inputs are smoothed
where that helps. Nothing is kept of an image but these, and sample rows of the first few.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgevlm import reference
from edgevlm.calibration import Calibration, Sample
from edgevlm.errors import InputError
from edgevlm.imageio import load_image
from edgevlm.models.vlm import VisionModel, VlmModel
from edgevlm.preprocess import PreparedImage, prepare
from edgevlm.progress import Report
from edgevlm.quant.vision.kept import keep_costly
from edgevlm.quant.vision.layers import Group, groups, output_multipliers, products
from edgevlm.quant.vision.plan import LARGEST, StaticLayer, StaticPlan
from edgevlm.quant.vision.probe import per_channel, probed, rows, run, weight_of
from edgevlm.quant.vision.ranges import MagnitudeHistogram
from edgevlm.quant.vision.smoothing import smoothing_factors

#: Different images that are looked at.
MOST_IMAGES = 32
#: Rows of an input that smoothing is judged by: of so many images, so many each.
_SAMPLED_IMAGES, _SAMPLED_ROWS = 4, 64


class _Magnitudes:
    """What the first pass sees of a layer: the largest of each input channel and of the output, and sample rows."""

    def __init__(self) -> None:
        self.largest = torch.zeros(())
        self.output = torch.zeros(())
        self.samples: list[Tensor] = []
        self.rows = 0

    def add(self, x: Tensor, output: Tensor) -> None:
        """Look at the input `[P, C]` of one image, or of one tile of it, and at what became of it."""
        self.largest = torch.maximum(self.largest, x.abs().amax(dim=0))
        self.output = torch.maximum(self.output, output.abs().amax())
        self.rows = max(self.rows, len(x))
        if len(self.samples) < _SAMPLED_IMAGES:
            self.samples.append(x[torch.linspace(0, len(x) - 1, min(len(x), _SAMPLED_ROWS)).long()].clone())


def plan_vision(model: VlmModel, calibration: Calibration | None, progress: Report) -> StaticPlan:
    """Ranges, factors, and the layers that stay in float.

    Args:
        model: weights in any float dtype; left as it is. Reducers of tokens play no part.
        calibration: at least one sample.
        progress: called with work done, work in all, and what is being done.

    Raises:
        InputError: there are no samples, or an activation is not finite.
        ValueError: a weight is not finite.
    """
    samples, model = calibrated(calibration).samples, _without_reducer(model)
    images = list(islice(_different(model, samples()), MOST_IMAGES))
    seen = _magnitudes(model, images, progress)
    # A layer that runs on one row an image (squeeze and excitation) gains nothing.
    active = [group for group in groups(model.vision) if seen[group.layers[0]].rows > 1]
    factors = {group: _factors(model, group, seen) for group in active}
    inputs, outputs = _scales(model, images, factors, seen, progress)
    layers = {
        name: StaticLayer(inputs[group.layers[0]], None if shared is None else shared.numpy(), outputs.get(name))
        for group, shared in factors.items()
        for name in group.layers
    }
    kept, error = keep_costly(model, layers, [group.layers for group in active], images, progress)
    left = {name: layer for name, layer in layers.items() if name not in kept}
    return StaticPlan(left, _divided(model, active, left), kept, error)


def calibrated(calibration: Calibration | None) -> Calibration:
    """The calibration data, which there must be.

    Raises:
        InputError: there are none.
    """
    if calibration is None or not calibration.count:
        what = "a vision tower in static int8 needs calibration images and there are none"
        raise InputError(what, "--vision-precision", "add --calibrate scenes, or a folder of images")
    return calibration


def _without_reducer(model: VlmModel) -> VlmModel:
    """The model with all of its image tokens: what a reducer leaves out depends on the image."""
    vision, spec = model.vision, model.spec
    if vision.reducer is None:
        return model
    plain = VisionModel(vision.encoder, vision.projector, vision.shuffle)
    spec = dataclasses.replace(spec, vision=dataclasses.replace(spec.vision, reducer=None))
    return dataclasses.replace(model, vision=plain, spec=spec)


def _different(model: VlmModel, samples: Iterator[Sample]) -> Iterator[PreparedImage]:
    """The images of the samples, each once."""
    keys: set[bytes] = set()
    for sample in samples:
        image = prepare(load_image(sample.image), model.spec.preprocess)
        if image.key not in keys:
            keys.add(image.key)
            yield image


def _magnitudes(model: VlmModel, images: list[PreparedImage], progress: Report) -> dict[str, _Magnitudes]:
    """The first pass: what each layer gets."""
    seen, multiplied = {name: _Magnitudes() for name in products(model.vision)}, output_multipliers(model.vision)

    def watch(name: str, layer: nn.Module, x: Tensor) -> Tensor:
        if not bool(torch.isfinite(x).all()):
            raise InputError(
                f"the input of {name} holds a value that is not finite", model.spec.name, "check the checkpoint"
            )
        output = run(layer, x)
        seen[name].add(rows(layer, x), _scaled(name, layer, output, multiplied))
        return output

    watched = probed(model, seen, watch)
    for index, image in enumerate(images):
        progress(index / len(images), 3, f"largest values, image {index + 1} of {len(images)}")
        reference.encoded_images(watched, [image])
    return seen


def _scaled(name: str, layer: nn.Module, output: Tensor, multiplied: Mapping[str, Tensor]) -> Tensor:
    """A layer's output with its layer scale, if there is one."""
    return output * per_channel(layer, multiplied[name]) if name in multiplied else output


def _factors(model: VlmModel, group: Group, seen: Mapping[str, _Magnitudes]) -> Tensor | None:
    if group.maker is None:
        return None
    found = seen[group.layers[0]]
    weights = [weight_of(model.vision.get_submodule(name)).float().flatten(1) for name in group.layers]
    factors = smoothing_factors(torch.cat(found.samples), weights, found.largest)
    # With few digits the last bits of a sum, which depend on the number of threads, do not show.
    return None if factors is None else factors.bfloat16().float()


def _scales(
    model: VlmModel,
    images: list[PreparedImage],
    factors: Mapping[Group, Tensor | None],
    seen: Mapping[str, _Magnitudes],
    progress: Report,
) -> tuple[dict[str, float], dict[str, float]]:
    """The second pass: scales of inputs, smoothed, by the first layer of a group, and of outputs of convolutions."""
    multiplied = output_multipliers(model.vision)
    divisors = {group.layers[0]: shared for group, shared in factors.items()}
    inputs = {
        name: MagnitudeHistogram(_rounded_up(seen[name].largest if shared is None else seen[name].largest / shared))
        for name, shared in divisors.items()
    }
    convolutions = [name for name in divisors if isinstance(model.vision.get_submodule(name), nn.Conv2d)]
    outputs = {name: MagnitudeHistogram(_rounded_up(seen[name].output)) for name in convolutions}

    def watch(name: str, layer: nn.Module, x: Tensor) -> Tensor:
        shared, output = divisors[name], run(layer, x)
        inputs[name].add(x if shared is None else x / per_channel(layer, shared))
        if name in outputs:
            outputs[name].add(_scaled(name, layer, output, multiplied))
        return output

    watched = probed(model, inputs, watch)
    for index, image in enumerate(images):
        progress(1 + index / len(images), 3, f"ranges, image {index + 1} of {len(images)}")
        reference.encoded_images(watched, [image])
    return _as_scales(inputs), _as_scales(outputs)


def _as_scales(histograms: Mapping[str, MagnitudeHistogram]) -> dict[str, float]:
    """What one step of int8 stands for."""
    return {name: float(np.float32(histogram.threshold() / LARGEST)) for name, histogram in histograms.items()}


def _rounded_up(largest: Tensor) -> float:
    """The largest element with 10 bits, for the same reason as above; 1 where all are 0."""
    fraction, exponent = math.frexp(float(largest.max()))
    return math.ldexp(math.ceil(fraction * 1024) / 1024, exponent) if fraction else 1.0


def _divided(model: VlmModel, active: list[Group], layers: Mapping[str, StaticLayer]) -> dict[str, NDArray[np.float32]]:
    """Divisors of the rows of what makes smoothed inputs."""
    parameters = dict(model.vision.named_parameters())
    divided = {}
    for group in active:
        factors = layers[group.layers[0]].factors if group.layers[0] in layers else None
        if factors is None or group.maker is None:
            continue
        for name in group.maker.parameters:
            divisors = np.ones(len(parameters[name]), np.float32)
            divisors[group.maker.first : group.maker.first + len(factors)] = factors
            divided[name] = divisors
    return divided
