"""The table that holds forecasts against what was then measured."""

from __future__ import annotations

from collections.abc import Callable

from edgevlm.bench import format as show
from edgevlm.bench.render.table import Cell, Table
from edgevlm.bench.report import Forecast, Report, Row


def forecasts(report: Report) -> Table:
    """One line a row with a forecast: what was measured, and below it the forecast and by how much it is off."""
    headers = ("bundle", "target", "vision", "prefill", "decode tok/s", "peak memory")
    rows = tuple(
        (Cell(row.name), Cell(row.forecast.target, row.forecast.reason), *_figures(row, row.forecast))
        for row in report.rows
        if row.forecast is not None
    )
    return Table(headers, rows, headers[2:])


def _figures(row: Row, expected: Forecast) -> list[Cell]:
    peak = row.memory.peak_rss_bytes if row.memory is not None else None
    memory = _against(expected.peak_bytes, peak, lambda value: show.megabytes(round(value)))
    if row.latency is None:
        return [*[Cell(show.NONE, tone="quiet")] * 3, memory]
    stages = row.latency.stages
    return [
        _against(expected.vision_ms, stages.vision_ms.median, show.milliseconds),
        _against(expected.prefill_ms, stages.prefill_ms.median, show.milliseconds),
        _against(expected.tokens_per_second, row.latency.decode_tokens_per_second, show.rate),
        memory,
    ]


def _against(expected: float | None, measured: float | None, write: Callable[[float], str]) -> Cell:
    if expected is None or not measured:
        return Cell(show.NONE, tone="quiet")
    return Cell(write(measured), f"forecast {write(expected)}, {show.change(expected / measured - 1)}")
