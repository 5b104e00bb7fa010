"""Energy, heat and clocks of a row: what the sensors showed while the worker answered.

In: the log of a sampling process that runs through the whole sweep, and the worker's samples with their times. Out: the
parts of the row. Idle power is measured once, before the first worker, with the sampling process running, so that what
sampling costs is part of it. Energy is that of the answers alone: making the next image is left out.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from edgevlm.bench.heat import heat_of, power_series
from edgevlm.bench.job import Phase
from edgevlm.bench.measured import Measured
from edgevlm.bench.metered import Energy, Heat, Joules, Meter, Sensor, no_power
from edgevlm.bench.report import Flag
from edgevlm.targets.sensors.base import About
from edgevlm.targets.sensors.energy import Curve, Span, curve
from edgevlm.targets.sensors.log import SensorLog, Track

#: Shorter or coarser measurements get a flag.
MIN_SECONDS = 5.0
MIN_STEPS = 20
#: How long the reading after the last answer is waited for.
_LAST_READING_S = 2.0


@dataclass(frozen=True)
class Observed:
    """What sensors add to a row."""

    energy: Energy
    heat: Heat | None
    flags: list[Flag]


@dataclass(frozen=True)
class _Answer:
    """When an answer began, showed its first text, and ended, in seconds of the monotonic clock; its later tokens."""

    start: float
    first: float
    end: float
    tokens: int


class Metering:
    """The sensors of one sweep."""

    def __init__(self, log: SensorLog, idle_s: float) -> None:
        """Use a running `log`; measure idle power for `idle_s` seconds, or not at all if that is 0."""
        self._log = log
        self._idle_s = idle_s
        self._idle: dict[tuple[str, tuple[str, ...]], float] = {}
        self._rested = False

    def sensors(self) -> list[Sensor]:
        """Which sources there are."""
        return [
            Sensor(
                name=each.name,
                state=each.state,
                detail=each.reason if each.about is None else each.about.covers or "temperatures and clocks",
                power=each.about is not None and bool(each.about.rails),
            )
            for each in self._log.found
        ]

    def begin(self) -> None:
        """The next worker is about to start; before the first one, idle power is measured."""
        if not self._rested and self._idle_s and self._log.measures_power:
            self._log.clear()
            threading.Event().wait(self._idle_s)
            for track in self._log.tracks():
                for rails in rails_of(track.about):
                    found = curve(track, rails)
                    if found is not None:
                        self._idle[track.about.name, rails] = found.mean_w
        self._rested = True
        self._log.clear()

    def observe(self, measured: Measured) -> Observed:
        """What was seen since `begin`, while the worker answered."""
        answers = _answers(measured, "steady")
        if not answers:
            return Observed(Energy(meters=[], reason="nothing was timed"), None, _lost(self._log.tracks()))
        begin, end = (_answers(measured, "cold") or answers)[0].start, answers[-1].end
        self._log.wait_until(end, _LAST_READING_S)
        tracks = self._log.tracks()
        meters, series = [], []
        for track in tracks:
            for rails in rails_of(track.about):
                found = curve(track, rails)
                meter = None if found is None else self._meter(track.about, rails, found, answers)
                if found is not None and meter is not None:
                    meters.append(meter)
                    series.append(power_series(meter, found, begin, end, measured.origin_s))
        heat = heat_of(tracks, begin, (answers[0].start, end), measured.origin_s, series)
        energy = Energy(meters=meters, reason="" if meters else self._why_none(tracks))
        return Observed(energy, heat, [*_lost(tracks), *_short(meters), *_throttled(heat)])

    def _meter(self, about: About, rails: tuple[str, ...], found: Curve, answers: Sequence[_Answer]) -> Meter | None:
        """The energy of the answers that were measured from beginning to end; None if there are none."""
        held = [answer for answer in answers if found.holds((answer.start, answer.end))]
        if not held:
            return None
        idle = self._idle.get((about.name, rails))
        whole: list[Span] = [(answer.start, answer.end) for answer in held]
        seconds = _length(whole)
        gross = found.within(whole)
        image: list[Span] = [(answer.start, answer.first) for answer in held]
        token: list[Span] = [(answer.first, answer.end) for answer in held]
        shortest = min(median(end - start for start, end in spans) for spans in (image, token))
        apart = shortest * found.rate_hz >= 2
        tokens = sum(answer.tokens for answer in held)
        return Meter(
            source=about.name,
            rails=list(rails),
            covers=about.covers,
            method=found.method,
            rate_hz=found.rate_hz,
            answers=len(held),
            seconds=seconds,
            mean_w=gross / seconds,
            idle_w=idle,
            per_answer=_joules(found, whole, idle, len(held)),
            per_image=_joules(found, image, idle, len(held)) if apart else None,
            per_token=_joules(found, token, idle, tokens) if apart and tokens else None,
        )

    def _why_none(self, tracks: Sequence[Track]) -> str:
        """Why a row has no energy."""
        broken = [f"{track.about.name}: {track.ended}" for track in tracks if track.about.rails and track.ended]
        if broken:
            return "; ".join(broken)
        silent = [track.about.name for track in tracks if track.about.rails]
        if silent:
            return f"{', '.join(silent)} showed no power while it answered"
        return no_power(self.sensors())


def rails_of(about: About) -> list[tuple[str, ...]]:
    """What is metered together: the total, or each rail alone where no rule adds them up."""
    return [about.total] if about.total else [(rail,) for rail in about.rails]


def _answers(measured: Measured, phase: Phase) -> list[_Answer]:
    found = []
    for sample in measured.samples.of(phase):
        if sample.at_s is not None:
            start = measured.origin_s + sample.at_s
            end = start + sample.wall_ms / 1e3
            found.append(_Answer(start, max(start, end - sum(sample.gaps_ms) / 1e3), end, len(sample.gaps_ms)))
    return found


def _lost(tracks: Sequence[Track]) -> list[Flag]:
    return [
        Flag(code="sensor-lost", text=f"{track.about.name} gives no more readings: {track.ended}")
        for track in tracks
        if track.ended
    ]


def _short(meters: Sequence[Meter]) -> list[Flag]:
    if not meters or (meters[0].seconds >= MIN_SECONDS and meters[0].seconds * meters[0].rate_hz >= MIN_STEPS):
        return []
    text = f"energy rests on {meters[0].seconds:.1f} s of answers and {meters[0].rate_hz:.3g} values a second"
    return [Flag(code="short-energy", text=f"{text}: give a longer --min-time")]


def _throttled(heat: Heat | None) -> list[Flag]:
    return [
        Flag(code="throttled", text=f"{each.source}: {each.reason} in {each.share:.0%} of the readings")
        for each in (heat.throttled if heat else [])
    ]


def _length(spans: Sequence[Span]) -> float:
    return sum(end - start for start, end in spans)


def _joules(found: Curve, spans: Sequence[Span], idle_w: float | None, count: int) -> Joules:
    gross = found.within(spans)
    net = None if idle_w is None else (gross - idle_w * _length(spans)) / count
    return Joules(gross=gross / count, net=net)
