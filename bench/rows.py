"""What a row says of its bundle or model before anything is measured."""

from __future__ import annotations

from edgevlm.bench.baseline import Reference
from edgevlm.bench.plan import Work
from edgevlm.bench.report import File, Parity, Row
from edgevlm.bundle import Bundle


def describe(work: Work) -> Row:
    """The row of `work`, skipped so far."""
    if isinstance(work.source, Bundle):
        return _bundle(work, work.source)
    return _reference(work, work.source)


def _bundle(work: Work, bundle: Bundle) -> Row:
    manifest = bundle.manifest
    parameters = sum(entry.parameters for entry in manifest.artifacts)
    bits = sum(entry.parameters * entry.bits_per_weight for entry in manifest.artifacts)
    return Row(
        name=work.name,
        kind="bundle",
        path=str(bundle.path),
        status="skipped",
        reason="not measured",
        failed_stage="",
        model=manifest.name,
        format=manifest.format,
        licence=manifest.licence,
        total_bytes=bundle.total_bytes,
        bits_per_weight=bits / parameters if parameters else None,
        parameters=parameters or None,
        files=[
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
        ],
        parity=[Parity(**result.model_dump()) for result in manifest.parity],
        vision_engine=None,
        decoder_engine=None,
        latency=None,
        memory=None,
        accuracy=None,
        flags=[],
    )


def _reference(work: Work, reference: Reference) -> Row:
    return Row(
        name=work.name,
        kind="reference",
        path=str(reference.folder),
        status="skipped",
        reason="not measured",
        failed_stage="",
        model=reference.model,
        format="checkpoint",
        licence="",
        total_bytes=None,
        bits_per_weight=None,
        parameters=None,
        files=[],
        parity=[],
        vision_engine=None,
        decoder_engine=None,
        latency=None,
        memory=None,
        accuracy=None,
        flags=[],
    )
