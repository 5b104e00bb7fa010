"""When calibration images weigh the errors of a GGUF, what stays in the bundle, and which recipes cannot ask for it."""

from pathlib import Path
from typing import Any

import gguf
import pytest

from edgevlm import pipeline
from edgevlm.bundle import open_bundle
from edgevlm.errors import UnsupportedError
from edgevlm.exporters.gguf.imatrix import read_imatrix
from edgevlm.pipeline.gguf_choice import imatrix_misfit, is_weighed
from edgevlm.recipe import Recipe
from edgevlm.zoo.synth import synth

SCENES = {"source": "scenes", "n": 2}


def recipe(**fields: Any) -> Recipe:
    return Recipe.model_validate({"model": "m", "format": "gguf", "calibration": SCENES, **fields})


@pytest.mark.parametrize(
    ("fields", "weighed"),
    [
        ({"gguf_type": "q4_k_m"}, True),
        ({"precision": "int4"}, True),
        ({"gguf_type": "iq4_nl", "imatrix": "off"}, False),
        ({"gguf_type": "iq4_nl", "calibration": None}, False),
        ({"gguf_type": "q8_0"}, False),
        ({"precision": "fp16"}, False),
        ({"format": "onnx"}, False),
    ],
)
def test_images_weigh_errors_wherever_llama_cpp_heeds_them(fields: dict[str, Any], weighed: bool) -> None:
    assert is_weighed(recipe(**fields)) == weighed
    assert imatrix_misfit(recipe(**{"imatrix": "auto", **fields})) is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"gguf_type": "q8_0"}, "q8_0 is made without one; choose q4_0, q4_1, iq4_nl, q4_k_m"),
        ({"gguf_type": "q4_0", "calibration": None}, "add --calibrate"),
        ({"format": "onnx"}, "belongs to format gguf"),
    ],
)
def test_a_matrix_that_cannot_be_kept_is_refused_before_work(
    fields: dict[str, Any], reason: str, checkpoint: Path, tmp_path: Path
) -> None:
    asked = recipe(model=str(checkpoint), imatrix="keep", **fields)
    with pytest.raises(UnsupportedError, match=reason):
        pipeline.compile_recipe(asked, tmp_path / "out", progress=lambda *_: None)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    synth("fastvlm-0.5b", folder, tiny=True, resolution=128)
    return folder


@pytest.mark.parametrize("imatrix", ["auto", "keep"])
def test_the_matrix_is_made_and_used_and_kept_if_asked(
    imatrix: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder alone: the vision graph, and so the comparison with the original, is left out to save time."""
    monkeypatch.setattr(pipeline.onnx, "export_vision_part", lambda *_, **__: [])
    monkeypatch.setattr(pipeline, "verify", lambda *_: [])
    asked = recipe(model=str(checkpoint), gguf_type="iq4_nl", imatrix=imatrix)
    bundle = pipeline.compile_recipe(asked, tmp_path / "out", progress=lambda *_: None)
    fields = gguf.GGUFReader(bundle.artifact("decoder", ".gguf")).fields
    assert fields["quantize.imatrix.dataset"].contents() == "scenes"
    kept = bundle.path / "imatrix.gguf"
    assert kept.is_file() == (imatrix == "keep")
    if imatrix == "keep":
        found = read_imatrix(kept)
        assert found.samples == fields["quantize.imatrix.chunks_count"].contents() == 2
        assert len(found.entries) == fields["quantize.imatrix.entries_count"].contents()
        assert "imatrix.gguf" in {entry.path for entry in open_bundle(bundle.path, verify=True).manifest.artifacts}
