"""What a study says in sentences: the best of each share of tokens, what does not beat chance, what not to trust."""

from __future__ import annotations

from edgevlm.bench import format as show
from edgevlm.bench.grid import kept, method_label, of_full, pruning_of, share, study_of
from edgevlm.bench.render.findings import Finding
from edgevlm.bench.render.study_table import beats
from edgevlm.bench.render.table import TONES, Tone
from edgevlm.bench.report import Report, Row

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
            found += _better(percent, rows)
    return [*found, *_chosen(report), *_untimed(report), *_flags(report)]


def _best(report: Report, percent: float, rows: list[Row]) -> Finding:
    best = max(rows, key=lambda row: share(row) or 0.0)
    assert best.accuracy is not None
    text = f"{method_label(pruning_of(best))} is the most accurate of {len(rows)}: {show.percent(share(best))}"
    text += f" with {kept(best, study_of(report).image_tokens)}, {show.percent(of_full(report, best))} of the unpruned"
    text += " accuracy"
    paired = best.accuracy.paired
    if paired is not None:
        text += f"; {show.points(paired.delta.value)} points against it (95% CI {show.points_interval(paired.delta)})"
    for other in pruning_of(best).against:
        text += f", {show.points(other.delta.value)} against {other.baseline} ({show.points_interval(other.delta)})"
    return Finding(f"{percent:g}%", f"{text}.", TONES[paired.verdict] if paired else "unsure")


def _better(percent: float, rows: list[Row]) -> list[Finding]:
    """Which methods are shown to be better than a plain choice of the same share, and of how many."""
    found: dict[str, list[str]] = {}
    compared: dict[str, int] = {}
    for row in rows:
        for other in pruning_of(row).against:
            compared[other.baseline] = compared.get(other.baseline, 0) + 1
            named = found.setdefault(other.baseline, [])
            if beats(other):
                named.append(method_label(pruning_of(row)))
    said = []
    for plain, named in found.items():
        names = f" ({', '.join(named)})" if named else ""
        said.append(f"than {plain}, {len(named)} of {compared[plain]}{names}")
    tone: Tone = "good" if any(found.values()) else "bad"
    return [Finding(f"{percent:g}%", f"shown to be better {'; '.join(said)}.", tone)] if said else []


def _chosen(report: Report) -> list[Finding]:
    """What methods that choose their count chose, and what became of it."""
    found = []
    for row in report.rows:
        if row.pruning is None or row.pruning.keep_percent or row.accuracy is None:
            continue
        paired = row.accuracy.paired
        text = (
            f"{'; '.join(row.notes)}: {show.percent(share(row))}, {show.percent(of_full(report, row))} of the unpruned"
        )
        against = f", {show.points(paired.delta.value)} points against it" if paired is not None else ""
        found.append(Finding(row.name, f"{text} accuracy{against}.", TONES[paired.verdict] if paired else "unsure"))
    return found


def _untimed(report: Report) -> list[Finding]:
    """Times are measured behind all accuracies, or in another run."""
    done = [row for row in report.rows if row.status == "ok"]
    waiting = sum(row.latency is None and all(flag.code != "not-timed" for flag in row.flags) for row in done)
    if not waiting:
        return []
    return [Finding(f"{waiting} of {len(done)} rows", "not timed yet; the same study goes on with that.", "unsure")]


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
        "no-method-cost": "the method's own cost could not be measured",
        "not-timed": "could not be timed",
    }
    found = []
    for code, meaning in meanings.items():
        rows = named.get(code, [])
        if rows:
            more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
            found.append(Finding(f"{len(rows)} of {total} rows", f"{meaning}: {', '.join(rows[:_NAMED])}{more}."))
    return found
