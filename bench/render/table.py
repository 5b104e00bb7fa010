"""The tables of a report as plain cells, which console, Markdown and HTML lay out each in their way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgevlm.bench import format as show
from edgevlm.bench.matching import precision_of, pruning_label
from edgevlm.bench.report import Report, Row, Verdict
from edgevlm.bench.stats import Percentile

Tone: TypeAlias = Literal["", "good", "bad", "unsure", "quiet"]
TONES: dict[Verdict, Tone] = {"non-inferior": "good", "worse": "bad", "undecided": "unsure"}


@dataclass(frozen=True)
class Cell:
    """A figure, what stands small beside it, and how it is meant."""

    text: str
    note: str = ""
    tone: Tone = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True)
class Table:
    """Headers, rows, and which columns hold numbers."""

    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: tuple[str, ...]


def comparison(report: Report) -> Table:
    """One line a row: what it weighs, whether it is right, how fast it answers."""
    pruned = any(pruning_label(row) for row in report.rows)
    headers: tuple[str, ...] = (
        "bundle",
        "status",
        "format",
        "precision",
        *(("pruning",) if pruned else ()),
        "size",
        "bits/weight",
        "accuracy",
        "delta (points)",
        "TTFT steady",
        "decode tok/s",
        "peak RSS",
    )
    metered = any(row.energy and row.energy.meters for row in report.rows)
    if metered:
        headers = (*headers, "energy/answer")
    rows = tuple(
        (
            Cell(row.name),
            status(row),
            Cell(row.format),
            _precision(row),
            *((Cell(pruning_label(row) or show.NONE),) if pruned else ()),
            Cell(show.megabytes(row.total_bytes)),
            Cell(show.bits(row.bits_per_weight)),
            _accuracy(row),
            delta(row),
            _ttft(row),
            Cell(show.rate(row.latency.decode_tokens_per_second if row.latency else None)),
            Cell(show.megabytes(row.memory.peak_rss_bytes if row.memory and row.kind == "bundle" else None)),
            *((_energy(row),) if metered else ()),
        )
        for row in report.rows
    )
    return Table(headers, rows, headers[headers.index("size") :])


def latency(report: Report) -> Table:
    """Times of every row that was timed."""
    headers = ("bundle", "load", "TTFT cold", "TTFT cached", "p50", "p90", "p95", "p99", "CV", "TPOT", "end to end")
    rows = []
    for row in report.rows:
        timed = row.latency
        if timed is None:
            continue
        ttft = timed.ttft_steady_ms
        rows.append(
            (
                Cell(row.name),
                Cell(show.milliseconds(timed.load_ms)),
                Cell(show.milliseconds(timed.ttft_cold_ms)),
                Cell(show.milliseconds(timed.ttft_cached_ms.median if timed.ttft_cached_ms else None)),
                *(percentile_cell(point, ttft.n) for point in (ttft.p50, ttft.p90, ttft.p95, ttft.p99)),
                Cell(show.percent(ttft.cv)),
                Cell(show.milliseconds(timed.tpot_ms.median if timed.tpot_ms else None)),
                Cell(show.milliseconds(timed.e2e_ms.median)),
            )
        )
    return Table(headers, tuple(rows), headers[1:])


def pairs(report: Report) -> Table:
    """The comparison with the uncompressed model, row by row."""
    headers = (
        "bundle",
        "compared with",
        "delta (points)",
        "lost",
        "gained",
        "changed",
        "McNemar p",
        "verdict",
        "detectable",
    )
    rows = []
    for row in report.rows:
        paired = row.accuracy.paired if row.accuracy else None
        if paired is None:
            continue
        rows.append(
            (
                Cell(row.name),
                Cell(paired.baseline, f"{show.percent(paired.accuracy.value)}, n={paired.n}"),
                Cell(show.points(paired.delta.value), show.points_interval(paired.delta)),
                Cell(str(paired.lost)),
                Cell(str(paired.gained)),
                Cell(str(paired.answers_changed), f"{paired.n - paired.tokens_identical} in tokens"),
                Cell(show.p_value(paired.mcnemar_p), paired.mcnemar_method),
                delta(row, verdict=True),
                Cell(
                    "too few items" if (drop := paired.smallest_detectable_drop) is None else f"{100 * drop:.1f} points"
                ),
            )
        )
    return Table(headers, tuple(rows), (*headers[2:7], headers[8]))


def by_type(report: Report) -> Table:
    """Accuracy by type of question, one column a type, and the control where it was asked."""
    scored = [row for row in report.rows if row.accuracy is not None]
    first = scored[0].accuracy.types if scored and scored[0].accuracy else []
    headers: tuple[str, ...] = (
        "bundle",
        *(f"{score.type} (chance {100 * score.chance:.0f}%)" for score in first),
        "all",
    )
    rows = []
    for row in scored:
        assert row.accuracy is not None
        cells = [Cell(show.percent(score.accuracy.value), f"n={score.accuracy.n}") for score in row.accuracy.types]
        rows.append((Cell(row.name), *cells, Cell(show.percent(row.accuracy.overall.value))))
        if row.accuracy.control is not None:
            noise = [
                Cell(show.percent(s.control.value if s.control else None), tone="quiet") for s in row.accuracy.types
            ]
            overall = Cell(show.percent(row.accuracy.control.value), tone="quiet")
            rows.append((Cell(row.name, "image replaced by grey noise", "quiet"), *noise, overall))
    return Table(headers, tuple(rows), headers[1:])


def status(row: Row) -> Cell:
    """`ok`, or what went wrong and at which stage."""
    if row.status == "ok":
        return Cell("ok", tone="good")
    stage = f"{row.failed_stage}: " if row.failed_stage else ""
    return Cell(f"{row.status}: {stage}{row.reason}", tone="bad" if row.status == "failed" else "unsure")


def delta(row: Row, *, verdict: bool = False) -> Cell:
    """The difference from the baseline, or the verdict on it; quiet where there is no baseline."""
    paired = row.accuracy.paired if row.accuracy else None
    if paired is None:
        return Cell(show.NONE, tone="quiet")
    if verdict:
        return Cell(paired.verdict, f"margin {show.margin(paired.margin)}", TONES[paired.verdict])
    return Cell(show.points(paired.delta.value), show.points_interval(paired.delta), TONES[paired.verdict])


def percentile_cell(point: Percentile | None, n: int) -> Cell:
    """A percentile in milliseconds and its interval, or n/a with the number of samples that do not support it."""
    if point is None:
        return Cell("n/a", f"n={n}", "quiet")
    return Cell(show.three_digits(point.value), show.span(point))


def _precision(row: Row) -> Cell:
    """Of the decoder, and below it of the vision tower where that has another."""
    decoder, vision = (precision_of(row, role) for role in ("decoder", "vision"))
    return Cell(decoder or vision or show.NONE, f"vision {vision}" if decoder and vision not in ("", decoder) else "")


def _energy(row: Row) -> Cell:
    """Of the meter that covers most."""
    if row.energy is None or not row.energy.meters:
        return Cell(show.NONE, tone="quiet")
    first = row.energy.meters[0]
    return Cell(show.joules(first.per_answer.gross), f"{first.source} {' + '.join(first.rails)}")


def _accuracy(row: Row) -> Cell:
    if row.accuracy is None:
        return Cell(show.NONE)
    return Cell(show.percent(row.accuracy.overall.value), show.interval_of(row.accuracy.overall))


def _ttft(row: Row) -> Cell:
    if row.latency is None:
        return Cell(show.NONE)
    ttft = row.latency.ttft_steady_ms
    note = f"p90 {show.three_digits(ttft.p90.value)}" if ttft.p90 else ""
    return Cell(show.milliseconds(ttft.median), note)
