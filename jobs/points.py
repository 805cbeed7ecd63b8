"""The points of a sweep: every combination, drawn from a space, a list, or the lines of a table."""

import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jobs.sampling import Axis, Range, SamplerMissing, drawn
from jobs.spec import nearest
from jobs.sweep import MAX_SWEEP, OF_SPACE, OPTIONS, WAYS, Draw, RangeWords, read_words, wrong

MAX_AXES = 64


def points_of(way: str, told: Mapping[str, Any], read_csv: Callable[[str], str]) -> list[dict[str, Any]]:
    """What makes each job different. Raises InvalidSpec."""
    match way:
        case "grid":
            axes = grid_axes(told["grid"])
            _count(math.prod(len(values) for values in axes.values()))
            return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        case "space":
            space = space_axes(told["space"])
            draw = draw_of(told)
            try:
                return drawn(space, draw.samples, draw.sampler, draw.seed)
            except SamplerMissing as missing:
                raise wrong("sweep.sampler", str(missing)) from None
        case "points":
            return listed_points(told["points"])
        case _:
            if not isinstance(told["csv"], str):
                raise wrong("sweep.csv", "is the name of a CSV file")
            return list(_table(read_csv(told["csv"])))


def draw_of(told: Mapping[str, Any]) -> Draw:
    """How the points of a space are drawn. Raises InvalidSpec."""
    return read_words(Draw, {name: told[name] for name in OF_SPACE if name in told}, "sweep")


def grid_axes(grid: object) -> dict[str, list[Any]]:
    """Fields with their values. Raises InvalidSpec."""
    if not isinstance(grid, Mapping) or not grid:
        raise wrong("sweep.grid", "names fields with their values")
    _few_axes(grid)
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            hint = nearest(str(name), [*WAYS, *OPTIONS, *OF_SPACE])
            raise wrong(f"sweep.{name}", f"is a list of at least one value{hint}")
    return {str(name): values for name, values in grid.items()}


def space_axes(space: object) -> dict[str, Axis]:
    """Fields with their values or ranges. Raises InvalidSpec."""
    if not isinstance(space, Mapping) or not space:
        raise wrong("sweep.space", "names fields with a list of values, or with their min and max")
    _few_axes(space)
    found: dict[str, Axis] = {}
    for name, axis in space.items():
        where = f"sweep.space.{name}"
        if isinstance(axis, Mapping):
            read = read_words(RangeWords, axis, where)
            found[str(name)] = Range(read.min, read.max, read.log)
        elif isinstance(axis, list) and axis:
            found[str(name)] = axis
        else:
            raise wrong(where, 'is a list of values, or {"min": ..., "max": ..., "log": true or false}')
    return found


def listed_points(points: object) -> list[dict[str, Any]]:
    """Points that are given one by one. Raises InvalidSpec."""
    if not isinstance(points, list) or not points:
        raise wrong("sweep.points", "is a list of at least one object with fields")
    _count(len(points))
    for number, point in enumerate(points):
        if not isinstance(point, Mapping) or not point:
            raise wrong(f"sweep.points.{number}", "is an object with at least one field")
        _few_axes(point)
    return [{str(name): value for name, value in point.items()} for point in points]


def _table(text: str) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file with a head. A cell is JSON, and text where it is none; an empty one says nothing."""
    rows = csv.reader(io.StringIO(text.removeprefix("\ufeff")))
    try:
        head = [name.strip() for name in next(rows, [])]
        if not any(head):
            raise wrong("sweep.csv", "has no head: its first line names the fields")
        if "" in head or len(set(head)) < len(head):
            raise wrong("sweep.csv", "line 1: every column has a field's name, and no field has two columns")
        _few_axes(head)
        count = 0
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(head):
                raise wrong("sweep.csv", f"line {rows.line_num} has {len(row)} cells, the head has {len(head)}")
            count += 1
            _count(count)
            yield {name: _cell(cell) for name, cell in zip(head, row, strict=True) if cell.strip()}
    except csv.Error as error:
        raise wrong("sweep.csv", f"line {rows.line_num}: {error}") from None
    if not count:
        raise wrong("sweep.csv", "has a head and no line below it")


def _cell(text: str) -> Any:
    def refuse(_: str) -> float:
        raise ValueError  # NaN and Infinity are no JSON: they stay text, which the field refuses

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError:
        return text.strip()


def _count(count: int) -> None:
    if count > MAX_SWEEP:
        raise wrong("sweep", f"makes {count} jobs; one sweep makes {MAX_SWEEP} at most")


def _few_axes(axes: Mapping[Any, Any] | Sequence[str]) -> None:
    if len(axes) > MAX_AXES:
        raise wrong("sweep", f"changes {len(axes)} fields; one sweep changes {MAX_AXES} at most")
