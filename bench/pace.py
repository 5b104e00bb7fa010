"""Estimates how long a sweep will still take, from how long its steps took so far.

Loading, timed answers and accuracy items cost differently, so each kind has its own mean, of this job or else of those
before. Jobs to come are expected to take as long as those before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from edgevlm.bench.job import Job, Message

_GUESS_S = 1.0


class Pace:
    """Turns messages of workers into calls of `report(seconds done, seconds in all, what)`."""

    def __init__(
        self,
        jobs: Sequence[Job],
        report: Callable[[float, float, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs = jobs
        self._report = report
        self._clock = clock
        self._start = self._job_start = self._last = clock()
        self._finished: list[float] = []
        self._name = ""
        self._counts: dict[str, int] = {}
        self._seconds: dict[str, float] = {}
        self._earlier: dict[str, float] = {}

    def begin(self, name: str) -> None:
        """The next job starts."""
        self._name = name
        self._counts, self._seconds = {}, {}
        self._job_start = self._last = self._clock()
        self.say("load")

    def step(self, message: Message) -> None:
        """A message of the current job arrived."""
        now = self._clock()
        kind = message.kind
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._seconds[kind] = self._seconds.get(kind, 0.0) + now - self._last
        self._last = now
        what = {"sampled": "latency", "answered": "accuracy", "missed": "accuracy"}.get(kind, "load")
        self.say(f"{what} {self._counts[kind]}" if what != "load" else what)

    def end(self) -> None:
        """The current job is over."""
        self._finished.append(self._clock() - self._job_start)
        self._earlier |= {kind: self._mean(kind) for kind in self._counts}

    def say(self, what: str) -> None:
        """Something else than a message of a worker is going on in the current job."""
        now = self._clock()
        left = self._left_in_job()
        this_job = now - self._job_start + left
        mean = sum(self._finished) / len(self._finished) if self._finished else this_job
        left += mean * (len(self._jobs) - len(self._finished) - 1)
        elapsed = now - self._start
        position = f"{len(self._finished) + 1}/{len(self._jobs)}"
        self._report(elapsed, elapsed + left, f"{position} {self._name}: {what}")

    def _left_in_job(self) -> float:
        job = self._jobs[len(self._finished)]
        plan = {"hello": 1, "loaded": 1, "sampled": 0, "answered": 0}
        if job.latency is not None:
            steady = max(job.latency.iterations, job.latency.min_time_s / self._mean("sampled"))
            plan["sampled"] = round(2 + job.latency.warmup + steady + job.latency.cached) * (2 if job.beside else 1)
        if job.accuracy is not None:
            plan["answered"] = job.accuracy.n * (2 if job.accuracy.control else 1) - self._counts.get("missed", 0)
        return sum(max(0, count - self._counts.get(kind, 0)) * self._mean(kind) for kind, count in plan.items())

    def _mean(self, kind: str) -> float:
        """Seconds of one step of that kind; as in the job before, of the other kinds of answers, or a guess."""
        for known in (kind, "sampled", "answered"):
            if self._counts.get(known):
                return max(1e-4, self._seconds[known] / self._counts[known])
            if known in self._earlier:
                return self._earlier[known]
        return _GUESS_S
