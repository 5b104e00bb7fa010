"""Second moments of the inputs of every linear layer of a decoder, collected once and kept for the next algorithm.

In: a model and calibration samples. Out: for each decoder layer a float32 copy and, for each group of linear modules
with the same inputs, the mean of x xᵀ over all positions of all samples, images and text as the decoder sees them. The
inputs are those of the model as it is, so that the same statistics serve every algorithm and bit width; they lie in the
user's cache folder under a hash of the weights and samples they come from, and the oldest go when they grow too many.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgevlm.atomic import atomic_file
from edgevlm.calibration import Calibration
from edgevlm.calibration.activations import embed
from edgevlm.calibration.layers import LayerStep, advance, float_layer, linear_groups
from edgevlm.calibration.scratch import Scratch
from edgevlm.calibration.statistics import SecondMoments
from edgevlm.errors import CheckpointError, InputError
from edgevlm.longrun import cache_folder
from edgevlm.models.decoder import DecoderLayer
from edgevlm.models.footprint import release
from edgevlm.models.vlm import VlmModel
from edgevlm.progress import Report, part_of

#: Part of the key: another way to collect is another number.
_VERSION = 1
#: Bytes that all kept statistics may take together, and that a disk must have left beside them.
KEPT_BYTES = 8 << 30
_SPARE_BYTES = 4 << 30


@dataclass(frozen=True)
class LayerMoments:
    """One decoder layer and the second moments of what goes into it.

    Attributes:
        index: which one.
        layer: a float32 copy, the reader's own.
        moments: float32 `[C, C]` by the first name of each group of `linear_groups`.
    """

    index: int
    layer: DecoderLayer
    moments: dict[str, Tensor]


def layer_moments(
    model: VlmModel, calibration: Calibration, scratch: Scratch, progress: Report
) -> Iterator[LayerMoments]:
    """Each decoder layer in turn.

    Args:
        model: left as it is.
        calibration: the samples.
        scratch: where activations lie.
        progress: called with a share of 1.

    Raises:
        InputError: there are no samples.
        CheckpointError: activations are not finite.
    """
    folder = _folder(model, calibration)
    count = len(model.decoder.layers)
    files = [folder / f"layer-{index:03}.safetensors" for index in range(count)]
    if all(map(_whole, files)):
        for index, file in enumerate(files):
            progress(index / count, 1, f"layer {index + 1} of {count}, statistics of an earlier run")
            yield LayerMoments(index, float_layer(model.decoder, index), _read(file))
        return
    activations = embed(model, calibration, scratch, part_of(progress, 0, 0.3))
    keep = _make_room(folder, model)
    for index in range(count):
        progress(0.3 + 0.7 * index / count, 1, f"layer {index + 1} of {count}")
        step = LayerStep(index, float_layer(model.decoder, index), activations)
        with step.watched(SecondMoments) as found:
            advance(step, model.decoder)
        moments = {group[0]: _mirrored(found[group[0]].mean) for group in linear_groups(step.layer)}
        for name, matrix in moments.items():
            _check(matrix, f"decoder.layers.{index}.{name}")
        if keep:
            _write(files[index], moments)
        yield LayerMoments(index, step.layer, moments)


def _mirrored(moments: Tensor) -> Tensor:
    """The lower triangle on both sides: sums of products come out different in their last bits, files hold one half."""
    return moments.tril() + moments.tril(-1).T


def _check(moments: Tensor, where: str) -> None:
    if not bool(torch.isfinite(moments).all()):
        raise CheckpointError(
            "the activations of calibration hold a value that is not finite",
            where,
            "check the checkpoint with `edgevlm inspect`, or calibrate with other images",
        )


def _folder(model: VlmModel, calibration: Calibration) -> Path:
    """Where the statistics of these weights and samples lie."""
    digest = hashlib.sha256(f"{_VERSION} {model.spec.to_dict()}".encode())
    for part in (model.vision, model.decoder, model.fusion):
        for name, tensor in () if part is None else part.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
        if part is not None:
            release(part)
    if model.image_newline is not None:
        digest.update(model.image_newline.float().numpy().data)
    for sample in calibration.samples():
        digest.update(f"{sample.image.shape} {sample.prompt!r} {sample.answer!r}".encode())
        digest.update(sample.image.tobytes())
    return cache_folder() / "calibration" / digest.hexdigest()[:32]


def _make_room(folder: Path, model: VlmModel) -> bool:
    """Whether the statistics of a model may be kept; older ones that would be too many with them are removed."""
    spec = model.spec.decoder
    widths = (spec.hidden_size, spec.query_size, spec.hidden_size, spec.intermediate_size)
    needed = spec.num_hidden_layers * sum(2 * width * (width + 1) for width in widths)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted((path for path in folder.parent.iterdir() if path != folder), key=lambda p: p.stat().st_mtime)
        sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in others}
        while others and needed + sum(sizes[path] for path in others) > KEPT_BYTES:
            shutil.rmtree(others.pop(0), ignore_errors=True)
        return needed <= KEPT_BYTES and shutil.disk_usage(folder).free > needed + _SPARE_BYTES
    except OSError:
        return False


def _write(file: Path, moments: dict[str, Tensor]) -> None:
    """Keep the lower triangles. Without room the statistics are collected anew next time."""
    packed = {
        name: torch.cat([row[: place + 1] for place, row in enumerate(matrix)]) for name, matrix in moments.items()
    }
    try:
        with atomic_file(file) as temporary:
            save_file(packed, temporary)
    except InputError:
        return


def _whole(file: Path) -> bool:
    """Whether a file was kept, and can be read."""
    try:
        with safe_open(file, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _read(file: Path) -> dict[str, Tensor]:
    packed = load_file(file)
    found = {}
    for name, flat in packed.items():
        size = int((2 * flat.numel()) ** 0.5)
        matrix, start = torch.zeros(size, size), 0
        for place in range(size):
            matrix[place, : place + 1] = flat[start : start + place + 1]
            start += place + 1
        found[name] = _mirrored(matrix)
    return found
