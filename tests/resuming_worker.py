"""A worker that is killed at its seventh item, once: the next one is not."""

import os
import signal
from pathlib import Path

from bench_fakes import FakeModel

from edgevlm.bench.job import Job
from edgevlm.bench.subject import Reply, Shown
from edgevlm.bench.worker import work
from edgevlm.child import Json, Send

KILLED_AT = 7
ASKED = "asked.txt"


class Stopping(FakeModel):
    """Notes what it is asked beside the bundle, and goes down at the seventh note."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._notes = Path(job.path) / ASKED

    def answer(self, image: Shown, prompt: str, *, max_tokens: int, to_the_end: bool, reuse: bool) -> Reply:
        if not isinstance(image, bytes):
            with self._notes.open("a", encoding="utf-8") as notes:
                notes.write(f"{prompt.splitlines()[0]}\n")
            if len(self._notes.read_text(encoding="utf-8").splitlines()) == KILLED_AT:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(image, prompt, max_tokens=max_tokens, to_the_end=to_the_end, reuse=reuse)


def serve(send: Send, job: Json) -> None:
    work(send, Job.model_validate(job), Stopping)
