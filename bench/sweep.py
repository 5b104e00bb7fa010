"""The sweep: every bundle in a worker of its own, the uncompressed models first, all results in one report.

In: opened bundles and settings. Out: a `Report`, and the predictions as JSON lines in the output folder. A worker that
crashes, hangs or answers nonsense becomes a row `failed: reason` and the sweep goes on; an interruption ends it with
the rows so far. Rows that worked are on disk when the next one begins, and answers as they come, so another sweep into
the same folder goes on where this one stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from edgevlm.atomic import write_text
from edgevlm.bench.accuracy.result import accuracy_of
from edgevlm.bench.baseline import Reference
from edgevlm.bench.definitions import DEFINITIONS, ENERGY_DEFINITIONS
from edgevlm.bench.energy import Metering
from edgevlm.bench.environment import environment, now
from edgevlm.bench.flags import latency_flags, memory_flags
from edgevlm.bench.job import Prediction
from edgevlm.bench.journal import Journal, read_journal, to_text
from edgevlm.bench.kept import KeptRows
from edgevlm.bench.keys import answers_key, row_key
from edgevlm.bench.latency import summarise_latency
from edgevlm.bench.measured import Measured, run_worker
from edgevlm.bench.pace import Pace
from edgevlm.bench.plan import Work, plan
from edgevlm.bench.predictions import PREDICTIONS, cache_file, file_name
from edgevlm.bench.report import SCHEMA_VERSION, Environment, Latency, Report, Row, Settings, Throughput
from edgevlm.bench.rows import describe
from edgevlm.bench.throughput import throughput
from edgevlm.bench.worker import TARGET
from edgevlm.bundle import Bundle
from edgevlm.targets.sensors.log import SensorLog

Progress: TypeAlias = Callable[[float, float, str], None]


def sweep(
    bundles: Sequence[Bundle],
    settings: Settings,
    out: Path,
    *,
    baseline: str | None = None,
    progress: Progress,
    worker: str = TARGET,
    sensors: SensorLog | None = None,
) -> Report:
    """Measure every bundle and the models they are compared with.

    Args:
        bundles: opened ones.
        settings: what to measure.
        out: folder for the predictions.
        baseline: a bundle's folder or a model; None takes the model that each bundle was made from.
        progress: called with seconds done, seconds in all, and what is being done.
        worker: `module:function` that measures a job in a child process.
        sensors: samples while this runs; None measures no energy and no heat.

    Raises:
        InputError: the baseline or the task is unknown, or other settings were stopped in `out`. No work was done.
    """
    works = plan(bundles, settings, baseline)
    described = environment(now())
    kept = KeptRows(out, settings, described)
    known = {work.name: kept.find(row_key(work)) for work in works}
    pace = Pace([work.job for work in works if not work.skip and known[work.name] is None], progress)
    metering = None if sensors is None else Metering(sensors, settings.idle_s)
    answers: dict[str, list[Prediction]] = {}
    rows: list[Row] = []
    interrupted = False
    for work in works:
        row, before = describe(work), known[work.name]
        if before is not None:
            row, answers[work.name] = before
        if interrupted or work.skip or before is not None:
            rows.append(row)
            continue
        pace.begin(work.name)
        row = row.model_copy(update={"started": now()})
        try:
            row = measure_row(row, work, settings, described, pace, worker, answers, out, metering)
        except KeyboardInterrupt:
            interrupted = True
            row = row.model_copy(update={"reason": "interrupted"})
        pace.end()
        rows.append(row)
        if row.status == "ok":
            kept.add(row_key(work), row)
    return Report(
        schema_version=SCHEMA_VERSION,
        environment=described.model_copy(update={"finished": now()}),
        settings=settings,
        rows=rows,
        sensors=[] if metering is None else metering.sensors(),
        interrupted=interrupted,
        definitions=DEFINITIONS if sensors is None else {**DEFINITIONS, **ENERGY_DEFINITIONS},
    )


def measure_row(
    row: Row,
    work: Work,
    settings: Settings,
    environment: Environment,
    pace: Pace,
    worker: str,
    answers: dict[str, list[Prediction]],
    out: Path,
    metering: Metering | None = None,
) -> Row:
    """Fill `row` by running the worker, or from the cache.

    Args:
        row: what is known of `work` already.
        work: what to measure.
        settings: of the report.
        environment: of the report.
        pace: hears of each measurement.
        worker: `module:function` that measures a job in a child process.
        answers: by the name of a work; those of this one are added, and it is paired with its baseline's.
        out: folder of the report, for the predictions.
        metering: the sweep's sensors; None measures no energy and no heat.
    """
    key = answers_key(work, environment)
    cached = _cache(work, key)
    known = read_journal(cached, key) if cached is not None else None
    journal = None
    if known is not None and work.job.accuracy is not None and known.asked == work.job.accuracy.n:
        measured = Measured(stage="accuracy", answers=known)
    else:
        journal = out / PREDICTIONS / f"{file_name(work.name)}.journal"
        if metering is not None:
            metering.begin()
        measured = _run(work, worker, settings, pace, journal, key)
    timed = measured.stage == "accuracy" or not measured.failure
    latency = summarise_latency(measured.samples, measured.other_cpu_share, measured.watch_share) if timed else None
    row = row.model_copy(
        update={
            "status": "failed" if measured.failure else "ok",
            "reason": measured.failure,
            "failed_stage": measured.stage if measured.failure else "",
            "vision_engine": measured.loaded.vision_engine if measured.loaded else None,
            "decoder_engine": measured.loaded.decoder_engine if measured.loaded else None,
            "latency": latency,
            "throughput": _throughput(latency, settings),
            "memory": measured.memory,
            "flags": [*latency_flags(latency), *memory_flags(measured.memory)] if latency is not None else [],
        }
    )
    if metering is not None and latency is not None:
        seen = metering.observe(measured)
        row = row.model_copy(update={"energy": seen.energy, "heat": seen.heat, "flags": [*row.flags, *seen.flags]})
    if measured.failure or work.job.accuracy is None:
        return row
    answers[work.name] = measured.answers.predictions
    if journal is not None:
        journal.unlink(missing_ok=True)
        if cached is not None:
            write_text(cached, to_text(measured.answers, key))
    accuracy = accuracy_of(work, measured.answers, settings, answers, out)
    return row.model_copy(update={"accuracy": accuracy})


def _throughput(latency: Latency | None, settings: Settings) -> Throughput | None:
    if latency is None or settings.scenario != "offline":
        return None
    return throughput(latency.steady, settings.iterations)


def _run(work: Work, worker: str, settings: Settings, pace: Pace, path: Path, key: str) -> Measured:
    """Run the worker; what it answers is on disk at once, and what is there already is not asked again."""
    if work.job.accuracy is None:
        return run_worker(work.job, worker, settings.silence_s, pace)
    journal = Journal(path, key)
    try:
        return run_worker(work.job, worker, settings.silence_s, pace, journal)
    finally:
        journal.close()


def _cache(work: Work, key: str) -> Path | None:
    """Where the answers of an uncompressed model are kept; None for a bundle, whose speed is wanted too."""
    if not isinstance(work.source, Reference) or work.job.accuracy is None or work.job.accuracy.control:
        return None
    return cache_file(key)
