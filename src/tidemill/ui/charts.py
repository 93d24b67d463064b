"""Charts as inline SVG, without scripts: figures keep their text size at any width, and follow the page's colours.

A plot is an SVG of fixed height and fluid width. Dots, bars and text sit at percentages; lines are paths in an inner
SVG that is stretched while its strokes are not. Every mark has a title that a pointer or a screen reader finds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.ui.format import number, percent
from tidemill.ui.page import Html, join, tag

SCALE = 2000
MAX_DOTS = 800
Point = Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One direction of a plot: the values at its two ends, and where its ticks stand."""

    low: float
    high: float
    label: str = ""
    log: bool = False
    ticks: Sequence[tuple[float, str]] = ()

    def at(self, value: float) -> float:
        """Where `value` lies, as a share of the axis; outside of it, the nearer end."""
        low, high, value = (self._scaled(self.low), self._scaled(self.high), self._scaled(value))
        return 0.5 if high <= low else min(max((value - low) / (high - low), 0.0), 1.0)

    def marked(self) -> Sequence[tuple[float, str]]:
        """The ticks, chosen here where none were given."""
        if self.ticks:
            return self.ticks
        if self.log:
            return [(10.0**power, _power(power)) for power in _powers(self.low, self.high)]
        return [(tick, number(tick)) for tick in nice_ticks(self.low, self.high)]

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log else value


Mark = Callable[[Axis, Axis], Html]


def plot(*marks: Mark, x: Axis, y: Axis, title: str, note: Any = None, legend: Sequence[tuple[str, str]] = (), class_: str = "") -> Html:
    """A figure of marks between two axes.

    Args:
        title: The caption, also what the picture is called for those who do not see it.
        note: A quieter line under the caption.
        legend: Role (a class of the stylesheet) and name of each series; one alone needs none.
    """
    grid = join(
        *(tag("line", class_="grid", x1="0", x2="100%", y1=_down(y.at(value)), y2=_down(y.at(value))) for value, _ in y.marked()),
        tag("line", class_="axis", x1="0", x2="100%", y1="100%", y2="100%"),
    )
    left = max([len(name) for _, name in y.marked()], default=1) * 7 + 12
    texts = join(
        *(tag("text", name, class_="tick y", x="0", dx="-8", y=_down(y.at(value)), dy="4") for value, name in y.marked()),
        *(tag("text", name, class_="tick x", x=_along(x.at(value)), y="100%", dy="18") for value, name in x.marked()),
        tag("text", y.label, class_="label", x="0", y="0", dx=-left, dy="-12") if y.label else None,
        tag("text", x.label, class_="label end", x="100%", y="100%", dy="36") if x.label else None,
    )
    svg = tag("svg", tag("title", title), grid, *(mark(x, y) for mark in marks), texts, role="img", aria_label=title)
    keys = tag("ul", *(tag("li", tag("i", class_=f"key {role}"), name) for role, name in legend), class_="legend") if legend else None
    caption = tag("figcaption", title, tag("span", note) if note else None)
    return tag("figure", caption, keys, tag("div", svg, class_="plot", style=f"--left:{left}px"), class_=f"chart {class_}".strip())


def line(points: Iterable[Point], *, role: str, name: str = "", step: bool = False, area: bool = False) -> Mark:
    """A line through (x, y) points in order; a point that is not finite breaks it."""

    def mark(x: Axis, y: Axis) -> Html:
        runs = _runs(points, x, y)
        if step:
            runs = [_stepped(run) for run in runs]
        path = "".join("M" + "L".join(f"{px} {py}" for px, py in run) for run in runs)
        title = tag("title", name) if name else None
        drawn = tag("path", title, d=path, class_=f"line {role}")
        if area and runs:
            closed = "".join("M" + "L".join(f"{px} {py}" for px, py in run) + f"L{run[-1][0]} {SCALE}L{run[0][0]} {SCALE}z" for run in runs)
            drawn = join(tag("path", d=closed, class_=f"area {role}"), drawn)
        return _stretched(drawn)

    return mark


