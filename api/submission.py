"""From a request's document to jobs in the queue, or to a list of what is wrong with it. Stores all of them or none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from api.context import Context
from api.documents import BatchRead, hash_of, in_our_names
from api.problems import ApiError
from api.rig_views import largest, memories_of
from daemon.admission import Admitted, admit, glance
from daemon.explain import explain
from daemon.plan import Facts
from daemon.store import new_job
from jobs.model import Job
from jobs.pipeline import alone, numbered, place_of
from jobs.spec import FieldError, InvalidSpec, Spec, parse

#: Of a batch, so many wrong documents are told in full.
WRONG_TOLD = 20


@dataclass(frozen=True)
class Submitted:
    """The jobs, and whether an earlier call with the same key had made them."""

    jobs: list[Job]
    replayed: bool
    #: For each job an earlier one that did the same work.
    ran_before: Sequence[Job | None] = ()


def parsed(batch: BatchRead) -> list[Spec]:
    """The documents as specs, whether or not a rig can take them. Raises InvalidSpec."""
    return _each(batch, batch.documents, parse)


def checked(batch: BatchRead, rig: Context) -> list[Admitted]:
    """The documents as specs that this rig, or another one of its queue, can take, with what is known of them.

    Raises InvalidSpec, with fields as the body names them.
    """
    specs = parsed(batch)
    rig.ledger.refresh()  # what earlier jobs needed
    rigs, known = rig.store.rigs(), _known_jobs(specs, rig)
    # with several rigs each one's own word counts; this rig speaks for itself
    takers = {rig.settings.rig: rigs.get(rig.settings.rig, {})} if rig.elsewhere.shared else rigs
    slots, memories = largest(takers), memories_of(takers)
    asks_others = not rig.asked_by_rig and len(rigs) > 1
    unfit: dict[int, InvalidSpec] = {}

    def take(spec: Spec) -> Admitted:
        _for_this_rig(spec, rig)
        return admit(
            spec,
            rig.settings,
            slots=slots,
            known_jobs=known,
            uploaded_elsewhere=lambda digest: is_elsewhere(digest, rig),
            memories=memories,
            learned=rig.learned,
        )

    def take_or_ask(numbered_spec: tuple[int, Spec]) -> Admitted:
        number, spec = numbered_spec
        try:
            return take(spec)
        except InvalidSpec as error:
            unfit[number] = error
            return Admitted(spec=spec)

    if not asks_others:
        return [_looked_at(each, rig) for each in _each(batch, specs, take)]
    found = _each(batch, list(enumerate(specs)), take_or_ask)
    _refuse_unfit_everywhere(unfit, batch, rig)
    return [_looked_at(each, rig) for each in found]


def _looked_at(admitted: Admitted, rig: Context) -> Admitted:
    return replace(admitted, outlook=rig.outlook(admitted.spec, admitted.outlook))


def _for_this_rig(spec: Spec, rig: Context) -> None:
    if spec.rig and spec.rig != rig.settings.rig:
        there = ", ".join(rig.store.rigs()) or rig.settings.rig
        raise InvalidSpec(
            [FieldError("rig", f"{spec.rig!r} is no rig of this queue that takes the job; there are {there}")]
        )


def is_elsewhere(digest: str, rig: Context) -> bool:
    """Whether another rig of the queue has this upload."""
    if rig.asked_by_rig or not rig.elsewhere.shared:
        return rig.elsewhere.shared  # whether the file exists, the rig has looked that asks
    return bool(rig.store.rigs_with_input(digest, rig.store.rigs()))


def _refuse_unfit_everywhere(unfit: Mapping[int, InvalidSpec], batch: BatchRead, rig: Context) -> None:
    """Raises InvalidSpec for those that neither this rig nor another one takes."""
    takers = rig.elsewhere.taken_by([alone(batch.documents[number]) for number in unfit]) if unfit else []
    nobody = [number for number, taker in zip(unfit, takers, strict=True) if taker is None]

    def refuse(number: int) -> None:
        raise unfit[number]

    _each(batch, nobody, refuse, numbers=nobody)


def one(document: Mapping[str, Any]) -> BatchRead:
    """A document by itself, in our names. Raises InvalidSpec."""
    found, notes = in_our_names([document])
    return _Single(found, notes=notes)


class _Single(BatchRead):
    def field_of(self, number: int, field: str) -> str:
        return field


D = TypeVar("D")
R = TypeVar("R")


def _each(
    batch: BatchRead, items: Sequence[D], check: Callable[[D], R], *, numbers: Sequence[int] | None = None
) -> list[R]:
    """Check every item; `numbers`: where each one stands in the batch. Raises InvalidSpec with what is wrong with the first."""
    found: list[R] = []
    errors: dict[FieldError, None] = {}  # what a whole sweep has wrong is told once
    wrong = 0
    for number, item in zip(numbers or range(len(items)), items, strict=True):
        try:
            found.append(check(item))
        except InvalidSpec as error:
            wrong += 1
            errors |= {replace(e, field=batch.field_of(number, e.field)): None for e in error.errors}
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
    admitted = checked(batch, rig)
    ran_before = rig.store.alike([each.spec for each in admitted]) if batch.sweep is None else ()
    sweep, points = (batch.sweep.facts, batch.sweep.points) if batch.sweep else (None, ())
    jobs, replayed = rig.store.submit(
        [each.spec for each in admitted],
        now=rig.now(),
        repeat_key=key,
        body_hash=body_hash,
        sweep=sweep,
        points=points,
        outlooks=[each.outlook for each in admitted],
    )
    return Submitted(_still_there(jobs), replayed, ran_before)


def would_wait_because(admitted: Sequence[Admitted], facts: Facts) -> list[str | None]:
    """Why each of these jobs would wait, were it submitted now."""
    jobs = supposed(admitted, facts)
    then = replace(facts, jobs={**facts.jobs, **{job.id: job for job in jobs}})
    return [explain(then, job) for job in jobs]


def glimpsed(batch: BatchRead, rig: Context) -> list[Admitted]:
    """The documents as specs with what can be known of them, whether or not a rig can take them. Raises InvalidSpec."""
    specs = parsed(batch)
    rig.ledger.refresh()
    known = _known_jobs(specs, rig)
    return [
        glance(
            spec,
            rig.settings,
            known_jobs=known,
            uploaded_elsewhere=lambda digest: is_elsewhere(digest, rig),
            learned=rig.learned,
        )
        for spec in specs
    ]


def supposed(admitted: Sequence[Admitted], facts: Facts) -> list[Job]:
    """The records that these would get, were they submitted now."""
    first = max((int(job_id) for job_id in facts.jobs), default=0) + 1
    return [
        new_job(numbered(each.spec, first), number, facts.now, each.outlook)
        for number, each in enumerate(admitted, first)
    ]


def _still_there(jobs: list[Job]) -> list[Job]:
    if not jobs:
        raise ApiError(409, "The jobs that this Idempotency-Key made have been deleted since. Use a new key.")
    return jobs
