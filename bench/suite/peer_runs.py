"""One peer in a process of its own: load it, warm it up, and time rounds of the same work.

In: where its files are, and `work`, the fields of a `Work`. Out: the fields of a `Measured`. The process first sends
its number, so that its memory can be watched, and then a word for each round, so that slow is not taken for hung.
Libraries are imported before the clock starts: the load time is that of the model.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgevlm.bench.images import photo_like
from edgevlm.bench.suite.decoder_rounds import Round, prompt
from edgevlm.bundle import open_bundle
from edgevlm.child import Json, Send
from edgevlm.runtimes.base import EngineOptions

#: What the whole models are asked; the length of the prompt is that of all decoders.
QUESTION = "Describe the colours of this image"
PHOTO = (1024, 768)
#: Seconds of rounds after which a process starts no further one: where the CPU lacks bfloat16 an image takes minutes.
ENOUGH_S = 60.0


class Work(BaseModel):
    """What every peer does: `rounds` images or prompts of `positions`, and `steps` greedy tokens behind each prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threads: int
    context: int
    positions: int
    rounds: int
    steps: int


class Measured(BaseModel):
    """What one or more processes of a peer took, in milliseconds; a stage that it does not have is empty.

    Attributes:
        load: until the model is ready, once a process.
        first_decode: the first token sampled and turned into text.
        decode: from each token to the next.
        positions: of the prompt; 0 without one.
        peak_rss_bytes: of the process tree.
        engine: what it says of itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    load: list[float]
    preprocess: list[float] = []
    vision: list[float] = []
    prefill: list[float] = []
    first_decode: list[float] = []
    decode: list[float] = []
    positions: int = 0
    peak_rss_bytes: int = 0
    engine: str = ""


def _ms(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)


def _until_enough(work: Work) -> Iterator[int]:
    """Numbers of rounds; no further one starts after `ENOUGH_S`."""
    start = time.perf_counter()
    for number in range(work.rounds):
        if number and time.perf_counter() - start > ENOUGH_S:
            return
        yield number


def _rounds(send: Send, work: Work, load_ms: float, one: Callable[[int], Round], engine: str) -> Json:
    """A decoder's answer."""

    def told(steps: int) -> Round:
        send("round")
        return one(steps)

    told(1)
    done = [told(work.steps) for _ in _until_enough(work)]
    return Measured(
        load=[load_ms],
        prefill=[each.prefill_ms for each in done],
        decode=[gap for each in done for gap in each.decode_ms],
        positions=work.positions,
        engine=engine,
    ).model_dump()


def _images(
    send: Send,
    work: Work,
    load_ms: float,
    shape: tuple[int, ...],
    run: Callable[[NDArray[np.float32]], Any],
    engine: str,
) -> Json:
    """A vision side's answer: a different image each time, after one that counts only where it takes all the time."""
    random = np.random.default_rng(0)

    def one() -> float:
        pixels = random.random((1, *shape), np.float32)
        start = time.perf_counter()
        run(pixels)
        send("round")
        return _ms(start)

    first = one()
    took = [first] if first > 1e3 * ENOUGH_S else [one() for _ in _until_enough(work)]
    return Measured(load=[load_ms], vision=took, engine=engine).model_dump()


def _import(libraries: list[str]) -> None:
    """Import those of our engines' libraries that are installed, which otherwise happens while an engine loads."""
    for library in libraries:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)


def edgevlm_whole(send: Send, work: Json, bundle: str, libraries: list[str]) -> Json:
    """A session: image and question to tokens."""
    from edgevlm.session import load

    _import(libraries)
    send(os.getpid())
    does = Work.model_validate(work)
    start = time.perf_counter()
    session = load(bundle, threads=does.threads, context_length=does.context)
    load_ms, stats = _ms(start), []
    for number in range(does.rounds + 1):
        photo = photo_like(0, number, *PHOTO)
        answer = session.generate(photo, QUESTION, max_tokens=does.steps + 1, ignore_eos=True, reuse=False)
        stats.append(answer.stats)
        send("round")
    counted = stats[1:]
    return Measured(
        load=[load_ms],
        preprocess=[each.preprocess_ms for each in counted],
        vision=[each.vision_ms for each in counted],
        prefill=[each.prefill_ms for each in counted],
        first_decode=[each.first_decode_ms for each in counted],
        decode=[gap for each in counted for gap in each.token_gaps_ms],
        positions=stats[0].prompt_tokens,
        engine=f"{stats[0].vision_engine}; {stats[0].decoder_engine}",
    ).model_dump()


def edgevlm_decoder(send: Send, work: Json, bundle: str, libraries: list[str]) -> Json:
    """Our engine for the bundle's decoder, without a session."""
    from edgevlm.runtimes.select import open_decoder

    _import(libraries)
    send(os.getpid())
    does = Work.model_validate(work)
    start = time.perf_counter()
    decoder = open_decoder(open_bundle(bundle), "auto", EngineOptions(does.threads, does.context))
    load_ms, ids = _ms(start), prompt(does.positions)

    def one(steps: int) -> Round:
        decoder.reset()
        return _greedy(lambda: decoder.prefill([ids]).argmax(), lambda token: decoder.decode(token).argmax(), steps)

    return _rounds(send, does, load_ms, one, decoder.stats().name)


def edgevlm_vision(send: Send, work: Json, bundle: str, libraries: list[str]) -> Json:
    """The engine that `auto` picks for the bundle's vision graph."""
    from edgevlm.runtimes.select import open_vision

    _import(libraries)
    send(os.getpid())
    does, opened = Work.model_validate(work), open_bundle(bundle)
    start = time.perf_counter()
    engine = open_vision(opened, "auto", EngineOptions(does.threads))
    return _images(send, does, _ms(start), opened.spec.vision.input_shape, engine.encode, engine.stats().name)


