"""The tables of a comparison as plain cells, and what it says in sentences."""

from __future__ import annotations

from edgevlm.bench import format as show
from edgevlm.bench.comparison import Change, Comparison, Judgement, RowChange
from edgevlm.bench.render.findings import Finding
from edgevlm.bench.render.table import Cell, Table, Tone

TONES: dict[Judgement, Tone] = {"regression": "bad", "undecided": "unsure", "unchanged": "", "improvement": "good"}
_JUDGED = ("TTFT steady", "TTFT cached", "decode", "throughput", "peak RSS", "peak GPU memory", "size")


def overview(comparison: Comparison) -> Table:
    """One line a row: how much each judged figure changed."""
    figures = [name for name in _JUDGED if any(each.figure == name for row in comparison.rows for each in row.changes)]
    headers = ("row", "status", *figures, "accuracy (points)")
    rows = []
    for row in comparison.rows:
        by_name = {change.figure: change for change in row.changes}
        cells = [_change(by_name.get(name)) for name in figures]
        rows.append((Cell(row.name, _what(row)), _status(row), *cells, _accuracy(row)))
    return Table(headers, tuple(rows), headers[2:])


def details(comparison: Comparison) -> Table:
    """Every figure of every row, old and new."""
    headers = ("row", "figure", "old", "new", "change", "95% interval", "judgement")
    rows = []
    for row in comparison.rows:
        for change in row.changes:
            rows.append(
                (
                    Cell(row.name),
                    Cell(change.figure, "" if change.judged else "not judged"),
                    Cell(_value(change, change.old), _count(change.old_n)),
                    Cell(_value(change, change.new), _count(change.new_n)),
                    Cell(show.change(change.change)),
                    Cell(show.change_interval(change.interval) if change.interval else _no_interval(change)),
                    Cell(change.judgement, tone=TONES[change.judgement] if change.judged else "quiet"),
                )
            )
        if (accuracy := row.accuracy) is not None:
            how = accuracy.unpaired_reason and f"not paired: {accuracy.unpaired_reason}"
            if accuracy.paired is not None:
                how = f"paired: {accuracy.paired.lost} lost, {accuracy.paired.gained} gained"
                how += f", McNemar p {show.p_value(accuracy.paired.mcnemar_p)}"
            rows.append(
                (
                    Cell(row.name),
                    Cell(f"accuracy, {accuracy.task}", how),
                    Cell(show.percent(accuracy.old.value), f"n={accuracy.old.n}"),
                    Cell(show.percent(accuracy.new.value), f"n={accuracy.new.n}"),
                    Cell(f"{show.points(accuracy.delta.value)} points"),
                    Cell(show.points_interval(accuracy.delta)),
                    Cell(accuracy.judgement, tone=TONES[accuracy.judgement]),
                )
            )
    return Table(headers, tuple(rows), headers[2:6])


def differences(comparison: Comparison) -> Table:
    """What differs between the two runs besides the rows."""
    rows = tuple((Cell(each.name), Cell(each.old), Cell(each.new)) for each in comparison.differences)
    return Table(("", "old", "new"), rows, ())


def sentences(comparison: Comparison) -> list[Finding]:
    """What a reader must know first: regressions, what is undecided, other machines, rows without a counterpart."""
    found = [Finding("regression", f"{text}.", "bad") for text in comparison.regressions]
    for row in comparison.rows:
        names = [change.figure for change in row.changes if change.judged and change.judgement == "undecided"]
        names += ["accuracy"] if row.accuracy is not None and row.accuracy.judgement == "undecided" else []
        if names:
            found.append(Finding(row.name, f"undecided: {', '.join(names)}. More answers or items would tell."))
    if not comparison.same_machine:
        text = f"{comparison.old.cpu_model} and {comparison.new.cpu_model}; what changed may be the machine."
        found.append(Finding("different machines", text))
    for label, names in (("old", comparison.only_old), ("new", comparison.only_new)):
        if names:
            found.append(Finding(f"only in the {label} report", f"{', '.join(names)}.", "quiet"))
    found += [Finding(row.name, f"{remark}.") for row in comparison.rows for remark in row.remarks]
    if not comparison.regressions:
        found.insert(0, Finding("no regression", f"beyond {rule(comparison)}.", "good"))
    return found


def rule(comparison: Comparison) -> str:
    """The tolerances, in words."""
    return f"{100 * comparison.tolerance:g}%, and {show.margin(comparison.margin)} of accuracy"


def _what(row: RowChange) -> str:
    return row.what if row.name == row.old_name else f"{row.what}; was {row.old_name}"


def _status(row: RowChange) -> Cell:
    text = row.new_status if row.old_status == row.new_status else f"{row.old_status}, now {row.new_status}"
    tone = TONES[row.status_judgement] or ("good" if row.new_status == "ok" else "bad")
    return Cell(text, row.reason, tone)


def _change(change: Change | None) -> Cell:
    if change is None:
        return Cell(show.NONE, tone="quiet")
    note = show.change_interval(change.interval) if change.interval else ""
    if not note and change.old_n is not None:
        note = _no_interval(change)
    return Cell(show.change(change.change), note, TONES[change.judgement])


def _accuracy(row: RowChange) -> Cell:
    if row.accuracy is None:
        return Cell(show.NONE, tone="quiet")
    note = show.points_interval(row.accuracy.delta) + ("" if row.accuracy.paired else ", unpaired")
    return Cell(show.points(row.accuracy.delta.value), note, TONES[row.accuracy.judgement])


def _value(change: Change, value: float) -> str:
    if change.unit == "bytes":
        return show.megabytes(round(value))
    return show.milliseconds(value) if change.unit == "ms" else f"{show.three_digits(value)} {change.unit}"


def _count(n: int | None) -> str:
    return "" if n is None else f"n={n}"


def _no_interval(change: Change) -> str:
    return show.NONE if change.old_n is None else "too few samples"
