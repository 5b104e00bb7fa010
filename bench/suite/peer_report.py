"""What peers took, and how it compares with ours, as JSON, Markdown and a table on the terminal.

In: a `Result` for each peer, measured or with the reason why not. Out: two tables, of figures and of ratios. A ratio is
theirs over ours for times and memory, and ours over theirs for rates: above 1, ours is faster or smaller.
"""

from __future__ import annotations

from statistics import median

from pydantic import BaseModel, ConfigDict

from edgevlm.bench.render import markdown
from edgevlm.bench.render.table import Cell, Table
from edgevlm.bench.report import Environment
from edgevlm.bench.suite.peer_runs import ENOUGH_S, Measured, Work

NONE = "n/a"


class Result(BaseModel):
    """A peer: its name, what it does and is, the row of ours that does the same, and what it took or why not.

    Attributes:
        against: the name of our row; empty for ours.
        failure: one line; empty where it was measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    about: str
    against: str
    failure: str
    measured: Measured | None


class PeerReport(BaseModel):
    """All peers on one machine by turns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    environment: Environment
    machine_class: str
    model: str
    work: Work
    turns: int
    results: list[Result]


def figures(report: PeerReport) -> Table:
    """Medians of all turns; loading is the least, with files in the page cache."""
    stage_headers = ("preprocess (ms)", "vision (ms)", "prefill (ms)", "first token (ms)", "TTFT (ms)")
    headers = ("row", "load (s)", *stage_headers, "tokens/s", "peak memory (MB)")
    rows = []
    for result in report.results:
        took = result.measured
        if took is None:
            rows.append((Cell(result.name), Cell(result.failure), *[Cell(NONE)] * (len(headers) - 2)))
            continue
        stages = [_median(times) for times in (took.preprocess, took.vision, took.prefill, took.first_decode)]
        cells = [_shown(load_ms(took), 1e-3, 2), *(_shown(stage, 1, 1) for stage in stages)]
        cells += [_shown(ttft_ms(took), 1, 0), _shown(tokens_per_second(took), 1, 1)]
        rows.append((Cell(result.name), *map(Cell, cells), Cell(f"{took.peak_rss_bytes / 1e6:.0f}")))
    return Table(headers, tuple(rows), headers[1:])


def ratios(report: PeerReport) -> Table:
    """How many times as fast (as small) our row that does the same is."""
    headers = ("peer", "ours", "load", "vision", "prefill", "tokens/s", "peak memory")
    ours = {result.name: result.measured for result in report.results}
    rows = []
    for result in report.results:
        if not result.against:
            continue
        theirs, own = result.measured, ours.get(result.against)
        if theirs is None or own is None:
            rows.append((Cell(result.name), Cell(result.against), *[Cell(NONE)] * (len(headers) - 2)))
            continue
        values = (
            _ratio(load_ms(theirs), load_ms(own)),
            _ratio(_median(theirs.vision), _median(own.vision)),
            _ratio(_median(theirs.prefill), _median(own.prefill)),
            _ratio(tokens_per_second(own), tokens_per_second(theirs)),
            _ratio(float(theirs.peak_rss_bytes), float(own.peak_rss_bytes)),
        )
        rows.append((Cell(result.name), Cell(result.against), *map(Cell, values)))
    return Table(headers, tuple(rows), headers[2:])


def load_ms(took: Measured) -> float:
    """The fastest of all processes."""
    return min(took.load)


def ttft_ms(took: Measured) -> float | None:
    """Median of the sums of the stages; None unless all of them were timed."""
    stages = (took.preprocess, took.vision, took.prefill, took.first_decode)
    return median(map(sum, zip(*stages, strict=True))) if all(stages) else None


def tokens_per_second(took: Measured) -> float | None:
    """By the median time from a token to the next."""
    gap = _median(took.decode)
    return 1e3 / gap if gap else None


def _median(times: list[float]) -> float | None:
    return median(times) if times else None


def _shown(value: float | None, factor: float, digits: int) -> str:
    return NONE if value is None else f"{value * factor:.{digits}f}"


def _ratio(above: float | None, below: float | None) -> str:
    return f"{above / below:.2f}" if above and below else NONE


def render(report: PeerReport) -> str:
    """The report as Markdown."""
    machine, work = report.environment, report.work
    cores = machine.usable_cores or machine.logical_cores
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    card = [
        ("Machine", f"{machine.cpu_model}, {cores} cores, {machine.memory_bytes / 1e9:.1f} GB"),
        ("Class", report.machine_class),
        ("Instructions", " ".join(machine.cpu_features)),
        ("System", f"{machine.system}; Python {machine.python}; {packages}"),
        ("EdgeVLM", f"{machine.edgevlm}, commit {machine.git_commit or 'unknown'}"),
        ("Run", f"{machine.started} to {machine.finished}"),
        ("Work", f"{report.model}, {work.threads} threads, prompt of {work.positions} positions, {work.steps} tokens"),
        (
            "Sample",
            f"processes of each row, by turns: {report.turns}; rounds in each, after one to warm up: {work.rounds}",
        ),
        ("Slow rows", f"no further round starts after {ENOUGH_S:.0f} s in a process"),
    ]
    abouts = [(each.name, each.about + _engine(each)) for each in report.results]
    parts = [
        "# EdgeVLM and its peers on the same work",
        markdown.terms(card),
        "## Figures",
        markdown.table(figures(report)),
        "Medians. Load is the least, with files in the page cache and libraries imported. A stage that a row does not "
        "have is n/a; TTFT stands where all its stages were timed.",
        "## Ratios",
        markdown.table(ratios(report)),
        "Above 1, ours is that many times as fast, or takes that much less memory; ours is the row that does the same "
        "part of the work.",
        "## What each row is",
        markdown.terms(abouts),
    ]
    return "\n\n".join(parts) + "\n"


def _engine(result: Result) -> str:
    if result.measured is None:
        return f" Not measured: {result.failure}."
    return f" ({result.measured.engine})"
