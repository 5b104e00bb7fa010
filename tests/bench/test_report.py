"""Every rendering says what the report says, needs nothing from outside, and shows foreign text as text."""

import base64
import hashlib
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from html_page import HOSTILE, Page
from jsonschema import Draft202012Validator

from edgevlm.bench.definitions import DEFINITIONS
from edgevlm.bench.pairs import wilson
from edgevlm.bench.reference import reference
from edgevlm.bench.render.charts import share_bar, ttft_bars
from edgevlm.bench.render.console import print_report
from edgevlm.bench.render.report_html import render_html
from edgevlm.bench.render.report_markdown import render_markdown
from edgevlm.bench.render.scatter import accuracy_scatter
from edgevlm.bench.report import Latency, Paired, Report, report_schema
from edgevlm.bench.write import write_report

ROOT = Path(__file__).parent.parent.parent
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def report(swept: tuple[Report, Path]) -> Report:
    return swept[0]


@pytest.fixture(scope="module")
def hostile(report: Report) -> Report:
    """The same report with hostile text wherever a bundle, a file or an engine names itself."""
    rows = []
    for row in report.rows:
        engine = row.vision_engine and row.vision_engine.model_copy(update={"name": HOSTILE, "details": {"a": HOSTILE}})
        files = [file.model_copy(update={"path": HOSTILE, "role": HOSTILE}) for file in row.files]
        texts = dict.fromkeys(("name", "model", "licence", "format"), HOSTILE)
        reason = HOSTILE if row.reason else ""
        rows.append(row.model_copy(update={**texts, "reason": reason, "vision_engine": engine, "files": files}))
    settings = report.settings.model_copy(update={"command_line": ["edgevlm", HOSTILE]})
    return report.model_copy(update={"rows": rows, "settings": settings})


def test_committed_schema_is_that_of_the_code() -> None:
    committed = json.loads((ROOT / "bench" / "report.schema.json").read_text(encoding="utf-8"))
    assert committed == report_schema(), "run: python -m edgevlm.bench.report > bench/report.schema.json"


def test_reference_page_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python -m edgevlm.bench.reference > docs/report.md"
    for model in (Report, Latency, Paired):
        assert all(f"| `{name}` |" in page for name in model.model_fields)


def test_report_fits_the_schema_and_the_schema_is_strict(report: Report) -> None:
    schema = report_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    data = json.loads(report.model_dump_json())
    assert not list(validator.iter_errors(data))
    assert list(validator.iter_errors({**data, "extra": 1}))
    assert list(validator.iter_errors({**data, "schema_version": 2}))
    del data["rows"][0]["latency"]["steady"][0]["vision_ms"]
    assert list(validator.iter_errors(data))


