"""Named schemes: what `--quantize` and the field `scheme` of the pass `quantize` may say.

A name decides bits, algorithm and grid of the decoder's matrices, the precision of everything else, and the format that
can hold it. Fields of the pass change single numbers of it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, get_args

from edgevlm.quant.schemes import DATA_FREE
from edgevlm.quant.tensor import Algorithm, QuantScheme
from edgevlm.recipe import GgufType, Precision, VisionPrecision


@dataclass(frozen=True)
class Preset:
    """One named scheme.

    Attributes:
        bits: of the decoder's linear layers.
        algorithm: who chooses their codes.
        symmetric: without zero points.
        group_size: inputs that share a scale; None lets the matrix's width decide.
        half_scales: scales are float16 numbers.
        formats: that can hold it.
        vision: what the recipe's `vision_precision` must say beside it; None for anything.
    """

    bits: Literal[3, 4, 8]
    algorithm: Algorithm
    symmetric: bool = True
    group_size: int | None = None
    half_scales: bool = False
    formats: tuple[str, ...] = ("onnx",)
    vision: VisionPrecision | None = None

    @property
    def needs_calibration(self) -> bool:
        """Whether its algorithm looks at inputs."""
        return self.algorithm not in DATA_FREE

    @property
    def precision(self) -> Precision:
        """What the recipe's `precision` must say beside it."""
        return "int8" if self.bits == 8 else "int4"


#: Group sizes that kernels have.
GROUP_SIZES = (16, 32, 64, 128, 256)
_INT4 = ("onnx", "tensorrt")
PRESETS: dict[str, Preset] = {
    "w8": Preset(8, "rtn"),
    "w8a8": Preset(8, "rtn", vision="w8a8"),
    "w4-rtn": Preset(4, "rtn", formats=_INT4),
    "w4-gptq": Preset(4, "gptq", formats=_INT4),
    "w4-awq": Preset(4, "awq", formats=_INT4),
    "w4-awq-gptq": Preset(4, "awq-gptq", formats=_INT4),
    "w4-hqq": Preset(4, "hqq", formats=_INT4),
    "w4a16-trt": Preset(4, "gptq", group_size=128, formats=_INT4),
    "w3-rtn": Preset(3, "rtn", formats=_INT4),
    "w3-gptq": Preset(3, "gptq", formats=_INT4),
    "w3-awq": Preset(3, "awq", formats=_INT4),
    "w3-awq-gptq": Preset(3, "awq-gptq", formats=_INT4),
    "w3-hqq": Preset(3, "hqq", formats=_INT4),
    "q4_0": Preset(4, "gptq", group_size=32, half_scales=True, formats=("gguf",)),
    "q8_0": Preset(8, "gptq", group_size=32, half_scales=True, formats=("gguf",)),
}


def scheme_of(preset: Preset, columns: int, group_size: int) -> QuantScheme:
    """The scheme of a matrix with `columns` inputs, where `group_size` is what its width asks for."""
    size = preset.group_size or group_size
    return QuantScheme(preset.bits, min(size, columns), preset.symmetric, preset.algorithm, preset.half_scales)


def read_scheme(text: str) -> Preset:
    """A preset by its name, or with another group size: `w4-gptq:32`.

    Raises:
        ValueError: there is no such preset, or kernels have no such group size.
    """
    name, _, size = text.partition(":")
    if name in get_args(GgufType) and name not in PRESETS:
        raise ValueError(f"{name} is rounded by llama.cpp itself: write --format gguf --gguf-type {name}")
    if name not in PRESETS:
        raise ValueError(f"{name!r} is none of {', '.join(PRESETS)}")
    if not size:
        return PRESETS[name]
    if size not in map(str, GROUP_SIZES):
        raise ValueError(f"the group size in {text!r} is none of {', '.join(map(str, GROUP_SIZES))}")
    return replace(PRESETS[name], group_size=int(size))


def candidates(format_: str, widths: Collection[int]) -> tuple[str, ...]:
    """Schemes that `auto` chooses among for a format and matrices of these widths, smallest first."""
    if format_ == "gguf":
        return ("q4_0", "q8_0")
    fitting = [size for size in (128, 64, 32) if not any(width % size for width in widths)] or [32]
    few = dict.fromkeys(f"w4-gptq:{size}" for size in (fitting[0], fitting[-1]))
    return (*few, f"w8:{fitting[0]}")
