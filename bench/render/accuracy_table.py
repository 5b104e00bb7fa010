"""Tables of what a benchmark and a comparison give besides accuracy: own figures, first tokens, one pair's facts."""

from __future__ import annotations

from edgevlm.bench import format as show
from edgevlm.bench.render.table import Cell, Table
from edgevlm.bench.report import Paired, Report


def paired_facts(paired: Paired) -> list[list[str]]:
    """One comparison, a fact a line."""
    near, drop = paired.first_token, paired.smallest_detectable_drop
    facts = [
        ["items", str(paired.n)],
        ["delta (points)", f"{show.points(paired.delta.value)} ({show.points_interval(paired.delta)})"],
        ["lost, gained", f"{paired.lost}, {paired.gained}"],
        ["answers changed", str(paired.answers_changed)],
        ["McNemar p", f"{show.p_value(paired.mcnemar_p)} ({paired.mcnemar_method})"],
        ["verdict", f"{paired.verdict} at a margin of {show.margin(paired.margin)}"],
        ["smallest detectable drop", "too few items" if drop is None else f"{100 * drop:.1f} points"],
    ]
    if near is not None:
        facts.append(
            ["first token", f"the same in {show.percent(near.agreement)}, KL at least {near.kl_mean:.4f} nats"]
        )
    return facts


def figures(report: Report) -> Table:
    """What a benchmark's papers give besides accuracy, row by row."""
    scored = [row for row in report.rows if row.accuracy is not None and row.accuracy.figures]
    names = list(dict.fromkeys(f.name for row in scored if row.accuracy for f in row.accuracy.figures))
    rows = []
    for row in scored:
        assert row.accuracy is not None
        known = {f.name: show.figure(f) for f in row.accuracy.figures}
        rows.append((Cell(row.name), *(Cell(known.get(name, show.NONE)) for name in names)))
    return Table(("bundle", *names), tuple(rows), tuple(names))


def first_tokens(report: Report) -> Table:
    """How far the first token's distribution lies from the baseline's, row by row."""
    headers = ("bundle", "compared with", "same first token", "KL (nats, at least)", "p99")
    rows = []
    for row in report.rows:
        paired = row.accuracy.paired if row.accuracy else None
        if paired is None or paired.first_token is None:
            continue
        near = paired.first_token
        rows.append(
            (
                Cell(row.name),
                Cell(paired.baseline, f"n={near.n}"),
                Cell(show.percent(near.agreement)),
                Cell(f"{near.kl_mean:.4f}"),
                Cell(f"{near.kl_p99:.3f}"),
            )
        )
    return Table(headers, tuple(rows), headers[2:])
