"""Tokens per second of every bundle on every device, as bars in one colour a device."""

from __future__ import annotations

from edgevlm.bench import format as show
from edgevlm.bench.fleet import Fleet, side_by_side
from edgevlm.bench.render.labels import FONT
from edgevlm.bench.render.svg import Canvas, shortened, text_width, ticks

_SMALL = 11.5
#: Classes of the devices' colours, in turn.
_COLOURS = ("s2", "s1", "s3", "s4", "s5")


def decode_bars(fleet: Fleet, width: float) -> str:
    """The picture; a row that was not timed is left out."""
    places = {device.name: index for index, device in enumerate(fleet.devices)}
    timed = [
        (device, row, rate)
        for device, row in side_by_side(fleet)
        if row.latency is not None and (rate := row.latency.decode_tokens_per_second) is not None
    ]
    narrow = width < 500
    pitch = 44.0 if narrow else 30.0
    names = [f"{row.name} · {device.name}" for device, row, _ in timed]
    label = 6.0 if narrow else min(300.0, 16 + max((text_width(name, FONT) for name in names), default=0.0))
    top, bottom, right = 10.0, 44.0, 70.0
    canvas = Canvas(width, top + pitch * len(timed) + bottom, "Decode speed by bundle and device, in tokens per second")
    fastest = max((rate for _, _, rate in timed), default=1.0)
    scale = (width - label - right) / fastest
    base = top + pitch * len(timed)
    for tick in ticks(0, fastest, 4 if narrow else 7):
        canvas.line(label + tick * scale, top, label + tick * scale, base + 4, "grid")
        canvas.text(label + tick * scale, base + 18, f"{tick:,g}", "axis", "middle")
    canvas.text(label, base + 36, "tokens per second after the first", "axis")
    for index, ((device, _, rate), name) in enumerate(zip(timed, names, strict=True)):
        y = top + pitch * index + (20 if narrow else 4)
        if narrow:
            canvas.text(label, y - 5, shortened(name, FONT, width), "label")
        else:
            canvas.text(label - 10, y + 15, shortened(name, FONT, label - 14), "label", "end")
        tip = f"{name}: {show.rate(rate)} tokens per second"
        canvas.rect(label, y, rate * scale, 20, _COLOURS[places[device.name] % len(_COLOURS)], tip=tip, data=rate)
        canvas.text(label + rate * scale + 7, y + 15, show.rate(rate), "value")
    return canvas.markup()
