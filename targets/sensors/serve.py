"""The sampling process: a thread for each source looks at its own pace, and everything seen goes to the parent.

Sensors run in a process of their own, as NVML and its like are native code in somebody else's hands: whatever happens
to them costs a reading, not the run. Only the standard library is imported, so that the process is small and quick.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from edgevlm.child import Json, Send
from edgevlm.targets.sensors.base import Reading, SensorError, Source
from edgevlm.targets.sensors.find import Found, open_sources

#: What the parent runs.
TARGET = "edgevlm.targets.sensors.serve:serve"
#: At least so often something is sent, so that the parent can stop listening.
BEAT_S = 0.2


@dataclass(frozen=True)
class Opened:
    """The first message: which sources there are."""

    found: tuple[Found, ...]
    kind: Literal["opened"] = "opened"


@dataclass(frozen=True)
class Taken:
    """One look at a source, in the middle of which the system's monotonic clock stood at `at_s`."""

    source: str
    at_s: float
    reading: Reading
    kind: Literal["taken"] = "taken"


@dataclass(frozen=True)
class Ended:
    """A source that gives no more readings, and why."""

    source: str
    reason: str
    kind: Literal["ended"] = "ended"


@dataclass(frozen=True)
class Beat:
    """Nothing new."""

    kind: Literal["beat"] = "beat"


Message = Opened | Taken | Ended | Beat


def serve(send: Send, root: str) -> Json:
    """Entry point of the child: sample until every source has ended, or the parent stops listening.

    Args:
        send: to the parent.
        root: where /sys is looked for.
    """
    sources, found = open_sources(Path(root))
    send(asdict(Opened(tuple(found))))
    messages: queue.Queue[Message] = queue.Queue()
    for source in sources:
        threading.Thread(target=follow, args=(source, messages), name=source.about.name, daemon=True).start()
    left = len(sources)
    while left:
        try:
            message = messages.get(timeout=BEAT_S)
        except queue.Empty:
            message = Beat()
        left -= isinstance(message, Ended)
        send(asdict(message))


def follow(source: Source, messages: queue.Queue[Message]) -> None:
    """Look at `source` at its interval until it fails; put each reading, and in the end the reason, into `messages`."""
    name, interval = source.about.name, source.about.interval_s
    due = time.monotonic()
    try:
        while True:
            start = time.monotonic()
            reading = source.sample()
            # A source that makes one wait hands out what it has just measured.
            at = (start + time.monotonic()) / 2 if interval else time.monotonic()
            messages.put(Taken(name, at, reading))
            due = max(due + interval, start)
            time.sleep(max(0.0, due - time.monotonic()))
    except SensorError as error:
        messages.put(Ended(name, error.what))
    except Exception as error:
        messages.put(Ended(name, f"{type(error).__name__}: {error}"))
