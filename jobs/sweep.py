"""Sweeps: one job document, changed at some fields in many ways. What a sweep may say, and the documents that it means.

    {"learning_rate": [1e-4, 3e-4], "lora.r": [8, 16]}             a grid, short for {"grid": {...}}
    {"space": {"learning_rate": {"min": 1e-5, "max": 1e-3, "log": true}, "lora.r": [8, 16]}, "samples": 50, "seed": 1}
    {"points": [{"learning_rate": 1e-4, "lora.r": 8}, ...]}        a list
    {"csv": "..."}                                                 the same as a table with a head

and beside each: `max_concurrent`, `goal`, `halving`. Nothing here knows the rig.
"""

import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from jobs.sampling import Axis, Range, SamplerMissing, drawn
from jobs.spec import KINDS, FieldError, InvalidSpec, Line, nearest

MAX_SWEEP = 10_000
MAX_AXES = 64
WAYS = ("grid", "space", "points", "csv")
#: Words of a sweep that are no field of a document.
OPTIONS = ("max_concurrent", "goal", "halving")
OF_SPACE = ("samples", "seed", "sampler")
NAME_LENGTH = 128
#: What a program is given is text, also where the sweep says a number: `env.RATE`, `argv.2`.
TEXTS = ("env", "argv")
EXAMPLES = {
    "goal": 'names one metric, as in {"minimize": "eval_loss"} or {"maximize": "accuracy"}',
    "halving": 'is an object, as in {"first_step": 50, "factor": 3}',
}

SWEEP_DESCRIPTION = f"""How the base is changed, field by field (`lora.r`, `argv.2`, `env.NAME` reach inside); at most {MAX_SWEEP} jobs.
One of `grid`, `space` (with `samples`), `points`, `csv`; fields with lists of values alone are a grid."""

Document = dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


P = TypeVar("P", bound=_Part)


class Goal(_Part):
    """The metric to compare jobs by: the name of one, under the word for what is better."""

    minimize: Line | None = None
    maximize: Line | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "Goal":
        if bool(self.minimize) == bool(self.maximize):
            raise ValueError(EXAMPLES["goal"])
        return self

    @property
    def metric(self) -> str:
        return self.minimize or self.maximize or ""

    def key(self, value: float) -> float:
        """For sorting: smaller is better."""
        return -value if self.maximize else value


class Halving(_Part):
    """Stop the worst early: at `first_step`, and at each `factor` times as many steps, the best 1/`factor` go on."""

    first_step: PositiveInt = Field(description="The step of the first comparison.")
    factor: int = Field(3, ge=2, le=100, description="One in so many goes on.")


class _Options(_Part):
    max_concurrent: PositiveInt | None = Field(None, le=MAX_SWEEP)
    goal: Goal | None = None
    halving: Halving | None = None


class _Draw(_Part):
    samples: int = Field(ge=1, le=MAX_SWEEP)
    seed: int = Field(0, ge=0, lt=2**32)
    sampler: Literal["random", "sobol", "halton", "lhs"] = "random"


class _Range(_Part):
    min: int | float
    max: int | float
    log: bool = False

    @model_validator(mode="after")
    def _goes_up(self) -> "_Range":
        if self.min >= self.max:
            raise ValueError("min is less than max")
        if self.log and self.min <= 0:
            raise ValueError("with log, min is greater than 0")
        return self


class SweepFacts(_Part):
    """What is the same for all jobs of a sweep."""

    name: str
    method: str
    axes: tuple[str, ...]
    base: Mapping[str, Any]
    max_concurrent: int | None = None
    goal: Goal | None = None
    halving: Halving | None = None


class Sweep(SweepFacts):
    """The record of a sweep. Its jobs are numbered from `id` to `last`."""

    id: str
    last: str
    created_at: float


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
        raise _wrong("base", "is a job document")
    way, told, options = _parts(sweep)
    points = _points(way, told, read_csv)
    axes = tuple(dict.fromkeys(itertools.chain.from_iterable(points)))
    if errors := [error for axis in axes if (error := _unknown(axis, base))]:
        raise InvalidSpec(errors)
    title = _title(base)
    documents = [_document(base, point, title) for point in points]
    method = told.get("sampler", "random") if way == "space" else {"points": "list"}.get(way, way)
    facts = SweepFacts(
        name=title, method=method, axes=axes, base=dict(base),
        max_concurrent=options.max_concurrent, goal=options.goal, halving=options.halving,
    )  # fmt: skip
    return Expansion(facts, points, documents)


def check(base: object, sweep: object) -> None:
    """Everything about a sweep that can be told without its CSV file and without drawing. Raises InvalidSpec."""
    if not isinstance(base, Mapping):
        raise _wrong("base", "is a job document")
    way, told, _ = _parts(sweep)
    names: Sequence[str] = ()
    if way == "grid":
        names = list(_grid_axes(told["grid"]))
    elif way == "space":
        names = list(_space_axes(told["space"]))
        _part(_Draw, {name: told[name] for name in OF_SPACE if name in told}, "sweep")
    elif way == "points":
        names = list(dict.fromkeys(itertools.chain.from_iterable(_listed(told["points"]))))
    if errors := [error for axis in names if (error := _unknown(axis, base))]:
        raise InvalidSpec(errors)


