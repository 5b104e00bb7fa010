"""The latency plan measures models, not caches, and says when its figures deserve no trust."""

from collections import Counter

import pytest
from bench_fakes import FakeModel

from edgevlm.bench.flags import latency_flags, memory_flags
from edgevlm.bench.job import Job, LatencyPlan, Phase
from edgevlm.bench.latency import Samples, measure, summarise_latency
from edgevlm.bench.report import Memory, Sample
from edgevlm.bench.subject import check
from edgevlm.errors import EngineError

PLAN = LatencyPlan(iterations=8, min_time_s=0, warmup=2, cached=7, max_tokens=12, width=96, height=64, seed=1)


def taken() -> list[tuple[Phase, Sample]]:
    found: list[tuple[Phase, Sample]] = []
    measure(FakeModel(Job(kind="bundle", path="x", latency=PLAN)), PLAN, lambda *sample: found.append(sample))
    return found


def gathered(changes: dict[Phase, dict[str, object]] | None = None, first: dict[str, object] | None = None) -> Samples:
    """The samples of a healthy run with some fields of a phase, or of its first steady sample, changed."""
    samples = Samples(load_ms=5)
    for phase, sample in taken():
        update = dict((changes or {}).get(phase, {}))
        if phase == "steady" and not samples.of("steady"):
            update |= first or {}
        samples.add(phase, sample.model_copy(update=update))
    return samples


def codes(samples: Samples, other_cpu_share: float | None = None) -> set[str]:
    latency = summarise_latency(samples, other_cpu_share)
    assert latency is not None
    return {flag.code for flag in latency_flags(latency)}


def test_no_image_or_prompt_is_seen_twice_before_the_repeat() -> None:
    fresh = [sample for phase, sample in taken() if phase in ("cold", "warmup", "steady")]
    assert len({sample.image for sample in fresh}) == len(fresh) == 11
    assert len({sample.prompt for sample in fresh}) == len(fresh)
    assert {len(sample.prompt) for sample in fresh} == {len(fresh[0].prompt)}


def test_phases_in_order_with_the_cached_ones_on_a_known_input() -> None:
    found = taken()
    assert Counter(phase for phase, _ in found) == {"cold": 1, "warmup": 2, "steady": 8, "repeat": 1, "cached": 7}
    order = [phase for phase, _ in found]
    assert order == sorted(order, key=["cold", "warmup", "steady", "repeat", "cached"].index)
    steady = [sample for phase, sample in found if phase == "steady"]
    assert {sample.image for phase, sample in found if phase in ("repeat", "cached")} == {steady[0].image}


def test_ttft_is_the_sum_of_its_stages_and_caches_stay_apart() -> None:
    samples = gathered()
    latency = summarise_latency(samples, None)
    assert latency is not None
    stages = latency.stages
    parts = (stages.preprocess_ms, stages.vision_ms, stages.prefill_ms, stages.first_decode_ms)
    assert latency.ttft_steady_ms.mean == pytest.approx(sum(part.mean for part in parts))
    assert latency.ttft_cached_ms is not None
    assert latency.ttft_cached_ms.n == PLAN.cached - 1
    assert latency.ttft_cached_ms.max < latency.ttft_steady_ms.min
    assert latency.ttft_cold_ms == samples.of("cold")[0].ttft_ms


def test_a_fusion_is_a_stage_of_its_own_where_there_is_one() -> None:
    without = summarise_latency(gathered(), None)
    latency = summarise_latency(gathered({"steady": {"fusion_ms": 100.0}}), None)
    assert latency is not None
    assert without is not None
    assert without.stages.fusion_ms is None
    assert latency.stages.fusion_ms is not None
    assert latency.stages.fusion_ms.median == 100
    assert latency.ttft_steady_ms.mean == pytest.approx(without.ttft_steady_ms.mean + 100)


def test_decode_speed_leaves_ttft_out() -> None:
    latency = summarise_latency(gathered({"steady": {"gaps_ms": [10.0] * 11, "vision_ms": 5000.0}}), None)
    assert latency is not None
    assert latency.decode_tokens_per_second == pytest.approx(100)


def test_healthy_run_has_no_flag() -> None:
    assert codes(gathered(), 0.02) == set()


