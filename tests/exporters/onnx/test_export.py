"""A whole ONNX export: its files, its configuration, and that it repeats byte for byte."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_models import session
from tiny import DECODER, tiny_model

from edgevlm.bundle import sha256_file
from edgevlm.errors import CheckpointError
from edgevlm.exporters.base import Artifact
from edgevlm.exporters.onnx import export, supports
from edgevlm.models.vlm import VlmModel
from edgevlm.recipe import Precision
from edgevlm.zoo.tokenizer import build_tokenizer, save_tokenizer


def small_model(tokenizer: Path) -> VlmModel:
    """With a tied head, and a tokenizer written to the folder `tokenizer`."""
    save_tokenizer(build_tokenizer(1024), tokenizer, 256)
    model = tiny_model(replace(DECODER, tied_embeddings=True))
    spec = replace(model.spec, prompt=replace(model.spec.prompt, image_token_id=1023))
    return replace(model, spec=spec, tokenizer_files={path.name: path for path in tokenizer.iterdir()})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VlmModel:
    return small_model(tmp_path_factory.mktemp("tokenizer"))


def exported(model: VlmModel, out: Path, precision: Precision, vision_precision: Precision) -> list[Artifact]:
    out.mkdir()
    return export(model, out, precision=precision, vision_precision=vision_precision, progress=lambda *_: None)


@pytest.fixture(scope="module")
def int4(model: VlmModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Artifact]]:
    out = tmp_path_factory.mktemp("bundle") / "int4"
    return out, exported(model, out, "int4", "fp16")


@pytest.fixture
def without_vision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the tracing, which takes seconds, where the vision graph does not matter."""
    monkeypatch.setattr("edgevlm.exporters.onnx.exporter.export_vision", lambda *_: 0)


def read(path: Path) -> dict[str, object]:
    data = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(data, dict)
    return data


def test_files_are_those_of_transformers_js(int4: tuple[Path, list[Artifact]]) -> None:
    out, artifacts = int4
    on_disk = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert on_disk == {artifact.path for artifact in artifacts}
    assert {path for path in on_disk if path.endswith(".onnx")} == {
        "onnx/vision_encoder_fp16.onnx",
        "onnx/embed_tokens_q4.onnx",
        "onnx/decoder_model_merged_q4.onnx",
    }


def test_config_names_every_graph_and_its_data(int4: tuple[Path, list[Artifact]], model: VlmModel) -> None:
    out, _ = int4
    config = read(out / "config.json")
    assert config["model_type"] == "llava_qwen2"
    assert config["image_token_index"] == model.spec.prompt.image_token_id
    settings = config["transformers.js_config"]
    assert isinstance(settings, dict)
    assert settings["dtype"] == {"vision_encoder": "fp16", "embed_tokens": "q4", "decoder_model_merged": "q4"}
    for name, pieces in settings["use_external_data_format"].items():
        assert pieces == 1
        assert (out / "onnx" / name).is_file()
        assert (out / "onnx" / f"{name}_data").is_file()


def test_cache_inputs_resolve_in_transformers_js(int4: tuple[Path, list[Artifact]]) -> None:
    """It allocates an empty cache from the inputs' axes: `batch_size` by name, heads and width as numbers."""
    out, _ = int4
    graph = session(out / "onnx/decoder_model_merged_q4.onnx")
    for item in graph.get_inputs():
        if item.name.startswith("past_key_values."):
            batch, heads, length, width = item.shape
            assert batch == "batch_size"
            assert isinstance(length, str)
            assert (heads, width) == (2, 16)


def test_tokenizer_knows_image_and_template(int4: tuple[Path, list[Artifact]], model: VlmModel) -> None:
    out, _ = int4
    added = read(out / "tokenizer.json")["added_tokens"]
    assert isinstance(added, list)
    assert {"id": 1023, "content": "<image>"}.items() <= next(e for e in added if e["id"] == 1023).items()
    assert read(out / "tokenizer_config.json")["chat_template"] == model.spec.prompt.chat_template


@pytest.mark.usefixtures("without_vision")
def test_image_token_is_added_where_the_tokenizer_lacks_it(model: VlmModel, tmp_path: Path) -> None:
    source = read(model.tokenizer_files["tokenizer.json"])
    added = source["added_tokens"]
    assert isinstance(added, list)
    source["added_tokens"] = [entry for entry in added if entry["content"] != "<image>"]
    plain = tmp_path / "tokenizer.json"
    plain.write_text(json.dumps(source), encoding="utf-8")
    out = tmp_path / "out"
    exported(replace(model, tokenizer_files={"tokenizer.json": plain}), out, "int4", "fp16")
    written = read(out / "tokenizer.json")["added_tokens"]
    assert isinstance(written, list)
    assert next(entry["id"] for entry in written if entry["content"] == "<image>") == 1023