def sweep_properties() -> dict[str, Any]:
    """The words of a sweep as JSON schema."""
    values = {"type": "array", "minItems": 1}
    fields = {"type": "object", "minProperties": 1}
    options = {name: schema for model in (_Draw, _Options) for name, schema in _schema(model)["properties"].items()}
    return {
        "grid": {**fields, "additionalProperties": values, "description": "Every combination of these values."},
        "space": {
            **fields,
            "additionalProperties": {"oneOf": [values, _schema(_Range)]},
            "description": "Values, or a range, for each field; whole numbers where both ends are.",
        },
        "points": {"type": "array", "minItems": 1, "maxItems": MAX_SWEEP, "items": fields},
        "csv": {"type": "string", "description": "An uploaded CSV file, `sha256:...`; its head names the fields."},
        **options,
        "seed": {"anyOf": [options["seed"], values], "description": "Of the space; a list of seeds is a field."},
    }


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    for name, part in schema.pop("$defs", {}).items():  # in place, so that the whole can stand anywhere
        schema["properties"] = {
            field: part if f"/{name}'" in str(inner) else inner for field, inner in schema["properties"].items()
        }
    return schema


# -- what it says ------------------------------------------------------------------------------------------------------


def _parts(sweep: object) -> tuple[str, Mapping[str, Any], _Options]:
    """How the points are made, the words about that, and the options."""
    if not isinstance(sweep, Mapping) or not sweep:
        raise _wrong("sweep", 'names fields with their values, as in {"learning_rate": [1e-4, 3e-4]}')
    options = _part(_Options, {name: sweep[name] for name in OPTIONS if name in sweep}, "sweep")
    told = {str(name): value for name, value in sweep.items() if name not in OPTIONS}
    ways = [way for way in WAYS if way in told]
    if not ways:
        return "grid", {"grid": told}, options
    if len(ways) > 1:
        raise _wrong("sweep", f"has {' and '.join(ways)}: one sweep is made in one way")
    [way] = ways
    known = (way, *(OF_SPACE if way == "space" else ()))
    if unknown := [name for name in told if name not in known]:
        where = "sweep." + unknown[0]
        raise _wrong(where, f"is not a word beside {way!r}{nearest(unknown[0], [*known, *OPTIONS])}")
    return way, told, options


def _points(way: str, told: Mapping[str, Any], read_csv: Callable[[str], str]) -> list[dict[str, Any]]:
    match way:
        case "grid":
            axes = _grid_axes(told["grid"])
            _count(math.prod(len(values) for values in axes.values()))
            return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        case "space":
            space = _space_axes(told["space"])
            draw = _part(_Draw, {name: told[name] for name in OF_SPACE if name in told}, "sweep")
            try:
                return drawn(space, draw.samples, draw.sampler, draw.seed)
            except SamplerMissing as missing:
                raise _wrong("sweep.sampler", str(missing)) from None
        case "points":
            return _listed(told["points"])
        case _:
            if not isinstance(told["csv"], str):
                raise _wrong("sweep.csv", "is the name of a CSV file")
            return list(_table(read_csv(told["csv"])))


def _grid_axes(grid: object) -> dict[str, list[Any]]:
    if not isinstance(grid, Mapping) or not grid:
        raise _wrong("sweep.grid", "names fields with their values")
    _few_axes(grid)
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            hint = nearest(str(name), [*WAYS, *OPTIONS, *OF_SPACE])
            raise _wrong(f"sweep.{name}", f"is a list of at least one value{hint}")
    return {str(name): values for name, values in grid.items()}


def _space_axes(space: object) -> dict[str, Axis]:
    if not isinstance(space, Mapping) or not space:
        raise _wrong("sweep.space", "names fields with a list of values, or with their min and max")
    _few_axes(space)
    found: dict[str, Axis] = {}
    for name, axis in space.items():
        where = f"sweep.space.{name}"
        if isinstance(axis, Mapping):
            read = _part(_Range, axis, where)
            found[str(name)] = Range(read.min, read.max, read.log)
        elif isinstance(axis, list) and axis:
            found[str(name)] = axis
        else:
            raise _wrong(where, 'is a list of values, or {"min": ..., "max": ..., "log": true or false}')
    return found


def _listed(points: object) -> list[dict[str, Any]]:
    if not isinstance(points, list) or not points:
        raise _wrong("sweep.points", "is a list of at least one object with fields")
    _count(len(points))
    for number, point in enumerate(points):
        if not isinstance(point, Mapping) or not point:
            raise _wrong(f"sweep.points.{number}", "is an object with at least one field")
        _few_axes(point)
    return [{str(name): value for name, value in point.items()} for point in points]


