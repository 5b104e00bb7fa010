"""Runs one worker and gathers what it sends, whatever becomes of it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from pydantic import ValidationError

from edgevlm.bench.job import MESSAGES, Hello, Job, Loaded, Sampled
from edgevlm.bench.journal import Answers, Journal
from edgevlm.bench.latency import Samples
from edgevlm.bench.memory import CpuShare, TreeWatch
from edgevlm.bench.pace import Pace
from edgevlm.bench.report import Memory
from edgevlm.child import Json, run_child
from edgevlm.errors import EdgeVLMError
from edgevlm.validation import first_problem


@dataclass
class Measured:
    """What a worker sent before it ended.

    Attributes:
        stage: what it was doing last: load, latency, accuracy.
        failure: why it ended early; empty if it did not.
        loaded: the engines and the load time; None before the session was ready.
        samples: timed answers.
        beside: those of the bundle that took turns.
        answers: to the items, those that were known before the worker began in front.
        origin_s: the monotonic clock at the worker's start, from which the times of samples count.
        other_cpu_share: what other processes used during the steady samples; None if unknown.
        watch_share: CPU seconds that watching took per second of these; None if unknown.
        memory: of its process tree.
    """

    stage: str = "load"
    failure: str = ""
    loaded: Loaded | None = None
    samples: Samples = field(default_factory=Samples)
    beside: Samples = field(default_factory=Samples)
    answers: Answers = field(default_factory=Answers)
    origin_s: float = 0.0
    other_cpu_share: float | None = None
    watch_share: float | None = None
    memory: Memory | None = None


class _Listener:
    """Takes the messages of one worker and watches its process."""

    def __init__(
        self, measured: Measured, job: Job, pace: Pace, stack: contextlib.ExitStack, journal: Journal | None
    ) -> None:
        self._measured = measured
        self._journal = journal
        self._job = job
        self._pace = pace
        self._stack = stack
        self._pid = 0
        self._cpu: CpuShare | None = None
        self.watch: TreeWatch | None = None

    def hear(self, raw: Json) -> None:
        """Take one message.

        Raises:
            EdgeVLMError: it is none of ours.
        """
        try:
            message = MESSAGES.validate_python(raw)
        except ValidationError as error:
            _, problem = first_problem(error)
            raise EdgeVLMError(
                f"the worker sent a measurement that cannot be true: {problem}", "the worker", "measure again"
            ) from error
        if isinstance(message, Hello):
            self._pid = message.pid
            self._measured.origin_s = message.clock_s
            self.watch = self._stack.enter_context(TreeWatch(message.pid))
        elif isinstance(message, Loaded):
            self._measured.loaded = message
            self._measured.samples.load_ms = message.load_ms
            self._measured.stage = "latency" if self._job.latency is not None else "accuracy"
            if self.watch is not None:
                self.watch.mark_loaded()
        elif isinstance(message, Sampled):
            self._sampled(message)
        else:
            self._measured.answers.add(message)
            if self._journal is not None:
                self._journal.write(message)
        self._pace.step(message)

    def _sampled(self, message: Sampled) -> None:
        if message.beside:
            self._measured.beside.add(message.phase, message.sample)
            return
        self._measured.samples.add(message.phase, message.sample)
        if message.phase == "steady":
            if self._cpu is None:
                self._cpu = CpuShare(self._pid)
            self._measured.other_cpu_share, self._measured.watch_share = self._cpu.shares()
            if self.watch is not None:
                self.watch.mark_answer()
        plan = self._job.latency
        if plan is not None and message.phase in ("repeat", "cached"):
            done = len(self._measured.samples.of("cached")) >= plan.cached
            self._measured.stage = "accuracy" if done else "latency"


def run_worker(job: Job, worker: str, silence_s: float, pace: Pace, journal: Journal | None = None) -> Measured:
    """Run `worker` on `job` and gather its measurements; items that the journal knows are not asked again.

    Args:
        job: what to measure.
        worker: `module:function` for the child.
        silence_s: seconds without a message after which it counts as hung.
        pace: hears of each message.
        journal: takes each answer as it comes.
    """
    measured = Measured() if journal is None else Measured(answers=journal.known)
    job = job.model_copy(update={"asked": measured.answers.asked, "asked_control": measured.answers.asked_control})
    with contextlib.ExitStack() as stack:
        listener = _Listener(measured, job, pace, stack, journal)
        try:
            run_child(worker, {"job": job.model_dump(mode="json")}, timeout=silence_s, on_message=listener.hear)
            measured.failure = _missing(job, measured)
        except EdgeVLMError as error:
            measured.failure = error.what
    if listener.watch is not None:
        measured.memory = listener.watch.memory()
    return measured


def _missing(job: Job, measured: Measured) -> str:
    """What a worker that ended well still owes; empty if nothing."""
    if measured.loaded is None:
        return "the worker ended without loading the model"
    if job.latency is not None and len(measured.samples.of("steady")) < job.latency.iterations:
        return f"the worker timed {len(measured.samples.of('steady'))} of {job.latency.iterations} answers"
    if job.accuracy is not None:
        known = measured.answers
        if (known.asked, known.asked_control) != (job.accuracy.n, job.accuracy.n if job.accuracy.control else 0):
            return f"the worker answered {known.asked} of {job.accuracy.n} items"
        if not known.predictions:
            return f"none of {known.asked} items could be asked: {known.skipped[0].reason}"
    return ""
