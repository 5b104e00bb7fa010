"""What narrow key/value caches cost and save, as the table of docs/measurements/kv-cache.md.

In: a model. Out: for each engine and type of the cache its bytes at the model's usual context, the KL divergence of the
answers' distributions from those with the engine's usual cache, on questions about images of the test split of
`scenes`, and CPU time of a decode step behind a long prompt. Weights are not quantized. Run as

    python tools/measure_kv_cache.py -n 1000 zoo:nano-fastvlm
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measure_imatrix import Kl, answered, asked, divergence, silent

from edgevlm.calibration.sources import open_calibration
from edgevlm.exporters import gguf, onnx
from edgevlm.exporters.onnx import layout
from edgevlm.models import VlmModel, load, resolve
from edgevlm.passes import PassContext
from edgevlm.quant.quantize_cache import QuantizeCache, QuantizeCacheConfig
from edgevlm.runtimes.base import DecoderEngine, EngineOptions, KvCache
from edgevlm.runtimes.llama_cpp import LlamaCppDecoder
from edgevlm.runtimes.onnxruntime import OnnxRuntimeDecoder
from edgevlm.zoo.scenes import scenes

OPTIONS = EngineOptions(1, 2048)
STEPS, ROUNDS = 16, 5
NARROW: tuple[KvCache, ...] = ("f16", "q8_0", "q4_0")


def engines(model: VlmModel, samples: int, folder: Path) -> Iterator[tuple[str, str, DecoderEngine, int]]:
    """Engine, type of the cache, the engine itself, and the cache's bytes; each engine's usual cache first."""
    (artifact,) = gguf.export(model, folder, gguf_type="f16", progress=silent)
    for kv_cache in NARROW:
        options = EngineOptions(OPTIONS.threads, OPTIONS.context_length, kv_cache=kv_cache)
        engine = LlamaCppDecoder(folder / artifact.path, model.spec.decoder, options)
        yield "llama.cpp", kv_cache, engine, engine.cache_bytes
    context = PassContext(open_calibration("scenes", samples), model, silent)
    narrow = QuantizeCache(QuantizeCacheConfig(), 0).run(model, context)
    for kind, given in (("float32", model), ("int8", narrow)):
        (folder / kind).mkdir()
        onnx.export(given, folder / kind, precision="fp32", vision_precision="fp32", progress=silent)
        graphs = folder / kind / layout.FOLDER
        decoder, embed = (graphs / layout.graph_file(part, "fp32") for part in (layout.DECODER, layout.EMBEDDING))
        runtime = OnnxRuntimeDecoder(decoder, embed, model.spec, OPTIONS)
        yield "ONNX Runtime", kind, runtime, runtime.cache_bytes


def step_ms(engine: DecoderEngine) -> float:
    """CPU time of a step behind a prompt that leaves room for the steps, the median of some rounds."""
    prompt, taken = (np.arange(OPTIONS.context_length - STEPS) % 1000).astype(np.int32), []
    engine.reset()
    engine.prefill([prompt])
    for _ in range(ROUNDS):
        engine.reset(len(prompt))
        began = time.process_time()
        for token in range(STEPS):
            engine.decode(token + 3)
        taken.append((time.process_time() - began) / STEPS)
    return 1e3 * statistics.median(taken)


def shown(values: Kl) -> str:
    """Mean and 95% interval of numbers that may be tiny."""
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.1e} ({values.mean() - half:.1e} to {values.mean() + half:.1e})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure narrow key/value caches.")
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=1000, help="test questions")
    parser.add_argument("--calibrate", type=int, default=128, help="calibration samples of the int8 cache")
    arguments = parser.parse_args()
    model = load(resolve(arguments.model))
    questions = list(asked(model, scenes("test", arguments.n)))
    print("| engine | cache | bytes | KL, nats | step, ms |\n|---|---|---:|---:|---:|")
    usual: dict[str, list[Kl]] = {}
    with tempfile.TemporaryDirectory() as name:
        for engine_name, kind, engine, count in engines(model, arguments.calibrate, Path(name)):
            found = answered(engine, questions)
            milliseconds = step_ms(engine)
            engine.close()
            first = usual.setdefault(engine_name, found)
            kl = "" if first is found else shown(divergence(first, found))
            print(f"| {engine_name} | {kind} | {count:,} | {kl} | {milliseconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
