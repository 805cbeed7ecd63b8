"""Sweeps: one job document, changed at some fields in many ways. The words that say it, and the record that is kept.

    {"learning_rate": [1e-4, 3e-4], "lora.r": [8, 16]}             a grid, short for {"grid": {...}}
    {"space": {"learning_rate": {"min": 1e-5, "max": 1e-3, "log": true}, "lora.r": [8, 16]}, "samples": 50, "seed": 1}
    {"points": [{"learning_rate": 1e-4, "lora.r": 8}, ...]}        a list
    {"csv": "..."}                                                 the same as a table with a head

and beside each: `max_concurrent`, `goal`, `halving`. What documents that makes: `jobs.expansion`.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, PositiveInt, ValidationError, model_validator

from jobs.differences import flat
from jobs.spec import FieldError, InvalidSpec, Line, nearest
from jobs.spec.common import Document

MAX_SWEEP = 10_000
WAYS = ("grid", "space", "points", "csv")
#: Words of a sweep that are no field of a document.
OPTIONS = ("max_concurrent", "goal", "halving")
OF_SPACE = ("samples", "seed", "sampler")
EXAMPLES = {
    "goal": 'names one metric, as in {"minimize": "eval_loss"} or {"maximize": "accuracy"}',
    "halving": 'is an object, as in {"first_step": 50, "factor": 3}',
}

SWEEP_DESCRIPTION = f"""How the base is changed, field by field (`lora.r`, `argv.2`, `env.NAME` reach inside); at most {MAX_SWEEP} jobs.
One of `grid`, `space` (with `samples`), `points`, `csv`; fields with lists of values alone are a grid."""


class Words(Document):
    """A part of a sweep's document."""


P = TypeVar("P", bound=Words)


class Goal(Words):
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


class Halving(Words):
    """Stop the worst early: at `first_step`, and at each `factor` times as many steps, the best 1/`factor` go on."""

    first_step: PositiveInt = Field(description="The step of the first comparison.")
    factor: int = Field(3, ge=2, le=100, description="One in so many goes on.")


class Options(Words):
    """What a sweep may say beside how it is made."""

    max_concurrent: PositiveInt | None = Field(None, le=MAX_SWEEP)
    goal: Goal | None = None
    halving: Halving | None = None


class Draw(Words):
    """How points are drawn from a space."""

    samples: int = Field(ge=1, le=MAX_SWEEP)
    seed: int = Field(0, ge=0, lt=2**32)
    sampler: Literal["random", "sobol", "halton", "lhs"] = "random"


class RangeWords(Words):
    """Numbers of a space's field."""

    min: int | float
    max: int | float
    log: bool = False

    @model_validator(mode="after")
    def _goes_up(self) -> "RangeWords":
        if self.min >= self.max:
            raise ValueError("min is less than max")
        if self.log and self.min <= 0:
            raise ValueError("with log, min is greater than 0")
        return self


class SweepFacts(Words):
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

    def is_base(self, point: Mapping[str, Any]) -> bool:
        """Whether a job's point says what the base says: the others are measured by that one."""
        base = {**self.base, **dict(flat(self.base))}
        return bool(point) and all(base.get(name) == value for name, value in point.items())


def sweep_properties() -> dict[str, Any]:
    """The words of a sweep as JSON schema."""
    values = {"type": "array", "minItems": 1}
    fields = {"type": "object", "minProperties": 1}
    options = {name: schema for model in (Draw, Options) for name, schema in _schema(model)["properties"].items()}
    return {
        "grid": {**fields, "additionalProperties": values, "description": "Every combination of these values."},
        "space": {
            **fields,
            "additionalProperties": {"oneOf": [values, _schema(RangeWords)]},
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


def read_words(model: type[P], value: object, where: str) -> P:
    """A part of a sweep's document, checked. Raises InvalidSpec; `where` is its field."""
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


def wrong(field: str, message: str) -> InvalidSpec:
    """The error of one field, to be raised."""
    return InvalidSpec([FieldError(field, message)])
