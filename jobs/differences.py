"""What differs between job documents, field by field. Pure.

Fields inside others are named by their path (`lora.r`), as in sweeps and on the command line; `env` and other maps of a
job's own words stay one field. A document that lacks a field has its kind's default.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from jobs.spec import KINDS

#: Maps whose keys are the job's own words, and no fields of ours.
WHOLE = frozenset({"env", "data_fields", "adapters", "lr_scheduler_kwargs"})
#: What a job is called, when, where and for whom it runs, who is told of it: not what it does.
NOT_ITS_WORK = frozenset({
    "name", "tags", "priority", "after", "not_before", "window", "rig", "max_runtime_s", "max_attempts", "retries", "vram_gib",
    "notify", "preflight", "trackers",
})  # fmt: skip

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """A field, and its value in each of the documents; None where one has no such field."""

    name: str
    values: tuple[Any, ...]

    @property
    def differs(self) -> bool:
        """Whether any two of them are not the same."""
        return any(not same(value, self.values[0]) for value in self.values[1:])


def flat(document: Json, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every field by its path."""
    for name, value in document.items():
        if isinstance(value, Mapping) and name not in WHOLE:
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def defaults(kind: str) -> dict[str, Any]:
    """The fields of a kind that may be left out, as its documents have them; {} for a kind that is not known."""
    model = KINDS.get(kind)
    if model is None:
        return {}
    return {name: _plain(field.default) for name, field in model.model_fields.items() if not field.is_required()}


def filled(document: Json) -> dict[str, Any]:
    """The document's fields by their paths, with the defaults of those that it lacks."""
    return {**dict(flat(defaults(str(document.get("kind"))))), **dict(flat(document))}


def compared(documents: Sequence[Json], *, without: Collection[str] = ()) -> list[Difference]:
    """Every field that any of the documents has, in their order."""
    whole = [filled(document) for document in documents]
    names = dict.fromkeys(name for fields in whole for name in fields if name not in without)
    return [Difference(name, tuple(fields.get(name) for fields in whole)) for name in names]


def differences(documents: Sequence[Json], *, without: Collection[str] = ()) -> list[Difference]:
    """The fields that are not the same in all of the documents."""
    return [field for field in compared(documents, without=without) if field.differs]


def same(one: Any, other: Any) -> bool:
    """Whether two values mean the same: 1 and 1.0 do, 1 and true do not; nothing, and an empty list, are alike."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (one in (None, "", [], {}, ()) and other in (None, "", [], {}, ()))


def _plain(value: Any) -> Any:
    """A default as a document has it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value
