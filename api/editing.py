"""Change what waits: fields of its document, whether it is held, where it stands. Nothing half: a refusal changes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.context import Context
from api.problems import ApiError
from api.submission import checked, one
from api.views import revision_of
from daemon.admission import Admitted
from daemon.history import shapes
from daemon.order import Place, parse_place
from daemon.store import new_job
from jobs.model import Condition, InvalidTransition, Job, State, dependency
from jobs.repeat import fingerprint
from jobs.spec import FieldError, InvalidSpec, dump, parse

#: Of a document, these are the record's own; a change of one changes the record too.
FACTS = ("name", "tags", "priority", "gpus", "not_before", "window", "max_runtime_s", "max_attempts")
#: Whether the rig can take the job does not depend on these.
ALWAYS_FINE = set(FACTS) - {"gpus"}
#: What is no field of a document.
OWN_WORDS = ("held", "position")
#: How often a change is made anew because somebody else's came in between.
TRIES = 20
MOST_MOVED = 1_000


class _ChangedMeanwhile(Exception):
    """Somebody else was faster."""


@dataclass(frozen=True)
class Changes:
    """What somebody asks for: a merge patch of the document, and the two facts beside it."""

    fields: Mapping[str, Any]
    held: bool | None
    place: Place | None


def edit(job_id: str, body: object, rig: Context, *, revision: str | None = None) -> Job:
    """Change a waiting job. Raises InvalidSpec, InvalidTransition, UnknownJob; ApiError 412 when the revision is old."""
    changes = _changes(body)
    for _ in range(TRIES):
        before = rig.store.get(job_id)
        refuse_unless_waiting(before)
        if revision is not None and revision != revision_of(before):
            raise ApiError(412, f"Job {job_id} has been changed since you looked at it. Look again, then change it.")
        admitted = _changed_spec(before, changes.fields, rig) if changes.fields else None
        try:
            return rig.store.arrange([job_id], lambda job: _edited(job, before, admitted, changes), changes.place)[0]  # noqa: B023 - called before the next turn
        except _ChangedMeanwhile:
            continue
    raise InvalidTransition(f"job {job_id} is being changed by others all the time; try again in a moment")


def retry(job_id: str, body: object, rig: Context) -> Job:
    """Queue an ended job again, with changes of its document and `held` if there are any.

    One that waits or runs again already stays as it is. Raises InvalidSpec, InvalidTransition, UnknownJob.
    """
    changes = _changes(body) if body != {} else Changes({}, None, None)
    if changes.place is not None:
        raise InvalidSpec([FieldError("position", "is no field of a retry: the job goes behind all that wait")])
    for _ in range(TRIES):
        before = rig.store.get(job_id)
        admitted = _changed_spec(before, changes.fields, rig) if changes.fields else None
        if not before.state.final:
            if admitted is not None and dump(admitted.spec) != before.spec:
                raise InvalidTransition(f"job {job_id} is {before.state} again already, and was left as it is")
            return before
        try:
            return rig.store.retry(job_id, lambda job: _with(job, before, admitted, changes))  # noqa: B023 - called before the next turn
        except _ChangedMeanwhile:
            continue
        except InvalidTransition:
            if rig.store.get(job_id).state.final:
                raise
    raise InvalidTransition(f"job {job_id} is being changed by others all the time; try again in a moment")


def move(body: object, rig: Context) -> list[Job]:
    """Put waiting jobs beside each other to a place in the queue: all of them, or none. Raises as `edit` does."""
    if not isinstance(body, dict) or set(body) != {"jobs", "position"}:
        raise InvalidSpec([FieldError("", 'is {"jobs": ["142", "143"], "position": "before:139"}')])
    ids = body["jobs"]
    if not isinstance(ids, list) or not 0 < len(ids) <= MOST_MOVED or not all(map(_is_id, ids)):
        raise InvalidSpec([FieldError("jobs", f"is a list of 1 to {MOST_MOVED} ids of jobs, as texts")])
    if len(set(ids)) < len(ids):
        raise InvalidSpec([FieldError("jobs", "names a job twice")])
    return rig.store.arrange(ids, refuse_unless_waiting, _place(body["position"]))


def refuse_unless_waiting(job: Job) -> Job:
    """The job, when it can still be changed. Raises InvalidTransition, which says what can be done instead."""
    if job.state is State.RUNNING:
        todo = f"overnight preempt {job.id} saves its work and puts it back into the queue"
        raise InvalidTransition(f"job {job.id} is running, and only a waiting job can be changed: {todo}")
    if job.state is not State.QUEUED:
        retry = f": overnight retry {job.id} queues it again" if job.state is not State.SUCCEEDED else ""
        raise InvalidTransition(f"job {job.id} is {job.state}, and only a waiting job can be changed{retry}")
    if job.offer is not None:
        raise InvalidTransition(f"job {job.id} is about to start and can no longer be changed; it can be cancelled")
    return job


def _changes(body: object) -> Changes:
    if not isinstance(body, dict):
        raise InvalidSpec([FieldError("", "changes are an object with fields")])
    held = body.get("held")
    errors = [] if body else [FieldError("", "names no field to change")]
    if "held" in body and not isinstance(held, bool):
        errors.append(FieldError("held", "is true or false"))
    if errors:
        raise InvalidSpec(errors)
    fields = {name: value for name, value in body.items() if name not in OWN_WORDS}
    return Changes(fields, held, _place(body["position"]) if "position" in body else None)


def _place(text: object) -> Place:
    try:
        return parse_place(text)
    except ValueError as error:
        raise InvalidSpec([FieldError("position", f"{error} (among the jobs of its priority)")]) from None


def _is_id(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18


def _changed_spec(job: Job, fields: Mapping[str, Any], rig: Context) -> Admitted:
    if "kind" in fields and fields["kind"] != job.kind:
        raise InvalidSpec([FieldError("kind", "cannot be changed: submit a new job")])
    document = merged(job.spec, fields)
    if set(fields) <= ALWAYS_FINE:
        return Admitted(spec=parse(document))
    [admitted] = checked(one(document), rig)
    if job.id in _ancestors([dependency(text)[0] for text in admitted.spec.dependencies], rig):
        raise InvalidSpec([FieldError("after", f"job {job.id} would wait for itself")])
    return admitted


def merged(document: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON merge patch (RFC 7396): objects are merged, null takes a field out, so that its default counts."""
    result = dict(document)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, Mapping):
            old = result.get(name)
            result[name] = merged(old if isinstance(old, Mapping) else {}, value)
        else:
            result[name] = value
    return result


