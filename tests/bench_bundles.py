"""Bundles without a model: a manifest and two files, enough for everything that does not run an engine."""

import hashlib
from pathlib import Path

from specs import TINY

from edgevlm.bench.report import Settings
from edgevlm.bundle import SCHEMA_VERSION, ArtifactEntry, Bundle, Manifest, open_bundle, write_manifest


def hollow_bundle(folder: Path, name: str = "hollow") -> Bundle:
    """Write a bundle whose files hold nothing that could run."""
    folder.mkdir(parents=True)
    entries = []
    for path, role, size, bits in (("vision.onnx", "vision", 4000, 16.0), ("decoder.gguf", "decoder", 1000, 4.5)):
        content = bytes(size)
        (folder / path).write_bytes(content)
        entries.append(
            ArtifactEntry(
                path=path,
                role=role,
                format=path.rsplit(".", 1)[1],
                precision="int4",
                bytes=size,
                sha256=hashlib.sha256(content).hexdigest(),
                bits_per_weight=bits,
                parameters=int(size * 8 / bits),
            )
        )
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        format="gguf",
        spec=TINY.to_dict(),
        recipe={"model": str(folder / "nowhere")},
        artifacts=entries,
    )
    write_manifest(folder, manifest)
    return open_bundle(folder)


def settings(**changes: object) -> Settings:
    """Small and quick."""
    fields: dict[str, object] = {
        "command_line": ["edgevlm", "bench"],
        "iterations": 8,
        "min_time_s": 0,
        "warmup": 1,
        "cached": 7,
        "max_tokens": 12,
        "image_width": 96,
        "image_height": 64,
        "seed": 3,
        "task": "scenes",
        "items": 40,
        "split": "test",
        "control": False,
        "margin": 0.02,
        "threads": 0,
        "vision_engine": "auto",
        "decoder_engine": "auto",
        "silence_s": 60,
    }
    return Settings.model_validate({**fields, **changes})
