"""Bulk actions: what may be done with many jobs at once, to which of them, and what came of it.

A selection is settled before anybody is asked: the ids that the question counts are the ids that the answer is about. Each
job is then changed by the same verbs as alone, and one that is refused leaves the others as they are.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api import editing, routes_jobs
from api.context import Context
from api.problems import ApiError, words_of
from api.wording import count
from daemon.store import UnknownJob
from jobs.causes import gpu_out_of_memory
from jobs.model import Cause, InvalidTransition, Job, Priority, State, Wish, WishKind
from jobs.spec import FieldError, InvalidSpec

MOST_CHANGES = 4_000

Json = dict[str, Any]


@dataclass(frozen=True)
class Verb:
    """One bulk action. `takes`: whether a job's state allows it; `question`: what is said before it is done."""

    key: str
    label: str
    takes: Callable[[Job], bool]
    question: str
    does: Callable[[Sequence[Job], Context, Json], "Result"]
    danger: bool = False
    #: "retried", "cancelled": for the result.
    done: str = "changed"


@dataclass(frozen=True)
class Result:
    """How many were changed, and who was refused, with the reason."""

    done: int
    refused: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Remedy:
    """A change that a cause suggests, different for each job: a question for the form, and the fields for a job."""

    cause: Cause
    label: str
    fields: Callable[[Job], Json]