@pytest.mark.usefixtures("without_vision")
def test_image_token_outside_the_vocabulary_can_be_looked_up(model: VlmModel, tmp_path: Path) -> None:
    """transformers.js looks up all ids before it replaces those of images."""
    outside = model.spec.decoder.vocab_size
    prompt = replace(model.spec.prompt, image_token_id=outside)
    out = tmp_path / "out"
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(model.tokenizer_files["tokenizer.json"].read_text().replace("<image>", "<picture>"))
    spec = replace(model.spec, prompt=prompt)
    exported(replace(model, spec=spec, tokenizer_files={"tokenizer.json": tokenizer}), out, "int4", "fp16")
    graph = session(out / "onnx/embed_tokens_q4.onnx")
    rows = graph.run(None, {"input_ids": np.array([[3, outside]])})[0]
    inside = graph.run(None, {"input_ids": np.array([[3]])})[0]
    np.testing.assert_array_equal(rows[:, :1], inside)


def test_bits_per_weight_are_counted_from_the_files(int4: tuple[Path, list[Artifact]], model: VlmModel) -> None:
    out, artifacts = int4
    counted = 0
    for artifact in artifacts:
        if artifact.format != "onnx-data":
            continue
        counted += artifact.parameters
        graph = onnx.load(str(out / artifact.path.removesuffix("_data")), load_external_data=False).graph
        payload = 0
        for tensor in graph.initializer:
            place = {item.key: item.value for item in tensor.external_data}
            if place and place["location"] == Path(artifact.path).name and not tensor.name.startswith("rotary."):
                payload += int(place["length"])
            elif not place and tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8):
                payload += len(tensor.raw_data)
        assert artifact.bits_per_weight == pytest.approx(8 * payload / artifact.parameters), artifact.path
    modules = (model.vision, model.decoder)
    assert counted == sum(parameter.numel() for module in modules for parameter in module.parameters())
    embedding = next(artifact for artifact in artifacts if artifact.path == "onnx/embed_tokens_q4.onnx_data")
    assert embedding.bits_per_weight == 5.0  # 4 bits and a float32 scale for 32 weights


def test_checker_accepts(int4: tuple[Path, list[Artifact]]) -> None:
    for path in (int4[0] / "onnx").glob("*.onnx"):
        onnx.checker.check_model(str(path))


def test_same_model_gives_the_same_bytes(int4: tuple[Path, list[Artifact]], tmp_path: Path) -> None:
    """In another process, with another hash seed."""
    out, artifacts = int4
    code = (
        "import sys; from pathlib import Path; from test_export import exported, small_model;"
        "base = Path(sys.argv[1]); (base / 'tokenizer').mkdir();"
        "exported(small_model(base / 'tokenizer'), base / 'out', 'int4', 'fp16')"
    )
    here = Path(__file__).parent
    paths = os.pathsep.join((str(here), str(here.parents[1])))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "1234"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True, capture_output=True)
    for artifact in artifacts:
        assert sha256_file(tmp_path / "out" / artifact.path) == sha256_file(out / artifact.path), artifact.path


@pytest.mark.usefixtures("without_vision")
def test_progress_reaches_the_end(model: VlmModel, tmp_path: Path) -> None:
    calls: list[tuple[float, float, str]] = []
    export(model, tmp_path, precision="fp32", vision_precision="fp32", progress=lambda *call: calls.append(call))
    shares = [done / total for done, total, _ in calls]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_what_cannot_be_exported_is_refused_with_a_reason(model: VlmModel) -> None:
    assert supports(model.spec, "int4", "fp16") is None
    assert supports(model.spec, "int4", "int4") is None
    odd = replace(model.spec, decoder=replace(model.spec.decoder, rotary_dim=8))
    assert "8" in (supports(odd, "int4", "fp16") or "")


@pytest.mark.usefixtures("without_vision")
def test_weight_that_is_not_finite_is_refused(model: VlmModel, tmp_path: Path) -> None:
    weight = model.decoder.layers[1].mlp.down_proj.weight
    assert isinstance(weight, torch.Tensor)
    kept = weight[0, 0].clone()
    try:
        weight[0, 0] = float("inf")
        with pytest.raises(CheckpointError, match="not finite"):
            exported(model, tmp_path / "out", "int4", "fp16")
    finally:
        weight[0, 0] = kept
