"""A worker whose engines take scripted times on a clock of their own, so that what is measured can be known exactly.

The session, the worker and the bench above the engines are the real ones; only the clock that they read is advanced by
the engines. The name of the bundle's folder says how the runtime behaves; the tokenizer lies in it.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fake_engines import HIDDEN, SPEC, TOKENS, FakeDecoder, FakeVision
from PIL import Image

from edgevlm import generation, session
from edgevlm.bench import latency, worker
from edgevlm.bench.job import Job
from edgevlm.bench.opened import SessionSubject
from edgevlm.child import Json, Send
from edgevlm.preprocess import PreparedImage, prepare
from edgevlm.runtimes.base import Float32, Segment
from edgevlm.runtimes.checks import checked_features
from edgevlm.sampling import Sampler
from edgevlm.session import Session
from edgevlm.spec import PreprocessSpec
from edgevlm.tokenizer import Tokenizer

#: Milliseconds. The n-th image and the n-th prefill, counted from 0, take longer by their place in a round of three.
LOAD, PREPROCESS, VISION, PREFILL, SAMPLING, DECODE = 431.0, 7.25, 50.0, 83.0, 0.45, 12.5
VISION_STEP, PREFILL_STEP = 2.0, 1.5
#: A leak's bytes an answer, and a busy runtime's seconds of real work an image.
LEAK, BUSY_S = 24_000_000, 0.06


def scripted_vision(number: int) -> float:
    """What the n-th image takes."""
    return VISION + VISION_STEP * (number % 3)


def scripted_prefill(number: int) -> float:
    """What the n-th prefill takes."""
    return PREFILL + PREFILL_STEP * (number % 3)


class Clock:
    """Stands in for the module `time`; stands still but for `advance`."""

    def __init__(self) -> None:
        self._now_s = 1000.0

    def perf_counter(self) -> float:
        return self._now_s

    def monotonic(self) -> float:
        return self._now_s

    def advance(self, milliseconds: float) -> None:
        self._now_s += milliseconds / 1000


CLOCK = Clock()


class Vision(FakeVision):
    """Takes its scripted time for each image; `spoil` gets what it returns."""

    def __init__(self, spoil: Callable[[Float32], Float32]) -> None:
        super().__init__()
        self._spoil = spoil

    def encode(self, pixels: Float32) -> Float32:
        CLOCK.advance(scripted_vision(self.encoded))
        return checked_features(self._spoil(super().encode(pixels)), 1, TOKENS, HIDDEN)


class RememberingVision(FakeVision):
    """Keeps what it made of an image, whatever it is told."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[bytes, Float32] = {}

    def encode(self, pixels: Float32) -> Float32:
        key = pixels.tobytes()
        if key not in self._known:
            CLOCK.advance(scripted_vision(self.encoded))
            self._known[key] = super().encode(pixels)
        return self._known[key]


class Decoder(FakeDecoder):
    """Takes its scripted time for each prefill and each token."""

    def prefill(self, segments: list[Segment]) -> Float32:
        CLOCK.advance(scripted_prefill(len(self.prefilled)))
        return super().prefill(segments)

    def decode(self, token: int) -> Float32:
        CLOCK.advance(DECODE)
        return super().decode(token)


class ScriptedSampler(Sampler):
    def __call__(self, logits: Float32) -> int:
        CLOCK.advance(SAMPLING)
        return super().__call__(logits)


def _prepare(image: Image.Image, spec: PreprocessSpec, images: int = 1) -> PreparedImage:
    CLOCK.advance(PREPROCESS)
    return prepare(image, spec, images)


_LEAKED: list[bytearray] = []


def _leak(rows: Float32) -> Float32:
    _LEAKED.append(bytearray(os.urandom(1) * LEAK))
    return rows


def _work(rows: Float32) -> Float32:
    end = time.perf_counter() + BUSY_S
    while time.perf_counter() < end:
        pass
    return rows


VISION_FAULTS: dict[str, Callable[[Float32], Float32]] = {
    "leak": _leak,
    "busy": _work,
    "nan": lambda rows: np.where(rows > 0, np.float32(np.nan), rows),
    "count": lambda rows: rows[:, 1:],
}


def _open(job: Job) -> SessionSubject:
    CLOCK.advance(LOAD)
    folder = Path(job.path)
    vision = Vision(VISION_FAULTS.get(folder.name, lambda rows: rows))
    decoder = Decoder(context_length=4096)
    engine = RememberingVision() if folder.name == "remembers" else vision
    return SessionSubject(Session(SPEC, Tokenizer(folder / "tokenizer.json"), engine, decoder))


def serve(send: Send, job: Json) -> None:
    for module in (session, generation, latency, worker):
        setattr(module, "time", CLOCK)  # noqa: B010 (a module stands there, which a clock is not)
    setattr(session, "prepare", _prepare)  # noqa: B010
    setattr(generation, "Sampler", ScriptedSampler)  # noqa: B010
    worker.work(send, Job.model_validate(job), _open)
