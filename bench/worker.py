"""The worker: opens one model, times it, asks it, and sends each measurement as it is made.

It runs in a process of its own (`edgevlm.child`), so whatever a runtime does to its process costs one row.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from edgevlm.bench.accuracy.asking import answer_items
from edgevlm.bench.job import Answered, Hello, Job, Loaded, Message, Missed, Phase, Prediction, Sampled
from edgevlm.bench.latency import measure, measure_by_turns
from edgevlm.bench.opened import open_subject
from edgevlm.bench.report import Sample, SkippedItem
from edgevlm.bench.subject import Subject
from edgevlm.child import Json, Send, run_child

#: What the parent runs.
TARGET = "edgevlm.bench.worker:serve"
#: The parent's own limit of silence ends a preparation that hangs; this one is beyond it.
PREPARE_SILENCE_S = 24 * 3600.0


def serve(send: Send, job: Json) -> None:
    """Entry point of the child: measure `job` on the real engines.

    A bundle is opened once before, in a child of its own: engines are chosen and files are in the system's cache, so
    that the load time is comparable and the memory that choosing took is not counted.
    """
    parsed = Job.model_validate(job)
    if parsed.kind == "bundle":
        run_child("edgevlm.bench.worker:prepare", {"job": job}, timeout=PREPARE_SILENCE_S)
    work(send, parsed, open_subject)


def prepare(_send: Send, job: Json) -> None:
    """Entry point of the child's child: open what `job` names, once."""
    open_subject(Job.model_validate(job))


def work(send: Send, job: Job, open_: Callable[[Job], Subject]) -> None:
    """Open the model with `open_`, time it, ask it; send a message for each measurement."""

    def tell(message: Message) -> None:
        send(message.model_dump(mode="json"))

    def sampled(phase: Phase, sample: Sample) -> None:
        by_turns(False, phase, sample)

    def by_turns(beside: bool, phase: Phase, sample: Sample) -> None:
        at_s = time.monotonic() - origin_s - sample.wall_ms / 1000
        tell(Sampled(phase=phase, sample=sample.model_copy(update={"at_s": at_s}), beside=beside))

    def answered(control: bool, item: Prediction | SkippedItem) -> None:
        if isinstance(item, Prediction):
            tell(Answered(control=control, prediction=item))
        else:
            tell(Missed(control=control, item=item))

    origin_s = time.monotonic()
    tell(Hello(pid=os.getpid(), clock_s=origin_s))
    start = time.perf_counter()
    subject = open_(job)
    load_ms = (time.perf_counter() - start) * 1000
    vision, decoder = subject.engines()
    tell(Loaded(load_ms=load_ms, vision_engine=vision, decoder_engine=decoder))
    if job.latency is not None and job.beside:
        measure_by_turns(subject, open_(job.model_copy(update={"path": job.beside})), job.latency, by_turns)
    elif job.latency is not None:
        measure(subject, job.latency, sampled)
    if job.accuracy is not None:
        answer_items(subject, job.accuracy, answered, job.asked, job.asked_control)
