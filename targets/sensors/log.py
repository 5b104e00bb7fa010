"""Samples the sensors from a process of its own while something else runs here or there.

In: nothing but the machine. Out: what was read of each source, on the system's monotonic clock, which all processes
share. A source that goes away, and a sampling process that crashes or falls silent, end their readings with a reason;
nothing is raised for it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated

from pydantic import Field, TypeAdapter

from edgevlm.child import Json, run_child
from edgevlm.errors import EdgeVLMError
from edgevlm.targets.sensors.base import About, Reading
from edgevlm.targets.sensors.find import Found
from edgevlm.targets.sensors.serve import TARGET, Ended, Message, Opened, Taken

#: Seconds without a message after which the sampling process counts as hung; it sends some every fifth of a second.
_SILENCE_S = 15.0
_POLL_S = 0.02
_MESSAGES: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


@dataclass(frozen=True)
class Track:
    """What was read of one source: instants (seconds, monotonic), readings, and why there are no more of them."""

    about: About
    at_s: tuple[float, ...]
    readings: tuple[Reading, ...]
    ended: str = ""


class _StopListening(Exception):  # noqa: N818 (no error: it ends the child)
    pass


@dataclass
class _Heard:
    at_s: list[float] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    ended: str = ""


class SensorLog:
    """Samples while the `with` block runs.

    Attributes:
        found: what became of each source; complete when the block begins.
    """

    def __init__(self, root: Path = Path("/"), target: str = TARGET) -> None:
        """Sample what stands under `root`; `target` is the function that the sampling process runs."""
        self._root = root
        self._target = target
        self._stop = threading.Event()
        self._opened = threading.Event()
        self._lock = threading.Lock()
        self._heard: dict[str, _Heard] = {}
        self._thread = threading.Thread(target=self._listen, name="sensor-log", daemon=True)
        self.found: tuple[Found, ...] = ()

    def __enter__(self) -> SensorLog:
        self._thread.start()
        self._opened.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def measures_power(self) -> bool:
        """Whether any source that still works reads power or energy."""
        return any(track.about.rails and not track.ended for track in self.tracks())

    def clear(self) -> None:
        """Forget the readings so far."""
        with self._lock:
            for heard in self._heard.values():
                heard.at_s, heard.readings = [], []

    def tracks(self) -> list[Track]:
        """What was read since the beginning or the last `clear`, in the order of `found`."""
        with self._lock:
            return [
                Track(each.about, tuple(heard.at_s), tuple(heard.readings), heard.ended)
                for each in self.found
                if each.about is not None
                for heard in [self._heard[each.name]]
            ]

    def wait_until(self, at_s: float, limit_s: float) -> None:
        """Wait until every source that still works was read after an instant, or `limit_s` seconds."""
        deadline = time.monotonic() + limit_s
        while any(not track.ended and not (track.at_s and track.at_s[-1] > at_s) for track in self.tracks()):
            if self._stop.wait(_POLL_S) or time.monotonic() > deadline:
                return

    def _listen(self) -> None:
        try:
            run_child(self._target, {"root": str(self._root)}, timeout=_SILENCE_S, on_message=self._hear)
        except _StopListening:
            pass
        except EdgeVLMError as error:
            self._fail(error.what)
        finally:
            self._opened.set()

    def _hear(self, raw: Json) -> None:
        if self._stop.is_set():
            raise _StopListening
        message = _MESSAGES.validate_python(raw)
        with self._lock:
            if isinstance(message, Opened):
                self.found = message.found
                self._heard = {each.name: _Heard() for each in message.found if each.about is not None}
                self._opened.set()
            elif isinstance(message, Taken):
                self._heard[message.source].at_s.append(message.at_s)
                self._heard[message.source].readings.append(message.reading)
            elif isinstance(message, Ended):
                self._heard[message.source].ended = message.reason

    def _fail(self, reason: str) -> None:
        """The sampling process itself is gone."""
        with self._lock:
            if not self.found:
                self.found = (Found("sensors", "broken", f"the sampling process failed: {reason}"),)
            for heard in self._heard.values():
                heard.ended = heard.ended or f"the sampling process failed: {reason}"
