"""Bad input through the command line: three lines (what, where, what to do), exit code 2, nothing half-written."""

import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from refusals import Refused, left_in, refusal, refused_export, three_lines
from safetensors.torch import load_file, save_file
from tiny import tiny_bundle, tiny_model

from edgevlm.bundle import MANIFEST
from edgevlm.zoo.synth import synth

NAME = "model.safetensors"


@pytest.fixture(scope="module")
def good_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in the published layout."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    synth("fastvlm-0.5b", folder, tiny=True, resolution=128)
    return folder


@pytest.fixture
def checkpoint(good_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(good_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def good_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle in fp32."""
    folder = tmp_path_factory.mktemp("bundle")
    return tiny_bundle(tiny_model(), folder / "tiny").path


@pytest.fixture
def bundle(good_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(good_bundle, tmp_path / "bundle"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A good image."""
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    return refusal(capsys)


# --- Checkpoints ---


def _edit_config(checkpoint: Path, **changes: object) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, **changes}))


def test_unknown_model_type(refused: Refused, checkpoint: Path) -> None:
    _edit_config(checkpoint, model_type="telepathy", architectures=["Telepath"])
    message = refused_export(refused, checkpoint)
    assert "unknown model_type 'telepathy'" in message
    assert "llava_qwen2" in message


def test_the_nearest_model_type_is_named(refused: Refused, checkpoint: Path) -> None:
    _edit_config(checkpoint, model_type="llava_quen2")
    assert "did you mean llava_qwen2?" in refused_export(refused, checkpoint)


@pytest.mark.parametrize("text", [None, "", "[]", "{", "[" * 100_000, '{"model_type": "llava_qwen2"}'])
def test_unusable_config(refused: Refused, checkpoint: Path, text: str | None) -> None:
    (checkpoint / "config.json").unlink()
    if text is not None:
        (checkpoint / "config.json").write_text(text)
    assert "config.json" in refused_export(refused, checkpoint)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "wide"),
        ("hidden_size", -128),
        ("hidden_size", 192),
        ("num_attention_heads", 0),
        ("num_hidden_layers", 10**9),
        ("rope_theta", None),
    ],
)
def test_config_with_a_senseless_value(refused: Refused, checkpoint: Path, field: str, value: object) -> None:
    _edit_config(checkpoint, **{field: value})
    refused_export(refused, checkpoint)


def test_no_weights(refused: Refused, checkpoint: Path) -> None:
    (checkpoint / NAME).unlink()
    assert "model*.safetensors" in refused_export(refused, checkpoint)


@pytest.mark.parametrize("keep", [0, 4, 2000, 1_000_000, -1])
def test_truncated_safetensors(refused: Refused, checkpoint: Path, keep: int) -> None:
    data = (checkpoint / NAME).read_bytes()
    (checkpoint / NAME).write_bytes(data[:keep])
    assert NAME in refused_export(refused, checkpoint)


@pytest.mark.parametrize("header", [b"\xff" * 8, struct.pack("<Q", 1 << 40) + b"{}", struct.pack("<Q", 2) + b"no"])
def test_safetensors_with_a_false_header(refused: Refused, checkpoint: Path, header: bytes) -> None:
    (checkpoint / NAME).write_bytes(header + bytes(100))
    assert NAME in refused_export(refused, checkpoint)


