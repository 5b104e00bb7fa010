"""Compares two reports: which figures got worse beyond a tolerance, and which only seem to.

In: two reports as they were read. Out: a `Comparison`. A figure is a regression where the whole 95% interval of its
worsening lies beyond the tolerance; where only a part does, it is undecided. The intervals know how answers of one run
differ from each other, not how runs do: the tolerance has to cover that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgevlm.bench.accuracy.scoring import compare as pair
from edgevlm.bench.comparison import (
    COMPARISON_VERSION,
    AccuracyChange,
    Change,
    Comparison,
    Difference,
    Judgement,
    RowChange,
    Source,
    Unit,
)
from edgevlm.bench.matching import identity, match
from edgevlm.bench.pairs import Interval
from edgevlm.bench.ratios import median_ratio, point_ratio, share_difference
from edgevlm.bench.reading import ReadReport, read_predictions
from edgevlm.bench.report import Accuracy, Environment, Paired, Row, Sample, Settings
from edgevlm.errors import EdgeVLMError, InputError

#: What is the same machine: fields of the environment that another one would have otherwise.
_MACHINE = ("cpu_model", "machine", "physical_cores", "logical_cores")
#: Settings that change what is measured, beside those that rows are matched by.
_SETTINGS = ("image_width", "image_height", "max_tokens", "kv_cache", "task", "split", "items", "seed")


def compare(old: ReadReport, new: ReadReport, *, tolerance: float, margin: float) -> Comparison:
    """Row by row, in the order of the new report.

    Args:
        old: what to compare with.
        new: what may have got worse.
        tolerance: worsening that is accepted, as a share of the old value.
        margin: loss of accuracy that is accepted, 0 to 1.

    Raises:
        InputError: the two have no row in common.
    """
    matched = match(old.report, new.report)
    if not matched.pairs:
        raise InputError(
            "the two reports have no row in common",
            f"{old.path} and {new.path}",
            "rows are the same where model, format, precision, pruning, engines, threads, resolution and scenario are",
        )
    before, after = old.report.environment, new.report.environment
    return Comparison(
        schema_version=COMPARISON_VERSION,
        old=_source(old),
        new=_source(new),
        tolerance=tolerance,
        margin=margin,
        same_machine=all(getattr(before, name) == getattr(after, name) for name in _MACHINE),
        differences=[
            *_machines(before, after),
            *_software(before, after),
            *_settings(old.report.settings, new.report.settings),
        ],
        rows=[
            RowChange(
                name=row.name,
                old_name=was.name,
                what=str(identity(new.report, row)),
                old_status=was.status,
                new_status=row.status,
                status_judgement=_status(was, row),
                reason=row.reason,
                changes=_changes(was, row, tolerance),
                accuracy=_accuracy(old, new, was, row, margin),
                remarks=_remarks(was, row),
            )
            for was, row in matched.pairs
        ],
        only_old=[row.name for row in matched.only_old],
        only_new=[row.name for row in matched.only_new],
    )


def _remarks(old: Row, new: Row) -> list[str]:
    """The flags of both rows; one that both have word for word once."""
    before, after = ([flag.text for flag in row.flags] for row in (old, new))
    return [
        *(f"both: {text}" for text in before if text in after),
        *(f"old: {text}" for text in before if text not in after),
        *(f"new: {text}" for text in after if text not in before),
    ]


def _status(old: Row, new: Row) -> Judgement:
    if (old.status == "ok") == (new.status == "ok"):
        return "unchanged"
    return "regression" if old.status == "ok" else "improvement"


def judge(worse: Interval | None, tolerance: float) -> Judgement:
    """What an interval of the worsening says; positive is worse. Undecided without one."""
    if worse is None:
        return "undecided"
    if worse.low > tolerance:
        return "regression"
    if worse.high < -tolerance:
        return "improvement"
    return "undecided" if worse.high > tolerance else "unchanged"


def _changes(old: Row, new: Row, tolerance: float) -> list[Change]:
    """Every figure that both rows have, those that are judged first."""
    found = [
        _sampled("TTFT steady", _of("steady", lambda sample: sample.ttft_ms), old, new, tolerance, judged=True),
        _sampled("TTFT cached", _of("cached", lambda sample: sample.ttft_ms), old, new, tolerance, judged=True),
        _sampled("decode", _of("steady", lambda sample: sample.tpot_ms), old, new, tolerance, judged=True, rate=True),
        _throughput(old, new, tolerance),
        _counted("peak RSS", "bytes", _peak, old, new, tolerance, judged=True),
        _counted("peak GPU memory", "bytes", _gpu_peak, old, new, tolerance, judged=True),
        _counted("peak unified memory", "bytes", _unified_peak, old, new, tolerance),
        _counted("size", "bytes", lambda row: row.total_bytes, old, new, tolerance, judged=True),
        _counted("energy per answer", "J", _energy, old, new, tolerance),
        _sampled("preprocess", _of("steady", lambda sample: sample.preprocess_ms), old, new, tolerance),
        _sampled("vision", _of("steady", lambda sample: sample.vision_ms), old, new, tolerance),
        _sampled("fusion", _of("steady", lambda sample: sample.fusion_ms), old, new, tolerance),
        _sampled("prefill", _of("steady", lambda sample: sample.prefill_ms), old, new, tolerance),
        _sampled("first decode", _of("steady", lambda sample: sample.first_decode_ms), old, new, tolerance),
    ]
    return [change for change in found if change is not None]


def _peak(row: Row) -> int | None:
    """Memory of a bundle; that of the uncompressed model depends on the tools around it."""
    return row.memory.peak_rss_bytes if row.memory is not None and row.kind == "bundle" else None


def _gpu_peak(row: Row) -> int | None:
    """GPU memory of the row's own processes."""
    return row.memory.peak_gpu_bytes if row.memory is not None and row.kind == "bundle" else None


