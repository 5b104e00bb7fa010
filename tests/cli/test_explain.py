"""`edgevlm models --explain` names the source of every tensor."""

from pathlib import Path

import pytest

from edgevlm.cli import main
from edgevlm.zoo.synth import synth


def explained(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Count and source by tensor name, layers together."""
    with pytest.raises(SystemExit) as caught:
        main(["models", "--explain", str(folder)])
    assert caught.value.code == 0
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    return {row[0]: [row[1], row[2].strip()] for row in rows if len(row) == 3 and row[1].isdigit()}


def test_a_model_of_several_sources_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synth("tinygpt-v", tmp_path / "m", tiny=True)
    rows = explained(tmp_path / "m", capsys)
    assert rows["vision.encoder.layers.*.fc1.weight"] == ["2", "eva_vit_g.pth"]
    assert rows["decoder.layers.*.self_attn.q_proj.weight"] == ["2", "phi-2 + stage4.pth"]
    assert rows["vision.projector.feature_norm.bias"] == ["1", "blip2_pretrained_flant5xxl.pth"]


def test_a_model_of_one_source_names_it_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synth("fastvlm-0.5b", tmp_path / "m", tiny=True, resolution=64)
    rows = explained(tmp_path / "m", capsys)
    assert {source for _, source in rows.values()} == {"model.safetensors"}
    assert "decoder.embed_tokens.weight" in rows
