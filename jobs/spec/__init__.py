"""Job documents: what may be submitted, field by field. The same names for HTTP, flags, TOML, YAML and JSON.

Each kind has a module; what all share is in `common`. Knows nothing of the rig: whether a model, a file or enough GPUs
exist is checked where the rig is (daemon.admission).
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from jobs.spec.benchmark import BenchmarkSpec
from jobs.spec.command import CommandSpec
from jobs.spec.common import FILE_FIELDS, HUB_ID, INPUT_REFERENCE, JOB_REFERENCE, MODEL_NAME, JobSpec, Line, WithModel
from jobs.spec.evaluate import EvaluateSpec
from jobs.spec.export import ExportSpec
from jobs.spec.finetune import FinetuneSpec, LoraSpec
from jobs.spec.generate import GenerateSpec

__all__ = [
    "FILE_FIELDS",
    "HUB_ID",
    "INPUT_REFERENCE",
    "JOB_REFERENCE",
    "KINDS",
    "MODEL_NAME",
    "RECIPES",
    "BenchmarkSpec",
    "CommandSpec",
    "EvaluateSpec",
    "ExportSpec",
    "FieldError",
    "FinetuneSpec",
    "GenerateSpec",
    "InvalidSpec",
    "JobSpec",
    "Line",
    "LoraSpec",
    "Spec",
    "WithModel",
    "dump",
    "nearest",
    "parse",
]

Spec = FinetuneSpec | GenerateSpec | EvaluateSpec | BenchmarkSpec | ExportSpec | CommandSpec
KINDS: Mapping[str, type[Spec]] = {
    "finetune": FinetuneSpec,
    "generate": GenerateSpec,
    "evaluate": EvaluateSpec,
    "benchmark": BenchmarkSpec,
    "export": ExportSpec,
    "command": CommandSpec,
}
#: Kinds whose process needs torch: they start from the preloaded worker.
RECIPES = frozenset({"finetune", "generate", "evaluate", "benchmark", "export"})


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one field, and what to do about it."""

    field: str
    message: str
    #: Of the file that the field names; None when it is the field itself.
    line: int | None = None


class InvalidSpec(ValueError):
    """The document cannot be accepted. Carries one error per field."""

    def __init__(self, errors: list[FieldError]):
        self.errors = errors
        super().__init__("; ".join(f"{e.field}: {e.message}" if e.field else e.message for e in errors))


def parse(document: object) -> Spec:
    """The document as its kind's spec. Raises InvalidSpec with every wrong field."""
    if not isinstance(document, Mapping):
        raise InvalidSpec([FieldError("", "a job document is an object with fields")])
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        return _refuse_kind(kind)
    try:
        return TypeAdapter(KINDS[kind]).validate_python(dict(document))
    except ValidationError as error:
        raise InvalidSpec([_field_error(dict(e), KINDS[kind]) for e in error.errors(include_url=False)]) from None


def dump(spec: Spec) -> dict[str, Any]:
    """The spec as a plain document with every field filled in."""
    return spec.model_dump(mode="json")


def nearest(word: str, known: list[str]) -> str:
    """'; did you mean …?' for a misspelt word, or nothing."""
    close = difflib.get_close_matches(word.replace("-", "_"), known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _refuse_kind(kind: object) -> Spec:
    known = ", ".join(KINDS)
    if kind is None:
        raise InvalidSpec([FieldError("kind", f"is missing: one of {known}")])
    raise InvalidSpec([FieldError("kind", f"{str(kind)[:40]!r} is not known: one of {known}{nearest(str(kind), list(KINDS))}")])  # fmt: skip


def _field_error(error: dict[str, Any], model: type[BaseModel]) -> FieldError:
    path = [str(part) for part in error["loc"]]
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        owner = LoraSpec if path[:-1] == ["lora"] else model
        return FieldError(name, f"is not a field of this document{nearest(path[-1], list(owner.model_fields))}")
    message = str(error["msg"]).removeprefix("Value error, ")
    if not name and ": " in message:
        name, _, message = message.partition(": ")
    given = error.get("input")
    shown = (
        f" (got {given!r})" if isinstance(given, (int, float, str)) and len(repr(given)) < 60 and _finite(given) else ""
    )
    return FieldError(name, _as_clause(message) + shown)


def _as_clause(message: str) -> str:
    first, _, rest = message.partition(" ")
    return f"{first.lower()} {rest}" if first.istitle() else message


def _finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
