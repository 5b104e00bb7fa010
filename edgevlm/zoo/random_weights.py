"""Random weights as one safetensors file, written a piece at a time.

In: published names and shapes, and the mean and standard deviation of each tensor. Out: the file. No weight is a
denormal number in any 16-bit format, and the same seed gives the same bytes.
"""

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO, TypeAlias

import torch
from torch import Tensor

from edgevlm.progress import Report

_CHUNK = 1 << 22
# The least normal number of float16 is 2**-14; bfloat16 and float32 reach further down.
_LEAST = 2.0**-13
_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}

#: E[gelu(x)^2] of a unit normal x is 0.425: what follows a GELU needs this much more variance.
AFTER_GELU = 1 / 0.425
#: Second moment of an embedding row's elements: weights of the branches that match it stay normal numbers in float16.
ROW_LEVEL = 1 / 16
#: Mean and standard deviation of a tensor by its name and shape.
Moments: TypeAlias = Callable[[str, tuple[int, ...]], tuple[float, float]]


def random_pieces(
    total: int, mean: float, std: float, seed: int, adjust: Callable[[Tensor], None] | None = None
) -> Iterator[Tensor]:
    """`total` normal values in float32, a few million at a time, none of them below float16's normal numbers.

    Args:
        total: values in all.
        mean, std: of the distribution.
        seed: of the draws.
        adjust: alters drawn values in place.
    """
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, total, _CHUNK):
        values = torch.randn(min(_CHUNK, total - start), generator=generator).mul_(std).add_(mean)
        if adjust is not None:
            adjust(values)
        yield torch.where(values.abs() < _LEAST, torch.copysign(torch.tensor(_LEAST), values), values)


def write_random(
    file: BinaryIO,
    shapes: dict[str, tuple[int, ...]],
    moments: Moments,
    seed: int,
    report: Report | None,
    adjust: Callable[[str, tuple[int, ...], Tensor], None] | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    hollow: bool = False,
) -> None:
    """Write the safetensors format: header length, header, then each tensor's bytes.

    Args:
        file: open for writing.
        shapes: by published name, in file order; BatchNorm's counters are int64.
        moments: of each tensor.
        seed: of all of them.
        report: called with (bytes written, bytes in all, tensor name) after each tensor.
        adjust: alters drawn values in place; a tensor that it alters must not exceed one chunk (4 Mi elements).
        dtype: bfloat16, float16 or float32.
        hollow: leave holes where weights would be; a file that takes no room, for what reads names and shapes alone.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        integer = name.endswith("num_batches_tracked")
        begin, end = end, end + math.prod(shape) * (8 if integer else dtype.itemsize)
        header[name] = {
            "dtype": "I64" if integer else _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    if hollow:
        _leave_holes(file, header, end)
        return
    written = 0
    for index, (name, shape) in enumerate(shapes.items()):
        if name.endswith("num_batches_tracked"):
            written += file.write((1).to_bytes(8, "little"))
        else:
            change = None if adjust is None else partial(adjust, name, shape)
            for values in random_pieces(math.prod(shape), *moments(name, shape), seed * 1_000_003 + index, change):
                written += file.write(values.to(dtype).view(torch.uint8).numpy().tobytes())
        if report is not None:
            report(written, end, name)


def _leave_holes(file: BinaryIO, header: dict[str, Any], end: int) -> None:
    """Make the file as long as it would be. Each tensor begins with its own number, so that none equals another."""
    start = file.tell()
    for number, entry in enumerate(header.values()):
        if "data_offsets" in entry:
            file.seek(start + entry["data_offsets"][0])
            file.write(number.to_bytes(2, "little"))
    file.truncate(start + end)
