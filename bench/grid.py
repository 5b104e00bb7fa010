"""The rows of a study's report as its grid: the unpruned model, the cells by method, and what is drawn of each."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.bench.pareto import front
from edgevlm.bench.report import Pruning, Report, Row, Study

#: Methods that know nothing of the image: what any other one has to beat.
PLAIN = ("uniform", "random")


def study_of(report: Report) -> Study:
    """What the report's study varied."""
    assert report.study is not None
    return report.study


def pruning_of(row: Row) -> Pruning:
    """What a cell's row says of its tokens."""
    assert row.pruning is not None
    return row.pruning


def method_label(pruning: Pruning) -> str:
    """A method with its options, as it is written on the command line: `random:seed=1`."""
    return ":".join([pruning.method, *(f"{name}={value}" for name, value in pruning.options.items())])


def unpruned(report: Report) -> Row:
    """The row that all cells are paired with."""
    return next(row for row in report.rows if row.name == study_of(report).unpruned)


def by_method(report: Report) -> dict[str, list[Row]]:
    """The cells of each method, most tokens first."""
    found: dict[str, list[Row]] = {}
    for row in report.rows:
        if row.pruning is not None:
            found.setdefault(method_label(row.pruning), []).append(row)
    return {label: sorted(rows, key=lambda row: -pruning_of(row).tokens) for label, rows in found.items()}


def mean_tokens(row: Row, image_tokens: int) -> float:
    """Tokens of an image, or of each of its tiles: the mean over the decoder's layers, which cost in proportion."""
    if row.pruning is None:
        return image_tokens
    layers = row.pruning.layer_tokens
    return sum(layers) / len(layers) if layers else row.pruning.tokens


def tokens(report: Report, row: Row) -> float:
    """The same, in a study."""
    return mean_tokens(row, study_of(report).image_tokens)


def kept(row: Row, image_tokens: int) -> str:
    """How many are kept, and, where these are fewer and fewer from layer to layer, how many a layer has."""
    if row.pruning is None:
        return f"{image_tokens} tokens"
    if row.pruning.layer_tokens is None:
        return f"{row.pruning.tokens} tokens"
    return f"{row.pruning.tokens} tokens in the end, {mean_tokens(row, image_tokens):.0f} in a layer on average"


def ratio(row: Row) -> float | None:
    """Median time to first token over the unpruned bundle's, by turns; None where that was not timed."""
    beside = row.pruning.beside if row.pruning is not None else None
    if row.latency is None or beside is None or beside.ttft_ms.median <= 0:
        return None
    return row.latency.ttft_steady_ms.median / beside.ttft_ms.median


def ttft(rows: Sequence[Row], row: Row) -> float | None:
    """Median time to first token in milliseconds; None where it was not timed.

    Cells are timed minutes apart, each by turns with the unpruned bundle. So that they compare, a cell's time is its
    ratio to that, times the time in the unpruned bundle's own row.
    """
    own = None if row.latency is None else row.latency.ttft_steady_ms.median
    full = next((each.latency for each in rows if each.pruning is None and each.latency is not None), None)
    share = ratio(row)
    return own if share is None or full is None else share * full.ttft_steady_ms.median


def share(row: Row) -> float | None:
    """Accuracy; None where it was not asked."""
    return None if row.accuracy is None else row.accuracy.overall.value


def of_full(report: Report, row: Row) -> float | None:
    """Accuracy as a share of the unpruned model's; None where one of them is not known, or the latter is zero."""
    own, full = share(row), share(unpruned(report))
    return None if own is None or not full else own / full


def fronts(rows: Sequence[Row], image_tokens: int) -> tuple[list[str], list[str]]:
    """Names of the rows on the fronts of accuracy against tokens and against TTFT, cheapest first."""
    scored = [(row, value) for row in rows if (value := share(row)) is not None]
    counts = [(mean_tokens(row, image_tokens), value) for row, value in scored]
    timed = [(row, time, value) for row, value in scored if (time := ttft(rows, row)) is not None]
    few = [scored[index][0].name for index in front(counts)]
    fast = [timed[index][0].name for index in front([(time, value) for _, time, value in timed])]
    return few, fast
