"""Charts as numbers for the templates to draw: paths in a stretched box, ticks and marks in percent. Pure.

A path lives in a box of 1000 x 1000 that the page stretches to whatever width there is; texts and dots stay outside it,
at percentages, so that they are never stretched.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

from api.wording import DAY_S, number

BOX = 1000
#: More points than this cost a phone more than they show.
MOST_POINTS = 300
#: Room above the highest and below the lowest value, as a share of the height.
HEADROOM, FOOTROOM = 0.12, 0.06
#: Neighbours so many times further apart than usual have lost something between them.
GAP_STEPS = 4
CLOCK_STEPS_S = (
    1,
    2,
    5,
    10,
    20,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    14_400,
    21_600,
    43_200,
    86_400,
    172_800,
    432_000,
    864_000,
)

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    label: str
    points: Sequence[Point]
    #: Two points further apart than this are not joined; None: as the chart says.
    gap: float | None = None


@dataclass(frozen=True)
class Tick:
    """A label on an axis, at a share of its length."""

    percent: float
    label: str

    @property
    def anchor(self) -> str:
        """Which end of the text stands there, so that it stays inside."""
        return "start" if self.percent < 5 else "end" if self.percent > 95 else "middle"


@dataclass(frozen=True)
class Mark:
    """A dot, with its text for those who point at it."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    label: str
    path: str
    last: Mark | None


