"""What a job's page shows of an evaluation: its metrics with errors, the difference to the model before, and the worst rows.

Files are written by jobs, so none is trusted: reads are bounded, and what does not fit the form is left out.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from api.curves import plain_text
from api.files import NoSuchFile, open_beneath
from api.wording import number, words
from daemon.night.best import BASELINE_TAG
from daemon.sweep_table import is_beside
from jobs.differences import same
from jobs.direction import direction
from jobs.evaluation import MEASURED_ON, STDERR, basis, differences, is_telling
from jobs.metrics import is_finite
from jobs.model import Job, State
from jobs.rundir import RunDir

#: Larger files are not read for a page; differences are then told without them.
MOST_BYTES = 8 << 20
WORST_SHOWN = 10
CHARACTERS = 400
#: Of a row, what differences are made of; and a number above all that a row can count.
NUMBERS, ANSWERS = ("index", "loss", "tokens", "correct", "all_loss", "all_tokens"), ("exact", "includes")
MOST = 1e12
MINUS = "\u2212"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """A metric: its value with its standard error, and how it stands to the baseline's."""

    name: str
    value: str
    error: str
    difference: str = ""
    #: better, worse, or "" where chance alone could make the difference, or the name does not tell.
    judgement: str = ""


@dataclass(frozen=True)
class Worst:
    """A row on which the model did worst."""

    id: str
    loss: str
    expected: str
    answer: str


@dataclass(frozen=True)
class Evaluation:
    """Everything about one evaluation."""

    lines: Sequence[Line]
    measured_on: Sequence[tuple[str, str]]
    baseline: Job | None
    #: Whether differences are taken row by row.
    paired: bool
    worst: Sequence[Worst]


def panel(job: Job, baseline: Job | None, rows: Sequence[Row], base_rows: Sequence[Row], worst: Iterable[Row]) -> Evaluation | None:  # fmt: skip
    """What to show of a job; None for one that is no evaluation with a result. Rows: of rows.jsonl, empty where unknown."""
    told = job.outcome.metrics if job.outcome else {}
    if job.kind != "evaluate" or not told:
        return None
    before = baseline.outcome.metrics if baseline and baseline.outcome else {}
    paired = differences(rows, base_rows) if rows and base_rows else {}
    names = [name for name in told if is_finite(told[name]) and not is_beside(name)]
    lines = [_line(name, told, before, paired) for name in names]
    facts = told.get(MEASURED_ON)
    on = [(words(str(name)), _fact(value)) for name, value in facts.items()] if isinstance(facts, Mapping) else []
    return Evaluation(lines, on, baseline, bool(paired), [_worst(row) for row in worst][:WORST_SHOWN])


def baseline_of(job: Job, others: Iterable[Job]) -> Job | None:
    """The evaluation to hold this one against: of the same rows; tagged as baseline, else of the model without the adapter."""
    fair = [
        other for other in others
        if other.id != job.id and other.kind == job.kind and other.state is State.SUCCEEDED and _alike(other, job)
    ]  # fmt: skip
    tagged = [other for other in fair if BASELINE_TAG in other.tags]
    bare = [other for other in fair if not other.spec.get("adapter") and same(other.spec.get("model"), job.spec.get("model"))]  # fmt: skip
    if BASELINE_TAG in job.tags:
        return None
    return next(iter(tagged or (bare if job.spec.get("adapter") else [])), None)


def rows_of(folder: RunDir) -> list[Row]:
    """The rows that an evaluation has measured; none when the file is too large for a page, or not of that form."""
    return list(_rows(folder, _identity(folder, "rows.jsonl")))


def worst_of(folder: RunDir) -> list[Row]:
    """Its worst rows, as it has written them down."""
    found = _json(_text(folder, "results.json"))
    listed = found.get("worst") if isinstance(found, dict) else None
    return [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []


def _line(name: str, told: Mapping[str, Any], before: Mapping[str, Any], paired: Mapping[str, Any]) -> Line:
    error = told.get(name + STDERR)
    value = Line(words(name), number(told[name]), _error(error).strip())
    if not is_finite(before.get(name)) or basis(told, name) != basis(before, name):
        return value
    difference = float(told[name]) - float(before[name])
    row_by_row = paired.get(name)
    stderr = row_by_row.stderr if row_by_row else _apart(error, before.get(name + STDERR))
    sign = "+" if difference > 0 else MINUS if difference < 0 else ""
    shown = sign + number(float(f"{abs(difference):.3g}")) + _error(stderr)
    better = direction(name)
    judgement = ""
    if better and is_telling(difference, stderr):
        judgement = "better" if (difference < 0) == (better == "lower") else "worse"
    return Line(value.name, value.value, value.error, shown, judgement)


def _error(stderr: Any) -> str:
    return f" ± {number(float(f'{stderr:.2g}'))}" if is_finite(stderr) else ""


def _apart(one: Any, other: Any) -> float | None:
    """The error of a difference of two results whose rows are not at hand."""
    return math.hypot(one, other) if is_finite(one) and is_finite(other) else None


def _alike(other: Job, job: Job) -> bool:
    told, theirs = (each.outcome.metrics if each.outcome else {} for each in (job, other))
    return any(name in theirs and basis(told, name) == basis(theirs, name) for name in told if is_finite(told[name]) and not is_beside(name))  # fmt: skip


def _worst(row: Row) -> Worst:
    loss = row.get("loss")
    return Worst(
        id=plain_text(row.get("id"), CHARACTERS),
        loss=number(loss) if is_finite(loss) and loss is not None else "",
        expected=plain_text(row.get("expected"), CHARACTERS),
        answer=plain_text(row.get("answer"), CHARACTERS),
    )


def _fact(value: Any) -> str:
    if is_finite(value):
        return number(value)
    return "none" if value is None else str(value)[:16]


def _identity(folder: RunDir, name: str) -> tuple[int, int] | None:
    try:
        facts = (folder.output / name).lstat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size


@lru_cache(maxsize=4)
def _rows(folder: RunDir, identity: tuple[int, int] | None) -> tuple[Row, ...]:
    del identity  # only tells when to look again
    rows = [_json(line) for line in _text(folder, "rows.jsonl").splitlines()]
    if not all(map(_is_row, rows)):
        return ()
    return tuple({name: row[name] for name in (*NUMBERS, *ANSWERS) if name in row} for row in rows)


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not all(row.get(name) in (None, True, False) for name in ANSWERS):
        return False
    return all(is_finite(row.get(name)) and 0 <= row[name] <= MOST for name in NUMBERS)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _text(folder: RunDir, name: str) -> str:
    """The whole file; "" when it is none, or too large."""
    try:
        descriptor = open_beneath(folder.path, f"{folder.output.name}/{name}")
    except NoSuchFile:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        raw = file.read(MOST_BYTES + 1)
    return raw.decode(errors="replace") if len(raw) <= MOST_BYTES else ""
