"""Plots, drawn by hand as SVG.

Two kinds are all that is needed, and what a plotting library writes has one theme, is ten times the size and changes
with its release. These are as wide as a phone, take their colours from classes, and so follow the reader's theme in
the page as well as on their own. Marks of ours are filled, those of baselines hollow: colour is never alone.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

from pooldrain_compare.bench.summary import Summary
from pooldrain_compare.reports.figures import at, axis_unit, is_counted, plain, spread
from pooldrain_compare.reports.palette import chart_colours, system_colours

WIDTH = 400
_EDGE = 14
_LOG_FROM = 40.0  # greatest to least, from which an axis is logarithmic
_FONT = 'font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif'
SHAPES = (
    f".chart text{{{_FONT};font-size:12px}}.chart .title{{font-size:15px;font-weight:650}}"
    ".chart .ours{font-weight:650}.value{font-variant-numeric:tabular-nums}.grid,.frame{stroke-width:1;fill:none}"
    ".line,.stem,.range,.dot,.hollow{stroke:currentColor}.dot{fill:currentColor;stroke-width:2}.hollow{stroke-width:2}"
    ".line{fill:none;stroke-width:2.2;stroke-linejoin:round}.dashed{stroke-dasharray:5 3}"
    ".stem{stroke-width:2;opacity:.45}.range{stroke-width:7;stroke-linecap:round;opacity:.35}.whisker{stroke-width:1.5;opacity:.6}"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One system in a chart of single values."""

    system: str
    label: str
    ours: bool
    summary: Summary


