"""Jobs of one batch that name each other: `id = "train"` in one document, `after = ["train"]` or `model = "job:train"` in another.

Names become numbers twice. While a batch is checked, its jobs have provisional numbers that no job ever gets; in the
transaction that stores it these become the real ones.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.spec import JOB_REFERENCE, FieldError, InvalidSpec, Spec, nearest

LOCAL_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
#: The provisional number of a batch's first job. Larger than any number that a queue ever counts up to.
PROVISIONAL = 10**17
#: Fields that may name another job's result.
RESULT_FIELDS = ("model", "adapter", "data", "eval_data")
#: Fields that hold several, by names of their own.
TABLES = ("adapters",)
CONDITIONS = ("succeeded", "ended", "failed")
WRONG_TOLD = 20

Document = Mapping[str, Any]


def linked(documents: Sequence[Document]) -> list[Document]:
    """The documents without their local ids, and with provisional numbers for every name of a job among them.

    Raises InvalidSpec for a wrong, double or unknown name, and for jobs that wait for each other in a circle.
    """
    numbers, errors = _numbers(documents)
    found: list[Document] = []
    waits: dict[int, list[int]] = {}
    for number, document in enumerate(documents):
        if not isinstance(document, Mapping):  # told by whoever reads the document itself
            found.append(document)
            continue
        own = {name: value for name, value in document.items() if name != "id"}
        waits[number] = []
        for field, text, put in _references(own):
            where = f"jobs.{number}.{field}"
            if _is_number(text):
                if int(text) >= PROVISIONAL:
                    errors.append(FieldError(where, f"there is no job {text}"))
            elif text in numbers:
                put(str(PROVISIONAL + numbers[text]))
                waits[number].append(numbers[text])
            elif numbers or field == "after":
                hint = nearest(text, list(numbers)) or '; give it one: id = "..."'
                errors.append(FieldError(where, f"no job of this batch has the id {text[:64]!r}{hint}"))
        found.append(own)
    if not errors and (circle := _circle(waits)):
        errors.append(FieldError(f"jobs.{circle[0]}.after", f"waits for itself: {_drawn(circle, numbers)}"))
    if errors:
        raise InvalidSpec(errors[:WRONG_TOLD])
    return found


def numbered(spec: Spec, first: int) -> Spec:
    """The spec with real numbers in place of provisional ones; `first` is the number of the batch's first job."""
    if not spec.dependencies:
        return spec
    changes: dict[str, Any] = {"after": tuple(_settled(text, first) for text in spec.after)}
    for name, _ in spec.references:
        field, _, key = name.partition(".")
        value = changes.get(field, getattr(spec, field))
        changes[field] = {**value, key: _settled(value[key], first)} if key else _settled(value, first)
    return spec.model_copy(update=changes)


def waits_for(document: Document) -> set[int]:
    """The places in their batch of the jobs that a linked document waits for."""
    found = (place_of(text) for _, text, _ in _references(dict(document)) if _is_number(text))
    return {place for place in found if place is not None}


def moved(document: Document, places: Mapping[int, int]) -> dict[str, Any]:
    """A linked document for a batch in which the jobs stand elsewhere: from place to place."""
    own = dict(document)
    for _, text, put in _references(own):
        if _is_number(text) and (place := place_of(text)) is not None:
            put(str(PROVISIONAL + places[place]))
    return own


def alone(document: Document) -> Document:
    """The document without waiting for others of its batch: for a rig that is asked about it and does not know them."""
    after = document.get("after")
    if not isinstance(after, list):
        return document
    known = [
        text
        for text in after
        if not str(text).rpartition(":")[2].isdigit() or place_of(str(text).rpartition(":")[2]) is None
    ]
    return {**document, "after": known}


def place_of(job_id: str) -> int | None:
    """Where in its batch a job with a provisional number stands; None for a real number."""
    number = int(job_id)
    return number - PROVISIONAL if number >= PROVISIONAL else None


def _numbers(documents: Sequence[Document]) -> tuple[dict[str, int], list[FieldError]]:
    numbers: dict[str, int] = {}
    errors: list[FieldError] = []
    for number, document in enumerate(documents):
        name = document.get("id") if isinstance(document, Mapping) else None
        if name is None:
            continue
        where = f"jobs.{number}.id"
        if not isinstance(name, str) or not LOCAL_ID.fullmatch(name):
            errors.append(FieldError(where, "is a name of letters, digits, - and _ that begins with a letter"))
        elif name in numbers:
            errors.append(FieldError(where, f"{name!r} is the id of jobs.{numbers[name]} already"))
        else:
            numbers[name] = number
    return numbers, errors


class _Put:
    """Puts a number where a name stood."""

    def __init__(self, holder: Any, key: Any, before: str):
        self._holder, self._key, self._before = holder, key, before

    def __call__(self, number: str) -> None:
        self._holder[self._key] = f"{self._before}{number}"


def _references(document: dict[str, Any]) -> Iterator[tuple[str, str, _Put]]:
    """Every place that names a job: its field, the name or number, and how to put a number there."""
    if isinstance(after := document.get("after"), (list, tuple)):
        document["after"] = entries = list(after)
        for at, text in enumerate(entries):
            if isinstance(text, str):
                condition, colon, name = text.rpartition(":")
                if not colon or condition in CONDITIONS:
                    yield "after", name, _Put(entries, at, condition + colon)
    places: list[tuple[str, dict[str, Any], str]] = [(field, document, field) for field in RESULT_FIELDS]
    for field in TABLES:
        if isinstance(table := document.get(field), Mapping):
            document[field] = own = dict(table)
            places += [(f"{field}.{key}", own, key) for key in own]
    for field, holder, key in places:
        text = holder.get(key)
        if isinstance(text, str) and text.startswith("job:"):
            yield field, text.removeprefix("job:"), _Put(holder, key, "job:")


def _is_number(text: str) -> bool:
    return JOB_REFERENCE.fullmatch(f"job:{text}") is not None


def _settled(text: str, first: int) -> str:
    before, colon, number = text.rpartition(":")
    place = place_of(number)
    return text if place is None else f"{before}{colon}{first + place}"


def _circle(waits: Mapping[int, Sequence[int]]) -> list[int]:
    """Jobs that wait for each other, from the first to itself again; empty when there are none."""
    done: set[int] = set()
    for start in waits:
        path: dict[int, Iterator[int]] = {}
        current: int | None = start
        while current is not None and current not in done:
            if current not in path:
                path[current] = iter(waits.get(current, ()))
            following = next((other for other in path[current] if other not in done), None)
            if following in path:
                members = list(path)
                return [*members[members.index(following) :], following]
            if following is None:
                done.add(current)
                del path[current]
                following = next(reversed(path), None)
            current = following
    return []


def _drawn(circle: Sequence[int], numbers: Mapping[str, int]) -> str:
    names = {number: name for name, number in numbers.items()}
    return " → ".join(names.get(number, f"jobs.{number}") for number in circle)
