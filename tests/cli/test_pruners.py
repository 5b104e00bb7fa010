"""`edgevlm pruners` lists every method, with what it needs."""

import json
from typing import Any

import pytest

from edgevlm.cli import main
from edgevlm.pruning.tokens import CHOOSERS, REDUCERS


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["pruners", *arguments])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_the_table_has_a_line_for_each_method(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {line.split()[0]: line for line in shown(capsys).splitlines() if line.strip()}
    assert {*REDUCERS, *CHOOSERS} <= set(lines)
    assert "images" in lines["sms"]
    assert "class token" in lines["fastervlm"]
    assert "attention" in lines["visionzip"]
    assert "decoder split" in lines["fastv"]
    assert "arXiv 2503.02175" in lines["divprune"]
    assert "compare" in lines["divprune"]


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    listed: list[dict[str, Any]] = json.loads(shown(capsys, "--json"))
    assert [entry["name"] for entry in listed] == [*REDUCERS, *CHOOSERS]
    by_name = {entry["name"]: entry for entry in listed}
    reading = {name for name, entry in by_name.items() if entry["uses_cls"]}
    assert {"fastervlm", "vtc-cls", "hired", "prumerge"} <= reading
    assert not {"attention", "divprune", "visionzip"} & reading
    assert {name for name, entry in by_name.items() if entry["inside_decoder"]} >= {"fastv", "pyramiddrop", "dart"}
    assert {name for name, entry in by_name.items() if entry["chooses_count"]} == set(CHOOSERS)
    assert by_name["gprune"]["options"] == {"threshold": 0.5, "temperature": 0.03, "steps": 5}
    assert all(entry["summary"] and entry["source"] for entry in listed)
