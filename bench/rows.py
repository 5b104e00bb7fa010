"""What a row says of its bundle or model before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgevlm.bench.baseline import Reference
from edgevlm.bench.plan import Work
from edgevlm.bench.report import File, Parity, Row
from edgevlm.bundle import Bundle


@dataclass(frozen=True)
class _About:
    """What is known of a bundle or model; of one that was not exported, nothing of its files."""

    path: Path
    model: str
    format: str
    licence: str = ""
    total_bytes: int | None = None
    bits_per_weight: float | None = None
    parameters: int | None = None
    files: list[File] = field(default_factory=list)
    parity: list[Parity] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    resolution: int | None = None
    passes: list[str] | None = None


def describe(work: Work) -> Row:
    """The row of `work`, skipped so far."""
    row = _bundle(work, work.source) if isinstance(work.source, Bundle) else _reference(work, work.source)
    return row.model_copy(
        update={
            "reason": work.skip or row.reason,
            "threads": work.threads,
            "resolution": work.resolution or row.resolution,
        }
    )


def without_bundle(name: str, model: str, format_: str) -> Row:
    """The row of a bundle that could not be made, skipped so far."""
    return _unmeasured(name, "bundle", _About(Path(), model, format_))


def _bundle(work: Work, bundle: Bundle) -> Row:
    manifest = bundle.manifest
    parameters = sum(entry.parameters for entry in manifest.artifacts)
    bits = sum(entry.parameters * entry.bits_per_weight for entry in manifest.artifacts)
    files = [
        File(
            path=entry.path,
            role=entry.role,
            format=entry.format,
            precision=entry.precision,
            bytes=entry.bytes,
            sha256=entry.sha256,
            bits_per_weight=entry.bits_per_weight if entry.parameters else None,
            parameters=entry.parameters,
        )
        for entry in manifest.artifacts
    ]
    about = _About(
        path=bundle.path,
        model=manifest.name,
        format=manifest.format,
        licence=manifest.licence,
        total_bytes=bundle.total_bytes,
        bits_per_weight=bits / parameters if parameters else None,
        parameters=parameters or None,
        files=files,
        parity=[Parity(**result.model_dump()) for result in manifest.parity],
        notes=list(bundle.spec.notes),
        resolution=bundle.spec.vision.image_size,
        passes=_passes(manifest.recipe),
    )
    return _unmeasured(work.name, "bundle", about)


def _passes(recipe: dict[str, Any]) -> list[str]:
    """The passes of a recipe as a manifest has it, one line each; what is not written like one is left out."""
    found = recipe.get("passes")
    entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    lines = []
    for entry in entries:
        options = entry.get("options")
        fields = {**entry, "options": None, **(options if isinstance(options, dict) else {})}
        told = [f"{key}={value}" for key, value in fields.items() if key != "name" and value not in (None, "")]
        lines.append(" ".join([str(entry.get("name", "")), *told]))
    return lines


def _reference(work: Work, reference: Reference) -> Row:
    return _unmeasured(work.name, "reference", _About(reference.folder, reference.model, "checkpoint"))


def _unmeasured(name: str, kind: Literal["bundle", "reference"], about: _About) -> Row:
    return Row(
        name=name,
        kind=kind,
        path=str(about.path),
        status="skipped",
        reason="not measured",
        failed_stage="",
        model=about.model,
        format=about.format,
        licence=about.licence,
        total_bytes=about.total_bytes,
        bits_per_weight=about.bits_per_weight,
        parameters=about.parameters,
        files=about.files,
        parity=about.parity,
        vision_engine=None,
        decoder_engine=None,
        latency=None,
        memory=None,
        accuracy=None,
        flags=[],
        notes=about.notes,
        resolution=about.resolution,
        passes=about.passes,
    )
