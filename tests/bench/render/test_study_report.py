"""A study's renderings say what the report says, need nothing from outside, and mark the fronts where they are."""

import io
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from html_page import HOSTILE, Page
from jsonschema import Draft202012Validator

from edgevlm.bench import format as show
from edgevlm.bench.definitions import study_definitions
from edgevlm.bench.grid import by_method, fronts, of_full, pruning_of, tokens, ttft
from edgevlm.bench.render import study, study_markdown
from edgevlm.bench.render.study_charts import Cost, front_chart, method_panel
from edgevlm.bench.render.study_findings import study_findings
from edgevlm.bench.render.study_table import against_plain, grid, left_out, matrix
from edgevlm.bench.report import Report, Row, report_schema
from edgevlm.bench.write import write_report

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def report(studied: tuple[Report, Path]) -> Report:
    return studied[0]


@pytest.fixture(scope="module")
def hostile(report: Report) -> Report:
    """The same report with hostile text wherever a model, an option or a reason comes from outside."""
    rows = [
        row.model_copy(
            update={
                "reason": HOSTILE if row.reason else "",
                "pruning": row.pruning
                and row.pruning.model_copy(update={"options": {"a": HOSTILE}, "export": [HOSTILE]}),
                "vision_engine": row.vision_engine and row.vision_engine.model_copy(update={"name": HOSTILE}),
            }
        )
        for row in report.rows
    ]
    renamed = report.study and report.study.model_copy(update={"model": HOSTILE})
    return report.model_copy(update={"rows": rows, "study": renamed})


def test_a_studys_report_fits_the_schema_of_all_reports(report: Report) -> None:
    data = json.loads(report.model_dump_json())
    validator = Draft202012Validator(report_schema())
    assert not list(validator.iter_errors(data))
    del data["study"]["unpruned"]
    assert list(validator.iter_errors(data))


