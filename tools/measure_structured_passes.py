"""What passes on weights make of a decoder's files and of its speed, as a table of docs/measurements/weight-pruning.md.

In: a model and rows such as `ffn_width:keep=0.5`, several passes joined by `+`. Out: for each row and format the bytes
of the decoder's files, and the time of a prefill and of a single step, all against the model as it is. Models take
turns, each on one thread, and times are CPU time, so that other work on the machine disturbs little. Run as

    python tools/measure_structured_passes.py zoo:nano-fastvlm shortgpt:layers=1 ffn_width:width=256
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from measure_weight_pruning import passes_of

from edgevlm.calibration.sources import open_calibration
from edgevlm.exporters import gguf, onnx
from edgevlm.exporters.onnx import layout
from edgevlm.models import VlmModel, load, resolve
from edgevlm.pipeline.passes import parse_passes, plan_passes, run_passes
from edgevlm.recipe import Recipe
from edgevlm.runtimes.base import DecoderEngine, EngineOptions
from edgevlm.runtimes.llama_cpp import LlamaCppDecoder
from edgevlm.runtimes.onnxruntime import OnnxRuntimeDecoder

OPTIONS = EngineOptions(1, 512)
PROMPT = 256
STEPS = 16


def pruned(model: str, row: str, samples: int) -> VlmModel:
    """The model after the passes of a row; an empty row has none."""
    loaded = load(resolve(model))
    passes = parse_passes(Recipe(model=model, passes=passes_of(row) if row else ()))
    calibration = open_calibration("scenes", samples)
    plan_passes(passes, loaded.spec, calibration)
    return run_passes(passes, loaded, calibration, lambda *_: None)


def engines(model: VlmModel, folder: Path) -> Iterator[tuple[str, DecoderEngine, int]]:
    """The decoder in four bits in each format, and the bytes of its files, embedding included."""
    folder.mkdir()
    onnx.export(model, folder, precision="int4", vision_precision="fp16", progress=lambda *_: None)
    parts = [layout.graph_file(name, "int4") for name in (layout.DECODER, layout.EMBEDDING)]
    paths = [folder / layout.FOLDER / part for part in parts]
    count = sum(file.stat().st_size for path in paths for file in path.parent.glob(f"{path.name}*"))
    yield "ONNX int4", OnnxRuntimeDecoder(*paths, model.spec, OPTIONS), count
    (artifact,) = gguf.export(model, folder, gguf_type="q4_0", progress=lambda *_: None)
    path = folder / artifact.path
    yield "GGUF Q4_0", LlamaCppDecoder(path, model.spec.decoder, OPTIONS), path.stat().st_size


def times(engine: DecoderEngine) -> tuple[float, float]:
    """CPU seconds of a prefill and of one step."""
    prompt = np.arange(3, PROMPT + 3, dtype=np.int32)
    engine.reset()
    began = time.process_time()
    engine.prefill([prompt])
    between = time.process_time()
    for token in range(STEPS):
        engine.decode(token + 3)
    return between - began, (time.process_time() - between) / STEPS


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure what passes on weights gain.")
    parser.add_argument("model")
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--calibrate", type=int, default=4, help="calibration samples")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    rows = ["", *arguments.rows]
    with ExitStack() as stack:
        made: dict[str, list[tuple[DecoderEngine, int]]] = {}
        for number, row in enumerate(rows):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / str(number)
            for name, engine, count in engines(pruned(arguments.model, row, arguments.calibrate), folder):
                stack.callback(engine.close)
                made.setdefault(name, []).append((engine, count))
        print(f"{arguments.model}, {os.cpu_count()} cores, one thread, median CPU time of {arguments.rounds} rounds")
        print("| passes | format | files, bytes | prefill, ms | step, ms |\n|---|---|---:|---:|---:|")
        for name, group in made.items():
            taken = [[times(engine) for engine, _ in group] for _ in range(arguments.rounds + 1)][1:]
            whole = [group[0][1], *medians(taken, 0)]
            for number, (row, (_, count)) in enumerate(zip(rows, group, strict=True)):
                found = [count, *medians(taken, number)]
                shown = [f"{count:,}", *(f"{1e3 * seconds:.2f}" for seconds in found[1:])]
                cells = [f"{text} ({value / base:.0%})" for text, value, base in zip(shown, found, whole, strict=True)]
                print(f"| {f'`{row}`' if row else 'none'} | {name} | " + " | ".join(cells) + " |")


def medians(taken: list[list[tuple[float, float]]], number: int) -> list[float]:
    """Of one model's prefills and steps."""
    return [statistics.median(each[number][which] for each in taken) for which in (0, 1)]


if __name__ == "__main__":
    main()
