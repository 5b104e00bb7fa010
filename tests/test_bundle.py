"""A bundle is opened only when it is whole, unaltered and keeps to its folder."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from specs import TINY

from edgevlm.bundle import (
    MANIFEST,
    SCHEMA_VERSION,
    ArtifactEntry,
    Manifest,
    ParityResult,
    open_bundle,
    sha256_file,
    write_manifest,
)
from edgevlm.errors import BundleError, InputError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A folder with two artefacts and a true manifest."""
    folder = tmp_path / "bundle"
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx" / "decoder.onnx").write_bytes(b"graph")
    (folder / "tokenizer.json").write_bytes(b"{}")
    entries = [
        ArtifactEntry(
            path=name, role=role, format="x", bytes=(folder / name).stat().st_size, sha256=sha256_file(folder / name)
        )
        for name, role in (("onnx/decoder.onnx", "decoder"), ("tokenizer.json", "tokenizer"))
    ]
    parity = [ParityResult(stage="vision", metric="cosine", value=0.99995, threshold=0.999, passed=True)]
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="tiny",
        format="onnx",
        spec=TINY.to_dict(),
        recipe={"model": "zoo:tiny"},
        artifacts=entries,
        parity=parity,
        tools={"edgevlm": "0"},
    )
    write_manifest(folder, manifest)
    return folder


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    (folder / MANIFEST).write_text(json.dumps(data))


def _refused(folder: Path, match: str, *, verify: bool = False) -> None:
    with pytest.raises(InputError, match=match) as caught:
        open_bundle(folder, verify=verify)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_whole_bundle_opens(bundle: Path) -> None:
    opened = open_bundle(bundle, verify=True)
    assert opened.spec == TINY
    assert opened.artifact("decoder") == bundle / "onnx" / "decoder.onnx"
    assert opened.artifact("decoder", ".onnx") == bundle / "onnx" / "decoder.onnx"
    assert opened.find("fusion") is None
    assert opened.total_bytes == len(b"graph") + len(b"{}")
    assert opened.manifest.parity[0].passed


def test_absent_role_is_an_error_that_names_it(bundle: Path) -> None:
    with pytest.raises(BundleError, match="no fusion artefact"):
        open_bundle(bundle).artifact("fusion")


def test_manifest_is_the_same_bytes_for_the_same_content(bundle: Path) -> None:
    before = (bundle / MANIFEST).read_bytes()
    write_manifest(bundle, open_bundle(bundle).manifest)
    assert (bundle / MANIFEST).read_bytes() == before


def test_changed_size_is_seen_without_verify(bundle: Path) -> None:
    (bundle / "tokenizer.json").write_bytes(b"{}\n")
    _refused(bundle, "3 bytes instead of 2")


def test_changed_content_of_the_same_size_is_seen_with_verify(bundle: Path) -> None:
    (bundle / "onnx" / "decoder.onnx").write_bytes(b"grapH")
    open_bundle(bundle)
    _refused(bundle, "SHA-256", verify=True)


def test_missing_artefact(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    _refused(bundle, "missing")


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "/etc/hostname",
        "onnx/../../secret",
        "",
        ".",
        "..",
        "C:/x",
        "onnx\\decoder.onnx",
        "a\0b",
        "x" * 5000,
    ],
)
def test_path_that_leaves_the_folder(bundle: Path, path: str) -> None:
    (bundle.parent / "secret").write_bytes(b"{}")
    _edit(bundle, lambda data: data["artifacts"][1].update(path=path))
    _refused(bundle, "leaves the bundle|missing")


@pytest.mark.parametrize("linked", ["tokenizer.json", "onnx", MANIFEST])
def test_links_are_refused(bundle: Path, linked: str) -> None:
    """A link to a file of the right size would otherwise let a bundle read what lies elsewhere."""
    (bundle / linked).rename(bundle.parent / "elsewhere")
    (bundle / linked).symlink_to(bundle.parent / "elsewhere")
    _refused(bundle, "symbolic links" if linked != MANIFEST else "no manifest.json")


def test_artefact_that_is_no_plain_file(bundle: Path) -> None:
    """Opening a pipe would wait for ever."""
    (bundle / "tokenizer.json").unlink()
    os.mkfifo(bundle / "tokenizer.json")
    _refused(bundle, "not a plain file", verify=True)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], "x" * 10_000])
def test_unknown_schema(bundle: Path, version: object) -> None:
    _edit(bundle, lambda data: data.update(schema_version=version))
    with pytest.raises(BundleError, match="unknown bundle schema version") as caught:
        open_bundle(bundle)
    assert len(caught.value.what) < 100


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", "null", "\ufeff{}", "[" * 200_000, '{"schema_version": 1}', '{"a":' * 100_000, "1" * 10_000],
    ids=["empty", "truncated", "list", "null", "bom", "deep-list", "incomplete", "deep-object", "long-number"],
)
def test_broken_manifest(bundle: Path, text: str) -> None:
    (bundle / MANIFEST).write_text(text)
    _refused(bundle, "manifest.json|schema")


def test_manifest_that_is_not_utf8(bundle: Path) -> None:
    (bundle / MANIFEST).write_bytes(b"\xff\xfe{}")
    _refused(bundle, "cannot be read")


def test_manifest_too_large_to_be_one(bundle: Path) -> None:
    with (bundle / MANIFEST).open("wb") as file:
        file.truncate(1 << 34)
    _refused(bundle, "too large")


def test_unknown_field_is_named(bundle: Path) -> None:
    _edit(bundle, lambda data: data["artifacts"][0].update(execute="rm"))
    _refused(bundle, r"artifacts\.0\.execute")


def test_broken_spec_is_refused(bundle: Path) -> None:
    _edit(bundle, lambda data: data["spec"]["decoder"].pop("vocab_size"))
    _refused(bundle, "missing vocab_size")


def test_no_folder_and_no_bundle(tmp_path: Path) -> None:
    _refused(tmp_path / "absent", "no such folder")
    _refused(tmp_path, "not a bundle")
    (tmp_path / "file").write_text("x")
    _refused(tmp_path / "file", "no such folder")
