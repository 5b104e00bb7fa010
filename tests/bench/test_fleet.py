"""`edgevlm report merge` shows every row of every device, each under its device's name, and mixes nothing up."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from html_page import HOSTILE, Page
from jsonschema import Draft202012Validator
from made_reports import MACHINE, report, row, save
from referencing import Registry, Resource

from edgevlm.bench.fleet import Fleet, fleet_schema, merge, side_by_side
from edgevlm.bench.reading import read_report
from edgevlm.bench.render.fleet import overview, render_html, render_markdown
from edgevlm.bench.render.fleet_chart import decode_bars
from edgevlm.bench.report import SCHEMA_ID, Environment, report_schema
from edgevlm.cli import main
from edgevlm.errors import InputError

ROOT = Path(__file__).parent.parent.parent
BOARD = MACHINE.model_copy(update={"cpu_model": "A board", "power_mode": "15W (0)"})


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as leaving:
        main(["report", *map(str, arguments)])
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


def fleet(folder: Path, *machines: Environment, names: tuple[str, ...] = ()) -> Fleet:
    files = [
        save(
            folder / f"device-{number}",
            report(row("a", seed=number, slower=1.0 + number), row("b", n=6, format="gguf"), environment=machine),
        )
        for number, machine in enumerate(machines)
    ]
    return merge([read_report(file) for file in files], names)


def test_rows_of_one_bundle_stand_side_by_side(tmp_path: Path) -> None:
    made = fleet(tmp_path, MACHINE, BOARD)
    assert [(device.name, one.name) for device, one in side_by_side(made)] == [
        ("A CPU", "a"),
        ("A board", "a"),
        ("A CPU", "b"),
        ("A board", "b"),
    ]
    table = overview(made)
    assert table.headers[:3] == ("bundle", "device", "status")
    assert [(str(cells[0]), str(cells[1])) for cells in table.rows] == [
        (one.name, device.name) for device, one in side_by_side(made)
    ]
    slow = dict(zip(table.headers, table.rows[1], strict=True))["TTFT steady"]
    assert made.devices[1].report.rows[0].latency is not None
    median = made.devices[1].report.rows[0].latency.ttft_steady_ms.median
    assert float(slow.text.removesuffix(" ms")) == pytest.approx(median, rel=0.005)


def test_devices_have_names_of_their_own(tmp_path: Path) -> None:
    assert [each.name for each in fleet(tmp_path, MACHINE, BOARD).devices] == ["A CPU", "A board"]
    twins = fleet(tmp_path, MACHINE, MACHINE)
    assert [each.name for each in twins.devices] == ["A CPU, device-0", "A CPU, device-1"]
    assert [each.name for each in fleet(tmp_path, MACHINE, BOARD, names=("x", "y")).devices] == ["x", "y"]
    for names in (("x",), ("x", "x")):
        with pytest.raises(InputError, match="name"):
            fleet(tmp_path, MACHINE, BOARD, names=names)


def test_decode_bars_are_to_scale_and_coloured_by_device(tmp_path: Path) -> None:
    made = fleet(tmp_path, MACHINE, BOARD)
    root = ElementTree.fromstring(decode_bars(made, 1080.0))
    bars = [bar for bar in root.iter("{http://www.w3.org/2000/svg}rect") if "data-value" in bar.attrib]
    rates = [one.latency and one.latency.decode_tokens_per_second for _, one in side_by_side(made)]
    assert [float(bar.attrib["data-value"]) for bar in bars] == rates
    lengths = [float(bar.attrib["width"]) / float(bar.attrib["data-value"]) for bar in bars]
    assert lengths == pytest.approx([lengths[0]] * len(lengths), rel=1e-3)
    assert [bar.attrib["class"] for bar in bars] == ["s2", "s1", "s2", "s1"]


def test_renderings_show_every_device_and_defuse_foreign_text(tmp_path: Path) -> None:
    made = fleet(tmp_path, MACHINE, BOARD.model_copy(update={"power_mode": HOSTILE}), names=("one", HOSTILE))
    page = Page(render_html(made))
    assert not page.misnested
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    markdown = render_markdown(made)
    assert "<script" not in markdown.replace("\\<script", "")
    for device in made.devices:
        assert device.sha256 in page.text
        assert device.sha256 in markdown
        assert device.report.environment.cpu_model in markdown


def test_command_writes_a_fleet_that_fits_its_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [save(tmp_path / name, report(row("a", n=6), environment=m)) for name, m in (("x", MACHINE), ("y", BOARD))]
    assert run("merge", *files, "-o", tmp_path / "out") == 0
    assert "A board" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"fleet.json", "fleet.md", "fleet.html"}
    data = json.loads((tmp_path / "out" / "fleet.json").read_text(encoding="utf-8"))
    registry = Registry().with_resource(SCHEMA_ID, Resource.from_contents(report_schema()))
    validator = Draft202012Validator(fleet_schema(), registry=registry)
    assert not list(validator.iter_errors(data))
    data["devices"][0]["report"]["rows"][0]["extra"] = 1
    assert list(validator.iter_errors(data))
    assert run("merge", files[0], files[0], "-o", tmp_path / "out") == 2
    assert "this report is there twice" in capsys.readouterr().err
    assert run("merge", tmp_path, "-o", tmp_path / "out") == 2


def test_an_old_report_is_rendered_again(tmp_path: Path) -> None:
    """Its definitions know fewer terms than the page asks for."""
    old = report(row("a", n=6)).model_copy(update={"definitions": {"TTFT": "as it was understood then"}})
    assert run("render", save(tmp_path / "old", old), "-o", tmp_path / "new") == 0
    assert read_report(tmp_path / "new").report == old
    assert "as it was understood then" in (tmp_path / "new" / "report.html").read_text(encoding="utf-8")


def test_committed_schema_is_that_of_the_code() -> None:
    committed = json.loads((ROOT / "bench" / "fleet.schema.json").read_text(encoding="utf-8"))
    assert committed == fleet_schema(), "run: python -m edgevlm.bench.fleet > bench/fleet.schema.json"
