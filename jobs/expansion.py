"""From a sweep and its base to documents: each the base with one point's values. Nothing here knows the rig."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from jobs.points import draw_of, grid_axes, listed_points, points_of, space_axes
from jobs.spec import KINDS, FieldError, InvalidSpec, nearest
from jobs.sweep import OF_SPACE, OPTIONS, WAYS, Options, SweepFacts, read_words, wrong

NAME_LENGTH = 128
#: All documents of one sweep.
MAX_BYTES = 128 << 20
#: What a program is given is text, also where the sweep says a number: `env.RATE`, `argv.2`.
TEXTS = ("env", "argv")

Document = dict[str, Any]


@dataclass(frozen=True)
class Expansion:
    """A sweep's documents, what makes each one different, and what all have in common."""

    facts: SweepFacts
    points: Sequence[Mapping[str, Any]]
    documents: Sequence[Document]

    def field_of(self, number: int, field: str) -> str:
        """Where the sweep says what a wrong field of this document says."""
        axis = next((axis for axis in self.points[number] if field == axis or field.startswith(f"{axis}.")), None)
        return f"sweep.{axis}" if axis else f"base.{field}" if field else "base"


def expand(base: object, sweep: object, *, read_csv: Callable[[str], str]) -> Expansion:
    """The documents that the sweep makes of the base. Raises InvalidSpec with every wrong field.

    `read_csv`: the text of the file that a sweep names; what it raises is the caller's.
    """
    if not isinstance(base, Mapping):
        raise wrong("base", "is a job document")
    way, told, options = parts_of(sweep)
    points = points_of(way, told, read_csv)
    axes = tuple(dict.fromkeys(itertools.chain.from_iterable(points)))
    if errors := [error for axis in axes if (error := unknown(axis, base, f"sweep.{axis}"))]:
        raise InvalidSpec(errors)
    title = title_of(base)
    documents = list(small_enough(_document(base, point, title) for point in points))
    facts = SweepFacts(
        name=title, method=method_of(way, told), axes=axes, base=dict(base),
        max_concurrent=options.max_concurrent, goal=options.goal, halving=options.halving,
    )  # fmt: skip
    return Expansion(facts, points, documents)


def check(base: object, sweep: object) -> None:
    """Everything about a sweep that can be told without its CSV file and without drawing. Raises InvalidSpec."""
    if not isinstance(base, Mapping):
        raise wrong("base", "is a job document")
    if errors := [error for axis in told_axes(sweep) if (error := unknown(axis, base, f"sweep.{axis}"))]:
        raise InvalidSpec(errors)


def told_axes(sweep: object) -> Sequence[str]:
    """The fields that a sweep changes, those of its CSV file aside. Raises InvalidSpec."""
    way, told, _ = parts_of(sweep)
    if way == "grid":
        return list(grid_axes(told["grid"]))
    if way == "space":
        draw_of(told)
        return list(space_axes(told["space"]))
    if way == "points":
        return list(dict.fromkeys(itertools.chain.from_iterable(listed_points(told["points"]))))
    return ()


def method_of(way: str, told: Mapping[str, Any]) -> str:
    """How the points were made, in one word."""
    return str(told.get("sampler", "random")) if way == "space" else {"points": "list"}.get(way, way)


def small_enough(documents: Iterable[Document]) -> Iterator[Document]:
    """Raises InvalidSpec when they are too much together: a large base is one request, and ten thousand records."""
    total_bytes = 0
    for document in documents:
        total_bytes += len(json.dumps(document))
        if total_bytes > MAX_BYTES:
            raise wrong(
                "sweep", f"makes more than {MAX_BYTES >> 20} MiB of jobs: put what is large into a file that they name"
            )
        yield document


