"""The tables of how figures came about: percentiles of every stage, how long was timed, memory, and batch jobs."""

from __future__ import annotations

from edgevlm.bench import format as show
from edgevlm.bench.render.table import Cell, Table, percentile_cell
from edgevlm.bench.report import Latency, Report
from edgevlm.bench.stats import Summary


def stages(report: Report) -> Table:
    """Each stage of every timed row, and its percentiles."""
    headers = ("bundle", "stage", "n", "mean", "p50", "p90", "p95", "p99", "CV")
    rows = [
        (
            Cell(row.name),
            Cell(name),
            Cell(str(found.n)),
            Cell(show.milliseconds(found.mean)),
            *(percentile_cell(point, found.n) for point in (found.p50, found.p90, found.p95, found.p99)),
            Cell(show.percent(found.cv)),
        )
        for row in report.rows
        if row.latency is not None
        for name, found in _stages(row.latency).items()
    ]
    return Table(headers, tuple(rows), headers[2:])


def _stages(latency: Latency) -> dict[str, Summary]:
    parts = latency.stages
    found = {
        "preprocess": parts.preprocess_ms,
        "vision": parts.vision_ms,
        "fusion": parts.fusion_ms,
        "prefill": parts.prefill_ms,
        "first decode": parts.first_decode_ms,
        "TPOT": latency.tpot_ms,
        "end to end": latency.e2e_ms,
    }
    return {name: summary for name, summary in found.items() if summary is not None}


def protocol(report: Report) -> Table:
    """How long each row was timed, by what was asked for, and what that cost itself."""
    asked = report.settings
    headers = ("bundle", "answers", "time", "reused tokens", "other CPU use", "between answers", "watching")
    rows = []
    for row in report.rows:
        timed = row.latency
        if timed is None:
            continue
        own = timed.overhead
        rows.append(
            (
                Cell(row.name),
                Cell(str(len(timed.steady)), f"at least {asked.iterations}"),
                Cell(
                    show.NONE if timed.steady_s is None else f"{timed.steady_s:.1f} s",
                    f"at least {asked.min_time_s:g} s",
                ),
                Cell(str(max(taken.reused_tokens for taken in timed.steady))),
                Cell(show.percent(timed.other_cpu_share)),
                Cell(show.percent(own.between if own else None)),
                Cell(show.percent(own.watching if own else None)),
            )
        )
    return Table(headers, tuple(rows), headers[1:])


def memory(report: Report) -> Table:
    """What each bundle takes."""
    kept = [(row, row.memory) for row in report.rows if row.memory is not None and row.kind == "bundle"]
    columns: dict[str, list[int | None]] = {
        "loaded RSS": [found.loaded_rss_bytes for _, found in kept],
        "peak RSS": [found.peak_rss_bytes for _, found in kept],
        "peak PSS": [found.peak_pss_bytes for _, found in kept],
        "GPU, its processes": [found.peak_gpu_bytes for _, found in kept],
        "GPU, all use": [found.peak_gpu_device_bytes for _, found in kept],
        "shared with the GPU": [found.peak_unified_bytes for _, found in kept],
    }
    known = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    rows = [
        (Cell(row.name), *(Cell(show.megabytes(values[index])) for values in known.values()))
        for index, (row, _) in enumerate(kept)
    ]
    return Table(("bundle", *known), tuple(rows), tuple(known))


def throughput(report: Report) -> Table:
    """What batch jobs get done."""
    headers = ("bundle", "images/s", "tokens/s", "answers", "time", "CV of batches")
    rows = [
        (
            Cell(row.name),
            Cell(show.three_digits(done.images_per_second)),
            Cell(show.three_digits(done.tokens_per_second)),
            Cell(str(done.answers), f"in batches of {done.batch}"),
            Cell(f"{done.seconds:.1f} s"),
            Cell(show.percent(done.batches.cv)),
        )
        for row in report.rows
        for done in ([row.throughput] if row.throughput is not None else [])
    ]
    return Table(headers, tuple(rows), headers[1:])
