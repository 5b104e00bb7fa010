"""Latency of one model: the plan that times it (in the worker) and the figures drawn from the samples (in the parent).

The order is cold, warm-up, steady, repeat, cached. Every answer up to the repeat has an image of its own and a
permuted prompt, with caches off, because a benchmark that sends one image five times measures a cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from edgevlm.bench.images import photo_like
from edgevlm.bench.job import LatencyPlan, Phase
from edgevlm.bench.report import Latency, Overhead, Sample, Stages
from edgevlm.bench.stats import Summary, summarise
from edgevlm.bench.subject import Subject, check, sample

_PROMPT = ("Describe", "the", "colours", "of", "this", "image", "and", "what", "may", "be", "in", "each", "corner")


@dataclass
class Samples:
    """The samples of each phase, as they arrive."""

    load_ms: float = 0.0
    phases: dict[Phase, list[Sample]] = field(default_factory=dict)

    def add(self, phase: Phase, taken: Sample) -> None:
        """Keep one sample."""
        self.phases.setdefault(phase, []).append(taken)

    def of(self, phase: Phase) -> list[Sample]:
        """The samples of one phase."""
        return self.phases.get(phase, [])


def permuted_prompt(index: int) -> str:
    """The prompt with its words rotated: as long as the others, but no prefix of them."""
    shift = index % len(_PROMPT)
    return " ".join(_PROMPT[shift:] + _PROMPT[:shift])


def measure(subject: Subject, plan: LatencyPlan, report: Callable[[Phase, Sample], None]) -> None:
    """Time answers as planned and report each.

    A batch job has the images of a whole batch before it begins; an app makes each when it asks.

    Raises:
        EngineError: an answer that cannot be true.
    """

    def once(phase: Phase, index: int, *, reuse: bool = False) -> None:
        report(phase, _timed(subject, plan, _question(plan, index), reuse=reuse))

    once("cold", 0)
    for index in range(1, 1 + plan.warmup):
        once("warmup", index)
    first = 1 + plan.warmup
    done = 0
    start = time.monotonic()
    batch = plan.iterations if plan.scenario == "offline" else 1
    while done < plan.iterations or time.monotonic() - start < plan.min_time_s:
        for question in [_question(plan, first + done + index) for index in range(batch)]:
            report("steady", _timed(subject, plan, question))
        done += batch
    once("repeat", first)
    for _ in range(plan.cached):
        once("cached", first, reuse=True)


def measure_by_turns(
    subject: Subject, beside: Subject, plan: LatencyPlan, report: Callable[[bool, Phase, Sample], None]
) -> None:
    """Time the same answers of two models, one after the other, so that their times compare; report `beside` and each.

    Cold, warm-up and steady. Whichever comes second may find the caches warm, so they take turns at that, too.

    Raises:
        EngineError: an answer that cannot be true.
    """

    def both(phase: Phase, index: int) -> None:
        for other in (True, False) if index % 2 else (False, True):
            report(other, phase, _timed(beside if other else subject, plan, _question(plan, index)))

    for index in range(1 + plan.warmup):
        both("warmup" if index else "cold", index)
    done, start = 0, time.monotonic()
    while done < plan.iterations or time.monotonic() - start < plan.min_time_s:
        both("steady", 1 + plan.warmup + done)
        done += 1


@dataclass(frozen=True)
class _Question:
    """What is asked, and the image's name."""

    name: str
    image: bytes
    prompt: str


def _question(plan: LatencyPlan, index: int) -> _Question:
    """Number `index`; no two share an image."""
    image = photo_like(plan.seed, index, plan.width, plan.height)
    return _Question(f"{plan.seed}/{index}", image, permuted_prompt(index))


def _timed(subject: Subject, plan: LatencyPlan, asked: _Question, *, reuse: bool = False) -> Sample:
    """One answer."""
    start = time.perf_counter()
    reply = subject.answer(asked.image, asked.prompt, max_tokens=plan.max_tokens, to_the_end=True, reuse=reuse)
    wall_ms = (time.perf_counter() - start) * 1000
    return sample(check(reply, 1, plan.max_tokens), asked.name, asked.prompt, wall_ms)


def summarise_latency(
    samples: Samples, other_cpu_share: float | None, watch_share: float | None = None
) -> Latency | None:
    """The figures, or None where the steady phase has not begun.

    The first cached answer fills the cache and is left out of the cached figure.

    Args:
        samples: of all phases.
        other_cpu_share: of the machine's CPU time, what other processes used meanwhile; None if unknown.
        watch_share: CPU seconds of the process that watches, per second; None if unknown.
    """
    cold, steady, cached, repeat = samples.of("cold"), samples.of("steady"), samples.of("cached"), samples.of("repeat")
    if not cold or not steady:
        return None
    steady_s = _seconds(steady)
    tpot = summarise([taken.tpot_ms for taken in steady if taken.tpot_ms is not None])
    return Latency(
        load_ms=samples.load_ms,
        ttft_cold_ms=cold[0].ttft_ms,
        ttft_steady_ms=_summary([taken.ttft_ms for taken in steady]),
        ttft_cached_ms=summarise([taken.ttft_ms for taken in cached[1:]]),
        stages=Stages(
            preprocess_ms=_summary([taken.preprocess_ms for taken in steady]),
            vision_ms=_summary([taken.vision_ms for taken in steady]),
            fusion_ms=summarise([taken.fusion_ms for taken in steady if taken.fusion_ms is not None]),
            prefill_ms=_summary([taken.prefill_ms for taken in steady]),
            first_decode_ms=_summary([taken.first_decode_ms for taken in steady]),
        ),
        e2e_ms=_summary([taken.ttft_ms + sum(taken.gaps_ms) for taken in steady]),
        tpot_ms=tpot,
        decode_tokens_per_second=1000 / tpot.median if tpot is not None and tpot.median > 0 else None,
        image_tokens=steady[0].image_tokens,
        prompt_tokens=round(median(taken.prompt_tokens for taken in steady)),
        other_cpu_share=other_cpu_share,
        steady_s=steady_s,
        overhead=_overhead(steady, steady_s, watch_share),
        cold=cold[0],
        warmup=samples.of("warmup"),
        steady=steady,
        cached=cached,
        repeat=repeat[0] if repeat else None,
    )


def _seconds(steady: Sequence[Sample]) -> float | None:
    """From the first answer's start to the last one's end; None where the times are not known."""
    first, last = steady[0].at_s, steady[-1].at_s
    return None if first is None or last is None else last - first + steady[-1].wall_ms / 1000


def _overhead(steady: Sequence[Sample], seconds: float | None, watch_share: float | None) -> Overhead | None:
    if not seconds:
        return None
    answering = sum(taken.wall_ms for taken in steady) / 1000
    return Overhead(between=max(0.0, 1 - answering / seconds), watching=watch_share)


def _summary(values: list[float]) -> Summary:
    result = summarise(values)
    assert result is not None
    return result
