"""The bench sees a real session: as many tokens as asked for, caches off and on, stage times that add up."""

import pytest
from tiny import tiny_bundle, tiny_model

from edgevlm.bench.images import photo_like
from edgevlm.bench.job import Job, LatencyPlan, Phase
from edgevlm.bench.latency import Samples, measure, summarise_latency
from edgevlm.bench.opened import SessionSubject, open_subject
from edgevlm.bench.report import Sample


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> SessionSubject:
    bundle = tiny_bundle(tiny_model(), tmp_path_factory.mktemp("opened") / "bundle")
    job = Job(kind="bundle", path=str(bundle.path), vision_engine="onnxruntime", decoder_engine="onnxruntime")
    return open_subject(job)


def test_timed_answers_do_not_end_early(subject: SessionSubject) -> None:
    reply = subject.answer(photo_like(0, 0, 64, 48), "what", max_tokens=9, to_the_end=True, reuse=False)
    assert len(reply.token_ids) == 9
    assert len(reply.gaps_ms) == 8


def test_latency_of_a_real_session(subject: SessionSubject) -> None:
    plan = LatencyPlan(iterations=3, min_time_s=0, warmup=1, cached=3, max_tokens=4, width=64, height=48, seed=0)
    samples = Samples()

    def add(phase: Phase, sample: Sample) -> None:
        samples.add(phase, sample)

    measure(subject, plan, add)
    latency = summarise_latency(samples, None)
    assert latency is not None
    assert [sample.reused_tokens for sample in latency.steady] == [0, 0, 0]
    assert all(sample.reused_tokens > 0 for sample in latency.cached[1:])
    assert latency.repeat is not None
    assert latency.repeat.output_sha256 == latency.steady[0].output_sha256
    for sample in (*latency.steady, *latency.cached):
        assert sample.ttft_ms + sum(sample.gaps_ms) <= sample.wall_ms
    vision, decoder = subject.engines()
    assert vision.name.startswith("onnxruntime")
    assert decoder.name.startswith("onnxruntime")
