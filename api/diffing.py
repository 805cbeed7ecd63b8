"""Two jobs, and everything that is not the same in them: documents, what they ran on, data, code, results."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from api.comparing import FieldView, MetricView, RunView, fetched
from api.comparison import Cell
from api.context import Context
from api.problems import ApiError
from api.recorded import environment_of
from jobs import code_diff, snapshot
from jobs.differences import Difference, flat
from jobs.direction import PER_TIME
from jobs.model import Job
from jobs.spec import INPUT_REFERENCE

JOB_ID = re.compile(r"[1-9][0-9]{0,17}")
#: Parts of environment.json that say which attempt it was, not what it ran on; inputs are told apart.
NOT_ITS_SURROUNDINGS = frozenset({"attempt", "inputs"})
MOST_FACTS = 1_000
#: Texts of their own.
TOLD_AS_CODE = frozenset({"git.diff", "git.diff_cut"})


class FileChangeView(BaseModel):
    """A file of the working folders. `diff`: unified; empty for what is no text or too large. `cut`: there is more of it."""

    name: str
    how: Literal["added", "removed", "changed"]
    diff: list[str]
    cut: bool


class DiffView(BaseModel):
    """What differs between two jobs; every list has only that. `values` and metrics are in the jobs' order."""

    jobs: list[RunView]
    #: Whether nothing below differs. Name, priority, window and the like are not compared, nor is how long it took.
    same: bool
    document: list[FieldView]
    #: Versions, machine, GPU, variables, the commit of the folder that it ran in.
    environment: list[FieldView]
    #: SHA-256 of the content that fields name.
    inputs: list[FieldView]
    code: list[FileChangeView]
    results: list[MetricView]
    #: What could not be compared, in words.
    unknown: list[str]


def two(text: str) -> tuple[str, str]:
    """The jobs of a query. Raises ApiError."""
    ids = [part.strip().removeprefix("#") for part in text.split(",")]
    if len(ids) != 2 or not all(map(JOB_ID.fullmatch, ids)) or ids[0] == ids[1]:
        raise ApiError(422, "Two different jobs are named by their numbers, as in jobs=141,142.")
    return ids[0], ids[1]


def diff(ids: tuple[str, str], rig: Context) -> DiffView:
    """Raises UnknownJob, redis.RedisError."""
    made = fetched(ids, rig)
    jobs = [run.job for run in made.runs]
    unknown: list[str] = []
    told = [environment_of(job, rig) for job in jobs]
    unknown += [f"what job {job.id} ran on: it left no word of it" for job, facts in zip(jobs, told, strict=True) if facts is None]  # fmt: skip
    known = [facts for facts in told if facts is not None]
    code = [*_code(jobs, rig, unknown), *_not_committed(jobs, known)]
    found: dict[str, Any] = {
        "document": [FieldView.of(field) for field in made.differing],
        "environment": _views(known, lambda name: name not in NOT_ITS_SURROUNDINGS),
        "inputs": _views(known, lambda name: name == "inputs"),
        "code": code,
        "results": [MetricView.of(metric) for metric in made.metrics if _differs(metric.cells) and not PER_TIME.search(metric.name)],
    }  # fmt: skip
    return DiffView(jobs=[RunView.of(run) for run in made.runs], same=not any(found.values()), unknown=unknown, **found)


def _views(known: Sequence[dict[str, Any]], chosen: Callable[[str], bool]) -> list[FieldView]:
    """Facts of both that differ; nothing while only one has told any."""
    if len(known) < 2:
        return []
    sides = [dict(flat({name: value for name, value in facts.items() if chosen(name)})) for facts in known]
    names = list(dict.fromkeys(name for side in sides for name in side))[:MOST_FACTS]
    fields = [Difference(name, tuple(side.get(name) for side in sides)) for name in names if name not in TOLD_AS_CODE]
    return [FieldView.of(field) for field in fields if field.differs]


def _differs(cells: Sequence[Cell]) -> bool:
    one, other = cells
    return one.value != other.value if None in (one.value, other.value) else other.judgement != "same"


def _code(jobs: list[Job], rig: Context, unknown: list[str]) -> Iterator[FileChangeView]:
    """The working folders that came along, file by file."""
    names = [str(job.effective_spec.get("workdir") or "") for job in jobs]
    if names[0] == names[1] or not all(names):
        return
    found = [_archive(name, rig) for name in names]
    if missing := [job.id for job, path in zip(jobs, found, strict=True) if path is None]:
        unknown.append(f"the files of the working folders: that of job {missing[0]} is not on this rig")
        return
    try:
        changes, more = code_diff.compare(found[0], found[1], labels=(jobs[0].id, jobs[1].id))  # type: ignore[arg-type]
    except snapshot.BadSnapshot as error:
        unknown.append(f"the files of the working folders: one {error}")
        return
    if more:
        unknown.append(f"more than {code_diff.MAX_FILES} files of the working folders differ: the rest is not told")
    yield from map(_view, changes)


def _not_committed(jobs: Sequence[Job], known: Sequence[dict[str, Any]]) -> Iterator[FileChangeView]:
    """Of a folder in git, what its commit does not tell."""
    found = [facts["git"].get("diff") for facts in known if isinstance(facts.get("git"), dict)]
    if len(found) == 2 and found[0] != found[1] and all(isinstance(text, str) for text in found):
        yield _view(code_diff.of_texts("what was not committed", found[0], found[1], labels=(jobs[0].id, jobs[1].id)))


def _view(change: code_diff.FileChange) -> FileChangeView:
    return FileChangeView(name=change.name, how=change.how, diff=list(change.lines), cut=change.cut)


def _archive(name: str, rig: Context) -> Path | None:
    match = INPUT_REFERENCE.fullmatch(name)
    path = rig.settings.inputs / match[1] if match else None
    return path if path is not None and path.is_file() else None
