"""A sweep over a pipeline: every point has its own fine-tune with its own evaluation, say. Nothing here knows the rig.

    {"jobs": [{"id": "train", ...}, {"id": "test", "adapter": "job:train", ...}], "sweep": {"train.learning_rate": [1e-4, 3e-4]}}

An axis begins with the id of the job whose field it changes. A job that the sweep changes, and whatever waits for such a one, is made for
every point; the others are made once, and come first.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.expansion import (  # fmt: skip
    Document,
    Expansion,
    method_of,
    name_of,
    parts_of,
    small_enough,
    title_of,
    told_axes,
    unknown,
    with_values,
)
from jobs.pipeline import linked, moved, waits_for
from jobs.points import points_of
from jobs.spec import FieldError, InvalidSpec, nearest
from jobs.sweep import MAX_SWEEP, SweepFacts, wrong


@dataclass(frozen=True)
class StagedExpansion(Expansion):
    """A sweep's documents: those that are made once, then point after point each one's jobs."""

    #: By place in the pipeline: the jobs' ids, and the places of those that are made once, and for each point.
    names: Sequence[str] = ()
    once: Sequence[int] = ()
    repeated: Sequence[int] = ()

    def field_of(self, number: int, field: str) -> str:
        """Where the body says what a wrong field of this document says."""
        if number < len(self.once):
            return _field(self.once[number], field)
        place = self.repeated[(number - len(self.once)) % len(self.repeated)]
        whole = f"{self.names[place]}.{field}"
        axis = next((axis for axis in self.points[number] if whole == axis or whole.startswith(f"{axis}.")), None)
        return f"sweep.{axis}" if axis else _field(place, field)


def expand_stages(jobs: Sequence[Any], sweep: object, *, read_csv: Callable[[str], str]) -> StagedExpansion:
    """The documents that the sweep makes of the pipeline. Raises InvalidSpec with every wrong field.

    They name each other by provisional numbers (jobs.pipeline). `read_csv`: the text of the file that a sweep names.
    """
    documents, names = linked(jobs), _names(jobs)
    way, told, options = parts_of(sweep)
    points = points_of(way, told, read_csv)
    axes = tuple(dict.fromkeys(itertools.chain.from_iterable(points)))
    _check_axes(axes, documents, names)
    once, repeated = _split(axes, documents, names)
    count = len(once) + len(points) * len(repeated)
    if count > MAX_SWEEP:
        raise wrong("sweep", f"makes {count} jobs; one sweep makes {MAX_SWEEP} at most")
    made = [moved(documents[place], {place: at for at, place in enumerate(once)}) for place in once]
    made += _of_points(points, documents, names, once, repeated)
    facts = SweepFacts(
        name=title_of(documents[repeated[0]]), method=method_of(way, told), axes=axes,
        base={names[place]: documents[place] for place in repeated}, stages=tuple(names[place] for place in repeated),
        once=len(once), max_concurrent=options.max_concurrent, goal=options.goal, halving=options.halving,
    )  # fmt: skip
    everywhere: list[Mapping[str, Any]] = [{} for _ in once]
    everywhere += [point for point in points for _ in repeated]
    return StagedExpansion(facts, everywhere, list(small_enough(made)), names, once, repeated)


def check_stages(jobs: Sequence[Any], sweep: object) -> Mapping[int, Document]:
    """What can be told without the sweep's CSV file. The documents, by place, that the sweep leaves as they are. Raises InvalidSpec."""
    documents, names, axes = linked(jobs), _names(jobs), told_axes(sweep)
    _check_axes(axes, documents, names)
    changed = {names.index(axis.partition(".")[0]) for axis in axes}
    return {place: dict(document) for place, document in enumerate(documents) if place not in changed}


def _of_points(
    points: Sequence[Mapping[str, Any]], documents: Sequence[Any], names: Sequence[str], once: Sequence[int], repeated: Sequence[int]
) -> Iterator[Document]:  # fmt: skip
    for number, point in enumerate(points):
        first = len(once) + number * len(repeated)
        places = {place: at for at, place in enumerate(once)}
        places |= {place: first + at for at, place in enumerate(repeated)}
        shown = _shown(point)
        for place in repeated:
            before = f"{names[place]}."
            own = {axis.removeprefix(before): value for axis, value in point.items() if axis.startswith(before)}
            document = with_values(moved(documents[place], places), own, before)
            if "name" not in own:
                document["name"] = name_of(title_of(documents[place]), shown)
            yield document


def _names(jobs: Sequence[Any]) -> list[str]:
    """What each job is called; one without an id cannot be changed by the sweep."""
    return [str(job.get("id") or f"job {at + 1}") for at, job in enumerate(jobs)]


def _check_axes(axes: Sequence[str], documents: Sequence[Any], names: Sequence[str]) -> None:
    errors: list[FieldError] = []
    for axis in axes:
        stage, dot, field = axis.partition(".")
        if not dot or stage not in names:
            hint = nearest(stage, list(names)) if dot else ""
            example = f"as in {names[0]}.{axis}" if not dot else f"one of {', '.join(names)}"
            errors.append(
                FieldError(f"sweep.{axis}", f"begins with the id of the job that it changes, {example}{hint}")
            )
        elif error := unknown(field, documents[names.index(stage)], f"sweep.{axis}"):
            errors.append(error)
    if errors:
        raise InvalidSpec(errors)


def _split(axes: Sequence[str], documents: Sequence[Any], names: Sequence[str]) -> tuple[list[int], list[int]]:
    """The places of jobs that are made once, and of those that every point has."""
    changed = {names.index(axis.partition(".")[0]) for axis in axes}
    waits = [waits_for(document) for document in documents]
    while further := {place for place, others in enumerate(waits) if others & changed} - changed:
        changed |= further
    places = range(len(documents))
    return [place for place in places if place not in changed], [place for place in places if place in changed]


def _shown(point: Mapping[str, Any]) -> dict[str, Any]:
    """The point with fields by their own names, where no two are called the same."""
    fields = [axis.partition(".")[2] for axis in point]
    return dict(zip(fields, point.values(), strict=True)) if len(set(fields)) == len(fields) else dict(point)


def _field(place: int, field: str) -> str:
    return f"jobs.{place}.{field}" if field else f"jobs.{place}"
