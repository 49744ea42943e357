"""Numbers as people read them: a median with its least and greatest, in a unit of a fitting size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pooldrain_compare.bench.summary import Summary

_SYMBOLS = {"us": "µs", "1/s": "/s"}
_LARGER = {"us": ("ms", 1000.0), "ms": ("s", 1000.0), "bytes": ("kB", 1000.0), "kB": ("MB", 1000.0)}
_AXES = {"us": "microseconds", "ms": "milliseconds", "s": "seconds", "1/s": "requests per second", "MB": "megabytes"}
_WHOLE = ("requests", "connections", "comparisons")  # counted, not measured


def apart(one: Summary, other: Summary) -> bool:
    """Whether the two can be told apart: neither's median is within the other's range."""
    return not (other.least <= one.median <= other.greatest or one.least <= other.median <= one.greatest)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with the text it is printed as."""

    text: str
    value: float

    def __str__(self) -> str:
        return self.text


def plain(value: float) -> str:
    """Two significant digits at least, none behind the point from 10 on: 0.042, 6.1, 65, 1,240."""
    size = abs(value)
    if value == int(value) or size >= 9.95:
        return f"{value:,.0f}"
    places = 1 if size >= 0.995 else 2 if size >= 0.0995 else 3
    return f"{value:,.{places}f}"


def quantity(value: float, unit: str) -> Figure:
    """`6.1 ms`, `1.2 s`, `12,300/s`, `29`: what is counted needs no unit."""
    size, symbol = _scale(abs(value), unit)
    return Figure(_with_unit(plain(value / size), symbol), value)


def added(value: float, unit: str) -> Figure:
    """`+2.43 µs`: what something costs more, to a digit more than others."""
    size, symbol = _scale(abs(value), unit)
    places = sum(abs(value / size) < limit for limit in (10, 100))
    return Figure(_with_unit(f"{value / size:+,.{places}f}", symbol), value)


def share(value: float) -> Figure:
    """`98 %`."""
    return Figure(f"{plain(round(value * 100, 1))} %", value)


def times(value: float) -> Figure:
    """A ratio: 0.42, 1.03, 9.3, 58."""
    if math.isinf(value):
        return Figure("infinitely many", value)
    return Figure(f"{value:.2f}" if value < 1.995 else plain(value), value)


def number(value: float) -> Figure:
    """A bare number."""
    return Figure(plain(value), value)


def at(x: float, x_name: str | None) -> str:
    """`1 client`, `16 clients`, `pool size 400`: what is counted comes behind its number."""
    noun, _, rest = (x_name or "").partition(" ")
    if not noun.endswith("s"):
        return f"{x_name or ''} {plain(x)}".strip()
    if x == 1:
        noun = f"{noun[:-3]}y" if noun.endswith("ies") else noun[:-1]
    return f"{plain(x)} {noun} {rest}".rstrip()


def spread(summary: Summary, unit: str) -> str:
    """`65 ms (61–70)`, in one unit."""
    size, symbol = _scale(abs(summary.median), unit)
    middle = _with_unit(plain(summary.median / size), symbol)
    if summary.least == summary.greatest:
        return middle
    return f"{middle} ({bounds(summary, size)})"


def bounds(summary: Summary, size: float = 1.0) -> str:
    """`61–70`."""
    return f"{plain(summary.least / size)}–{plain(summary.greatest / size)}"


def between(least: float, greatest: float, unit: str) -> Figure:
    """`6.1–8.4 ms`, or one of them when they read alike."""
    size, symbol = _scale(abs(greatest), unit)
    texts = dict.fromkeys((plain(least / size), plain(greatest / size)))
    return Figure(_with_unit("–".join(texts), symbol), greatest)


def axis_unit(greatest: float, unit: str) -> tuple[float, str]:
    """By what an axis that ends there divides its values, and what it is labelled with."""
    size, symbol = _scale(greatest, unit)
    name = next((name for name, known in _SYMBOLS.items() if known == symbol), symbol)
    return size, _AXES.get(name, name)


def is_counted(unit: str) -> bool:
    """Whether there are only whole ones."""
    return unit in _WHOLE


def _scale(size: float, unit: str) -> tuple[float, str]:
    divisor = 1.0
    while unit in _LARGER and size / divisor >= 1000.0:
        unit, factor = _LARGER[unit]
        divisor *= factor
    return divisor, _SYMBOLS.get(unit, unit)


def _with_unit(text: str, symbol: str) -> str:
    if symbol in _WHOLE:
        return text
    return text + symbol if symbol.startswith("/") else f"{text} {symbol}"