def parts_of(sweep: object) -> tuple[str, Mapping[str, Any], Options]:
    """How the points are made, the words about that, and the options."""
    if not isinstance(sweep, Mapping) or not sweep:
        raise wrong("sweep", 'names fields with their values, as in {"learning_rate": [1e-4, 3e-4]}')
    options = read_words(Options, {name: sweep[name] for name in OPTIONS if name in sweep}, "sweep")
    told = {str(name): value for name, value in sweep.items() if name not in OPTIONS}
    ways = [way for way in WAYS if way in told]
    if not ways:
        return "grid", {"grid": told}, options
    if len(ways) > 1:
        raise wrong("sweep", f"has {' and '.join(ways)}: one sweep is made in one way")
    [way] = ways
    known = (way, *(OF_SPACE if way == "space" else ()))
    if unknown := [name for name in told if name not in known]:
        where = "sweep." + unknown[0]
        raise wrong(where, f"is not a word beside {way!r}{nearest(unknown[0], [*known, *OPTIONS])}")
    return way, told, options


def unknown(axis: str, base: Mapping[str, Any], where: str) -> FieldError | None:
    """What is wrong with the name of an axis, told with the nearest field. `where`: what the sweep calls it."""
    model = KINDS.get(str(base.get("kind")))
    if model is None or axis == "kind":
        return None  # told once, when the documents are read
    inner = {
        name: field.annotation.model_fields
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    first, _, rest = axis.partition(".")
    known = [*model.model_fields, *(f"{name}.{part}" for name, parts in inner.items() for part in parts)]
    if first not in model.model_fields or (rest and first in inner and rest not in inner[first]):
        return FieldError(where, f"is not a field of a {base['kind']} document{nearest(axis, known)}")
    return None


def _document(base: Mapping[str, Any], point: Mapping[str, Any], title: str) -> Document:
    """The base with the point's values, named by what makes it different."""
    document = with_values(base, point)
    if "name" not in point:
        document["name"] = name_of(title, point)
    return document


def with_values(base: Mapping[str, Any], point: Mapping[str, Any], before: str = "") -> Document:
    """The base with the point's values. `before`: what stands before a field where the sweep names it. Raises InvalidSpec."""
    document = dict(base)
    for name, value in point.items():
        path = name.split(".")
        is_text = path[0] in TEXTS and isinstance(value, (int, float))
        _set(document, path, json.dumps(value) if is_text else value, f"sweep.{before}{name}")
    return document


def name_of(title: str, point: Mapping[str, Any]) -> str:
    """A job's name by what makes it different."""
    parts = " ".join(f"{name}={_short(value)}" for name, value in point.items())
    return f"{title[: max(0, NAME_LENGTH - 1 - len(parts))]} {parts}"[:NAME_LENGTH]


def _set(document: Any, path: Sequence[str], value: Any, field: str) -> None:
    """Set a field, one of an object inside (`lora.r`), or an item of a list (`argv.2`)."""
    *parents, last = path
    for name in parents:
        key = _key(document, name, field)
        inner = document.get(key, {}) if isinstance(document, dict) else document[key]
        if not isinstance(inner, (Mapping, list)):
            raise wrong(field, f"{name} is not an object in the base")
        document[key] = inner = list(inner) if isinstance(inner, list) else dict(inner)  # the base is shared by all
        document = inner
    document[_key(document, last, field)] = value


def _key(holder: Any, name: str, field: str) -> str | int:
    if isinstance(holder, dict):
        return name
    if not (name.isascii() and name.isdigit() and int(name) < len(holder)):
        raise wrong(
            field, f"what holds {name!r} is not an object in the base but a list: count its items from 0, as in argv.2"
        )
    return int(name)


def title_of(base: Mapping[str, Any]) -> str:
    argv = base.get("argv")
    what = argv[0] if isinstance(argv, list) and argv else base.get("model", "")
    return str(base.get("name") or f"{base.get('kind', '')} {what}".strip())[:NAME_LENGTH]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(c if c.isprintable() else "?" for c in text)[:40]