def test_report_and_pictures_are_written(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    names = {"report.json", "report.md", "report.html", "tokens.svg", "ttft.svg"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert Report.model_validate_json((tmp_path / "report.json").read_text(encoding="utf-8")) == report
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\S+\.svg)\)", markdown)) == names & {"tokens.svg", "ttft.svg"}
    for name in ("tokens.svg", "ttft.svg"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag == f"{SVG}svg"
        assert "url(" not in text


@pytest.mark.parametrize("which", ["report", "hostile"])
def test_the_page_is_well_formed_and_needs_nothing_from_outside(which: str, request: pytest.FixtureRequest) -> None:
    html = study.render_html(request.getfixturevalue(which))
    page = Page(html)
    assert not page.misnested
    assert not {"link", "img", "iframe", "object", "image", "use"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not {"src", "href", "srcset", "action"} & set(attributes), tag
    assert not re.search(r"url\(|@import|//", html[html.index("<style>") : html.index("</style>")])


def test_foreign_text_is_text_everywhere(hostile: Report) -> None:
    assert "<script src=//evil.example>" in Page(study.render_html(hostile)).text
    markdown = study_markdown.render_markdown(hostile)
    assert "<script" not in markdown.replace("\\<script", "")
    assert "[l](" not in markdown
    stream = io.StringIO()
    study.print_study(hostile, stream)
    assert "\x1b" not in stream.getvalue()


def test_every_rendering_shows_every_cell_and_its_reason(report: Report) -> None:
    stream = io.StringIO()
    study.print_study(report, stream)
    html = Page(study.render_html(report)).text
    for row in report.rows:
        for text in (stream.getvalue(), html, study_markdown.render_markdown(report).replace("\\", "")):
            assert row.name in text
            assert row.reason in text
    assert [term for term, meaning in study_definitions().items() if meaning not in html] == []


def row_of(report: Report, name: str) -> Row:
    return next(row for row in report.rows if row.name == name)


@pytest.mark.parametrize("cost", ["tokens", "ttft"])
@pytest.mark.parametrize("width", [358.0, 1080.0])
def test_dots_stand_where_the_figures_are(report: Report, cost: Cost, width: float) -> None:
    """Linear axes here: the dots' places are one linear function of the figures, and within the picture."""
    root = ElementTree.fromstring(front_chart(report, cost, width))
    places = {}
    for circle in root.iter(f"{SVG}circle"):
        (tip,) = (each.text or "" for each in circle)
        places[tip.split(":")[0]] = (float(circle.attrib["cx"]), float(circle.attrib["cy"]))
    scored = [row for row in report.rows if row.accuracy is not None and row.latency is not None]
    assert set(places) == {row.name for row in scored}
    assert all(40 <= x <= width and 0 <= y <= 440 for x, y in places.values())
    figures = []
    for row in scored:
        assert row.latency is not None
        tokens = row.pruning.tokens if row.pruning else 36
        figures.append((tokens if cost == "tokens" else row.latency.ttft_steady_ms.median, *places[row.name]))
    for (cost_a, x_a, _), (cost_b, x_b, _) in pairwise(sorted(figures)):
        assert (x_a < x_b) == (cost_a < cost_b)
    by_share = sorted((row.accuracy.overall.value or 0, -places[row.name][1]) for row in scored if row.accuracy)
    assert [y for _, y in by_share] == sorted(y for _, y in by_share)


def test_the_stair_goes_through_the_front(report: Report) -> None:
    root = ElementTree.fromstring(front_chart(report, "tokens", 1080.0))
    (stair,) = (line for line in root.iter(f"{SVG}polyline") if line.attrib["class"] == "front")
    corners = [tuple(map(float, point.split(","))) for point in stair.attrib["points"].split()]
    dots = [circle for circle in root.iter(f"{SVG}circle") if circle.attrib["class"] == "on-front"]
    assert report.study is not None
    assert len(dots) == len(report.study.front_tokens)
    assert {(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in dots} <= set(corners)
    assert [x for x, _ in corners] == sorted(x for x, _ in corners)
    labels = {text.text for text in root.iter(f"{SVG}text")}
    assert "divprune" in labels
    assert "unpruned 100.0%" in labels


def test_panels_draw_each_method_among_all(report: Report) -> None:
    root = ElementTree.fromstring(method_panel(report, "divprune", 220.0))
    classes = [line.attrib["class"] for line in root.iter(f"{SVG}polyline")]
    assert classes.count("own") == 1
    assert classes.count("plain") == 2
    assert len(list(root.iter(f"{SVG}circle"))) == 2


def test_tables_hold_the_figures(report: Report) -> None:
    cells = {str(row[0].text): row for row in matrix(report).rows}
    assert set(cells) == set(by_method(report))
    assert str(cells["divprune"][2]) == "\N{BLACK DIAMOND} 91.7% (\N{MINUS SIGN}8.3, 9 tokens)"
    assert str(cells["pool"][1]) == "75.0% (\N{MINUS SIGN}25.0, 16 tokens)"
    assert str(cells["fastervlm"][1]) == "not made"
    assert str(cells["resolution"][1]) == "failed"
    lines = {row[0].text: row for row in grid(report).rows}
    assert set(lines) == {row.name for row in report.rows if row.status == "ok"}
    headers = grid(report).headers
    line = dict(zip(headers, lines["random 9"], strict=True))
    assert (str(line["tokens"]), str(line["of full"]), str(line["lost / gained"])) == ("9 (25%)", "50.0%", "12 / 0")
    assert str(line["method"]) == "+0.11 ms (+0.11 to +0.11 ms)"
    assert {row[0].text for row in left_out(report).rows} == {row.name for row in report.rows if row.status != "ok"}


def test_what_beats_plain_choices_is_said_and_what_does_not(report: Report) -> None:
    verdicts = {(row[0].text, row[1].text): row[5].text for row in against_plain(report).rows}
    assert verdicts["divprune 9", "random 9"] == "yes"
    assert verdicts["random 9", "uniform 9"] == "no, worse"
    assert "not shown" in verdicts.values()
    said = [str(finding) for finding in study_findings(report)]
    assert any(line.startswith("25%: divprune is the most accurate of 4: 91.7% with 9 tokens, 91.7%") for line in said)
    (better,) = (line for line in said if line.startswith("25%: shown to be better"))
    # Of five images, two or three differences do not tell divprune from uniform, nor pool from random.
    assert "than random 9, 2 of 3 (uniform, divprune)" in better
    assert "than uniform 9, 0 of 3" in better


def test_of_full_and_fronts_leave_out_what_has_no_figures(report: Report) -> None:
    assert of_full(report, row_of(report, "attention 9")) is None
    assert of_full(report, row_of(report, "unpruned")) == 1
    few, fast = fronts([row for row in report.rows if row.status != "ok"], 36)
    assert (few, fast) == ([], [])
    assert pruning_of(row_of(report, "pool 16")).tokens == 16


def test_tokens_that_go_inside_the_decoder_count_by_their_mean_over_its_layers(report: Report) -> None:
    """9 tokens behind the first of four layers cost the decoder what 16 would in front of it."""
    changed = pruned_as(report, "divprune 9", layer_tokens=[36, 9, 9, 9])
    row = row_of(changed, "divprune 9")
    assert tokens(changed, row) == 15.75
    assert fronts(changed.rows, 36)[0] == ["pool 9", "divprune 9", "unpruned"]
    lines = {str(line[0].text): line for line in grid(changed).rows}
    assert str(lines["divprune 9"][1]) == "9 (16 a layer, 44%)"
    cells = {str(line[0].text): line for line in matrix(changed).rows}
    assert "9 tokens in the end, 16 in a layer on average" in str(cells["divprune"][2])
    assert "16 in a layer on average" in front_chart(changed, "tokens", 1080.0)


def test_times_compare_by_their_ratio_to_the_unpruned_bundle_beside(report: Report) -> None:
    """A cell twice as fast as the unpruned bundle at its side stands at half of the unpruned row's time."""
    row = row_of(report, "random 9")
    full = row_of(report, "unpruned").latency
    assert full is not None
    assert row.latency is not None
    assert row.pruning is not None
    assert row.pruning.beside is not None
    slow = row.pruning.beside.ttft_ms.model_copy(update={"median": 2 * row.latency.ttft_steady_ms.median})
    beside = row.pruning.beside.model_copy(update={"ttft_ms": slow})
    changed = pruned_as(report, "random 9", beside=beside)
    found = ttft(changed.rows, row_of(changed, "random 9"))
    assert found == pytest.approx(full.ttft_steady_ms.median / 2)
    lines = {str(line[0].text): line for line in grid(changed).rows}
    assert str(lines["random 9"][-1]).endswith("(0.50 x)")


def pruned_as(report: Report, name: str, **changes: Any) -> Report:
    """The report with another description of one cell's pruning."""
    rows = [
        row.model_copy(update={"pruning": pruning_of(row).model_copy(update=changes)}) if row.name == name else row
        for row in report.rows
    ]
    return report.model_copy(update={"rows": rows})


def test_a_study_without_any_cell_still_renders(report: Report) -> None:
    assert report.study is not None
    lone = report.study.model_copy(update={"front_tokens": ["unpruned"], "front_ttft": ["unpruned"]})
    for rows in (report.rows[:1], [row for row in report.rows if row.status != "ok" or row.name == "unpruned"]):
        bare = report.model_copy(update={"rows": rows, "study": lone, "interrupted": True})
        assert "interrupted" in study.render_html(bare)
        assert study_markdown.render_markdown(bare)
    empty = [row.model_copy(update={"accuracy": None, "latency": None}) for row in report.rows]
    assert study.render_html(report.model_copy(update={"rows": empty}))


def test_what_a_method_chose_itself_stands_in_table_and_findings(report: Report) -> None:
    note = "sms chose 9 of 36 tokens: the knee"
    rows = []
    for row in report.rows:
        if row.name == "divprune 9":
            pruning = pruning_of(row).model_copy(update={"method": "sms", "keep_percent": []})
            rows.append(row.model_copy(update={"name": "sms", "pruning": pruning, "notes": [note]}))
        else:
            rows.append(row)
    assert report.study is not None
    few, fast = fronts(rows, 36)
    assert "sms" in few
    study = report.study.model_copy(update={"front_tokens": few, "front_ttft": fast})
    chosen = report.model_copy(update={"rows": rows, "study": study})
    table = matrix(chosen)
    assert table.headers[-1] == "its own choice"
    lines = {line[0].text: line for line in table.rows}
    assert "91.7%" in lines["sms"][-1].text
    assert "9 tokens" in lines["sms"][-1].note
    assert {line[-1].text for name, line in lines.items() if name != "sms"} == {show.NONE}
    (said,) = (finding for finding in study_findings(chosen) if finding.name == "sms")
    assert said.text.startswith(f"{note}: 91.7%, 91.7% of the unpruned accuracy")
    assert "its own choice" not in matrix(report).headers
