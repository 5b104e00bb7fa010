"""A gate for continuous integration: `accuracy_drop<=1.0` holds where every bundle surely loses less than a point.

Surely means non-inferior: the whole 95% interval of the paired difference lies above minus the margin. That a drop was
not shown is not enough, for few items show nothing.
"""

from __future__ import annotations

import re

from edgevlm.bench import format as show
from edgevlm.bench.plan import IS_BASELINE
from edgevlm.bench.report import Report
from edgevlm.errors import InputError

_FORM = re.compile(r"\s*accuracy_drop\s*<=\s*(\d+(?:\.\d+)?)\s*")


def drop_of(gate: str) -> float:
    """The points in `gate`.

    Raises:
        InputError: it is of another form.
    """
    found = _FORM.fullmatch(gate)
    if found is None or not 0 < float(found[1]) <= 100:
        raise InputError(f"{gate!r:.60} is no gate", "--gate", "give accuracy_drop<=POINTS, such as accuracy_drop<=1.0")
    return float(found[1])


def broken(report: Report) -> list[str]:
    """The bundles for which the gate does not hold, each with the reason.

    Of a bundle's rows in a matrix one has been asked, which speaks for the others.
    """
    problems = []
    asked = {row.path for row in report.rows if row.accuracy is not None}
    for row in report.rows:
        if row.accuracy is None and row.path in asked:
            continue
        if row.kind != "bundle" or (row.accuracy is not None and row.accuracy.unpaired_reason == IS_BASELINE):
            continue
        paired = row.accuracy.paired if row.accuracy is not None else None
        if paired is None:
            reason = row.accuracy.unpaired_reason if row.accuracy is not None else row.reason or "no accuracy task"
            problems.append(f"{row.name}: not compared: {reason}")
        elif paired.verdict != "non-inferior":
            interval = show.points_interval(paired.delta)
            problems.append(f"{row.name}: {paired.verdict}, {show.points(paired.delta.value)} points ({interval})")
    return problems
