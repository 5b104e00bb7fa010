"""What a study says in sentences: the best of each share of tokens, what does not beat chance, what not to trust."""

from __future__ import annotations

from edgevlm.bench import format as show
from edgevlm.bench.findings import Finding
from edgevlm.bench.grid import method_label, of_full, pruning_of, share, study_of
from edgevlm.bench.report import Report, Row
from edgevlm.bench.study_table import beats
from edgevlm.bench.table import TONES

_NAMED = 6


def study_findings(report: Report) -> list[Finding]:
    """The sentences, most important first; cells without figures stand in a table of their own."""
    found = []
    for percent in study_of(report).keep_percent:
        rows = [
            row
            for row in report.rows
            if row.pruning is not None and percent in row.pruning.keep_percent and share(row) is not None
        ]
        if rows:
            found.append(_best(report, percent, rows))
            found += _not_better(percent, rows)
    return [*found, *_flags(report)]


def _best(report: Report, percent: float, rows: list[Row]) -> Finding:
    best = max(rows, key=lambda row: share(row) or 0.0)
    assert best.accuracy is not None
    text = f"{method_label(pruning_of(best))} is the most accurate of {len(rows)}: {show.percent(share(best))}"
    text += f" with {pruning_of(best).tokens} tokens, {show.percent(of_full(report, best))} of the unpruned accuracy"
    paired = best.accuracy.paired
    if paired is not None:
        text += f"; {show.points(paired.delta.value)} points against it (95% CI {show.points_interval(paired.delta)})"
    for other in pruning_of(best).against:
        text += f", {show.points(other.delta.value)} against {other.baseline} ({show.points_interval(other.delta)})"
    return Finding(f"{percent:g}%", f"{text}.", TONES[paired.verdict] if paired else "unsure")


def _not_better(percent: float, rows: list[Row]) -> list[Finding]:
    """Methods that look at the image without showing that it helps."""
    losing: dict[str, list[str]] = {}
    for row in rows:
        for other in pruning_of(row).against:
            if not beats(other):
                losing.setdefault(other.baseline, []).append(method_label(pruning_of(row)))
    return [
        Finding(f"{percent:g}%", f"not shown to beat {plain}: {', '.join(methods)}.", "bad")
        for plain, methods in losing.items()
    ]


def _flags(report: Report) -> list[Finding]:
    """Each kind of flag once, with the rows that have it."""
    named: dict[str, list[str]] = {}
    for row in report.rows:
        for flag in row.flags:
            named.setdefault(flag.code, []).append(row.name)
    total = sum(row.status == "ok" for row in report.rows)
    meanings = {
        "contended": "other processes used the CPU meanwhile, so that times are too long",
        "noisy": "TTFT varied by more than a tenth",
        "cache-suspected": "the first steady answer took more than twice the median",
        "non-deterministic": "greedy decoding gave other tokens for the same input",
        "reused-prompt": "prompt tokens of steady answers came from a cache",
    }
    found = []
    for code, meaning in meanings.items():
        rows = named.get(code, [])
        if rows:
            more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
            found.append(Finding(f"{len(rows)} of {total} rows", f"{meaning}: {', '.join(rows[:_NAMED])}{more}."))
    return found