def _table(text: str) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file with a head. A cell is JSON, and text where it is none; an empty one says nothing."""
    rows = csv.reader(io.StringIO(text.removeprefix("\ufeff")))
    try:
        head = [name.strip() for name in next(rows, [])]
        if not any(head):
            raise _wrong("sweep.csv", "has no head: its first line names the fields")
        if "" in head or len(set(head)) < len(head):
            raise _wrong("sweep.csv", "line 1: every column has a field's name, and no field has two columns")
        _few_axes(head)
        count = 0
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(head):
                raise _wrong("sweep.csv", f"line {rows.line_num} has {len(row)} cells, the head has {len(head)}")
            count += 1
            _count(count)
            yield {name: _cell(cell) for name, cell in zip(head, row, strict=True) if cell.strip()}
    except csv.Error as error:
        raise _wrong("sweep.csv", f"line {rows.line_num}: {error}") from None
    if not count:
        raise _wrong("sweep.csv", "has a head and no line below it")


def _cell(text: str) -> Any:
    def refuse(_: str) -> float:
        raise ValueError  # NaN and Infinity are no JSON: they stay text, which the field refuses

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError:
        return text.strip()


def _count(count: int) -> None:
    if count > MAX_SWEEP:
        raise _wrong("sweep", f"makes {count} jobs; one sweep makes {MAX_SWEEP} at most")


def _few_axes(axes: Mapping[Any, Any] | Sequence[str]) -> None:
    if len(axes) > MAX_AXES:
        raise _wrong("sweep", f"changes {len(axes)} fields; one sweep changes {MAX_AXES} at most")


# -- fields and documents -----------------------------------------------------------------------------------------------


def _unknown(axis: str, base: Mapping[str, Any]) -> FieldError | None:
    """What is wrong with the name of an axis, told with the nearest field."""
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
        return FieldError(f"sweep.{axis}", f"is not a field of a {base['kind']} document{nearest(axis, known)}")
    return None


def _document(base: Mapping[str, Any], point: Mapping[str, Any], title: str) -> Document:
    """The base with the point's values, named by what makes it different."""
    document = dict(base)
    for name, value in point.items():
        path = name.split(".")
        is_text = path[0] in TEXTS and isinstance(value, (int, float))
        _set(document, path, json.dumps(value) if is_text else value, f"sweep.{name}")
    if "name" not in point:
        parts = " ".join(f"{name}={_short(value)}" for name, value in point.items())
        document["name"] = f"{title[: max(0, NAME_LENGTH - 1 - len(parts))]} {parts}"[:NAME_LENGTH]
    return document


def _set(document: Any, path: Sequence[str], value: Any, field: str) -> None:
    """Set a field, one of an object inside (`lora.r`), or an item of a list (`argv.2`)."""
    *parents, last = path
    for name in parents:
        key = _key(document, name, field)
        inner = document.get(key, {}) if isinstance(document, dict) else document[key]
        if not isinstance(inner, (Mapping, list)):
            raise _wrong(field, f"{name} is not an object in the base")
        document[key] = inner = list(inner) if isinstance(inner, list) else dict(inner)  # the base is shared by all
        document = inner
    document[_key(document, last, field)] = value


def _key(holder: Any, name: str, field: str) -> str | int:
    if isinstance(holder, dict):
        return name
    if not (name.isascii() and name.isdigit() and int(name) < len(holder)):
        raise _wrong(
            field, f"what holds {name!r} is not an object in the base but a list: count its items from 0, as in argv.2"
        )
    return int(name)


def _title(base: Mapping[str, Any]) -> str:
    argv = base.get("argv")
    what = argv[0] if isinstance(argv, list) and argv else base.get("model", "")
    return str(base.get("name") or f"{base.get('kind', '')} {what}".strip())[:NAME_LENGTH]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(c if c.isprintable() else "?" for c in text)[:40]


def _part(model: type[P], value: object, where: str) -> P:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidSpec([_told(dict(e), model, where) for e in error.errors(include_url=False)]) from None


def _told(error: Mapping[str, Any], model: type[BaseModel], where: str) -> FieldError:
    path = [str(part) for part in error["loc"] if str(part) not in ("int", "float")]
    field = ".".join([where, *path])
    if error["type"] == "extra_forbidden":
        nested: Mapping[str, type[BaseModel]] = {"goal": Goal, "halving": Halving}
        owner = nested.get(path[0], model) if len(path) > 1 else model
        return FieldError(field, f"is not a word here{nearest(path[-1], list(owner.model_fields))}")
    if error["type"] == "model_type":
        return FieldError(field, EXAMPLES.get(path[-1] if path else "", "is an object with fields"))
    message = str(error["msg"]).removeprefix("Value error, ")
    return FieldError(field, f"{message[:1].lower()}{message[1:]}")


def _wrong(field: str, message: str) -> InvalidSpec:
    return InvalidSpec([FieldError(field, message)])
