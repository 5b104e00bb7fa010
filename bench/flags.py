"""What a reader must know before trusting the figures of a row, told by the figures themselves."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from edgevlm.bench.report import Flag, Latency, Memory, Sample
from edgevlm.bench.trend import trend

#: Beyond these a figure gets a flag.
MAX_FIRST_OVER_MEDIAN = 2.0
MAX_CV = 0.10
MIN_GAPS = 8
MAX_OTHER_CPU = 0.10
MAX_DRIFT = 0.05
MAX_GROWTH = 0.05
MAX_P = 0.01
#: A repeated input that takes a smaller share of the quickest new one's time was remembered.
MIN_REPEAT = 0.5
#: Growth below this is an allocator's business.
_LEAST_GROWTH = 16_000_000

_STAGES: tuple[tuple[str, Callable[[Sample], float]], ...] = (
    ("vision", lambda taken: taken.vision_ms),
    ("fusion", lambda taken: taken.fusion_ms or 0.0),
    ("prefill", lambda taken: taken.prefill_ms),
)


def latency_flags(latency: Latency) -> list[Flag]:
    """Of the timed answers."""
    return [
        *_caches(latency),
        *_noise(latency),
        *_drift(latency),
        *_answers(latency),
    ]


def memory_flags(memory: Memory | None) -> list[Flag]:
    """Of memory that grows from answer to answer."""
    sizes = memory.steady_rss_bytes if memory is not None else []
    found = trend(sizes)
    if found is None or found.p >= MAX_P or found.change < max(_LEAST_GROWTH, MAX_GROWTH * sizes[0]):
        return []
    text = f"memory grew by {found.change / 1e6:.0f} MB over {len(sizes)} answers, from {sizes[0] / 1e6:.0f} MB"
    return [Flag(code="memory-growth", text=f"{text}: a leak is suspected")]


def _caches(latency: Latency) -> list[Flag]:
    """Signs that an answer was quicker because something was kept of an earlier one."""
    found = []
    steady, ttft = latency.steady, latency.ttft_steady_ms
    ratio = steady[0].ttft_ms / ttft.median if ttft.median > 0 else 1.0
    if ratio > MAX_FIRST_OVER_MEDIAN:
        text = f"first steady TTFT is {ratio:.1f} times the median: a cache or lazy initialisation is suspected"
        found.append(Flag(code="cache-suspected", text=text))
    for stage, of in _STAGES:
        quickest = min(map(of, steady))
        if latency.repeat is not None and of(latency.repeat) < MIN_REPEAT * quickest:
            text = f"{stage} took {of(latency.repeat):.3g} ms for an input that was seen before, {quickest:.3g} or more"
            found.append(Flag(code="cache-suspected", text=f"{text} for new ones: the runtime keeps a cache"))
    reused = max(taken.reused_tokens for taken in steady)
    if reused:
        text = f"up to {reused} prompt tokens of steady answers came from a cache"
        found.append(Flag(code="reused-prompt", text=text))
    return found


def _noise(latency: Latency) -> list[Flag]:
    """Signs that the machine was not quiet."""
    found = []
    ttft = latency.ttft_steady_ms
    if ttft.cv is not None and ttft.cv > MAX_CV:
        found.append(Flag(code="noisy", text=f"TTFT varies by {ttft.cv:.0%} (CV) over {ttft.n} answers"))
    if latency.other_cpu_share is not None and latency.other_cpu_share > MAX_OTHER_CPU:
        text = f"other processes used {latency.other_cpu_share:.0%} of the CPU meanwhile: the machine is noisy"
        found.append(Flag(code="contended", text=f"{text}, times are too long"))
    return found


def _drift(latency: Latency) -> list[Flag]:
    """Signs that later answers were slower, or quicker, than earlier ones."""
    tpot = [taken.tpot_ms for taken in latency.steady if taken.tpot_ms is not None]
    found = []
    for name, values in (("TTFT", [taken.ttft_ms for taken in latency.steady]), ("TPOT", tpot)):
        seen = trend(values)
        if seen is None or seen.p >= MAX_P or abs(seen.change) < MAX_DRIFT * median(values):
            continue
        way = "rose" if seen.change > 0 else "fell"
        share = abs(seen.change) / median(values)
        text = f"{name} {way} by {share:.0%} from the first to the last of {len(values)} answers"
        found.append(Flag(code="drift", text=f"{text}: there is no steady state"))
    return found


def _answers(latency: Latency) -> list[Flag]:
    """What the answers themselves show."""
    found = []
    repeated = latency.repeat is not None and latency.repeat.output_sha256 != latency.steady[0].output_sha256
    if repeated or len({taken.output_sha256 for taken in latency.cached}) > 1:
        found.append(Flag(code="non-deterministic", text="greedy decoding gave other tokens for the same input"))
    gaps = median(len(taken.gaps_ms) for taken in latency.steady)
    if gaps < MIN_GAPS:
        found.append(Flag(code="few-tokens", text=f"answers had {gaps:g} token gaps: decode speed rests on few"))
    return found