def _unified_peak(row: Row) -> int | None:
    """Memory of the whole system, other programs included, where CPU and GPU share it."""
    return row.memory.peak_unified_bytes if row.memory is not None and row.kind == "bundle" else None


def _energy(row: Row) -> float | None:
    """Joules of the meter that covers most."""
    meters = row.energy.meters if row.energy is not None else []
    return meters[0].per_answer.gross if meters else None


def _of(phase: str, figure: Callable[[Sample], float | None]) -> Callable[[Row], list[float]]:
    """The samples of a figure in a phase."""

    def samples(row: Row) -> list[float]:
        taken: Sequence[Sample] = getattr(row.latency, phase) if row.latency is not None else ()
        return [value for sample in taken if (value := figure(sample)) is not None]

    return samples


def _sampled(
    name: str,
    samples: Callable[[Row], list[float]],
    old: Row,
    new: Row,
    tolerance: float,
    *,
    judged: bool = False,
    rate: bool = False,
) -> Change | None:
    """The change of a median time, or of what is done in a second where `rate` is set."""
    before, after = samples(old), samples(new)
    if not before or not after or min(_median(before), _median(after)) <= 0:
        return None
    slower = median_ratio(after, before)
    change = median_ratio(before, after) if rate else slower
    old_value, new_value = (1000 / _median(each) if rate else _median(each) for each in (before, after))
    return Change(
        figure=name,
        unit="tokens/s" if rate else "ms",
        better="higher" if rate else "lower",
        old=old_value,
        new=new_value,
        old_n=len(before),
        new_n=len(after),
        change=new_value / old_value - 1,
        interval=_less_one(change),
        judgement=judge(_less_one(slower), tolerance),
        judged=judged,
    )


