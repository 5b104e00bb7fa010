"""`edgevlm inspect` shows what the manifest says, and refuses what is not a bundle."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import DECODER, TOKENS, tiny_bundle, tiny_model

from edgevlm.bundle import Bundle
from edgevlm.cli import main
from edgevlm.spec import DropStage, TokenDropSpec


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


def test_tokens_dropped_inside_the_decoder_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drop = TokenDropSpec("pyramiddrop", "attention", TOKENS, (DropStage(1, 6),))
    bundle = tiny_bundle(tiny_model(replace(DECODER, token_drop=drop)), tmp_path / "bundle")
    assert inspect(str(bundle.path)) == 0
    assert "pyramiddrop keeps of 16: 6 behind layer 1" in capsys.readouterr().out


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