@dataclass(frozen=True)
class Chart:
    """Everything that a template needs to draw one panel."""

    lines: tuple[Line, ...]
    marks: tuple[Mark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    #: Moments that part the chart, with a word for each.
    bounds: tuple[Tick, ...] = ()
    #: The point to look at.
    best: Mark | None = None


Ticker = Callable[[float, float], tuple[Tick, ...]]


def chart(
    series: Iterable[Series],
    *,
    marks: Sequence[Point] = (),
    x_range: Point | None = None,
    y_range: Point | None = None,
    x_ticks: Ticker | None = None,
    y_text: Callable[[float], str] = number,
    gap: float | None = None,
    most: int = MOST_POINTS,
    bounds: Sequence[tuple[float, str]] = (),
    best: Point | None = None,
) -> Chart | None:
    """A chart of these lines over a common range; None when there is nothing to draw.

    `gap`: two points further apart than this are not joined. `most`: so many points of a line are drawn.
    """
    drawn = [Series(one.label, thin(one.points, most), one.gap) for one in series if one.points]
    values = [point for one in drawn for point in one.points] + list(marks)
    if not values:
        return None
    x_low, x_high = x_range or _range([x for x, _ in values])
    low, high = y_range or _range([y for _, y in values])
    levels = nice(low, high, 4)
    low, high = min(low, levels[0]), max(high, levels[-1])

    def at(point: Point) -> Point:
        x = (point[0] - x_low) / (x_high - x_low)
        y = HEADROOM + (1 - (point[1] - low) / (high - low)) * (1 - HEADROOM - FOOTROOM)
        return min(1.0, max(0.0, x)), min(1.0, max(0.0, y))

    def mark(point: Point) -> Mark:
        x, y = at(point)
        return Mark(round(x * 100, 2), round(y * 100, 2), y_text(point[1]))

    lines = tuple(
        Line(
            s.label,
            path([at(p) for p in s.points], _share(gap if s.gap is None else s.gap, x_low, x_high)),
            mark(s.points[-1]),
        )
        for s in drawn
    )
    across = x_ticks(x_low, x_high) if x_ticks else steps(x_low, x_high)
    up = tuple(Tick(mark((x_low, level)).y, y_text(level)) for level in levels if low <= level <= high)
    parts = tuple(_tick(x, x_low, x_high, text) for x, text in bounds if x_low < x < x_high)
    return Chart(lines, tuple(mark(point) for point in marks), across, up, parts, mark(best) if best else None)


def usual_gap(points: Sequence[Point], most: int = MOST_POINTS) -> float | None:
    """How far apart two neighbours are before something is missing between them; None where nobody can tell."""
    if len(points) < 3:
        return None
    distances = sorted(b[0] - a[0] for a, b in pairwise(points))
    usual = GAP_STEPS * distances[len(distances) // 2]
    # a thinned line has its points further apart
    return max(usual, GAP_STEPS * (points[-1][0] - points[0][0]) / (most // 2)) if len(points) > most else usual


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> Sequence[Point]:
    """At most about so many points: the lowest and the highest of each stretch, so that no peak is lost."""
    if len(points) <= most:
        return points
    width = len(points) / (most // 2)
    kept: list[Point] = []
    for bucket in range(most // 2):
        part = points[int(bucket * width) : int((bucket + 1) * width)]
        extremes = {part.index(min(part, key=_y)), part.index(max(part, key=_y))}
        kept += [part[index] for index in sorted(extremes)]
    kept[-1] = points[-1]  # the latest value is shown beside the chart: they must agree
    return kept


def path(points: Sequence[Point], gap: float | None = None) -> str:
    """The `d` of a line through points whose coordinates are shares of the box. Whole numbers: they parse fast."""
    parts: list[str] = []
    before: float | None = None
    for x, y in points:
        joined = before is not None and (gap is None or x - before <= gap)
        parts.append(f"{'L' if joined else 'M'}{round(x * BOX)} {round(y * BOX)}")
        before = x
    if len(parts) == 1:
        parts.append("h1")  # a lone point is drawn as a dot
    return "".join(parts)


def area(line: str, points: Sequence[Point]) -> str:
    """The `d` of what lies under a line without gaps."""
    return f"{line}L{round(points[-1][0] * BOX)} {BOX}L{round(points[0][0] * BOX)} {BOX}Z" if points else ""


def sparkline(points: Sequence[Point], start: float, end: float, *, gap: float) -> tuple[str, str]:
    """Line and area of values between 0 and 1 over this span; pieces that a gap parts stay apart."""
    line, under = [], []
    for piece in _pieces(points, gap):
        shares = [((x - start) / (end - start), 1 - min(1.0, max(0.0, y))) for x, y in piece]
        line.append(path(shares))
        under.append(area(line[-1], shares))
    return "".join(line), "".join(under)


def nice(low: float, high: float, about: int) -> list[float]:
    """Round levels that enclose the range, roughly `about` steps apart."""
    step = _nice_step((high - low) / about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def steps(low: float, high: float) -> tuple[Tick, ...]:
    """Ticks of an axis that counts steps."""
    step = max(1.0, _nice_step((high - low) / 5))
    first, last = math.ceil(low / step), math.floor(high / step)
    return tuple(_tick(index * step, low, high, number(index * step)) for index in range(first, last + 1))


def named_ticks(labels: Sequence[str]) -> Ticker:
    """Ticks of an axis of names, one at each whole number from 0."""

    def ticks(low: float, high: float) -> tuple[Tick, ...]:
        return tuple(_tick(at, low, high, label) for at, label in enumerate(labels))

    return ticks


def clock_ticks(zone: ZoneInfo, now: float, *, most: int = 4) -> Ticker:
    """About so many ticks of an axis of time, at round times of day in the zone."""

    def ticks(low: float, high: float) -> tuple[Tick, ...]:
        step = next((s for s in CLOCK_STEPS_S if (high - low) / s <= most), CLOCK_STEPS_S[-1])
        offset = _utc_offset_s(low, zone)
        first = math.ceil((low + offset) / step) * step - offset
        moments = [first + index * step for index in range(int((high - first) // step) + 1)] if first <= high else []
        return tuple(_tick(m, low, high, _of_day(m, now, zone, step)) for m in moments)

    return ticks


def _of_day(moment: float, now: float, zone: ZoneInfo, step: float) -> str:
    then = datetime.fromtimestamp(moment, zone)
    if step >= DAY_S:
        return f"{then:%a}" if abs(moment - now) < 6 * DAY_S else f"{then.day} {then:%b}"
    return f"{then:%H:%M:%S}" if step < 60 else f"{then:%H:%M}"


def _utc_offset_s(moment: float, zone: ZoneInfo) -> float:
    offset = datetime.fromtimestamp(moment, zone).utcoffset()
    return offset.total_seconds() if offset else 0.0


def _tick(value: float, low: float, high: float, label: str) -> Tick:
    return Tick(round((value - low) / (high - low) * 100, 2), label)


def _range(values: Sequence[float]) -> Point:
    """Lowest and highest, apart from each other even when they are equal."""
    low, high = min(values), max(values)
    if high - low > 1e-12 * max(1.0, abs(high)):
        return low, high
    margin = abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999) * power


def _pieces(points: Sequence[Point], gap: float) -> Iterable[Sequence[Point]]:
    start = 0
    for index in range(1, len(points) + 1):
        if index == len(points) or points[index][0] - points[index - 1][0] > gap:
            yield points[start:index]
            start = index


def _share(gap: float | None, low: float, high: float) -> float | None:
    return None if gap is None else gap / (high - low)


def _y(point: Point) -> float:
    return point[1]