def _edit_tensors(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(checkpoint / NAME)
    change(tensors)
    save_file(tensors, checkpoint / NAME)


_NORM = "model.norm.weight"


def test_missing_tensor_is_named(refused: Refused, checkpoint: Path) -> None:
    _edit_tensors(checkpoint, lambda tensors: tensors.pop(_NORM))
    message = refused_export(refused, checkpoint)
    assert "norm.weight" in message
    assert "missing" in message


def test_extra_tensor_is_named(refused: Refused, checkpoint: Path) -> None:
    _edit_tensors(checkpoint, lambda tensors: tensors.update({"model.backdoor.weight": torch.zeros(2)}))
    assert "model.backdoor.weight" in refused_export(refused, checkpoint)


@pytest.mark.parametrize("shape", [(2,), (127,), (128, 1), ()])
def test_misshapen_tensor_is_named(refused: Refused, checkpoint: Path, shape: tuple[int, ...]) -> None:
    _edit_tensors(checkpoint, lambda tensors: tensors.update({_NORM: torch.zeros(shape)}))
    message = refused_export(refused, checkpoint)
    assert _NORM in message
    assert str(list(shape)) in message


def test_tensor_of_integers_is_refused(refused: Refused, checkpoint: Path) -> None:
    _edit_tensors(checkpoint, lambda tensors: tensors.update({_NORM: torch.zeros(128, dtype=torch.int64)}))
    message = refused_export(refused, checkpoint)
    assert "norm.weight" in message
    assert "int64" in message


class _Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_with_code_is_refused_and_not_run(refused: Refused, checkpoint: Path, zipped: bool) -> None:
    (checkpoint / NAME).unlink()
    marker = checkpoint.parent / "owned"
    state = {_NORM: torch.zeros(128), "x": _Payload(marker)}
    torch.save(state, checkpoint / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    message = refused_export(refused, checkpoint)
    assert "it was not run" in message
    assert not marker.exists()
    pickle.loads(pickle.dumps(_Payload(marker)))  # noqa: S301 (our own, to show that it works)
    assert marker.exists(), "the payload is harmless, so the check above checks nothing"


@pytest.mark.parametrize("tokenizer", [None, "", "{}", '{"model": {"type": "BPE", "vocab": {}, "merges": []}}'])
def test_unusable_tokenizer(refused: Refused, checkpoint: Path, tokenizer: str | None) -> None:
    (checkpoint / "tokenizer.json").unlink()
    if tokenizer is not None:
        (checkpoint / "tokenizer.json").write_text(tokenizer)
    refused_export(refused, checkpoint)


def test_absent_model(refused: Refused, tmp_path: Path) -> None:
    refused_export(refused, tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    assert "a file, not a folder" in "\n".join(refused("export", tmp_path / "file", "-o", tmp_path / "b"))
    assert "no zoo model" in "\n".join(refused("export", "zoo:unheard-of", "-o", tmp_path / "b"))


def test_hub_model_without_network(tmp_path: Path) -> None:
    """The hub is not asked here: its own offline switch stands in for a cut cable."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "edgevlm", "export", "someone/some-model", "-o", str(tmp_path / "out")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "cannot be reached" in "\n".join(three_lines(run.returncode, run.stderr))
    assert not (tmp_path / "out").exists()


# --- Recipes and OUT ---


@pytest.mark.parametrize("resolution", [1000, 63, 0, -64])
def test_resolution_that_is_no_multiple_of_64(refused: Refused, checkpoint: Path, resolution: int) -> None:
    assert "resolution" in refused_export(refused, checkpoint, "--resolution", resolution)


def test_unknown_recipe_field(refused: Refused, checkpoint: Path) -> None:
    (checkpoint / "recipe.yaml").write_text("precison: int4\n")
    assert "precison" in refused_export(refused, checkpoint, "--recipe", checkpoint / "recipe.yaml")


@pytest.mark.parametrize(
    "flags",
    [
        ("--precision", "int3"),
        ("--format", "tflite"),
        ("--format", "onnx", "--gguf-type", "q4_0"),
        ("--target", "toaster"),
        ("--recipe", "absent.yaml"),
    ],
)
def test_choice_that_does_not_exist(refused: Refused, checkpoint: Path, flags: tuple[str, ...]) -> None:
    refused_export(refused, checkpoint, *flags)


def test_occupied_out_stays(refused: Refused, checkpoint: Path, bundle: Path) -> None:
    before = (bundle / MANIFEST).read_bytes()
    assert "--force" in "\n".join(refused("export", checkpoint, "-o", bundle))
    assert (bundle / MANIFEST).read_bytes() == before
    left_in(bundle.parent, "bundle", "checkpoint")


@pytest.mark.parametrize("out", ["/proc/edgevlm/bundle", "{checkpoint}/config.json/bundle", "{checkpoint}/config.json"])
def test_unwritable_out(refused: Refused, checkpoint: Path, out: str) -> None:
    before = sorted(checkpoint.iterdir())
    refused("export", checkpoint, "-o", out.format(checkpoint=checkpoint))
    assert sorted(checkpoint.iterdir()) == before


def _no_room() -> None:
    """In the child: no file may grow beyond 200 kB, as if the disk were full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


@pytest.mark.parametrize("flags", [("--format", "onnx"), ("--format", "gguf")], ids=["onnx", "gguf"])
def test_full_disk(good_checkpoint: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    (tmp_path / "out").mkdir()
    command = [
        sys.executable,
        "-m",
        "edgevlm",
        "export",
        str(good_checkpoint),
        "-o",
        str(tmp_path / "out" / "b"),
        *flags,
    ]
    run = subprocess.run(command, preexec_fn=_no_room, capture_output=True, text=True, check=False)
    assert "cannot write" in three_lines(run.returncode, run.stderr)[0]
    left_in(tmp_path / "out")


# --- Bundles ---


def _edit_manifest(bundle: Path, change: Callable[[dict[str, list[dict[str, object]]]], object]) -> None:
    data = json.loads((bundle / MANIFEST).read_text())
    change(data)
    (bundle / MANIFEST).write_text(json.dumps(data))


@pytest.mark.parametrize("verb", [("inspect",), ("run", "--prompt", "What?")])
class TestBundle:
    """What `inspect` refuses, `run` refuses as well."""

    def test_truncated_artefact(self, refused: Refused, bundle: Path, verb: tuple[str, ...]) -> None:
        file = bundle / "vision.onnx"
        file.write_bytes(file.read_bytes()[:-1])
        assert "vision.onnx" in "\n".join(refused(*verb, bundle))

    def test_tampered_artefact(self, refused: Refused, bundle: Path, verb: tuple[str, ...]) -> None:
        file = bundle / "tokenizer.json"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        assert "SHA-256" in "\n".join(refused(*verb, "--verify", bundle))

    def test_path_that_escapes(self, refused: Refused, bundle: Path, verb: tuple[str, ...]) -> None:
        _edit_manifest(bundle, lambda data: data["artifacts"][0].update(path="../../etc/passwd"))
        assert "leaves the bundle" in "\n".join(refused(*verb, bundle))

    def test_unknown_schema(self, refused: Refused, bundle: Path, verb: tuple[str, ...]) -> None:
        _edit_manifest(bundle, lambda data: data.update(schema_version=99))  # type: ignore[call-overload]
        assert "schema version 99" in "\n".join(refused(*verb, bundle))

    def test_no_bundle(self, refused: Refused, tmp_path: Path, verb: tuple[str, ...]) -> None:
        assert "not a bundle" in "\n".join(refused(*verb, tmp_path))
        assert "no such folder" in "\n".join(refused(*verb, tmp_path / "absent"))


# --- Images and prompts ---


def _png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header announces any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


_IMAGES = {
    "empty": b"",
    "text": b"this is no image\n" * 50,
    "bomb": _png_that_claims(60_000, 60_000),
    "hollow": _png_that_claims(64, 64),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
}


@pytest.mark.parametrize("kind", [*_IMAGES, "truncated", "absent", "folder"])
def test_unusable_image(refused: Refused, good_bundle: Path, photo: Path, kind: str) -> None:
    image = photo.with_name("bad.png")
    if kind == "folder":
        image.mkdir()
    elif kind == "truncated":
        image.write_bytes(photo.read_bytes()[:-30])
    elif kind != "absent":
        image.write_bytes(_IMAGES[kind])
    assert "bad.png" in refused("run", good_bundle, "--image", image, "--prompt", "What?")[1]


@pytest.mark.parametrize("prompt", ["", "   \n"])
def test_empty_prompt(refused: Refused, good_bundle: Path, photo: Path, prompt: str) -> None:
    assert "prompt" in refused("run", good_bundle, "--image", photo, "--prompt", prompt)[0]


def test_prompt_longer_than_the_context(refused: Refused, good_bundle: Path, photo: Path) -> None:
    message = "\n".join(refused("run", good_bundle, "--image", photo, "--prompt", "word " * 5000))
    assert "context" in message


@pytest.mark.parametrize(
    "flags",
    [
        ("--max-tokens", "0"),
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--top-p", "0"),
        ("--top-k", "-1"),
        ("--vision-engine", "abacus"),
        ("--decoder-engine", "abacus"),
        ("--threads", "-1"),
        ("--context-length", "-5"),
    ],
)
def test_option_out_of_range(refused: Refused, good_bundle: Path, photo: Path, flags: tuple[str, ...]) -> None:
    refused("run", good_bundle, "--image", photo, "--prompt", "What?", *flags)