def dots(points: Iterable[Point], *, role: str, titles: Sequence[str] = (), radius: float = 3.5) -> Mark:
    """A dot at each (x, y); of very many, an even selection."""

    def mark(x: Axis, y: Axis) -> Html:
        named = [(point, titles[i] if i < len(titles) else None) for i, point in enumerate(points) if _finite(point)]
        every = max(1, math.ceil(len(named) / MAX_DOTS))
        return tag(
            "g",
            *(
                tag("circle", tag("title", title) if title else None, cx=_along(x.at(point[0])), cy=_down(y.at(point[1])), r=radius)
                for point, title in named[::every]
            ),
            class_=f"dots {role}",
        )

    return mark


def bars(edges: Sequence[float], heights: Sequence[float], *, role: str, titles: Sequence[str] = ()) -> Mark:
    """Upright bars between neighbouring edges, standing on the x axis."""

    def mark(x: Axis, y: Axis) -> Html:
        drawn = []
        for i, (left, right, height) in enumerate(zip(edges[:-1], edges[1:], heights, strict=False)):
            start, end, top = x.at(left), x.at(right), y.at(height)
            title = tag("title", titles[i]) if i < len(titles) else None
            drawn.append(tag("rect", title, x=_along(start), y=_down(top), width=_along(end - start), height=_along(top)))
        return tag("g", *drawn, class_=f"bars {role}")

    return mark


def rule(*, x: float | None = None, y: float | None = None, role: str, name: str = "") -> Mark:
    """A straight line across the plot at one value."""

    def mark(x_axis: Axis, y_axis: Axis) -> Html:
        title = tag("title", name) if name else None
        if x is not None:
            at = _along(x_axis.at(x))
            return tag("line", title, x1=at, x2=at, y1="0", y2="100%", class_=f"rule {role}")
        at = _down(y_axis.at(y if y is not None else 0))
        return tag("line", title, x1="0", x2="100%", y1=at, y2=at, class_=f"rule {role}")

    return mark


def diagonal(*, role: str = "chance") -> Mark:
    """The line from the lower left end to the upper right one."""
    return lambda x, y: tag("line", x1="0", y1="100%", x2="100%", y2="0", class_=f"rule {role}")


def sparkline(heights: Sequence[float], *, title: str, other: Sequence[float] = ()) -> Html:
    """A small row of bars; `other` is drawn as an outline over them, on the same scale."""
    tallest = max([*heights, *other], default=0) or 1
    width = 100 / max(len(heights), 1)
    blocks = "".join(
        f"M{i * width + width * 0.06:.1f} 24V{24 - 24 * _drawn(height / tallest):.1f}H{(i + 1) * width - width * 0.06:.1f}V24z"
        for i, height in enumerate(heights)
        if height > 0
    )
    tops = [f"{24 - 24 * height / tallest:.1f}" for height in other]
    outline = "L".join(f"{i * width:.1f} {top}L{(i + 1) * width:.1f} {top}" for i, top in enumerate(tops))
    drawn = join(tag("title", title), tag("path", d=blocks), tag("path", d=f"M{outline}", class_="outline") if tops else None)
    class_ = "spark two" if tops else "spark"
    return tag("svg", drawn, class_=class_, viewBox="0 0 100 24", preserveAspectRatio="none", role="img", aria_label=title)


def strip(low: float, high: float, *, band: tuple[float, float] | None, point: float, rules: Sequence[tuple[float, str, str]]) -> Html:
    """A measured value on one line: its interval as a band, itself as a dot, others as (value, role, name) ticks."""
    axis = Axis(low=low, high=high)
    drawn = [tag("line", class_="track", x1="0", x2="100%", y1="50%", y2="50%")]
    for value, role, name in rules:
        at = _along(axis.at(value))
        drawn.append(tag("line", tag("title", name), x1=at, x2=at, y1="8%", y2="92%", class_=f"rule {role}"))
    if band is not None:
        left, right = axis.at(band[0]), axis.at(band[1])
        title = tag("title", f"interval {number(band[0])} to {number(band[1])}")
        drawn.append(
            tag("rect", title, x=_along(left), width=_along(max(right - left, 0.002)), y="30%", height="40%", rx="4", class_="band")
        )
    drawn.append(tag("circle", tag("title", f"measured {number(point)}"), cx=_along(axis.at(point)), cy="50%", r="6", class_="here"))
    ends = tag("p", tag("span", number(low)), tag("span", number(high)), class_="ends")
    name = f"{number(point)} on a line from {number(low)} to {number(high)}"
    return tag("div", tag("svg", tag("title", name), *drawn, role="img", aria_label=name), ends, class_="strip")