def changes_of(text: str) -> Json:
    """Changes of documents as somebody types them: TOML, `learning_rate = 1e-4` or `lora.r = 8` on each line.

    Raises InvalidSpec.
    """
    if len(text) > MOST_CHANGES:
        raise InvalidSpec([FieldError("changes", f"are at most {MOST_CHANGES} characters")])
    try:
        return tomllib.loads(text.replace("\r\n", "\n"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        example = "one on each line, as in learning_rate = 1e-4 (texts in quotes)"
        raise InvalidSpec([FieldError("changes", f"{error}: {example}")]) from None


def remedy_for(jobs: Sequence[Job]) -> Remedy | None:
    """What to offer when all of the jobs failed with one cause that a change can mend."""
    causes = {job.outcome.cause if job.outcome else None for job in jobs}
    return REMEDIES.get(next(iter(causes)) or Cause.LOST) if len(causes) == 1 else None


# -- the verbs ----------------------------------------------------------------------------------------------------------------


def _each(jobs: Sequence[Job], deed: Callable[[Job], object]) -> Result:
    done, refused = 0, []
    for job in jobs:
        try:
            deed(job)
            done += 1
        except (InvalidTransition, InvalidSpec, UnknownJob, ApiError, ValueError) as error:
            refused.append((job.id, words_of(error)[1] if type(error) is not ValueError else f"{error}."))
    return Result(done, refused)


def _retry(jobs: Sequence[Job], rig: Context, form: Json) -> Result:
    try:
        changes = changes_of(form.get("changes", ""))
    except InvalidSpec as error:
        return Result(0, [("", words_of(error)[1])])
    remedy = remedy_for(jobs) if form.get("remedy") == "yes" else None

    def deed(job: Job) -> object:
        # what somebody typed outweighs what a remedy suggests
        return editing.retry(job.id, {**(remedy.fields(job) if remedy else {}), **changes}, rig)

    return _each(jobs, deed)


def _cancel(jobs: Sequence[Job], rig: Context, form: Json) -> Result:
    wish = Wish(kind=WishKind.CANCEL, reason=routes_jobs.BY_OWNER, asked_at=rig.now())
    return _each(jobs, lambda job: rig.store.wish(job.id, wish))


def _preempt(jobs: Sequence[Job], rig: Context, form: Json) -> Result:
    wish = Wish(kind=WishKind.PREEMPT, reason=routes_jobs.BY_OWNER, asked_at=rig.now())
    return _each(jobs, lambda job: rig.store.wish(job.id, wish, only_if=State.RUNNING))


def _edited(**fields: Any) -> Callable[[Sequence[Job], Context, Json], Result]:
    return lambda jobs, rig, form: _each(jobs, lambda job: editing.edit(job.id, fields, rig))


def _moved(position: str) -> Callable[[Sequence[Job], Context, Json], Result]:
    def move(jobs: Sequence[Job], rig: Context, form: Json) -> Result:
        try:
            editing.move({"jobs": [job.id for job in jobs], "position": position}, rig)
        except (InvalidTransition, InvalidSpec, UnknownJob) as error:  # all of them, or none
            return Result(0, [("", words_of(error)[1])])
        return Result(len(jobs))

    return move


def _delete(jobs: Sequence[Job], rig: Context, form: Json) -> Result:
    return _each(jobs, lambda job: routes_jobs.delete_job(job.id, rig))


def _waits(job: Job) -> bool:
    return job.state is State.QUEUED and job.offer is None


def _may_be_cancelled(job: Job) -> bool:
    asked = job.wish is not None and job.wish.kind is WishKind.CANCEL
    return not job.state.final and not asked


def _priority(priority: Priority) -> Verb:
    return Verb(
        f"priority-{priority}",
        f"Priority {priority}",
        lambda job: _waits(job) and job.priority is not priority,
        f"They stand among the {priority} jobs then, in the order that they have.",
        _edited(priority=str(priority)),
        done=f"given priority {priority}",
    )


VERBS: Mapping[str, Verb] = {
    verb.key: verb
    for verb in (
        Verb("retry", "Retry", lambda job: job.state in (State.FAILED, State.CANCELLED), "They go to the end of the queue and resume from their last checkpoints, where there are any.", _retry, done="queued again"),
        Verb("cancel", "Cancel", _may_be_cancelled, "Those that wait leave the queue, those that run stop. Run folders stay, and they can be retried.", _cancel, True, "asked to stop"),
        Verb("preempt", "Save and requeue", lambda job: job.state is State.RUNNING and job.wish is None, "They save their work, go back to the queue, and go on from there later.", _preempt, done="asked to save and wait"),
        Verb("hold", "Hold", lambda job: _waits(job) and not job.held, "They keep their places and do not start until they are released.", _edited(held=True), done="held"),
        Verb("release", "Release", lambda job: _waits(job) and job.held, "They may start again when their turn comes.", _edited(held=False), done="released"),
        Verb("first", "Move first", _waits, "They go before all others of their priority, in the order of the list.", _moved("first"), done="moved"),
        Verb("last", "Move last", _waits, "They go behind all others of their priority, in the order of the list.", _moved("last"), done="moved"),
        *map(_priority, Priority),
        Verb("delete", "Delete", lambda job: job.state.final, "Their records and run folders are removed: logs, checkpoints and results. This cannot be taken back.", _delete, True, "deleted"),
    )
}  # fmt: skip


def _half_batch(job: Job) -> Json:
    return dict(gpu_out_of_memory(job.effective_spec).next_fields)


def _half_rate(job: Job) -> Json:
    rate = job.effective_spec.get("learning_rate")
    return {"learning_rate": rate / 2} if isinstance(rate, float) else {}


REMEDIES: Mapping[Cause, Remedy] = {
    Cause.OOM_GPU: Remedy(Cause.OOM_GPU, "Half the micro-batch, with the same effective batch", _half_batch),
    Cause.NAN: Remedy(Cause.NAN, "Half the learning rate", _half_rate),
}


def title_of(verb: Verb, amount: int) -> str:
    """Retry 6 jobs."""
    if verb.key.startswith("priority"):
        return f"Give {count(amount, 'job')} {verb.label[:1].lower()}{verb.label[1:]}"
    if verb.key in ("first", "last"):
        return f"Move {count(amount, 'job')} {verb.key}"
    if verb.key == "preempt":
        return f"Save and requeue {count(amount, 'job')}"
    return f"{verb.label} {count(amount, 'job')}"