@dataclass(frozen=True, slots=True)
class Line:
    """One system over x."""

    system: str
    label: str
    ours: bool
    points: list[tuple[float, Summary]]


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn chart. `alt` says in words what it shows."""

    name: str
    title: str
    alt: str
    height: int
    systems: tuple[str, ...]
    body: str

    @property
    def inline(self) -> str:
        """For the page, which has the style."""
        return self._svg(f'<g aria-hidden="true">{self.body}</g>')

    @property
    def file(self) -> str:
        """For a file of its own, with style and background."""
        (light, dark), (more_light, more_dark) = chart_colours(), system_colours(self.systems)
        style = f"{SHAPES}{light}{more_light}@media(prefers-color-scheme:dark){{{dark}{more_dark}}}"
        frame = f'<rect class="surface frame" x=".5" y=".5" width="{WIDTH - 1}" height="{self.height - 1}" rx="10"/>'
        return self._svg(f"<style>{style}</style>{frame}{self.body}") + "\n"

    def _svg(self, content: str) -> str:
        size = f'width="{WIDTH}" height="{self.height}" viewBox="0 0 {WIDTH} {self.height}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {size} role="img" aria-label="{escape(self.alt)}">'
            f"{content}</svg>"
        )


class _Axis(Protocol):
    def __call__(self, value: float) -> float: ...


@dataclass(frozen=True, slots=True)
class Scale:
    """Values to positions."""

    low: float
    high: float
    logarithmic: bool
    start: float
    end: float
    step: float = 1.0  # between the ticks of one that is not logarithmic

    @classmethod
    def over(cls, summaries: Sequence[Summary], unit: str, start: float, end: float) -> Scale:
        """A scale that shows all of them: from zero, or logarithmic when they are of different magnitude."""
        medians = [each.median for each in summaries]
        high = max(each.greatest for each in summaries)
        least = min(each.least for each in summaries)
        if least > 0 and max(medians) / min(medians) > _LOG_FROM and unit != "1/s":  # rates are compared by eye
            return cls(_floor(least), _ceiling(high), True, start, end)
        step = _step(high) if high > 0 else 1.0
        step = max(step, 1.0) if is_counted(unit) else step
        return cls(0.0, math.ceil(high / step - 1e-9) * step or 1.0, False, start, end, step)

    def __call__(self, value: float) -> float:
        """Where a value is."""
        if self.logarithmic:
            done = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            done = (value - self.low) / (self.high - self.low)
        return self.start + done * (self.end - self.start)

    def ticks(self, size: float) -> list[tuple[float, str]]:
        """Round values along it, and their labels in a unit of this size."""
        if not self.logarithmic:
            places = max(0, -math.floor(math.log10(self.step / size) + 1e-9))
            steps = [index * self.step for index in range(round(self.high / self.step) + 1)]
            return [(tick, f"{tick / size:,.{places}f}" if tick else "0") for tick in steps]
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        every = [1, 2, 5] if math.log10(self.high / self.low) < 3.2 else [1]
        ticks = [factor * 10.0**exponent for exponent in exponents for factor in every]
        shown = [tick for tick in ticks if self.low * 0.999 <= tick <= self.high * 1.001]
        return [(tick, f"{tick / size:,.0f}" if tick >= size else f"{tick / size:g}") for tick in shown]


def ranges(name: str, title: str, about: str, unit: str, rows: Sequence[Row], like: Sequence[Summary] = ()) -> Chart:
    """One row a system: median, least and greatest. `like`: what else has to fit on the axis, to compare charts."""
    scale = Scale.over([*(row.summary for row in rows), *like], unit, _EDGE + 4, WIDTH - _EDGE - 6)
    size, unit_name = axis_unit(scale.high / 10 if scale.logarithmic else scale.high, unit)
    parts, top = _head(title, about)
    bottom = top + 38 * len(rows) + 4
    parts += [
        f'<path class="grid" d="M{scale(tick):.1f} {top}V{bottom}"/>'
        + _text(scale(tick), bottom + 15, label, "muted", anchor="middle")
        for tick, label in scale.ticks(size)
    ]
    for index, row in enumerate(rows):
        y = top + 38 * index + 18
        middle, least, greatest = (
            scale(value) for value in (row.summary.median, row.summary.least, row.summary.greatest)
        )
        mark = "dot" if row.ours else "hollow"
        stem = "" if scale.logarithmic else f'<path class="stem" d="M{scale.start:.1f} {y + 11}H{middle:.1f}"/>'
        parts.append(
            f'<g class="s-{row.system}">{stem}<path class="range" d="M{least:.1f} {y + 11}H{greatest + 0.1:.1f}"/>'
            f'<circle class="{mark}" cx="{middle:.1f}" cy="{y + 11}" r="4.5"/></g>'
        )
        parts.append(_text(_EDGE, y, row.label, "ink ours" if row.ours else "ink"))
        parts.append(_text(WIDTH - _EDGE, y, spread(row.summary, unit), "ink value", anchor="end"))
    parts.append(_text(WIDTH / 2, bottom + 33, _axis_label(unit_name, scale), "muted", anchor="middle"))
    alt = f"{title}, {about}: " + "; ".join(f"{row.label} {spread(row.summary, unit)}" for row in rows)
    return Chart(name, title, alt, bottom + 45, tuple(row.system for row in rows), "".join(parts))


def lines(
    name: str, title: str, about: str, unit: str, x_name: str, drawn: Sequence[Line], like: Sequence[Summary] = ()
) -> Chart:
    """One line a system over x, with whiskers from least to greatest."""
    summaries = [summary for line in drawn for _, summary in line.points]
    parts, top = _head(title, about)
    for index, line in enumerate(drawn):
        parts.append(_key(line, _EDGE + (index % 2) * (WIDTH / 2 - _EDGE + 4), top + 4 + 20 * (index // 2)))
    top += 20 * ((len(drawn) + 1) // 2) + 26
    bottom = top + 200
    scale = Scale.over([*summaries, *like], unit, bottom, top)
    size, unit_name = axis_unit(scale.high / 10 if scale.logarithmic else scale.high, unit)
    labels = scale.ticks(size)
    left = 16 + max(7.5 * len(label) for _, label in labels)
    xs = sorted({x for line in drawn for x, _ in line.points})
    across = Scale(xs[0], xs[-1], xs[0] > 0 and xs[-1] / xs[0] >= 8, left + 8, WIDTH - _EDGE - 10)
    if xs[0] == xs[-1]:
        across = Scale(xs[0] - 1, xs[0] + 1, False, across.start, across.end)
    parts.append(_text(_EDGE, top - 12, _axis_label(unit_name, scale), "muted"))
    for tick, label in labels:
        parts.append(f'<path class="grid" d="M{left:.1f} {scale(tick):.1f}H{WIDTH - _EDGE}"/>')
        parts.append(_text(left - 6, scale(tick) + 4, label, "muted value", anchor="end"))
    end = -math.inf
    for x in xs:
        half = 3.8 * len(plain(x))
        if across(x) - half > end + 6:
            parts.append(_text(across(x), bottom + 17, plain(x), "muted value", anchor="middle"))
            end = across(x) + half
    parts.append(_text((left + WIDTH - _EDGE) / 2, bottom + 35, x_name, "muted", anchor="middle"))
    parts += [_line(line, across, scale) for line in sorted(drawn, key=lambda line: line.ours)]  # ours on top
    alt = f"{title}, {about}: " + "; ".join(_told(line, unit, x_name) for line in drawn)
    return Chart(name, title, alt, bottom + 47, tuple(line.system for line in drawn), "".join(parts))


def _head(title: str, about: str) -> tuple[list[str], int]:
    """Title and subtitle; where they end."""
    parts, y = [], 28
    for each in textwrap.wrap(title, 44):
        parts.append(_text(_EDGE, y, each, "title ink"))
        y += 19
    for each in textwrap.wrap(about, 58):
        parts.append(_text(_EDGE, y, each, "muted"))
        y += 16
    return parts, y + 2


def _text(x: float, y: float, text: str, classes: str, anchor: str = "start") -> str:
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}"{where}>{escape(text)}</text>'


def _key(line: Line, x: float, y: float) -> str:
    mark, dashed = _marks(line)
    return (
        f'<g class="s-{line.system}"><path class="line{dashed}" d="M{x:.1f} {y:.1f}h24"/>'
        f'<circle class="{mark}" cx="{x + 12:.1f}" cy="{y:.1f}" r="3.5"/></g>'
        + _text(x + 30, y + 4, line.label, "ink ours" if line.ours else "ink")
    )


def _line(line: Line, across: _Axis, scale: _Axis) -> str:
    mark, dashed = _marks(line)
    points = [
        (across(x), *(scale(value) for value in (summary.median, summary.least, summary.greatest)))
        for x, summary in line.points
    ]
    path = "L".join(f"{x:.1f} {middle:.1f}" for x, middle, _, _ in points)
    whiskers = "".join(f"M{x:.1f} {least:.1f}V{greatest:.1f}" for x, _, least, greatest in points)
    dots = "".join(f'<circle class="{mark}" cx="{x:.1f}" cy="{middle:.1f}" r="3.5"/>' for x, middle, _, _ in points)
    return (
        f'<g class="s-{line.system}"><path class="line whisker" d="{whiskers}"/>'
        f'<path class="line{dashed}" d="M{path}"/>{dots}</g>'
    )


def _marks(line: Line) -> tuple[str, str]:
    return ("dot", "") if line.ours else ("hollow", " dashed")


def _told(line: Line, unit: str, x_name: str) -> str:
    ends = [line.points[0], line.points[-1]] if len(line.points) > 1 else line.points
    return f"{line.label} " + " to ".join(f"{spread(summary, unit)} at {at(x, x_name)}" for x, summary in ends)


def _axis_label(unit_name: str, scale: Scale) -> str:
    return f"{unit_name}, logarithmic" if scale.logarithmic else unit_name


def _step(high: float) -> float:
    """A round value that goes three to five times into what is `high`."""
    return next(
        factor * 10.0**exponent
        for exponent in range(math.floor(math.log10(high)) - 1, 99)
        for factor in (1, 2, 5)
        if factor * 10.0**exponent * 5 >= high
    )


def _floor(value: float) -> float:
    return max(tick for tick in _round_values(value) if tick <= value)


def _ceiling(value: float) -> float:
    return min(tick for tick in _round_values(value) if tick >= value)


def _round_values(value: float) -> list[float]:
    exponent = math.floor(math.log10(value))
    return [factor * 10.0**each for each in (exponent - 1, exponent, exponent + 1) for factor in (1, 2, 5)]
