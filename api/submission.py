"""From a request's document to jobs in the queue, or to a list of what is wrong with it. Stores all of them or none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from api.context import Context
from api.documents import hash_of
from api.problems import ApiError
from api.rig_views import largest
from daemon.admission import admit
from daemon.plan import Facts, explain
from daemon.store import new_job
from jobs.model import Job
from jobs.spec import FieldError, InvalidSpec, Spec, parse

#: Of a batch, so many wrong documents are told in full.
WRONG_TOLD = 20


@dataclass(frozen=True)
class Submitted:
    """The jobs, and whether an earlier call with the same key had made them."""

    jobs: list[Job]
    replayed: bool


def checked(documents: Sequence[Mapping[str, Any]], rig: Context, *, names: Callable[[int], str]) -> list[Spec]:
    """The documents as specs that this rig can take. Raises InvalidSpec; `names` tells where each one stands."""
    rigs = rig.store.rigs()
    # with several rigs each one's own word counts; this rig speaks for itself
    slots = largest({rig.settings.rig: rigs.get(rig.settings.rig, {})} if rig.elsewhere.shared else rigs)
    specs: list[Spec] = []
    unfit: dict[int, InvalidSpec] = {}
    errors: list[FieldError] = []
    wrong = 0
    for number, document in enumerate(documents):
        try:
            spec = parse(document)
            specs.append(spec)
            try:
                _for_this_rig(spec, rig)
                admit(
                    spec,
                    rig.settings,
                    slots=slots,
                    known_jobs=rig.store.get_many,
                    uploaded_elsewhere=lambda digest: _is_elsewhere(digest, rig),
                )
            except InvalidSpec as error:
                if rig.asked_by_rig or len(rigs) < 2:
                    raise
                unfit[number] = error
        except InvalidSpec as error:
            wrong += 1
            errors += [FieldError(_joined(names(number), e.field), e.message) for e in error.errors]
            if wrong == WRONG_TOLD:
                break
    errors += _unfit_everywhere(unfit, documents, rig, names)
    if errors:
        raise InvalidSpec(errors)
    return specs


def _for_this_rig(spec: Spec, rig: Context) -> None:
    if spec.rig and spec.rig != rig.settings.rig:
        there = ", ".join(rig.store.rigs()) or rig.settings.rig
        raise InvalidSpec(
            [FieldError("rig", f"{spec.rig!r} is no rig of this queue that takes the job; there are {there}")]
        )


def _is_elsewhere(digest: str, rig: Context) -> bool:
    if rig.asked_by_rig or not rig.elsewhere.shared:
        return rig.elsewhere.shared  # whether the file exists, the rig has looked that asks
    return bool(rig.store.rigs_with_input(digest, rig.store.rigs()))


def _unfit_everywhere(
    unfit: Mapping[int, InvalidSpec],
    documents: Sequence[Mapping[str, Any]],
    rig: Context,
    names: Callable[[int], str],
) -> list[FieldError]:
    """What is wrong with those that neither this rig nor another one takes."""
    numbers = list(unfit)
    takers = rig.elsewhere.taken_by([documents[number] for number in numbers]) if numbers else []
    errors: list[FieldError] = []
    told = 0
    for number, taker in zip(numbers, takers, strict=True):
        if taker is None and told < WRONG_TOLD:
            told += 1
            errors += [FieldError(_joined(names(number), e.field), e.message) for e in unfit[number].errors]
    return errors


def submit(
    documents: Sequence[Mapping[str, Any]], body: object, rig: Context, *, key: str | None, names: Callable[[int], str]
) -> Submitted:
    """Check and store. The same key again gives the same jobs, though a file that they named may be gone by now."""
    body_hash = hash_of(body)
    if key is not None and (known := rig.store.repeated(key, body_hash)) is not None:
        return Submitted(_still_there(known), True)
    specs = checked(documents, rig, names=names)
    jobs, replayed = rig.store.submit(specs, now=rig.now(), repeat_key=key, body_hash=body_hash)
    return Submitted(_still_there(jobs), replayed)


def would_wait_because(specs: Sequence[Spec], facts: Facts) -> list[str | None]:
    """Why each of these jobs would wait, were it submitted now."""
    jobs = supposed(specs, facts)
    then = replace(facts, jobs={**facts.jobs, **{job.id: job for job in jobs}})
    return [explain(then, job) for job in jobs]


def supposed(specs: Sequence[Spec], facts: Facts) -> list[Job]:
    """The records that these would get, were they submitted now."""
    first = max((int(job_id) for job_id in facts.jobs), default=0) + 1
    return [new_job(spec, number, facts.now) for number, spec in enumerate(specs, first)]


def _still_there(jobs: list[Job]) -> list[Job]:
    if not jobs:
        raise ApiError(409, "The jobs that this Idempotency-Key made have been deleted since. Use a new key.")
    return jobs


def _joined(name: str, field: str) -> str:
    return f"{name}.{field}" if name and field else name or field