def _ancestors(parents: Sequence[str], rig: Context) -> set[str]:
    """Every job that must end before, however far back; ended ones need no look."""
    seen: set[str] = set()
    todo = list(parents)
    while todo:
        seen |= set(todo)
        jobs = rig.store.get_many(todo).values()
        todo = [p for job in jobs if not job.state.final for p, _ in job.parents if p not in seen]
    return seen


def _edited(job: Job, before: Job, admitted: Admitted | None, changes: Changes) -> Job:
    """The step: what was checked is put into the record, when the record is still the one that was checked."""
    refuse_unless_waiting(job)
    if job.held != before.held:
        raise _ChangedMeanwhile
    return _with(job, before, admitted, changes)


def _with(job: Job, before: Job, admitted: Admitted | None, changes: Changes) -> Job:
    if job.spec != before.spec:
        raise _ChangedMeanwhile
    record: dict[str, Any] = {} if changes.held is None else {"held": changes.held}
    if admitted is not None:
        record |= _record_changes(job, admitted, changes.fields)
    return job.edited(**record)


def _record_changes(job: Job, admitted: Admitted, fields: Mapping[str, Any]) -> dict[str, Any]:
    spec = admitted.spec
    fresh = new_job(spec, int(job.id), job.created_at, admitted.outlook)
    changes: dict[str, Any] = {name: getattr(spec, name) for name in FACTS if name in fields}
    if "name" in changes:
        changes["name"] = fresh.name
    if not set(fields) <= ALWAYS_FINE:
        changes |= {name: getattr(fresh, name) for name in ("vram_bytes", "estimate", "parallel")}
    others = [text for text in job.after if dependency(text)[1] is Condition.CHECKED]
    if "preflight" in fields or fingerprint(dump(spec)) != fingerprint(job.spec):
        # other work than was checked, by itself or by another job
        vouches = job.vouches and not job.was_checked and shapes(job)[0] == shapes(fresh)[0]
        changes |= {"preflight_due": fresh.preflight_due, "measured": {}, "vouches": vouches}
        others = []
    # what its owner asks for now outweighs what an earlier attempt had taught
    learned = {name: value for name, value in job.next_fields.items() if name not in fields}
    return {**changes, "after": (*spec.dependencies, *others), "next_fields": learned, "spec": dump(spec)}
