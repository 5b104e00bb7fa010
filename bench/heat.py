"""Temperatures, clocks and throttling of a row, and how they went on over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from edgevlm.bench.metered import Clock, Heat, Meter, Series, Throttle
from edgevlm.targets.sensors.base import Reading
from edgevlm.targets.sensors.energy import Curve, Span
from edgevlm.targets.sensors.log import Track

#: A series has no more points than this.
_POINTS = 120


def heat_of(
    tracks: Sequence[Track], begin: float, window: Span, origin_s: float, series: Sequence[Series]
) -> Heat | None:
    """What the sources showed of temperatures and clocks; None where they showed nothing.

    Args:
        tracks: what was read.
        begin: when the first answer began, in seconds of the monotonic clock, like all times here.
        window: the steady answers, from the first to the last.
        origin_s: the worker's start; series count from there.
        series: of power, which come first.
    """
    found = list(series)
    clocks, throttled = [], []
    hottest: tuple[float, float, str] | None = None
    for track in tracks:
        seen = [(at, each) for at, each in zip(track.at_s, track.readings, strict=True) if begin <= at <= window[1]]
        steady = [each for at, each in seen if at >= window[0]]
        for zone, values in _columns(seen, lambda reading: reading.celsius).items():
            found.append(_series(track.about.name, zone, "°C", values, origin_s))
            top = max(value for _, value in values)
            if hottest is None or top > hottest[0]:
                hottest = (top, values[0][1], f"{track.about.name} {zone}")
        for clock, values in _columns(seen, lambda reading: reading.megahertz).items():
            found.append(_series(track.about.name, clock, "MHz", values, origin_s))
            speeds = [value for at, value in values if at >= window[0]]
            if speeds:
                clocks.append(
                    Clock(source=track.about.name, name=clock, median_mhz=median(speeds), min_mhz=min(speeds))
                )
        reasons = sorted({reason for each in steady for reason in each.throttled})
        for reason in reasons:
            share = sum(reason in each.throttled for each in steady) / len(steady)
            throttled.append(Throttle(source=track.about.name, reason=reason, share=share))
    if not found and not throttled:
        return None
    return Heat(
        zone=hottest[2] if hottest else "",
        start_c=hottest[1] if hottest else None,
        max_c=hottest[0] if hottest else None,
        clocks=clocks,
        throttled=throttled,
        series=found,
    )


def power_series(meter: Meter, found: Curve, begin: float, end: float, origin_s: float) -> Series:
    """Mean power of equal stretches between two instants of the monotonic clock, none shorter than two readings."""
    low, high = max(begin, float(found.at_s[0])), min(end, float(found.at_s[-1]))
    count = max(1, min(_POINTS, int((high - low) * found.rate_hz / 2)))
    edges = np.linspace(low, high, count + 1)
    watts = np.diff(np.interp(edges, found.at_s, found.joules)) / np.diff(edges)
    middles = (edges[1:] + edges[:-1]) / 2 - origin_s
    name = " + ".join(meter.rails)
    return Series(source=meter.source, name=name, unit="W", at_s=_rounded(middles), values=_rounded(watts))


def _columns(
    seen: Sequence[tuple[float, Reading]], get: Callable[[Reading], dict[str, float]]
) -> dict[str, list[tuple[float, float]]]:
    """Instants and values by name."""
    found: dict[str, list[tuple[float, float]]] = {}
    for at, reading in seen:
        for name, value in get(reading).items():
            found.setdefault(name, []).append((at, value))
    return found


def _series(source: str, name: str, unit: str, values: Sequence[tuple[float, float]], origin_s: float) -> Series:
    pieces = np.array_split(np.array(values, np.float64), min(_POINTS, len(values)))
    means = np.array([piece.mean(axis=0) for piece in pieces])
    points = {"at_s": _rounded(means[:, 0] - origin_s), "values": _rounded(means[:, 1])}
    return Series.model_validate({"source": source, "name": name, "unit": unit, **points})


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 3) for value in values]
