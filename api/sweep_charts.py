"""A sweep's result as pictures: its jobs by their point with seeds taken together, a table of two axes in colours, and all axes
beside each other. Pure."""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from api.comparison import compare_link
from api.svg import BOX
from api.sweep_panel import point_words
from api.wording import number, words
from daemon.sweep_table import Row, Table
from jobs.model import State

#: More values than this make no table that one can read.
MOST_VALUES = 12
#: A table with fewer of its cells filled shows holes, not a surface.
FILLED = 0.5
#: Steps of colour, the last one for the best.
LEVELS = 6
#: Lines that can still be told apart.
MOST_LINES = 120
#: Numbers that span more than this ratio stand on a logarithmic axis.
LOG_RATIO = 30.0


@dataclass(frozen=True)
class Group:
    """Jobs that differ in their seed alone: the mean of their values, and the spread (the sample's standard deviation)."""

    point: Mapping[str, Any]
    rows: Sequence[Row]
    values: Sequence[float]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def text(self) -> str:
        return number(float(f"{self.mean:.5g}")) if self.mean is not None else ""

    @property
    def spread_text(self) -> str:
        return f"± {self.spread:.2g}" if self.spread is not None else ""

    @property
    def words(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in point_words(self.point)) or "all the same"

    @property
    def address(self) -> str:
        ids = [row.job.id for row in self.rows]
        return f"/jobs/{ids[0]}" if len(ids) == 1 else compare_link(ids)


@dataclass(frozen=True)
class Cell:
    """One cell of the table: a group, how good it is from 0 to LEVELS, or why there is no number."""

    group: Group | None
    level: int | None
    note: str = ""
    is_best: bool = False


@dataclass(frozen=True)
class Heat:
    """Two axes: values of the one across, of the other down."""

    across: str
    down: str
    columns: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class Axis:
    """One axis of the parallel view, at a share of the width, with the words at its marks."""

    name: str
    percent: float
    ticks: Sequence[tuple[float, str]]
    is_goal: bool = False
    #: Whether its name stands in the lower of the two lines, so that neighbours do not overlap.
    is_low: bool = False

    @property
    def anchor(self) -> str:
        return "start" if self.percent < 5 else "end" if self.percent > 95 else "middle"


@dataclass(frozen=True)
class Track:
    """One group's line through all axes."""

    path: str
    level: int
    title: str


@dataclass(frozen=True)
class Parallel:
    """All axes beside each other, the metric last; the best line is drawn last."""

    axes: Sequence[Axis]
    tracks: Sequence[Track]
    alt: str


@dataclass(frozen=True)
class Picture:
    """Everything that the page draws of a sweep."""

    groups: Sequence[Group]
    best: Group | None
    has_seeds: bool
    heat: Heat | None
    parallel: Parallel | None
    #: The best jobs, one of each point, beside the one that they are measured by; empty when there are no two.
    comparison: str = ""


def picture(table: Table) -> Picture:
    """The pictures that a table allows."""
    found = groups(table)
    best = found[0] if found and found[0].values else None
    axes = [axis for axis in table.sweep.axes if not is_seed(axis)]
    has_seeds = len(axes) < len(table.sweep.axes) and any(len(group.rows) > 1 for group in found)
    return Picture(
        groups=found,
        best=best,
        has_seeds=has_seeds,
        heat=_heat(table, axes, found, best) if len(axes) == 2 else None,
        parallel=_parallel(table, axes, found, best) if axes else None,
        comparison=_comparison(table, found),
    )


def _comparison(table: Table, found: Sequence[Group]) -> str:
    ids = [table.baseline.job.id] if table.baseline else []
    ids = list(dict.fromkeys([*ids, *(group.rows[0].job.id for group in found if group.values)]))
    return compare_link(ids) if len(ids) > 1 else ""


def is_seed(axis: str) -> bool:
    """Whether an axis repeats the same point with other random numbers."""
    return axis.rpartition(".")[2].lower() == "seed"


def groups(table: Table) -> list[Group]:
    """The table's jobs by their point without seeds, the best mean first. Only jobs that succeeded have a say."""
    rows: dict[str, list[Row]] = {}
    for row in table.rows:
        rows.setdefault(_key(row.job.point), []).append(row)
    made = [
        Group(
            {name: value for name, value in of_point[0].job.point.items() if not is_seed(name)},
            of_point,
            [row.value for row in of_point if row.value is not None and row.job.state is State.SUCCEEDED],
        )
        for of_point in rows.values()
    ]
    return sorted(
        made, key=lambda group: (group.mean is None, 0.0 if group.mean is None else table.goal.key(group.mean))
    )


# -- two axes -----------------------------------------------------------------------------------------------------------------


