"""A batch job's rate is answers over the time of its batches; what lies between two batches is not its time."""

import pytest
from bench_fakes import FakeModel

from edgevlm.bench.job import Job, LatencyPlan, Phase
from edgevlm.bench.latency import measure
from edgevlm.bench.report import Sample
from edgevlm.bench.throughput import throughput

PLAN = LatencyPlan(
    iterations=3, min_time_s=0, warmup=1, cached=0, max_tokens=12, width=96, height=64, seed=1, scenario="offline"
)


def steady() -> list[Sample]:
    found: list[tuple[Phase, Sample]] = []
    measure(FakeModel(Job(kind="bundle", path="x", latency=PLAN)), PLAN, lambda *sample: found.append(sample))
    return [sample for phase, sample in found if phase == "steady"]


def test_no_image_of_a_batch_is_seen_twice() -> None:
    assert [sample.image for sample in steady()] == ["1/2", "1/3", "1/4"]


def test_rate_of_two_batches_with_a_pause_between() -> None:
    starts = [10.0, 10.5, 11.0, 20.0, 20.25, 20.5]
    answers = [
        taken.model_copy(update={"at_s": at, "wall_ms": 500.0 if at < 15 else 250.0})
        for taken, at in zip([*steady(), *steady()], starts, strict=True)
    ]
    found = throughput(answers, 3)
    assert found is not None
    assert found.seconds == pytest.approx(1.5 + 0.75)
    assert found.images_per_second == pytest.approx(6 / 2.25)
    assert found.tokens_per_second == pytest.approx(72 / 2.25)
    assert (found.batches.min, found.batches.max) == pytest.approx((2.0, 4.0))


def test_answers_without_times_have_no_rate() -> None:
    assert throughput(steady(), 3) is None
