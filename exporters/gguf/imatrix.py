"""Importance matrices of GGUF, from images: how strong each input channel of a matrix is on the calibration samples.

llama.cpp chooses scales and codes so that errors are small where inputs are strong. Its own tool collects the strengths
from text; here samples run through the real model, so image positions count as they occur. In: a `VlmModel` and what
enters its decoder. Out: an `Imatrix`, and files of the published form (llama.cpp, tools/imatrix): for each matrix
`NAME.in_sum2`, the sums of squares of its input channels, and `NAME.counts`, over how many positions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from edgevlm.calibration import Calibration
from edgevlm.calibration.activations import Activations, embed
from edgevlm.calibration.layers import walk
from edgevlm.calibration.scratch import Scratch
from edgevlm.calibration.statistics import SquaredNorms
from edgevlm.errors import CheckpointError, InputError
from edgevlm.exporters.base import Progress
from edgevlm.exporters.gguf.layout import tensor_name
from edgevlm.models.vlm import VlmModel

_SUMS, _COUNTS = ".in_sum2", ".counts"
_HEAD = "output.weight"


@dataclass(frozen=True)
class Importance:
    """Of one matrix `[N, K]`: sums of squares of its input channels, float32 `[K]`, over `count` positions."""

    sums: NDArray[np.float32]
    count: int

    @property
    def mean(self) -> NDArray[np.float32]:
        """float32 `[K]`, what llama.cpp quantizes by."""
        return self.sums / np.float32(self.count)


@dataclass(frozen=True)
class Imatrix:
    """Importances of a decoder.

    Attributes:
        entries: by the GGUF name of the matrix.
        dataset: what they were collected from.
        samples: how many.
        positions: a sample has, on average.
    """

    entries: Mapping[str, Importance]
    dataset: str
    samples: int
    positions: int


class _Writer(gguf.GGUFWriter):  # type: ignore[misc]
    """These files have no architecture."""

    def add_architecture(self) -> None:
        """Write nothing."""


@torch.no_grad()
def collect(model: VlmModel, activations: Activations, dataset: str, progress: Progress) -> Imatrix:
    """Importances of all matrices that llama.cpp multiplies by, the head's under `output.weight` even where it is tied.

    Args:
        model: whose decoder it is.
        activations: in front of its first layer; they are overwritten.
        dataset: where they come from.
        progress: called with layers done, layers in all.

    Raises:
        CheckpointError: what enters a matrix is not finite.
    """
    entries: dict[str, Importance] = {}
    count = len(model.decoder.layers)
    positions = sum(map(len, activations.states))
    for step in walk(model.decoder, activations):
        progress(step.index, count, "statistics of the decoder's inputs")
        for source, norms in step.collect(SquaredNorms).items():
            _add(entries, f"layers.{step.index}.{source}.weight", norms)
    head, norm = SquaredNorms(model.spec.decoder.hidden_size), copy.deepcopy(model.decoder.norm).float()
    for states in activations.states:
        head.add(norm(states))
    _add(entries, "lm_head.weight", head)
    return Imatrix(entries, dataset, len(activations), round(positions / len(activations)))


def _add(entries: dict[str, Importance], source: str, norms: SquaredNorms) -> None:
    sums: NDArray[np.float32] = norms.total.float().numpy()
    if not np.isfinite(sums).all():
        raise CheckpointError("calibration gives this matrix inputs that are not finite", source)
    name = tensor_name(source)
    assert name is not None
    entries[name] = Importance(sums, norms.rows)


def make(model: VlmModel, calibration: Calibration, progress: Progress) -> Imatrix:
    """Run the calibration samples through the model and collect.

    Raises:
        InputError: there are no samples.
        CheckpointError: what enters a matrix is not finite.
    """
    share = calibration.count / (calibration.count + len(model.decoder.layers))
    scratch = Scratch(calibration.memory)
    activations = embed(model, calibration, scratch, lambda done, total, what: progress(share * done / total, 1, what))
    return collect(
        model,
        activations,
        calibration.source,
        lambda done, total, what: progress(share + (1 - share) * done / total, 1, what),
    )


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write a file that llama.cpp's tools read."""
    writer = _Writer(path, "")
    try:
        writer.add_type(gguf.GGUFType.IMATRIX)
        writer.add_array(gguf.Keys.IMatrix.DATASETS, [imatrix.dataset])
        writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, imatrix.samples)
        writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, imatrix.positions)
        for name, entry in sorted(imatrix.entries.items()):
            writer.add_tensor(name + _SUMS, entry.sums[None])
            writer.add_tensor(name + _COUNTS, np.array([[entry.count]], np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_imatrix(path: Path) -> Imatrix:
    """Read such a file.

    Raises:
        InputError: it is none, or a value is no strength.
    """
    try:
        reader = gguf.GGUFReader(path)
        tensors = {tensor.name: np.array(tensor.data, np.float32).reshape(-1) for tensor in reader.tensors}
        dataset, samples, positions = (
            reader.fields[key].contents()
            for key in (gguf.Keys.IMatrix.DATASETS, gguf.Keys.IMatrix.CHUNK_COUNT, gguf.Keys.IMatrix.CHUNK_SIZE)
        )
        names = [name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)]
        entries = {name: Importance(tensors[name + _SUMS], int(tensors[name + _COUNTS].item())) for name in names}
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise InputError(f"not an importance matrix: {error}", str(path), "make it anew") from error
    for name, entry in entries.items():
        if entry.count <= 0 or not np.isfinite(entry.sums).all() or (entry.sums < 0).any():
            raise InputError(f"the importance of {name} is not that of any inputs", str(path), "make it anew")
    return Imatrix(entries, ", ".join(dataset), samples, positions)
