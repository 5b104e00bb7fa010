"""`edgevlm inspect` shows what the manifest says, and refuses what is not a bundle."""

import json
from pathlib import Path

import pytest

from edgevlm.bundle import Bundle
from edgevlm.cli import main


def inspect(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["inspect", *arguments])
    code = caught.value.code
    assert isinstance(code, int)
    return code


def test_the_table_names_every_file(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(str(bundle.path), "--verify") == 0
    shown = capsys.readouterr().out
    for entry in bundle.manifest.artifacts:
        row = next(line for line in shown.splitlines() if line.split()[:1] == [entry.path])
        assert f"{entry.bytes:,}" in row
    assert f"{bundle.total_bytes:,}" in shown
    assert "64 x 64 pixels to 16 tokens" in shown
    assert "SHA-256" in shown


def test_json_is_the_manifest(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(str(bundle.path), "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((bundle.path / "manifest.json").read_text())


def test_what_is_not_a_bundle_is_refused(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(str(tmp_path)) == 2
    assert "not a bundle" in capsys.readouterr().err
    for file in bundle.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((tmp_path / "decoder.onnx_data").read_bytes())
    data[100] ^= 1
    (tmp_path / "decoder.onnx_data").write_bytes(data)
    assert inspect(str(tmp_path)) == 0
    assert inspect(str(tmp_path), "--verify") == 2
    assert "altered" in capsys.readouterr().err