def openvino_vision(send: Send, work: Json, bundle: str) -> Json:
    """OpenVINO's own runtime on the bundle's vision graph, with its defaults, for one image at a time."""
    import openvino

    send(os.getpid())
    does, opened = Work.model_validate(work), open_bundle(bundle)
    shape = opened.spec.vision.input_shape
    start = time.perf_counter()
    core = openvino.Core()
    model = core.read_model(opened.artifact("vision", ".onnx"))
    model.reshape({0: [1, *shape]})
    settings = {openvino.properties.inference_num_threads: does.threads}
    compiled = core.compile_model(model, "CPU", settings)
    load_ms, dtype = _ms(start), model.input(0).element_type.to_dtype()
    version = openvino.get_version().split("-")[0]
    return _images(
        send, does, load_ms, shape, lambda pixels: compiled([pixels.astype(dtype)])[0], f"OpenVINO {version}"
    )


def onnxruntime_vision(send: Send, work: Json, bundle: str) -> Json:
    """Plain ONNX Runtime on the bundle's vision graph."""
    import onnxruntime

    send(os.getpid())
    does, opened = Work.model_validate(work), open_bundle(bundle)
    start = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = does.threads
    path = opened.artifact("vision", ".onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    load_ms, (given,) = _ms(start), session.get_inputs()
    dtype = np.float16 if given.type == "tensor(float16)" else np.float32
    name = f"ONNX Runtime {onnxruntime.__version__}"
    shape = opened.spec.vision.input_shape
    return _images(
        send, does, load_ms, shape, lambda pixels: session.run(None, {given.name: pixels.astype(dtype)}), name
    )


def torch_vision(send: Send, work: Json, checkpoint: str, dtype: str) -> Json:
    """Our torch module of the vision side in eager mode, as a stand-in for transformers', which needs timm."""
    import torch

    from edgevlm.models import describe, load

    send(os.getpid())
    # What reads the family's spec also imports its modules.
    describe(Path(checkpoint))
    does, kind = Work.model_validate(work), getattr(torch, dtype)
    torch.set_num_threads(does.threads)
    start = time.perf_counter()
    model = load(Path(checkpoint))
    vision = model.vision.to(kind).eval()
    load_ms, version = _ms(start), torch.__version__
    with torch.inference_mode():
        return _images(
            send,
            does,
            load_ms,
            model.spec.vision.input_shape,
            lambda pixels: vision(torch.from_numpy(pixels).to(kind)),
            f"torch {version}",
        )


def transformers_decoder(send: Send, work: Json, folder: str, dtype: str) -> Json:
    """The decoder as transformers' Qwen2 in eager mode, with its usual attention and cache."""
    import torch
    import transformers

    send(os.getpid())
    does = Work.model_validate(work)
    torch.set_num_threads(does.threads)
    qwen2 = transformers.Qwen2ForCausalLM
    start = time.perf_counter()
    model = qwen2.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
    load_ms, ids = _ms(start), torch.from_numpy(prompt(does.positions).astype(np.int64))[None]

    def one(steps: int) -> Round:
        cache = transformers.DynamicCache(config=model.config)

        def step(given: Any) -> int:
            logits = model(given, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            return int(logits[0, -1].argmax())

        return _greedy(lambda: step(ids), lambda token: step(torch.tensor([[token]])), steps)

    with torch.inference_mode():
        return _rounds(send, does, load_ms, one, f"transformers {transformers.__version__}, torch {torch.__version__}")


def genai_decoder(send: Send, work: Json, folder: str) -> Json:
    """onnxruntime-genai's own model in its own generator."""
    import onnxruntime_genai

    from edgevlm.bench.suite.genai import GenaiLoop

    send(os.getpid())
    does = Work.model_validate(work)
    start = time.perf_counter()
    loop = GenaiLoop(Path(folder), does.threads, does.context)
    load_ms, ids = _ms(start), prompt(does.positions)
    name = f"onnxruntime-genai {onnxruntime_genai.__version__}"
    return _rounds(send, does, load_ms, lambda steps: loop.round(ids, steps), name)


def llama_cpp_decoder(send: Send, work: Json, program: str, model: str) -> Json:
    """The plain C loop on our GGUF; the prompt is embeddings, as it is where an image is in it."""
    import llama_cpp

    from edgevlm.bench.suite.llama_loop import PlainLoop

    send(os.getpid())
    does = Work.model_validate(work)
    start = time.perf_counter()
    loop = PlainLoop(Path(program), Path(model), does.threads, does.context)
    load_ms = _ms(start)

    def one(steps: int) -> Round:
        done = loop.round(f"e{does.positions}", steps)
        return Round(done.prefill_ms, list(done.decode_ms))

    try:
        return _rounds(send, does, load_ms, one, f"llama.cpp of llama-cpp-python {llama_cpp.__version__}")
    finally:
        loop.close()


def _greedy(prefill: Callable[[], Any], decode: Callable[[int], Any], steps: int) -> Round:
    """One prompt and `steps` tokens, each chosen by the largest logit."""
    start = time.perf_counter()
    token = int(prefill())
    prefill_ms, gaps = _ms(start), []
    for _ in range(steps):
        start = time.perf_counter()
        token = int(decode(token))
        gaps.append(_ms(start))
    return Round(prefill_ms, gaps)