def _throughput(old: Row, new: Row, tolerance: float) -> Change | None:
    """The change of what a batch job gets done, from the intervals that the reports have."""
    before, after = (row.throughput.batches if row.throughput is not None else None for row in (old, new))
    if before is None or after is None or min(before.median, after.median) <= 0:
        return None
    slower = point_ratio(before.p50, after.p50)
    return Change(
        figure="throughput",
        unit="images/s",
        better="higher",
        old=before.median,
        new=after.median,
        old_n=before.n,
        new_n=after.n,
        change=after.median / before.median - 1,
        interval=_less_one(point_ratio(after.p50, before.p50)),
        judgement=judge(_less_one(slower), tolerance),
        judged=True,
    )


def _counted(
    name: str,
    unit: Unit,
    figure: Callable[[Row], float | None],
    old: Row,
    new: Row,
    tolerance: float,
    *,
    judged: bool = False,
) -> Change | None:
    """The change of a figure that is one number a run: taken as exact."""
    before, after = figure(old), figure(new)
    if not before or after is None:
        return None
    change = after / before - 1
    return Change(
        figure=name,
        unit=unit,
        better="lower",
        old=before,
        new=after,
        old_n=None,
        new_n=None,
        change=change,
        interval=None,
        judgement=judge(Interval(value=change, low=change, high=change), tolerance),
        judged=judged,
    )


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _less_one(ratio: Interval | None) -> Interval | None:
    return ratio and Interval(value=ratio.value - 1, low=ratio.low - 1, high=ratio.high - 1)


def _accuracy(old: ReadReport, new: ReadReport, was: Row, row: Row, margin: float) -> AccuracyChange | None:
    """Item by item where both reports have their answers beside them, else as two independent samples."""
    before, after = was.accuracy, row.accuracy
    if before is None or after is None or (before.task, before.scorer) != (after.task, after.scorer):
        return None
    paired = _paired(old, new, before, after, was.name, margin)
    delta = paired.delta if isinstance(paired, Paired) else share_difference(after.overall, before.overall)
    if delta is None:
        return None
    loss = Interval(value=-delta.value, low=-delta.high, high=-delta.low)
    return AccuracyChange(
        task=after.task,
        old=before.overall,
        new=after.overall,
        delta=delta,
        paired=paired if isinstance(paired, Paired) else None,
        unpaired_reason="" if isinstance(paired, Paired) else paired,
        judgement=judge(loss, margin),
    )


def _paired(
    old: ReadReport, new: ReadReport, before: Accuracy, after: Accuracy, name: str, margin: float
) -> Paired | str:
    theirs, ours = read_predictions(old.path, before), read_predictions(new.path, after)
    if isinstance(theirs, str):
        return f"old: {theirs}"
    if isinstance(ours, str):
        return f"new: {ours}"
    try:
        return pair(ours, theirs, name, margin, new.report.settings.seed)
    except EdgeVLMError as error:
        return error.what


def _source(read: ReadReport) -> Source:
    machine = read.report.environment
    return Source(
        path=str(read.path),
        sha256=read.sha256,
        started=machine.started,
        edgevlm=machine.edgevlm,
        git_commit=machine.git_commit,
        cpu_model=machine.cpu_model,
    )


def _machines(old: Environment, new: Environment) -> list[Difference]:
    return _differing(old, new, (*_MACHINE, "cpu_features", "usable_cores", "memory_bytes", "governor", "system"))


def _software(old: Environment, new: Environment) -> list[Difference]:
    found = _differing(old, new, ("edgevlm", "git_commit", "python"))
    for name in dict.fromkeys((*old.packages, *new.packages)):
        before, after = old.packages.get(name, "none"), new.packages.get(name, "none")
        if before != after:
            found.append(Difference(name=name, old=before, new=after))
    return found


def _settings(old: Settings, new: Settings) -> list[Difference]:
    return _differing(old, new, _SETTINGS)


def _differing(old: Environment | Settings, new: Environment | Settings, names: Sequence[str]) -> list[Difference]:
    pairs = ((name, getattr(old, name), getattr(new, name)) for name in names)
    return [
        Difference(name=name.replace("_", " "), old=_text(before), new=_text(after))
        for name, before, after in pairs
        if before != after
    ]


def _text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "none" if value is None else str(value)