def test_report_reads_back_as_written(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    assert Report.model_validate_json((tmp_path / "report.json").read_text(encoding="utf-8")) == report
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.md", "report.html"}


@pytest.mark.parametrize("which", ["report", "hostile"])
def test_page_needs_nothing_from_outside(which: str, request: pytest.FixtureRequest) -> None:
    html = render_html(request.getfixturevalue(which))
    page = Page(html)
    loading = {"link", "img", "iframe", "object", "embed", "image", "use", "base", "form", "video", "audio"}
    assert not loading & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not {"src", "href", "srcset", "xlink:href", "action", "background"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    script = html[html.index("<script>") + len("<script>") : html.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    assert not re.search(r"innerHTML|fetch|import|eval|http|localStorage|cookie", script)
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import|//", style)


def test_foreign_text_is_shown_as_text(hostile: Report) -> None:
    page = Page(render_html(hostile))
    assert not page.misnested
    assert "<script src=//evil.example>" in page.text
    assert "{{ 7*7 }}" in page.text


def test_page_is_well_formed(report: Report) -> None:
    page = Page(render_html(report))
    assert not page.misnested
    assert ("html", {"lang": "en"}) in page.tags
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)


def test_markdown_and_terminal_defuse_foreign_text(hostile: Report) -> None:
    markdown = render_markdown(hostile)
    assert "<script" not in markdown.replace("\\<script", "")
    assert "[l](" not in markdown
    for table in (block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    stream = io.StringIO()
    print_report(hostile, stream)
    assert "\x1b" not in stream.getvalue()


def test_every_rendering_shows_every_row_and_failure(report: Report) -> None:
    stream = io.StringIO()
    print_report(report, stream)
    html = Page(render_html(report)).text
    for row in report.rows:
        for text in (stream.getvalue(), html, render_markdown(report).replace("\\", "")):
            assert row.name in text
            assert row.reason in text


def test_definitions_stand_beside_the_numbers(report: Report) -> None:
    text = Page(render_html(report)).text
    assert [term for term, meaning in DEFINITIONS.items() if meaning not in text] == []


@pytest.mark.parametrize("width", [358.0, 1080.0])
def test_bars_are_as_long_as_the_stages(report: Report, width: float) -> None:
    root = ElementTree.fromstring(ttft_bars(report, width))
    bars = [e for e in root.iter(f"{SVG}rect") if "data-value" in e.attrib]
    row = report.rows[0]
    assert row.latency is not None
    stages = [getattr(row.latency.stages, name) for name in type(row.latency.stages).model_fields]
    means = [summary.mean for summary in stages if summary is not None]
    assert [float(bar.attrib["data-value"]) for bar in bars[:4]] == means
    scale = [float(bar.attrib["width"]) / float(bar.attrib["data-value"]) for bar in bars]
    assert scale == pytest.approx([scale[1]] * len(scale), rel=0.03)
    ends = [float(bar.attrib["x"]) + float(bar.attrib["width"]) for bar in bars]
    assert [float(bar.attrib["x"]) for bar in bars[1:4]] == pytest.approx(ends[:3], abs=0.02)
    assert max(ends) < width
    dots = [float(dot.attrib["data-value"]) for dot in root.iter(f"{SVG}circle")]
    assert dots[:8] == [sample.ttft_ms for sample in row.latency.steady]
    assert "SIGSEGV" in ttft_bars(report, 1080.0)


@pytest.mark.parametrize("width", [358.0, 1080.0])
def test_points_stand_where_the_numbers_are(report: Report, width: float) -> None:
    root = ElementTree.fromstring(accuracy_scatter(report, "ttft", width))
    better, worse = sorted(root.iter(f"{SVG}circle"), key=lambda circle: -float(circle.attrib["data-value"]))
    assert [float(circle.attrib["data-value"]) for circle in (better, worse)] == pytest.approx([1, 2 / 3])
    assert float(better.attrib["cy"]) < float(worse.attrib["cy"])
    labels = {text.text: float(text.attrib["y"]) for text in root.iter(f"{SVG}text") if (text.text or "").endswith("%")}
    axis = {float(text.rstrip("%")): y for text, y in labels.items() if text}
    (low, y_low), (high, y_high) = min(axis.items()), max(axis.items())
    expected = y_low - 4 + (200 / 3 - low) / (high - low) * (y_high - y_low)
    assert float(worse.attrib["cy"]) == pytest.approx(expected, abs=0.1)


def test_share_bar_is_to_scale() -> None:
    root = ElementTree.fromstring(share_bar(wilson(30, 40), 0.25))
    track, bar = root.iter(f"{SVG}rect")
    assert float(bar.attrib["width"]) / float(track.attrib["width"]) == pytest.approx(0.75, abs=1e-3)


def test_a_report_of_failures_alone_still_renders(report: Report) -> None:
    failed = report.model_copy(update={"rows": [row for row in report.rows if row.status == "failed"]})
    assert "SIGSEGV" in render_html(failed)
    assert "SIGSEGV" in render_markdown(failed)
