"""Pictures of many rows and samples say what the numbers say, and stay small."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from html_page import Page
from made_reports import MACHINE, accuracy, latency, report, row, sample

from edgevlm.bench.metered import Heat, Sensor, Series
from edgevlm.bench.render.card import card
from edgevlm.bench.render.charts import ttft_bars
from edgevlm.bench.render.distribution import ridges
from edgevlm.bench.render.report_html import render_html
from edgevlm.bench.render.scatter import accuracy_scatter, has_points
from edgevlm.bench.render.svg import thinned
from edgevlm.bench.render.table import comparison
from edgevlm.bench.report import Latency, Report

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def long() -> Latency:
    """1000 answers with their instants; the samples repeat, which no picture minds."""
    few = latency(0, 20, gaps=16)
    steady = [each.model_copy(update={"at_s": 0.2 * index}) for index, each in enumerate(few.steady * 50)]
    return few.model_copy(update={"steady": steady})


@pytest.fixture(scope="module")
def many(long: Latency) -> Report:
    """200 rows of these, all with sensors."""
    series = [
        Series(
            source="ina3221",
            name="VDD_IN",
            unit=unit,
            at_s=[1.5 * i for i in range(120)],
            values=[0.7 * i for i in range(120)],
        )
        for unit in ("W", "°C", "MHz")
    ]
    heat = Heat(zone="ina3221 VDD_IN", start_c=30, max_c=60, clocks=[], throttled=[], series=series)
    rows = [
        row(f"model-{i}-int4-with-a-long-name", n=0, latency=long, heat=heat, accuracy=accuracy(300 + i % 90, 400))
        for i in range(200)
    ]
    return report(*rows)


def test_page_of_200_rows_with_1000_samples_each_is_under_3_mb(many: Report) -> None:
    html = render_html(many)
    assert len(html.encode()) < 3_000_000
    assert all(each.name in html for each in many.rows)
    assert "188 more rows are in report.json" in Page(html).text


def test_thinned_keeps_both_ends_and_the_order() -> None:
    assert thinned(range(10), 4) == [0, 3, 6, 9]
    assert thinned([1, 2], 4) == [1, 2]


def test_ridge_is_as_high_as_the_counts(long: Latency) -> None:
    """Its shape is the histogram: areas over equal widths are in proportion to the samples below them."""
    made = report(row("a", n=0, latency=long))
    root = ElementTree.fromstring(ridges(made, "ttft", 1080.0))
    (shape,) = root.iter(f"{SVG}polygon")
    points = np.array([[float(value) for value in pair.split(",")] for pair in shape.attrib["points"].split()])
    values = np.array([each.ttft_ms for each in long.steady])
    ticks = {
        float(t.text or ""): float(t.attrib["x"]) for t in root.iter(f"{SVG}text") if re.fullmatch(r"\d+", t.text or "")
    }
    (low, x_low), (high, x_high) = min(ticks.items()), max(ticks.items())
    places = x_low + (values - low) / (high - low) * (x_high - x_low)
    base, heights = points[:, 1].max(), []
    for left, right in zip(points[1:-1:2], points[2:-1:2], strict=True):
        inside = ((places >= left[0] - 0.06) & (places < right[0] - 0.06)).sum()
        heights.append((base - left[1], inside))
    tall, counts = np.array(heights, dtype=float).T
    assert tall == pytest.approx(counts / counts.max() * tall.max(), abs=0.11)
    assert float(shape.attrib["data-value"]) == np.median(values)


def test_few_samples_are_drawn_one_by_one() -> None:
    made = report(row("a", n=5))
    root = ElementTree.fromstring(ridges(made, "ttft", 358.0))
    assert made.rows[0].latency is not None
    drawn = [float(dot.attrib["data-value"]) for dot in root.iter(f"{SVG}circle")]
    assert drawn == [each.ttft_ms for each in made.rows[0].latency.steady]
    assert ridges(report(row("b", n=0)), "gaps", 358.0) == ""


def test_front_is_marked_among_size_and_accuracy() -> None:
    """`heavy` costs more and is worth less than `best`; the other two are on the front."""
    sizes = {"small": (1_000_000, 60), "best": (2_000_000, 90), "heavy": (3_000_000, 80)}
    rows = [row(name, n=0, total_bytes=size, accuracy=accuracy(right, 100)) for name, (size, right) in sizes.items()]
    made = report(*rows)
    assert has_points(made, "size")
    assert not has_points(made, "ttft")
    root = ElementTree.fromstring(accuracy_scatter(made, "size", 1080.0))
    dots = {float(dot.attrib["data-value"]): dot.attrib["class"] for dot in root.iter(f"{SVG}circle")}
    assert dots == {0.6: "on-front", 0.9: "on-front", 0.8: "point"}
    assert sum(line.attrib["class"] == "front" for line in root.iter(f"{SVG}polyline")) == 1


def test_many_rows_leave_their_dots_to_the_distributions(many: Report) -> None:
    assert "<circle" not in ttft_bars(many, 1080.0)
    some = many.model_copy(update={"rows": many.rows[:30]})
    assert 0 < ttft_bars(some, 1080.0).count("<circle") <= 2400


def test_card_names_the_device_and_leaves_out_what_is_not_known() -> None:
    plain = dict(card(report(row("a", n=6))))
    assert plain["CPU"] == "A CPU"
    assert plain["Engines"] == "onnxruntime 1.31.1"
    assert "Power mode" not in plain
    jetson = MACHINE.model_copy(update={"power_mode": "MAXN_SUPER (2)", "governor": None, "usable_cores": 6})
    sensor = Sensor(name="ina3221", state="ok", detail="VDD_IN", power=True)
    told = dict(card(report(row("a", n=6), environment=jetson).model_copy(update={"sensors": [sensor]})))
    assert told["Power mode"] == "MAXN_SUPER (2)"
    assert told["Power sensor"] == "ina3221"
    assert "Governor" not in told
    assert told["Cores"] == "4 physical, 8 logical, 6 usable"


def test_comparison_tells_format_precision_and_pruning() -> None:
    table = comparison(report(row("a", n=6), row("b", n=6, passes=["prune_tokens keep=16"])))
    cells = dict(zip(table.headers, table.rows[1], strict=True))
    assert [cells[name].text for name in ("format", "precision", "pruning")] == ["onnx", "int4", "prune_tokens keep=16"]
    assert "pruning" not in comparison(report(row("a", n=6))).headers


def test_answers_over_time_are_drawn_without_sensors() -> None:
    rng = np.random.default_rng(0)
    timed = latency(0, 6)
    steady = [sample(rng).model_copy(update={"at_s": 1.0 * index}) for index in range(6)]
    html = render_html(report(row("a", n=0, latency=timed.model_copy(update={"steady": steady}))))
    assert "Time per token over the run" in html
    assert "Time per token over the run" not in render_html(report(row("a", n=6)))


def test_heading_counts_bundles_not_the_cells_of_a_matrix() -> None:
    cells = [row(f"int4 ({n} threads)", n=0, path="out/int4") for n in (1, 2)]
    assert "1 bundle in 2 rows" in Page(render_html(report(*cells))).text
    assert "2 bundles" in (text := Page(render_html(report(row("a", n=0), row("b", n=0)))).text)
    assert "2 bundles in" not in text
