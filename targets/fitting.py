"""Fits the forecast's constants to published runs, and says how far off the forecast is on others.

In: `Measurements`. Out: constants by device and by family, and errors by stage. A device's decode has two constants
(least squares of relative errors); compute efficiencies are shared by a family, as its devices are one design.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgevlm.targets.catalog import load_target
from edgevlm.targets.constants import Entry, as_constants, family
from edgevlm.targets.measurements import Measurements, Row
from edgevlm.targets.profile import TargetProfile
from edgevlm.targets.roofline import bandwidth, clock_ghz, compute_ms, forecast

#: Rows of a device with one number cannot tell time per byte from time per layer.
_ENOUGH = 2
#: Where no run tells: a share of the peak that most reach, and bytes of Python and a runtime.
_USUAL_SHARE = 0.45
_USUAL_OVERHEAD = 0.25 * 2**30


@dataclass(frozen=True)
class Error:
    """The forecast of one stage of one run, against what was measured."""

    row: Row
    stage: str
    measured: float
    predicted: float

    @property
    def relative(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted / self.measured - 1


def fit(data: Measurements, rows: Sequence[Row]) -> list[Entry]:
    """Constants of every device with rows, then of every family with rows."""
    by_family: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_family.setdefault((family(load_target(row.target)), row.runtime), []).append(row)
    entries: list[Entry] = []
    for (name, runtime), members in by_family.items():
        targets = sorted({row.target for row in members})
        shared = _family_entry(data, name, runtime, members)
        for target in targets:
            own = [row for row in members if row.target == target and row.tokens_per_s]
            if len(own) >= _ENOUGH:
                share, layer = _fit_decode(data, own, shared.layer_us_ghz)
                basis = f"decode: {_runs(own)} on this device; the rest: {shared.basis}"
                update = {"of": target, "decode_efficiency": share, "layer_us_ghz": layer, "basis": basis}
                entries.append(shared.model_copy(update=update))
        entries.append(shared)
    return entries


def fit_all(data: Measurements) -> list[Entry]:
    """Constants from all rows, and for families without rows those that they are assumed to share."""
    entries = fit(data, data.rows)
    for guess in data.assumed:
        like = next(entry for entry in entries if (entry.of, entry.runtime) == (guess.like, guess.like_runtime))
        basis = f"assumed as {guess.like_runtime} on {guess.like}: {guess.why}"
        entries.append(like.model_copy(update={"of": guess.of, "runtime": guess.runtime, "basis": basis}))
    return entries


def errors(data: Measurements, rows: Sequence[Row], entries: Sequence[Entry]) -> list[Error]:
    """The forecast of each stage that a row tells."""
    found = []
    for row in rows:
        profile = load_target(row.target)
        constants = as_constants(_entry(entries, profile, row.runtime))
        expected = forecast(data.workload(row), profile, constants)
        if row.tokens_per_s is not None:
            found.append(Error(row, "decode", row.tokens_per_s, expected.tokens_per_second))
        if row.prefill_ms is not None:
            found.append(Error(row, "prefill", row.prefill_ms, expected.prefill_ms))
        if row.vision_ms is not None:
            found.append(Error(row, "vision", row.vision_ms, expected.vision_ms))
    return found


def _entry(entries: Sequence[Entry], profile: TargetProfile, runtime: str) -> Entry:
    for name in (profile.name, family(profile)):
        for entry in entries:
            if entry.of == name and entry.runtime == runtime:
                return entry
    raise KeyError(f"{profile.name} with {runtime}")


def _family_entry(data: Measurements, name: str, runtime: str, rows: Sequence[Row]) -> Entry:
    decoded = [row for row in rows if row.tokens_per_s]
    share, layer = _fit_decode(data, decoded, 0.0)
    draft = Entry(
        of=name,
        runtime=runtime,
        decode_efficiency=share,
        layer_us_ghz=layer,
        prefill_efficiency=1,
        vision_efficiency=1,
        overhead_gib=0,
        basis="",
    )
    targets = sorted({row.target for row in rows})
    return draft.model_copy(
        update={
            "prefill_efficiency": _mean(rows, _prefill_share(data, draft), _USUAL_SHARE),
            "vision_efficiency": _mean(rows, _vision_share(data), _USUAL_SHARE),
            "overhead_gib": _overhead(data, rows),
            "basis": f"{_runs(rows)} on {', '.join(targets)}",
        }
    )


def _runs(rows: Sequence[Row]) -> str:
    return "1 run" if len(rows) == 1 else f"{len(rows)} runs"


def _fit_decode(data: Measurements, rows: Sequence[Row], layer_us_ghz: float) -> tuple[float, float]:
    """Share of the bandwidth, and time of a layer; with one row the time is given."""
    byte_ms, layer_ms, measured = [], [], []
    for row in rows:
        profile, work = load_target(row.target), data.workload(row)
        byte_ms.append((work.token_bytes + work.cache_read_bytes) / (bandwidth(profile) * 1e6))
        layer_ms.append(work.layers / clock_ghz(profile) / 1000.0)
        measured.append(1000.0 / (row.tokens_per_s or math.nan))
    times, per_byte, per_layer = (np.array(values) for values in (measured, byte_ms, layer_ms))
    if len(rows) >= _ENOUGH:
        matrix = np.stack([per_byte / times, per_layer / times], axis=1)
        (inverse, layer), *_ = np.linalg.lstsq(matrix, np.ones(len(rows)), rcond=None)
        if layer >= 0 and inverse > 0:
            return float(1 / inverse), float(layer)
        layer_us_ghz = 0.0
    left = times - layer_us_ghz * per_layer
    return float(np.exp(np.mean(np.log(per_byte / left)))), layer_us_ghz


def _prefill_share(data: Measurements, draft: Entry) -> Callable[[Row], float | None]:
    def share(row: Row) -> float | None:
        if row.prefill_ms is None:
            return None
        profile, work = load_target(row.target), data.workload(row)
        reading = 1000.0 / forecast(work, profile, as_constants(draft)).tokens_per_second
        return compute_ms(work.prefill_flops, profile, work.prefill_dtype, 1) / max(row.prefill_ms - reading, 1e-6)

    return share


def _vision_share(data: Measurements) -> Callable[[Row], float | None]:
    def share(row: Row) -> float | None:
        if row.vision_ms is None:
            return None
        work = data.workload(row)
        return compute_ms(work.vision_flops, load_target(row.target), work.vision_dtype, 1) / row.vision_ms

    return share


def _mean(rows: Sequence[Row], share: Callable[[Row], float | None], otherwise: float) -> float:
    """The geometric mean over the rows that tell; `otherwise` where none does."""
    found = [value for row in rows if (value := share(row)) is not None]
    return math.exp(sum(map(math.log, found)) / len(found)) if found else otherwise


def _overhead(data: Measurements, rows: Sequence[Row]) -> float:
    """GiB beyond the weights; the least of a family, since larger boards leave more lying about."""
    weights = {row: sum(part.resident_bytes for part in data.workload(row).weights) for row in rows}
    found = [row.peak_mb * 1e6 - weights[row] for row in rows if row.peak_mb is not None]
    return min((left for left in found if left > 0), default=_USUAL_OVERHEAD) / 2**30
