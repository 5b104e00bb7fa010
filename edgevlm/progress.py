"""The one progress display: long work reports (done, total, what), people see how far it is and how long it will take.

On a terminal it is a live bar on standard error; anywhere else it is a plain line now and then, and nothing at all for
work that is over quickly, so that logs stay short.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO, TypeAlias

#: `report(done, total, what)`: units of work done and in all (any unit), and what is being done now.
Report: TypeAlias = Callable[[float, float, str], None]

_SECONDS_BETWEEN_LINES = 20.0


@contextlib.contextmanager
def show_progress(title: str, stream: TextIO | None = None) -> Iterator[Report]:
    """Yield the function that long work calls as it goes on.

    Args:
        title: what the whole work is, e.g. `export`.
        stream: where to show it; standard error if None.
    """
    target = sys.stderr if stream is None else stream
    if target.isatty():
        with _live_bar(title, target) as report:
            yield report
    else:
        yield sparse_lines(title, target)


def duration(seconds: float) -> str:
    """Seconds as people read them: `45 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def sparse_lines(title: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> Report:
    """A report function that writes a line at most every 20 seconds, the first one after 20 seconds."""
    start = last = clock()

    def report(done: float, total: float, what: str) -> None:
        nonlocal last
        now = clock()
        if now - last < _SECONDS_BETWEEN_LINES:
            return
        last = now
        share = min(1.0, done / total) if total > 0 else 0.0
        left = f", about {duration((now - start) * (1 / share - 1))} left" if share > 0 else ""
        stream.write(f"{title}: {share:4.0%} {what} ({duration(now - start)}{left})\n")
        stream.flush()

    return report


def part_of(report: Report, start: float, end: float) -> Report:
    """Reports of one part of the work as a share of the whole, from `start` to `end`."""

    def inner(done: float, total: float, what: str) -> None:
        report(start + (end - start) * (done / total if total else 1), 1, what)

    return inner


@contextlib.contextmanager
def _live_bar(title: str, stream: TextIO) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.fields[title]}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(file=stream), transient=True) as display:
        task = display.add_task("", total=None, title=title)

        def report(done: float, total: float, what: str) -> None:
            display.update(task, completed=done, total=total, description=what)

        yield report
