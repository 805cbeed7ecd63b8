"""From a request's document to jobs in the queue, or to a list of what is wrong with it. Stores all of them or none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from api.context import Context
from api.documents import BatchRead, hash_of
from api.problems import ApiError
from api.rig_views import largest
from daemon.admission import admit
from daemon.plan import Facts, explain
from daemon.store import new_job
from jobs.model import InvalidTransition, Job, Priority, State, dependency, rank_of
from jobs.pipeline import numbered, place_of
from jobs.spec import FieldError, InvalidSpec, Spec, dump, parse

#: Of a batch, so many wrong documents are told in full.
WRONG_TOLD = 20
#: Of a document, these are the record's own; a change of one changes the record too.
FACTS = ("name", "tags", "priority", "gpus", "not_before", "window", "max_runtime_s", "max_attempts")
#: Whether the rig can take the job does not depend on these.
ALWAYS_FINE = set(FACTS) - {"gpus"}


@dataclass(frozen=True)
class Submitted:
    """The jobs, and whether an earlier call with the same key had made them."""

    jobs: list[Job]
    replayed: bool


def checked(batch: BatchRead, rig: Context) -> list[Spec]:
    """The documents as specs that this rig can take. Raises InvalidSpec, with fields as the body names them."""
    specs = _each(batch, batch.documents, parse)
    slots, known = largest(rig.store.rigs()), _known_jobs(specs, rig)
    _each(batch, specs, lambda spec: admit(spec, rig.settings, slots=slots, known_jobs=known))
    return specs


def one(document: Mapping[str, Any]) -> BatchRead:
    """A document by itself."""
    return _Single([document])


class _Single(BatchRead):
    def field_of(self, number: int, field: str) -> str:
        return field


D = TypeVar("D")
R = TypeVar("R")


def _each(batch: BatchRead, items: Sequence[D], check: Callable[[D], R]) -> list[R]:
    found: list[R] = []
    errors: dict[FieldError, None] = {}  # what a whole sweep has wrong is told once
    wrong = 0
    for number, item in enumerate(items):
        try:
            found.append(check(item))
        except InvalidSpec as error:
            wrong += 1
            errors |= {FieldError(batch.field_of(number, e.field), e.message): None for e in error.errors}
            if wrong == WRONG_TOLD:
                break
    if errors:
        raise InvalidSpec(list(errors))
    return found


def _known_jobs(specs: Sequence[Spec], rig: Context) -> Callable[[Sequence[str]], Mapping[str, Job]]:
    """Finds jobs by number, those of the batch itself by their provisional one. Each is looked up once."""
    now = rig.now()
    seen: dict[str, Job | None] = {}

    def find(job_ids: Sequence[str]) -> Mapping[str, Job]:
        for job_id in job_ids:
            if job_id not in seen and (place := place_of(job_id)) is not None:
                seen[job_id] = new_job(specs[place], int(job_id), now) if place < len(specs) else None
        if new := [job_id for job_id in job_ids if job_id not in seen]:
            seen.update(dict.fromkeys(new) | rig.store.get_many(new))
        return {job_id: job for job_id in job_ids if (job := seen[job_id]) is not None}

    return find


def submit(batch: BatchRead, body: object, rig: Context, *, key: str | None) -> Submitted:
    """Check and store. The same key again gives the same jobs, though a file that they named may be gone by now."""
    body_hash = hash_of(body)
    if key is not None and (known := rig.store.repeated(key, body_hash)) is not None:
        return Submitted(_still_there(known), True)
    specs = checked(batch, rig)
    sweep, points = (batch.sweep.facts, batch.sweep.points) if batch.sweep else (None, ())
    jobs, replayed = rig.store.submit(
        specs, now=rig.now(), repeat_key=key, body_hash=body_hash, sweep=sweep, points=points
    )
    return Submitted(_still_there(jobs), replayed)


def would_wait_because(specs: Sequence[Spec], facts: Facts) -> list[str | None]:
    """Why each of these jobs would wait, were it submitted now."""
    first = max((int(job_id) for job_id in facts.jobs), default=0) + 1
    jobs = [new_job(numbered(spec, first), number, facts.now) for number, spec in enumerate(specs, first)]
    then = replace(facts, jobs={**facts.jobs, **{job.id: job for job in jobs}})
    return [explain(then, job) for job in jobs]


def edit(job_id: str, changes: Mapping[str, Any], rig: Context) -> Job:
    """Change a waiting job. Raises InvalidSpec, InvalidTransition, UnknownJob."""
    before = rig.store.get(job_id)
    if before.state is not State.QUEUED:
        raise InvalidTransition(f"job {job_id} is {before.state}; only a waiting job can be changed")
    held, position = _own_words(changes)
    fields = {name: value for name, value in changes.items() if name not in ("held", "position")}
    spec = _changed_spec(before, fields, rig) if fields else None
    facts = rig.facts() if position else None

    def step(job: Job) -> Job:
        if job.spec != before.spec:
            raise InvalidTransition(f"job {job_id} was changed by somebody else at the same time; look at it again")
        if job.offer is not None:
            raise InvalidTransition(f"job {job_id} is about to start and can no longer be changed")
        record: dict[str, Any] = {} if held is None else {"held": held}
        if spec is not None:
            record |= _record_changes(job, spec, fields)
        if facts is not None:
            record["rank"] = _rank_at(position, record.get("priority", job.priority), facts)
        return job.edited(**record)

    return rig.store.change(job_id, step)


def _own_words(changes: Mapping[str, Any]) -> tuple[bool | None, str | None]:
    """What is no field of a document: whether it is held, and where in the queue it stands."""
    held, position = changes.get("held"), changes.get("position")
    errors = []
    if held is not None and not isinstance(held, bool):
        errors.append(FieldError("held", "is true or false"))
    if position is not None and position not in ("first", "last"):
        errors.append(FieldError("position", "is first or last (among the jobs of its priority)"))
    if not changes:
        errors.append(FieldError("", "names no field to change"))
    if errors:
        raise InvalidSpec(errors)
    return held, position


def _changed_spec(job: Job, fields: Mapping[str, Any], rig: Context) -> Spec:
    if "kind" in fields and fields["kind"] != job.kind:
        raise InvalidSpec([FieldError("kind", "cannot be changed: submit a new job")])
    document = {**job.spec, **fields}
    if set(fields) <= ALWAYS_FINE:
        return parse(document)
    [spec] = checked(one(document), rig)
    if job.id in _ancestors([dependency(text)[0] for text in spec.dependencies], rig):
        raise InvalidSpec([FieldError("after", f"job {job.id} would wait for itself")])
    return spec


def _ancestors(parents: Sequence[str], rig: Context) -> set[str]:
    """Every job that must end before, however far back; ended ones need no look."""
    seen: set[str] = set()
    todo = list(parents)
    while todo:
        seen |= set(todo)
        jobs = rig.store.get_many(todo).values()
        todo = [p for job in jobs if not job.state.final for p, _ in job.parents if p not in seen]
    return seen


def _record_changes(job: Job, spec: Spec, fields: Mapping[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {name: getattr(spec, name) for name in FACTS if name in fields}
    if not changes.get("name", job.name):
        changes["name"] = new_job(spec, int(job.id), job.created_at).name
    if "priority" in changes:
        place = job.rank - rank_of(job.priority, 0)
        changes["rank"] = rank_of(changes["priority"], 0) + place
    return {**changes, "after": spec.dependencies, "spec": dump(spec)}


def _rank_at(position: str | None, priority: Priority, facts: Facts) -> float:
    """Before or behind all that wait with this priority."""
    ranks = [job.rank for job in facts.waiting if job.priority is priority]
    if not ranks:
        return rank_of(priority, 1)
    return min(ranks) - 1 if position == "first" else max(ranks) + 1


def _still_there(jobs: list[Job]) -> list[Job]:
    if not jobs:
        raise ApiError(409, "The jobs that this Idempotency-Key made have been deleted since. Use a new key.")
    return jobs
