"""The second half of a study: bundles that have been asked are timed, each by turns with the unpruned one.

In: a row with accuracy and memory, and bundles. Out: the row with times and the method's cost, or with a flag that says
why they are missing. Accuracy does not mind a busy machine; this does.
"""

from __future__ import annotations

from edgevlm.bench.flags import latency_flags
from edgevlm.bench.latency import Samples, summarise_latency
from edgevlm.bench.measured import run_worker
from edgevlm.bench.method_cost import method_cost
from edgevlm.bench.pace import Pace
from edgevlm.bench.plan import bundle_job
from edgevlm.bench.report import Beside, Flag, Latency, Pruning, Row, Settings
from edgevlm.bench.stats import Summary, summarise
from edgevlm.bundle import Bundle
from edgevlm.errors import EdgeVLMError

NOT_TIMED = "not-timed"


def is_timed(row: Row) -> bool:
    """Whether times are there, or cannot be had."""
    return row.status != "ok" or row.latency is not None or any(flag.code == NOT_TIMED for flag in row.flags)


def untimed(row: Row) -> Row:
    """The row without the reason why it could not be timed, so that it is tried again."""
    return row.model_copy(update={"flags": [flag for flag in row.flags if flag.code != NOT_TIMED]})


def time_unpruned(row: Row, bundle: Bundle, settings: Settings, pace: Pace, worker: str) -> Row:
    """The row of the unpruned bundle with its times."""
    job = bundle_job(bundle.path, settings, None)
    measured = run_worker(job, worker, settings.silence_s, pace)
    latency = summarise_latency(measured.samples, measured.other_cpu_share, measured.watch_share)
    if measured.failure or latency is None:
        return not_timed(row, measured.failure)
    return row.model_copy(update={"latency": latency, "flags": [*row.flags, *latency_flags(latency)]})


def time_cell(row: Row, bundle: Bundle, unpruned: Bundle, settings: Settings, pace: Pace, worker: str) -> Row:
    """The row of a cell with its times, by turns with the unpruned bundle's, and the method's cost."""
    pruning = row.pruning
    assert pruning is not None
    job = bundle_job(bundle.path, settings, None).model_copy(update={"beside": str(unpruned.path)})
    measured = run_worker(job, worker, settings.silence_s, pace)
    latency = summarise_latency(measured.samples, measured.other_cpu_share, measured.watch_share)
    other = summarise_latency(measured.beside, None)
    if measured.failure or latency is None or other is None:
        return not_timed(row, measured.failure)
    told = [*row.flags, *latency_flags(latency)]
    pace.say("the method's own cost")
    try:
        cost = _cost(pruning, measured.samples, measured.beside, bundle, unpruned, settings)
    except EdgeVLMError as error:
        cost = None
        text = f"the method's own cost could not be measured: {error.what}"
        told.append(Flag(code="no-method-cost", text=text))
    pruning = pruning.model_copy(update={"beside": _beside(other), "method_ms": cost})
    return row.model_copy(update={"latency": latency, "flags": told, "pruning": pruning})


def _cost(
    pruning: Pruning, own: Samples, other: Samples, bundle: Bundle, unpruned: Bundle, settings: Settings
) -> Summary | None:
    """Of a method inside the decoder what the answers of both show, which took turns; else the vision graphs' own."""
    if pruning.layer_tokens is None:
        return method_cost(unpruned, bundle, settings.vision_engine, settings)
    pairs = zip(own.of("steady"), other.of("steady"), strict=True)
    return summarise([with_it.prefill_ms - without.prefill_ms for with_it, without in pairs])


def _beside(other: Latency) -> Beside:
    return Beside(vision_ms=other.stages.vision_ms, prefill_ms=other.stages.prefill_ms, ttft_ms=other.ttft_steady_ms)


def not_timed(row: Row, reason: str) -> Row:
    """The row with the reason why it has no times."""
    flag = Flag(code=NOT_TIMED, text=f"could not be timed: {reason or 'no answer was timed'}")
    return row.model_copy(update={"flags": [*row.flags, flag]})
