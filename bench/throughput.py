"""What a batch job gets done in a second, drawn from the samples of its answers."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.bench.report import Sample, Throughput
from edgevlm.bench.stats import summarise


def throughput(answers: Sequence[Sample], batch: int) -> Throughput | None:
    """The figures of answers that came in batches of `batch`; None where their times are not known.

    The time between two batches, in which the next images are made, does not count.
    """
    seconds = []
    for start in range(0, len(answers), batch):
        first, last = answers[start], answers[min(start + batch, len(answers)) - 1]
        if first.at_s is None or last.at_s is None:
            return None
        seconds.append(last.at_s - first.at_s + last.wall_ms / 1000)
    sizes = [min(batch, len(answers) - start) for start in range(0, len(answers), batch)]
    rates = summarise([size / each for size, each in zip(sizes, seconds, strict=True) if each > 0])
    if rates is None:
        return None
    tokens = sum(1 + len(taken.gaps_ms) for taken in answers)
    return Throughput(
        answers=len(answers),
        tokens=tokens,
        seconds=sum(seconds),
        images_per_second=len(answers) / sum(seconds),
        tokens_per_second=tokens / sum(seconds),
        batch=batch,
        batches=rates,
    )