def bar(share: float, text: Any = None, *, role: str = "model") -> Html:
    """A lying bar inside a table cell, `share` of the cell's width long, with its value behind it."""
    width = f"--share:{max(0.0, min(share, 1.0)) * 100:.1f}%"
    return tag("span", tag("i", style=width, class_=role), tag("b", text) if text is not None else None, class_="bar")


def pairs(labels: Sequence[str], first: Sequence[float], second: Sequence[float]) -> Html:
    """Two lying bars for each label, on one scale, with their shares."""
    longest = max([*first, *second], default=0) or 1
    parts: list[Html] = []
    for label, before, after in zip(labels, first, second, strict=False):
        drawn = [tag("i", style=f"--share:{100 * share / longest:.1f}%") for share in (before, after)]
        shares = tag("dd", percent(before), " \u2192 ", tag("b", percent(after)), class_="shares")
        parts += [tag("dt", label, title=label), tag("dd", *drawn), shares]
    return tag("dl", *parts, class_="pairs")


def share_axis(highest: float, *, label: str = "share of rows") -> Axis:
    """An upright axis of shares from none to a little over `highest`."""
    high = highest * 1.06 or 1.0
    return Axis(low=0, high=high, label=label, ticks=[(tick, percent(tick)) for tick in nice_ticks(0, high, most=4)])


def spread(values: Iterable[Any], *, room: float = 0.06) -> tuple[float, float]:
    """The ends of an axis that shows every finite value, with some room."""
    known = [float(value) for value in values if _number(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    extra = (high - low) * room or abs(high) * 0.05 or 0.5
    return low - extra, high + extra


def nice_ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """Round numbers inside [low, high], about `most` of them, a step of 1, 2 or 5 apart."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= raw * 0.8)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    ticks = [round(index * step, 12) + 0.0 for index in range(first, last + 1)]
    return [tick for tick in ticks if low - step * 1e-6 <= tick <= high + step * 1e-6] or [low]


def _runs(points: Iterable[Point], x: Axis, y: Axis) -> list[list[tuple[int, int]]]:
    """Unbroken stretches of points on the inner scale, without repeats."""
    runs: list[list[tuple[int, int]]] = [[]]
    for point in points:
        if not _finite(point):
            runs.append([])
            continue
        at = (round(x.at(point[0]) * SCALE), round((1 - y.at(point[1])) * SCALE))
        if not runs[-1] or runs[-1][-1] != at:
            runs[-1].append(at)
    return [run for run in runs if run]


def _stepped(run: list[tuple[int, int]]) -> list[tuple[int, int]]:
    made = run[:1]
    for px, py in run[1:]:
        made += [(px, made[-1][1]), (px, py)]
    return made


def _stretched(drawn: Html) -> Html:
    return tag("svg", drawn, viewBox=f"0 0 {SCALE} {SCALE}", preserveAspectRatio="none", width="100%", height="100%", x="0", y="0")


def _powers(low: float, high: float) -> list[int]:
    return list(range(math.ceil(math.log10(max(low, 1e-300)) - 1e-9), math.floor(math.log10(max(high, 1e-300)) + 1e-9) + 1))


def _power(power: int) -> str:
    return number(10.0**power) if -4 < power < 6 else f"1e{power}"


def _drawn(share: float) -> float:
    return max(share, 0.04)


def _along(share: float) -> str:
    return f"{share * 100:.2f}%"


def _down(share: float) -> str:
    return f"{(1 - share) * 100:.2f}%"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _finite(point: Point) -> bool:
    return _number(point[0]) and _number(point[1])
