"""Workers whose model is a fake: right or wrong at will, and able to crash, hang or answer nonsense."""

import contextlib
import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.bench.accuracy.items import Skipped
from edgevlm.bench.job import Job
from edgevlm.bench.report import Engine
from edgevlm.bench.subject import Reply, Shown
from edgevlm.bench.tasks import find_task
from edgevlm.bench.worker import work
from edgevlm.child import Json, Send
from edgevlm.errors import EngineError, InputError


class FakeModel:
    """Knows the right answers of the task and gives a wrong one to every `wrong_every`-th item."""

    def __init__(self, job: Job, wrong_every: int = 0) -> None:
        self._wrong_every = wrong_every
        self._answers: dict[tuple[bytes, str], str] = {}
        if job.accuracy is not None:
            plan = job.accuracy
            task = find_task(plan.task, plan.data, plan.images, plan.scorer, plan.template)
            for index, item in enumerate(task.items(plan.split, plan.n, plan.seed), 1):
                if isinstance(item, Skipped):
                    continue
                wrong = wrong_every and index % wrong_every == 0
                with contextlib.suppress(InputError):
                    self._answers[_key(item.image), item.question] = "nothing" if wrong else f" {item.answer.upper()}. "

    def answer(self, image: Shown, prompt: str, *, max_tokens: int, to_the_end: bool, reuse: bool) -> Reply:
        if isinstance(image, list):
            raise InputError("the model takes one image", "image", "")
        if isinstance(image, bytes):
            digest = hashlib.sha256(image + prompt.encode()).digest()
            jitter = digest[0] / 256
        else:
            digest, jitter = b"\1" * 32, 0.5
        tokens = tuple(digest[i % 32] for i in range(max_tokens if to_the_end else 2))
        text = "" if isinstance(image, bytes) else self._answers.get((_key(image), prompt), "grey")
        return Reply(
            text=text,
            token_ids=tokens,
            preprocess_ms=4 + jitter,
            vision_ms=1.0 if reuse else 60 + 4 * jitter,
            prefill_ms=30 + 2 * jitter,
            first_decode_ms=0.5,
            gaps_ms=tuple(10 + jitter for _ in tokens[1:]),
            image_tokens=64,
            prompt_tokens=80,
            reused_tokens=79 if reuse else 0,
        )

    def engines(self) -> tuple[Engine, Engine]:
        return Engine(name="fake 1.0", details={"kind": "vision"}), Engine(name="fake 1.0", details={"kind": "decoder"})


def _key(image: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


class Broken(FakeModel):
    """Works for `healthy` answers, then `fault` happens."""

    def __init__(self, job: Job, fault: Callable[[Reply], Reply], healthy: int = 4) -> None:
        super().__init__(job)
        self._fault = fault
        self._left = healthy

    def answer(self, image: Shown, prompt: str, *, max_tokens: int, to_the_end: bool, reuse: bool) -> Reply:
        reply = super().answer(image, prompt, max_tokens=max_tokens, to_the_end=to_the_end, reuse=reuse)
        self._left -= 1
        return reply if self._left >= 0 else self._fault(reply)


def crash(_: Reply) -> Reply:
    """A native fault."""
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("unreachable")


def _hang(_: Reply) -> Reply:
    threading.Event().wait()
    raise AssertionError("unreachable")


def _wrong_size(_: Reply) -> Reply:
    raise EngineError("the vision engine returned [1, 63, 256] instead of [1, 64, 256]", "vision", "export again")


def _too_many_gaps(reply: Reply) -> Reply:
    return Reply(**{**vars(reply), "gaps_ms": (*reply.gaps_ms, 1.0)})


def _raise(_: Reply) -> Reply:
    raise RuntimeError("an engine's own exception")


#: Answers after which a `-late` fault happens: all that are timed, and some items.
_LATE = 30
FAULTS = {"crash": crash, "hang": _hang, "size": _wrong_size, "gaps": _too_many_gaps, "exception": _raise}


def _open(job: Job) -> FakeModel:
    """The name of the bundle's folder says how it behaves: `crash`, `hang-late` ..., `wrong-7`, or anything else.

    `unplug` removes the made-up sensors beside it, and works.
    """
    name = job.path.rsplit("/", 1)[-1]
    if name in FAULTS:
        return Broken(job, FAULTS[name])
    if name.endswith("-late"):
        return Broken(job, FAULTS[name.removesuffix("-late")], _LATE)
    if name == "unplug":
        shutil.rmtree(Path(job.path).parent / "sys")
    if name == "load":
        raise EngineError("the runtime cannot load this graph", name, "")
    return FakeModel(job, int(name.removeprefix("wrong-")) if name.startswith("wrong-") else 0)


def serve(send: Send, job: Json) -> None:
    work(send, Job.model_validate(job), _open)
