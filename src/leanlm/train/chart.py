"""Line charts as SVG text: axes with round numbers, series as lines or points, error bars, names. Needs nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDE, NARROW = (720, 440), (400, 310)  # pixels; the second can be read on a telephone
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 50
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # told apart by the colour-blind
POINTS = 1000  # of a line at most: more are not seen
BARE_TOP = 12  # without a title
TICKS = 6
MARGIN = 0.06  # of the range, beyond the outermost points
TINY = 1e-100  # what is less is nothing


@dataclass(frozen=True)
class Series:
    """Points, in the order of x; `errors` are half the lengths of their bars, `labels` stand beside them. What is not finite is
    left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    errors: Sequence[float] = ()
    style: Literal["line", "points", "dashed", "both"] = "line"
    labels: Sequence[str] = ()

    def points(self, log_x: bool, log_y: bool) -> list[tuple[float, float, float, str]]:
        errors = self.errors or [0.0] * len(self.x)
        numbers = zip(*([0.0 if abs(v) < TINY else v for v in side] for side in (self.x, self.y, errors)), strict=True)
        named = zip(numbers, self.labels or [""] * len(self.x), strict=True)
        found = [
            (x, y, e, label)
            for (x, y, e), label in named
            if math.isfinite(x + y + e) and (x > 0 or not log_x) and (y > 0 or not log_y)
        ]
        return found[:: -(-len(found) // POINTS)] if len(found) > POINTS else found


@dataclass(frozen=True)
class Axis:
    """Values low .. high to pixels from .. to."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the axis."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if len(powers) >= TICKS else (1, 2, 5) if self.high > 6 * self.low else range(1, 10)
            found = [m * 10.0**p for p in powers for m in steps]
        else:
            rough = (self.high - self.low) / TICKS
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
            first = math.ceil(self.low / step - 1e-9)
            found = [(first + i) * step for i in range(2 * TICKS)]
        slack = 1e-9 * abs(self.high)
        return [v for v in found if self.low - slack <= v <= self.high + slack]


def svg(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    size: tuple[int, int] = WIDE,
    names: bool = True,
) -> str:
    """The chart as the text of an .svg file; a chart without points says so. Without `names` the series are not named in it:
    series n has the colour COLOURS[n], counted round."""
    width, height = size
    top = TOP if title else BARE_TOP
    drawn = [(s, s.points(log_x, log_y)) for s in series]
    points = [point for _, found in drawn for point in found]
    parts = [_text(width / 2, TOP / 2, title, size=16)] if title else []
    if points:
        x_axis = _axis([x for x, *_ in points], LEFT, width - RIGHT, log_x)
        y_axis = _axis([v for _, y, e, _ in points for v in (y - e, y + e)], height - BOTTOM, top, log_y)
        parts += _frame(x_axis, y_axis, x_label, y_label)
        for number, (one, found) in enumerate(drawn):
            colour = COLOURS[number % len(COLOURS)]
            parts += _series(one, found, x_axis, y_axis, colour)
            parts += _key(one, x_axis.end, colour, number) if names else []
    else:
        parts.append(_text(width / 2, height / 2, "nothing to show yet"))
    font = 'font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {font}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def _axis(values: list[float], start: float, end: float, log: bool) -> Axis:
    low, high = min(values), max(values)
    if log:
        low = low if low > 0 else min(v for v in values if v > 0)
        margin = max(1.1, (high / low) ** MARGIN)
        return Axis(low / margin, high * margin, start, end, log)
    margin = MARGIN * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - margin, high + margin, start, end, log)


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> list[str]:
    left, right, top, bottom = x_axis.start, x_axis.end, y_axis.end, y_axis.start
    parts = []
    for value in x_axis.ticks():
        at = x_axis(value)
        parts += [_line(at, top, at, bottom), _text(at, bottom + 18, number(value))]
    for value in y_axis.ticks():
        at = y_axis(value)
        parts += [_line(left, at, right, at), _text(left - 8, at + 4, number(value), anchor="end")]
    box = f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"'
    parts.append(f'{box} fill="none" stroke="#444"/>')
    turned = f'<text transform="translate(16 {(top + bottom) / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    return [*parts, _text((left + right) / 2, bottom + 40, x_label), turned]


def _series(one: Series, points: list, x_axis: Axis, y_axis: Axis, colour: str) -> list[str]:
    at = [(x_axis(x), y_axis(y)) for x, y, *_ in points]
    parts = []
    if one.style in ("points", "both"):
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in at]
    if one.style != "points" and at:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        dashes = ' stroke-dasharray="6 4"' if one.style == "dashed" else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>')
    for place, ((x, y), (_, value, error, label)) in enumerate(zip(at, points)):
        if error and (value - error > 0 or not y_axis.log):
            parts.append(_line(x, y_axis(value - error), x, y_axis(value + error), colour))
        if label:
            near_end = x > (x_axis.start + x_axis.end) / 2
            beside = x - 7 if near_end else x + 7
            parts.append(_text(beside, y + (16 if place % 2 else -6), label, anchor="end" if near_end else "start"))
    return parts


def _key(one: Series, right: float, colour: str, place: int) -> list[str]:
    y = TOP + 18 + 16 * place
    return [_line(right - 30, y - 4, right - 10, y - 4, colour), _text(right - 36, y, one.name, anchor="end")]


def number(value: float) -> str:
    """1500000 -> "1.5M", 0.0003 -> "3e-4"."""
    if value == 0:
        return "0"
    for power, unit in ((9, "B"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.3g}{unit}"
    if abs(value) < 0.01:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.3g}"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#ddd") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