def _heat(table: Table, axes: Sequence[str], found: Sequence[Group], best: Group | None) -> Heat | None:
    values = {axis: _in_order([group.point[axis] for group in found if axis in group.point]) for axis in axes}
    across, down = sorted(axes, key=lambda axis: len(values[axis]))
    cells = {(_word(g.point.get(across)), _word(g.point.get(down))): g for g in found}
    size = len(values[across]) * len(values[down])
    if not size or max(map(len, values.values())) > MOST_VALUES or len(cells) < FILLED * size:
        return None
    level = _levels(table, found)

    def cell(x: Any, y: Any) -> Cell:
        group = cells.get((_word(x), _word(y)))
        if group is None:
            return Cell(None, None)
        note = "" if group.values else _fate(group)
        return Cell(group, level(group.mean) if group.mean is not None else None, note, group is best)

    lines = [(_axis_text(y), [cell(x, y) for x in values[across]]) for y in values[down]]
    return Heat(across, down, [_axis_text(x) for x in values[across]], lines)


def _fate(group: Group) -> str:
    states = [row.job.state for row in group.rows]
    for state, word in ((State.RUNNING, "running"), (State.QUEUED, "waiting"), (State.FAILED, "failed")):
        if state in states:
            return word
    return "stopped early" if any(row.stopped_early for row in group.rows) else "no number"


def _levels(table: Table, found: Sequence[Group]) -> Callable[[float], int]:
    """How good a value is among all: by its place between the worst and the best; outliers do not eat the scale."""
    keys = sorted(table.goal.key(group.mean) for group in found if group.mean is not None)
    low, high = keys[0] if keys else 0.0, keys[min(len(keys) - 1, math.ceil(len(keys) * 0.9))] if keys else 0.0

    def level(value: float) -> int:
        if high <= low:
            return LEVELS
        share = (table.goal.key(value) - low) / (high - low)
        return round(LEVELS * (1 - min(1.0, max(0.0, share))))

    return level


# -- all axes -----------------------------------------------------------------------------------------------------------------


def _parallel(table: Table, axes: Sequence[str], found: Sequence[Group], best: Group | None) -> Parallel | None:
    drawn = [group for group in found if group.values and all(axis in group.point for axis in axes)][:MOST_LINES]
    if len(drawn) < 2 or best is None:
        return None
    scales = [_Scale([group.point[axis] for group in drawn]) for axis in axes]
    goal = _Scale([group.mean for group in drawn])
    level, last = _levels(table, drawn), len(axes)
    tracks = [
        Track(_line([s.at(g.point[a]) for s, a in zip(scales, axes, strict=True)] + [goal.at(g.mean)]), level(g.mean or 0.0), f"{g.words}: {g.text}")
        for g in reversed(drawn)
    ]  # fmt: skip
    named = [
        Axis(axis, round(at / last * 100, 2), scale.ticks, is_low=bool(at % 2))
        for at, (axis, scale) in enumerate(zip(axes, scales, strict=True))
    ]
    named.append(Axis(words(table.goal.metric), 100.0, goal.ticks, is_goal=True, is_low=bool(last % 2)))
    alt = f"{len(drawn)} points on {len(axes)} axes. The best, {words(table.goal.metric)} {best.text}: {best.words}."
    return Parallel(named, tracks, alt)


class _Scale:
    """Where a value stands on an axis, from 0 (below) to 1: numbers by their size, words in their order."""

    def __init__(self, values: Sequence[Any]):
        self._numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        if not self._numbers:
            self._words = [_word(value) for value in _in_order(values)]
            return
        low, high = float(min(values)), float(max(values))
        self._log = low > 0 and high / low >= LOG_RATIO
        self._low, self._high = self._scaled(low), self._scaled(high)
        self._values = values

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """The axis's ends; all values where they are few."""
        if not self._numbers:
            return [(_y(at / max(1, len(self._words) - 1)), text[:18]) for at, text in enumerate(self._words)]
        different = sorted(set(self._values))
        shown = different if len(different) <= 6 else [different[0], different[-1]]
        if any(abs(self.at(b) - self.at(a)) < 0.08 for a, b in pairwise(shown)):
            shown = [different[0], different[-1]]
        return [(_y(self.at(value)), number(float(f"{value:.4g}"))) for value in shown]

    def at(self, value: Any) -> float:
        if not self._numbers:
            return self._words.index(_word(value)) / max(1, len(self._words) - 1) if len(self._words) > 1 else 0.5
        if self._high <= self._low:
            return 0.5
        return (self._scaled(float(value)) - self._low) / (self._high - self._low)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self._log else value


def _line(shares: Sequence[float]) -> str:
    last = len(shares) - 1
    return "M" + "L".join(f"{round(at / last * BOX)} {round((1 - share) * BOX)}" for at, share in enumerate(shares))


def _y(share: float) -> float:
    return round((1 - share) * 100, 2)


# -- values -------------------------------------------------------------------------------------------------------------------


def _key(point: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in point.items() if not is_seed(name)}, sort_keys=True, default=str)


def _word(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _axis_text(value: Any) -> str:
    [(_, text)] = point_words({"": value})
    return text


def _in_order(values: Sequence[Any]) -> list[Any]:
    """Each value once: numbers by size, others by their letters."""
    different = list({_word(value): value for value in values}.values())
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in different):
        return sorted(different)
    return sorted(different, key=_word)
