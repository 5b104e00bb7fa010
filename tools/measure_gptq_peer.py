"""Our GPTQ against llm-compressor's on the same weights and moments, as a table of docs/measurements/quantization.md.

In: a folder with llm-compressor, compressed-tensors and loguru (`pip install --no-deps --target`; with their own
dependencies they would bring another torch). Out: for each shipped model the error of the layers' outputs, the mean
over matrices, ours over theirs. Both round to 4 bits in groups, without zero points, channels of large inputs first,
with the same damping; each lays its grids in its own way. Run as

    python tools/measure_gptq_peer.py out/peers
"""

import argparse
import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgevlm.calibration.layers import linear_groups
from edgevlm.calibration.moments import layer_moments
from edgevlm.calibration.scratch import Scratch
from edgevlm.calibration.sources import open_calibration
from edgevlm.calibration.statistics import relative_error
from edgevlm.models import load, resolve
from edgevlm.quant.gptq import DAMPING, gptq
from edgevlm.quant.tensor import QuantScheme
from edgevlm.zoo import models

GROUPS = (32, 128)
SAMPLES = 128


def peer(folder: Path) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Its quantizer: weight `[N, C]`, moments `[C, C]` and a group size to what its codes stand for."""
    sys.path.insert(0, str(folder))
    # The packages' own first modules import data sets and trainers, which GPTQ has no need of.
    for name in ("llmcompressor", "llmcompressor.modifiers", "llmcompressor.modifiers.gptq"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    theirs = importlib.import_module("llmcompressor.modifiers.gptq.gptq_quantize")
    library = importlib.import_module("compressed_tensors.quantization")
    ranges = importlib.import_module("compressed_tensors.quantization.utils")

    def quantize(weight: Tensor, moments: Tensor, group: int) -> Tensor:
        args = library.QuantizationArgs(
            num_bits=4, type="int", symmetric=True, strategy="group", group_size=group, actorder="weight"
        )
        grouped = weight.view(len(weight), -1, group)
        scale, zero = ranges.calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
        batch = (weight[None].clone(), moments[None].clone(), scale[None], zero[None])
        rounded, _, _ = theirs.quantize_weight(*batch, None, args, percdamp=DAMPING)
        return rounded[0]

    return quantize


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    theirs = peer(parser.parse_args().folder.resolve())
    calibration = open_calibration("scenes", SAMPLES)
    print("| model | group | ours | llm-compressor | ours over theirs | largest of a matrix |")
    print("|---|---:|---:|---:|---:|---:|")
    with torch.no_grad():
        for name in sorted(models()):
            model = load(resolve(f"zoo:{name}"))
            errors: dict[int, list[tuple[float, float]]] = {group: [] for group in GROUPS}
            for found in layer_moments(model, calibration, Scratch(1 << 30), lambda *_: None):
                for names in linear_groups(found.layer):
                    moments = found.moments[names[0]]
                    for each in names:
                        weight = found.layer.get_parameter(f"{each}.weight").data
                        for group, pairs in errors.items():
                            ours = torch.from_numpy(
                                gptq(weight, moments, QuantScheme(4, group, algorithm="gptq")).dequantize()
                            )
                            both = (ours, theirs(weight, moments, group))
                            one, other = (relative_error(made - weight, weight, moments) for made in both)
                            pairs.append((one, other))
            for group, pairs in errors.items():
                one, other = np.array(pairs).T
                print(
                    f"| {name} | {group} | {one.mean():.3e} | {other.mean():.3e} | {one.mean() / other.mean():.3f} "
                    f"| {(one / other).max():.3f} |"
                )


if __name__ == "__main__":
    main()
