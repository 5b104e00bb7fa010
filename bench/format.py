"""Numbers as people read them: one way to write a time, a size, a share or an interval in every rendering."""

from __future__ import annotations

from edgevlm.bench.pairs import Interval, Proportion
from edgevlm.bench.report import Figure
from edgevlm.bench.stats import Percentile

NONE = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_TO = "\N{EN DASH}"


def milliseconds(value: float | None) -> str:
    """`4.21 ms`, `87.3 ms`, `1,840 ms`: three digits that count."""
    return NONE if value is None else f"{three_digits(value)} ms"


def added_time(value: float | None) -> str:
    """A difference of two times: `+0.05 ms`, `−1.20 ms`; hundredths below ten."""
    if value is None:
        return NONE
    sign = _MINUS if value < 0 and float(three_digits(-value)) else "+"
    return f"{sign}{three_digits(abs(value))} ms"


def three_digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def joules(value: float | None) -> str:
    """An energy: `42.1 mJ`, `1.84 J`, `−0.02 J`; n/a where it could not be told."""
    if value is None:
        return "n/a"
    sign = _MINUS if value < 0 else ""
    size = abs(value)
    return f"{sign}{three_digits(1e3 * size)} mJ" if size < 1 else f"{sign}{three_digits(size)} J"


def megabytes(value: int | None) -> str:
    """Bytes in units of 10^6: `8.31 MB`, `712 MB`."""
    return NONE if value is None else f"{three_digits(value / 1e6)} MB"


def bits(value: float | None) -> str:
    """Bits per weight."""
    return NONE if value is None else f"{value:.2f}"


def rate(value: float | None) -> str:
    """Tokens per second."""
    return NONE if value is None else f"{three_digits(value)}"


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal."""
    return NONE if value is None else f"{100 * value:.1f}%"


def interval_of(share: Proportion) -> str:
    """The ends of a share's interval, `89.1-93.4%` with an en dash."""
    if share.low is None or share.high is None:
        return NONE
    return f"{100 * share.low:.1f}{_TO}{100 * share.high:.1f}%"


def points(value: float) -> str:
    """A difference of two shares in points, with a real minus sign."""
    text = f"{100 * value:+.1f}"
    if float(text) == 0:
        text = "0.0"
    return text.replace("-", _MINUS)


def margin(value: float) -> str:
    """A margin of accuracy, as a share: `2 points`."""
    amount = 100 * value
    return f"{amount:g} point{'s' * (amount != 1)}"


def change(value: float) -> str:
    """A change as a share of the old value, in percent: `+5.3%`, `−12%`."""
    digits = 1 if abs(value) < 0.0995 else 0
    text = f"{100 * value:+,.{digits}f}"
    return ("0.0" if float(text.replace(",", "")) == 0 else text).replace("-", _MINUS) + "%"


def change_interval(value: Interval) -> str:
    """The ends of a change's interval, `+1.2% to +5.0%`."""
    return f"{change(value.low)} to {change(value.high)}"


def points_interval(delta: Interval) -> str:
    """The ends of a difference's interval, `−1.9 to +0.6`."""
    return f"{points(delta.low)} to {points(delta.high)}"


def span(value: Percentile) -> str:
    """The ends of a percentile's interval."""
    return f"{three_digits(value.low)}{_TO}{three_digits(value.high)}"


def p_value(value: float) -> str:
    """A p-value; tiny ones as a bound."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def figure(value: Figure) -> str:
    """A benchmark's own figure: a share as a percentage, a score with what it is out of."""
    if value.value is None:
        return NONE
    return percent(value.value) if value.out_of == 1 else f"{value.value:,.1f} of {value.out_of:,.0f}"
