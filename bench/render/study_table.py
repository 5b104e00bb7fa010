"""The tables of a study: accuracy by method and share of tokens, every cell in full, and what was left out."""

from __future__ import annotations

from edgevlm.bench import format as show
from edgevlm.bench.grid import by_method, kept, of_full, pruning_of, ratio, study_of, tokens, ttft
from edgevlm.bench.render.table import TONES, Cell, Table, delta
from edgevlm.bench.report import Paired, Pruning, Report, Row

#: Stands beside what is on a front.
ON_TOKENS, ON_TTFT = "\N{BLACK DIAMOND}", "\N{WHITE DIAMOND}"


def matrix(report: Report) -> Table:
    """Accuracy by method and share of tokens; beside it the difference from the unpruned model in points."""
    study = study_of(report)
    shares = [percent for percent in study.keep_percent if percent < 100]
    methods = by_method(report)
    headers = ("method", *(f"{percent:g}% of tokens" for percent in shares))
    lines = [
        (Cell(label), *(_cell(report, _asked(rows, percent)) for percent in shares)) for label, rows in methods.items()
    ]
    chose = [next((row for row in rows if not pruning_of(row).keep_percent), None) for rows in methods.values()]
    if any(chose):
        headers = (*headers, "its own choice")
        lines = [(*line, _cell(report, row)) for line, row in zip(lines, chose, strict=True)]
    return Table(headers, tuple(lines), headers[1:])


def _asked(rows: list[Row], percent: float) -> Row | None:
    """The cell that this share became."""
    return next((row for row in rows if percent in pruning_of(row).keep_percent), None)


def _cell(report: Report, row: Row | None) -> Cell:
    if row is None:
        return Cell(show.NONE, tone="quiet")
    if row.accuracy is None:
        return Cell(row.status if row.status != "skipped" else "not made", tone="quiet")
    paired = row.accuracy.paired
    note = kept(row, study_of(report).image_tokens)
    mark = f"{ON_TOKENS} " if row.name in study_of(report).front_tokens else ""
    if paired is None:
        return Cell(mark + _accuracy(row), note)
    return Cell(mark + _accuracy(row), f"{show.points(paired.delta.value)}, {note}", TONES[paired.verdict])


def grid(report: Report) -> Table:
    """Every row that was measured: tokens, accuracy, the paired comparison, and times."""
    headers = (
        "cell",
        "tokens",
        "accuracy",
        "of full",
        "delta (points)",
        "lost / gained",
        "McNemar p",
        "vision",
        "method",
        "prefill",
        "TTFT",
    )
    rows = [_line(report, row) for row in report.rows if row.status == "ok"]
    return Table(headers, tuple(rows), headers[1:])


def _line(report: Report, row: Row) -> tuple[Cell, ...]:
    study, times = study_of(report), ratio(row)
    marks = f"{ON_TOKENS * (row.name in study.front_tokens)}{ON_TTFT * (row.name in study.front_ttft)}"
    paired = row.accuracy.paired if row.accuracy else None
    stages = row.latency.stages if row.latency else None
    interval = show.interval_of(row.accuracy.overall) if row.accuracy else ""
    return (
        Cell(row.name, marks),
        _tokens(report, row),
        Cell(_accuracy(row), interval),
        Cell(show.percent(of_full(report, row))),
        delta(row),
        Cell(show.NONE if paired is None else f"{paired.lost} / {paired.gained}"),
        Cell(show.NONE if paired is None else show.p_value(paired.mcnemar_p)),
        Cell(show.milliseconds(stages.vision_ms.median if stages else None)),
        _method(row.pruning),
        Cell(show.milliseconds(stages.prefill_ms.median if stages else None)),
        Cell(show.milliseconds(ttft(report.rows, row)), "" if times is None else f"{times:.2f} x"),
    )


def _tokens(report: Report, row: Row) -> Cell:
    """Those that are kept; beside them the share that the decoder's layers have, and its mean where they differ."""
    full, mean = study_of(report).image_tokens, tokens(report, row)
    share = f"{100 * mean / full:.0f}%"
    if row.pruning is None or row.pruning.layer_tokens is None:
        return Cell(f"{mean:g}", share)
    return Cell(str(row.pruning.tokens), f"{mean:.0f} a layer, {share}")


def _method(pruning: Pruning | None) -> Cell:
    if pruning is None or pruning.method_ms is None:
        return Cell(show.NONE)
    cost = pruning.method_ms
    note = f"{show.added_time(cost.p50.low)} to {show.added_time(cost.p50.high)}" if cost.p50 else ""
    return Cell(show.added_time(cost.median), note.replace(" ms to", " to"))


def against_plain(report: Report) -> Table:
    """How each cell stands against the plain choices of the same share."""
    headers = ("cell", "compared with", "delta (points)", "lost / gained", "McNemar p", "better")
    lines = []
    for rows in by_method(report).values():
        for row in rows:
            lines += [_against(row, paired) for paired in pruning_of(row).against]
    return Table(headers, tuple(lines), headers[2:5])


def _against(row: Row, paired: Paired) -> tuple[Cell, ...]:
    better = Cell("yes", tone="good") if beats(paired) else Cell("not shown")
    return (
        Cell(row.name),
        Cell(paired.baseline, show.percent(paired.accuracy.value)),
        Cell(show.points(paired.delta.value), show.points_interval(paired.delta)),
        Cell(f"{paired.lost} / {paired.gained}"),
        Cell(show.p_value(paired.mcnemar_p), paired.mcnemar_method),
        Cell("no, worse", tone="bad") if paired.delta.high < 0 else better,
    )


def beats(paired: Paired) -> bool:
    """Whether the whole 95% interval of the difference lies above zero."""
    return paired.delta.low > 0


def left_out(report: Report) -> Table:
    """The cells without figures, and why."""
    headers = ("cell", "asked for", "what", "reason")
    rows = [row for row in report.rows if row.status != "ok" and row.pruning is not None]
    lines = [
        (
            Cell(row.name),
            Cell(", ".join(f"{percent:g}%" for percent in pruning_of(row).keep_percent)),
            Cell(row.status, row.failed_stage, "bad" if row.status == "failed" else "unsure"),
            Cell(row.reason),
        )
        for row in rows
    ]
    return Table(headers, tuple(lines), ())


def _accuracy(row: Row) -> str:
    return show.percent(row.accuracy.overall.value if row.accuracy else None)