def test_slow_first_answer_is_suspected() -> None:
    assert "cache-suspected" in codes(gathered(first={"vision_ms": 400.0}))
    assert "cache-suspected" not in codes(gathered(first={"vision_ms": 120.0}))


def test_other_greedy_tokens_for_the_same_input_are_told() -> None:
    assert codes(gathered({"repeat": {"output_sha256": "other"}})) == {"non-deterministic"}
    samples = gathered()
    cached = samples.of("cached")
    cached[3] = cached[3].model_copy(update={"output_sha256": "other"})
    assert codes(samples) == {"non-deterministic"}


def test_reused_prompts_scatter_and_contention_are_told() -> None:
    assert codes(gathered({"steady": {"reused_tokens": 14}})) == {"reused-prompt"}
    assert codes(gathered(first={"vision_ms": 100.0})) == {"noisy"}
    assert codes(gathered(), 0.3) == {"contended"}
    assert codes(gathered({"steady": {"gaps_ms": [1.0]}})) == {"few-tokens"}


def steadily(field: str, step: float) -> Samples:
    """The samples of a healthy run in which a stage takes longer from answer to answer."""
    samples = gathered()
    steady = samples.of("steady")
    steady[:] = [
        taken.model_copy(update={field: getattr(taken, field) + step * index}) for index, taken in enumerate(steady)
    ]
    samples.of("repeat")[0] = samples.of("repeat")[0].model_copy(update={field: getattr(steady[-1], field)})
    return samples


def test_times_that_rise_or_fall_steadily_are_told() -> None:
    assert codes(steadily("prefill_ms", 3.0)) == {"drift"}
    assert codes(steadily("prefill_ms", -3.0)) == {"drift"}
    assert codes(steadily("prefill_ms", 0.1)) == set()


@pytest.mark.parametrize("stage", ["vision_ms", "prefill_ms"])
def test_input_that_is_known_when_it_comes_again_shows_a_cache(stage: str) -> None:
    quickest = min(getattr(taken, stage) for taken in gathered().of("steady"))
    assert codes(gathered({"repeat": {stage: quickest / 3}})) == {"cache-suspected"}
    assert codes(gathered({"repeat": {stage: quickest / 1.5}})) == set()


def remembered(sizes: list[int]) -> set[str]:
    memory = Memory(
        peak_rss_bytes=max(sizes),
        peak_pss_bytes=None,
        loaded_rss_bytes=None,
        interval_ms=20,
        samples=9,
        steady_rss_bytes=sizes,
    )
    return {flag.code for flag in memory_flags(memory)}


def test_memory_that_grows_from_answer_to_answer_is_told() -> None:
    assert remembered([400_000_000 + 10_000_000 * index for index in range(8)]) == {"memory-growth"}
    assert remembered([400_000_000 + 1_000_000 * index for index in range(8)]) == set()
    assert remembered([400_000_000, 600_000_000, *[650_000_000] * 8]) == set()
    assert memory_flags(None) == []


def test_what_measuring_takes_stands_beside_the_figures() -> None:
    samples = gathered()
    steady = samples.of("steady")
    steady[:] = [
        taken.model_copy(update={"at_s": 2.0 + 0.5 * index, "wall_ms": 495.0}) for index, taken in enumerate(steady)
    ]
    latency = summarise_latency(samples, None, 0.004)
    assert latency is not None
    assert latency.overhead is not None
    assert latency.steady_s is not None
    assert latency.steady_s == pytest.approx(7 * 0.5 + 0.495)
    assert latency.overhead.between == pytest.approx(7 * 0.005 / latency.steady_s)
    assert latency.overhead.watching == 0.004


@pytest.mark.parametrize(
    "changes",
    [{"token_ids": ()}, {"token_ids": (1,) * 13}, {"gaps_ms": ()}, {"vision_ms": -1.0}, {"prefill_ms": float("nan")}],
)
def test_replies_that_cannot_be_true_are_refused(changes: dict[str, object]) -> None:
    model = FakeModel(Job(kind="bundle", path="x"))
    reply = model.answer(b"image", "prompt", max_tokens=12, to_the_end=True, reuse=False)
    assert check(reply, 1, 12) is reply
    with pytest.raises(EngineError):
        check(type(reply)(**{**vars(reply), **changes}), 1, 12)
