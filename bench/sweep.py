"""The sweep: every bundle in a worker of its own, the uncompressed models first, all results in one report.

In: opened bundles and settings. Out: a `Report`, and the predictions as JSON lines in the output folder. A worker that
crashes, hangs or answers nonsense becomes a row `failed: reason` and the sweep goes on; an interruption ends it with
the rows so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from edgevlm.bench.accuracy import compare, score, score_types
from edgevlm.bench.baseline import Reference
from edgevlm.bench.definitions import DEFINITIONS, ENERGY_DEFINITIONS
from edgevlm.bench.energy import Metering
from edgevlm.bench.environment import environment, now
from edgevlm.bench.job import AccuracyPlan, Prediction
from edgevlm.bench.latency import flags, summarise_latency
from edgevlm.bench.measured import Measured, run_worker
from edgevlm.bench.pace import Pace
from edgevlm.bench.plan import Work, plan
from edgevlm.bench.predictions import cache_file, read_jsonl, store
from edgevlm.bench.report import SCHEMA_VERSION, Accuracy, Environment, Report, Row, Settings
from edgevlm.bench.rows import describe
from edgevlm.bench.tasks import find_task
from edgevlm.bench.worker import TARGET
from edgevlm.bundle import Bundle
from edgevlm.targets.sensors.log import SensorLog

Progress: TypeAlias = Callable[[float, float, str], None]
PREDICTIONS = "predictions"


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
        InputError: the baseline or the task is unknown. No work was done.
    """
    works = plan(bundles, settings, baseline)
    described = environment(now())
    pace = Pace([work.job for work in works], progress)
    metering = None if sensors is None else Metering(sensors, settings.idle_s)
    answers: dict[str, list[Prediction]] = {}
    rows: list[Row] = []
    interrupted = False
    for work in works:
        row = describe(work)
        if interrupted:
            rows.append(row)
            continue
        pace.begin(work.name)
        try:
            row = measure_row(row, work, settings, described, pace, worker, answers, out, metering)
        except KeyboardInterrupt:
            interrupted = True
            row = row.model_copy(update={"reason": "interrupted"})
        pace.end()
        rows.append(row)
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
    cached = _cache(work, environment)
    known = read_jsonl(cached, settings.items) if cached is not None else None
    if known is None:
        if metering is not None:
            metering.begin()
        measured = run_worker(work.job, worker, settings.silence_s, pace)
    else:
        measured = Measured(stage="accuracy", predictions=known)
    timed = measured.stage == "accuracy" or not measured.failure
    latency = summarise_latency(measured.samples, measured.other_cpu_share) if timed else None
    row = row.model_copy(
        update={
            "status": "failed" if measured.failure else "ok",
            "reason": measured.failure,
            "failed_stage": measured.stage if measured.failure else "",
            "vision_engine": measured.loaded.vision_engine if measured.loaded else None,
            "decoder_engine": measured.loaded.decoder_engine if measured.loaded else None,
            "latency": latency,
            "memory": measured.memory,
            "flags": flags(latency) if latency is not None else [],
        }
    )
    if metering is not None and latency is not None:
        seen = metering.observe(measured)
        row = row.model_copy(update={"energy": seen.energy, "heat": seen.heat, "flags": [*row.flags, *seen.flags]})
    if measured.failure or work.job.accuracy is None:
        return row
    answers[work.name] = measured.predictions
    if cached is not None and known is None:
        store(cached, measured.predictions)
    accuracy = _accuracy(work, work.job.accuracy, settings, measured, answers, out)
    return row.model_copy(update={"accuracy": accuracy})


def _accuracy(
    work: Work,
    asked: AccuracyPlan,
    settings: Settings,
    measured: Measured,
    answers: dict[str, list[Prediction]],
    out: Path,
) -> Accuracy:
    """Score the answers, pair them with the baseline's, and write them beside the report."""
    task = find_task(asked.task)
    baseline = answers.get(work.baseline, [])
    reason = work.reason
    if work.baseline and not baseline:
        reason = f"{work.baseline} failed"
    file = out / PREDICTIONS / f"{file_name(work.name)}.jsonl"
    return Accuracy(
        task=asked.task,
        scorer=task.scorer,
        n=len(measured.predictions),
        images=len({prediction.image_id for prediction in measured.predictions}),
        overall=score(measured.predictions),
        control=score(measured.control) if measured.control else None,
        types=score_types(task, measured.predictions, baseline, measured.control),
        paired=compare(measured.predictions, baseline, work.baseline, settings.margin, settings.seed)
        if baseline
        else None,
        unpaired_reason=reason,
        predictions_file=file.relative_to(out).as_posix(),
        predictions_sha256=store(file, measured.predictions),
    )


def _cache(work: Work, environment: Environment) -> Path | None:
    """Where the answers of an uncompressed model are kept; None for a bundle, whose speed is wanted too."""
    if not isinstance(work.source, Reference) or work.job.accuracy is None or work.job.accuracy.control:
        return None
    versions = [
        environment.edgevlm,
        environment.git_commit or "",
        environment.packages.get("torch", ""),
        environment.cpu_model,
    ]
    return cache_file(work.source.content, work.job.accuracy, versions)


def file_name(name: str) -> str:
    """`name` as a plain file name."""
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in name).lstrip(".") or "row"
