"""Decides what a sweep measures, in which order, and what each bundle is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm.bench.baseline import Reference, find_reference, reference_of
from edgevlm.bench.job import AccuracyPlan, Job, LatencyPlan
from edgevlm.bench.matrix import cells
from edgevlm.bench.report import Settings
from edgevlm.bench.tasks import find_task
from edgevlm.bundle import MANIFEST, Bundle, open_bundle
from edgevlm.errors import InputError

#: Items of a task without end, where no number is given.
ITEMS = 500
#: Why a baseline has no paired comparison.
IS_BASELINE = "it is the baseline"


@dataclass(frozen=True)
class Work:
    """One row to be.

    Attributes:
        name: unique in the sweep.
        job: for the worker.
        source: the bundle or the uncompressed model behind it.
        baseline: name of the work it is compared with; empty if with none.
        reason: why with none; empty if there is a baseline or no accuracy.
        skip: why it is not measured at all; empty if it is.
        threads, resolution: of a cell of a matrix; None outside one.
    """

    name: str
    job: Job
    source: Bundle | Reference
    baseline: str = ""
    reason: str = ""
    skip: str = ""
    threads: int | None = None
    resolution: int | None = None


def plan(bundles: Sequence[Bundle], settings: Settings, baseline: str | None) -> list[Work]:
    """The works in order: what others are compared with comes first.

    Of a matrix each cell is one; items are asked in the first cell of a bundle alone, as threads and the size of the
    timed images do not change what is asked.

    Args:
        bundles: opened ones.
        settings: what to measure.
        baseline: a bundle's folder or a model to compare all with; None takes the model that each was made from.

    Raises:
        InputError: the baseline or the task is unknown, or the baseline cannot be opened.
    """
    accuracy = accuracy_plan(settings)
    listed = list(bundles)
    shared: Bundle | Reference | None = None
    if accuracy is not None and baseline is not None:
        shared = _open_baseline(baseline, listed)
        if isinstance(shared, Bundle):
            listed = [shared, *(bundle for bundle in listed if bundle is not shared)]
    names = _unique_names([bundle.path for bundle in listed])
    references: dict[str, Reference] = {}
    works = []
    first = ""
    for name, bundle in zip(names, listed, strict=True):
        compared = _baseline_of(bundle, shared) if accuracy is not None else ""
        if isinstance(compared, Reference):
            references[compared.name] = compared
        asked = accuracy
        for cell in cells(bundle, settings):
            works.append(
                Work(
                    name=name + cell.suffix,
                    job=bundle_job(bundle.path, cell.settings, None if cell.skip else asked),
                    source=bundle,
                    baseline=first if isinstance(compared, Bundle) else getattr(compared, "name", ""),
                    reason=compared if isinstance(compared, str) else "",
                    skip=cell.skip,
                    threads=cell.settings.threads if settings.thread_counts else None,
                    resolution=cell.resolution,
                )
            )
            if not cell.skip:
                first, asked = first or works[-1].name, None
    return [_reference_work(reference, settings, accuracy) for reference in references.values()] + works


def accuracy_plan(settings: Settings) -> AccuracyPlan | None:
    """The items to ask, or None where no task was named.

    Raises:
        InputError: the task or its split is unknown.
    """
    if settings.task is None:
        return None
    task = find_task(settings.task, settings.data, settings.images, settings.scorer, settings.template)
    split = settings.split or task.splits[0]
    if split not in task.splits:
        raise InputError(f"unknown split {split!r:.40}", "--split", f"splits: {', '.join(task.splits)}")
    total = task.total(split)
    if total == 0:
        raise InputError("there is no question in it", settings.data or settings.task, "see edgevlm data verify")
    return AccuracyPlan(
        task=settings.task,
        data=settings.data,
        images=settings.images,
        data_sha256=task.fingerprint(),
        scorer=settings.scorer,
        template=settings.template,
        split=split,
        n=task.count(split, settings.items or total or ITEMS, settings.seed),
        seed=settings.seed,
        max_tokens=task.max_tokens,
        control=settings.control,
    )


def _open_baseline(baseline: str, listed: Sequence[Bundle]) -> Bundle | Reference:
    folder = Path(baseline)
    if not (folder / MANIFEST).is_file():
        return find_reference(baseline)
    known = [bundle for bundle in listed if bundle.path.resolve() == folder.resolve()]
    return known[0] if known else open_bundle(folder)


def _baseline_of(bundle: Bundle, shared: Bundle | Reference | None) -> Bundle | Reference | str:
    """What to compare `bundle` with, or why with nothing."""
    if shared is None:
        return reference_of(bundle)
    return IS_BASELINE if bundle is shared else shared


def bundle_job(path: Path, settings: Settings, accuracy: AccuracyPlan | None) -> Job:
    """What a worker does with the bundle at `path`."""
    latency = LatencyPlan(
        iterations=settings.iterations,
        min_time_s=settings.min_time_s,
        warmup=settings.warmup,
        cached=0 if settings.scenario == "offline" else settings.cached,
        max_tokens=settings.max_tokens,
        width=settings.image_width,
        height=settings.image_height,
        seed=settings.seed,
        scenario=settings.scenario,
    )
    return Job(
        kind="bundle",
        path=str(path),
        vision_engine=settings.vision_engine,
        decoder_engine=settings.decoder_engine,
        threads=settings.threads,
        kv_cache=settings.kv_cache,
        device=settings.device,
        latency=latency,
        accuracy=accuracy,
    )


def _reference_work(reference: Reference, settings: Settings, accuracy: AccuracyPlan | None) -> Work:
    job = Job(kind="reference", path=str(reference.folder), threads=settings.threads, accuracy=accuracy)
    return Work(reference.name, job, reference, reason=IS_BASELINE)


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """Each folder's name, with as many parents in front as tell it apart; numbered if it is listed twice."""
    parts = [path.resolve().parts for path in paths]
    names = []
    for number, own in enumerate(parts, 1):
        depths = (depth for depth in range(1, len(own)) if sum(other[-depth:] == own[-depth:] for other in parts) == 1)
        depth = next(depths, 0)
        names.append("/".join(own[-depth:]) if depth else f"{own[-1]} ({number})")
    return names
