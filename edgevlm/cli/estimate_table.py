"""An `Estimate` for people, and as data."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from edgevlm.tables import print_table, printable

if TYPE_CHECKING:
    from edgevlm.pipeline.planner import Estimate, Step

_STEP = ["step", "bundle MB", "peak MB", "image tokens", "vision", "prefill", "TTFT", "tokens/s", "J/answer", "fits"]
_PARTS = ["component", "parameters", "bundle MB", "memory MB", "MB/token"]


def print_estimate(found: Estimate) -> None:
    """The model's components, then each step, then whether it fits."""
    ask, work = found.question, found.result.work
    click.echo(
        f"{printable(found.model)} on {printable(found.target.title)} with {found.constants.runtime}, "
        f"format {found.storage.format}"
    )
    click.echo(
        f"an image of {ask.image_width} x {ask.image_height} pixels ({work.image_tokens} tokens) and {ask.text_tokens} "
        f"tokens of text, an answer of {ask.answer_tokens}, a context of {work.context}"
    )
    click.echo()
    print_table(_PARTS, _component_rows(found.result), title="as the recipe makes it:", numeric=_PARTS[1:])
    click.echo(
        f"an image takes {_flops(work.vision_flops)} of vision ({work.vision_dtype}) and "
        f"{_flops(work.prefill_flops)} of prefill ({work.prefill_dtype})"
    )
    click.echo()
    print_table(_STEP, [_step_row(step) for step in found.steps], title="step by step:", numeric=_STEP[1:9])
    for line in _verdict(found):
        click.echo(line)


def _component_rows(step: Step) -> list[list[str]]:
    rows = [
        [part.name, f"{part.parameters:,}", _mb(part.stored_bytes), _mb(part.resident_bytes), _mb(part.token_bytes)]
        for part in step.work.weights
    ]
    peak = step.forecast.peak
    rows.append(
        [
            "all weights",
            f"{step.work.parameters:,}",
            _mb(step.work.stored_bytes),
            _mb(peak.weights),
            _mb(step.work.token_bytes),
        ]
    )
    others = (("keys and values", peak.cache), ("activations", peak.scratch), ("runtime", peak.overhead))
    return [*rows, *([name, "", "", _mb(size), ""] for name, size in others)]


def _step_row(step: Step) -> list[str]:
    expected = step.forecast
    joules = expected.answer_joules
    energy = "" if joules is None else f"{'< ' if expected.watts_are_a_limit else ''}{joules:.3g}"
    return [
        step.name,
        _mb(step.work.stored_bytes),
        _mb(expected.peak.total),
        str(step.work.image_tokens),
        _ms(expected.vision_ms),
        _ms(expected.prefill_ms),
        _ms(expected.ttft_ms),
        f"{expected.tokens_per_second:.1f}",
        energy,
        "yes" if expected.fits else f"short by {_gb(expected.short_bytes)}",
    ]


def _verdict(found: Estimate) -> list[str]:
    """Whether it fits, what would help, and how far to trust it."""
    expected = found.result.forecast
    usable = _gb(expected.usable_bytes)
    lines = []
    if expected.fits:
        lines.append(f"fits: {_gb(expected.peak.total)} of {usable}")
    else:
        lines.append(
            f"does not fit: it needs {_gb(expected.peak.total)} of {usable}, short by {_gb(expected.short_bytes)}"
        )
        lines += [f"  {printable(each.change)} would fit: {_gb(each.peak_bytes)}" for each in found.remedies]
        lines += [f"  {name} has the memory" for name in found.larger_targets]
    for step in found.steps:
        if step.note:
            lines.append(f"note: {printable(step.name)}: {step.note}")
    if expected.watts is not None:
        what = (
            "its power limit, so energy is at most" if expected.watts_are_a_limit else "what it draws while it answers,"
        )
        lines.append(f"energy: {what} {expected.watts:g} W times the time of an answer")
    lines.append(f"constants: {printable(found.constants.basis)}")
    return lines


def as_data(found: Estimate) -> dict[str, Any]:
    """Everything, in bytes, operations and milliseconds."""
    return {
        "model": found.model,
        "target": found.target.name,
        "format": found.storage.format,
        "question": dataclasses.asdict(found.question),
        "constants": dataclasses.asdict(found.constants),
        "steps": [_step_data(step) for step in found.steps],
        "remedies": [dataclasses.asdict(each) for each in found.remedies],
        "larger_targets": list(found.larger_targets),
    }


def _step_data(step: Step) -> dict[str, Any]:
    expected = step.forecast
    return {
        "name": step.name,
        "note": step.note,
        **dataclasses.asdict(step.work),
        "parameters": step.work.parameters,
        "stored_bytes": step.work.stored_bytes,
        "forecast": {
            **dataclasses.asdict(expected),
            "ttft_ms": expected.ttft_ms,
            "tokens_per_second": expected.tokens_per_second,
            "answer_ms": expected.answer_ms,
            "answer_joules": expected.answer_joules,
            "peak_bytes": expected.peak.total,
            "short_bytes": max(expected.short_bytes, 0.0),
            "fits": expected.fits,
        },
    }


def _mb(size: float) -> str:
    return f"{size / 1e6:,.0f}" if size >= 1e7 else f"{size / 1e6:.1f}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def _ms(time: float) -> str:
    return f"{time / 1000:.2f} s" if time >= 1000 else f"{time:.3g} ms"


def _flops(count: float) -> str:
    return f"{count / 1e12:.2f} TFLOP" if count >= 1e12 else f"{count / 1e9:.1f} GFLOP"
