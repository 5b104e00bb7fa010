"""The tables say how long was timed, by what was asked for, and n/a where the samples support no percentile."""

import made_reports as made
import pytest

from edgevlm.bench.render.protocol_table import memory, protocol, stages, throughput
from edgevlm.bench.render.report_html import render_html
from edgevlm.bench.render.report_markdown import render_markdown
from edgevlm.bench.report import Memory, Overhead, Throughput
from edgevlm.bench.stats import summarise

RATES = summarise([2.0, 2.2])
assert RATES is not None
REPORT = made.report(
    made.row(
        "a",
        n=40,
        latency=made.latency(0, 40).model_copy(
            update={"steady_s": 12.34, "overhead": Overhead(between=0.004, watching=0.002)}
        ),
        memory=Memory(
            peak_rss_bytes=300_000_000,
            peak_pss_bytes=None,
            loaded_rss_bytes=250_000_000,
            interval_ms=20,
            samples=9,
            peak_gpu_bytes=2_000_000_000,
        ),
        throughput=Throughput(
            answers=40,
            tokens=360,
            seconds=19.0,
            images_per_second=2.1,
            tokens_per_second=18.9,
            batch=20,
            batches=RATES,
        ),
    ),
    made.row("b", n=0, latency=None, memory=None),
    iterations=40,
    min_time_s=10,
)


def lines(table: object) -> list[list[str]]:
    return [[str(cell) for cell in row] for row in table.rows]  # type: ignore[attr-defined]


def test_every_stage_has_the_percentiles_that_its_samples_support() -> None:
    found = {line[1]: line for line in lines(stages(REPORT))}
    assert set(found) == {"preprocess", "vision", "prefill", "first decode", "TPOT", "end to end"}
    vision = REPORT.rows[0].latency.stages.vision_ms  # type: ignore[union-attr]
    assert vision.p90 is not None
    assert found["vision"][5].startswith(f"{vision.p90.value:.1f}")
    assert found["vision"][6:8] == ["n/a (n=40)"] * 2


def test_stop_rule_and_own_cost_stand_beside_what_was_done() -> None:
    (line,) = lines(protocol(REPORT))
    assert line[1:3] == ["40 (at least 40)", "12.3 s (at least 10 s)"]
    assert line[-2:] == ["0.4%", "0.2%"]


def test_memory_shows_what_was_read_and_leaves_out_what_nobody_tells() -> None:
    assert memory(REPORT).headers == ("bundle", "loaded RSS", "peak RSS", "GPU, its processes")
    assert lines(memory(REPORT)) == [["a", "250 MB", "300 MB", "2,000 MB"]]


@pytest.mark.parametrize("render", [render_html, render_markdown])
def test_pages_hold_them(render: object) -> None:
    page = render(REPORT)  # type: ignore[operator]
    for text in ("images/s", "in batches of 20", "between answers", "GPU, its processes"):
        assert text in page
    assert lines(throughput(REPORT))[0][1:3] == ["2.10", "18.9"]
