"""What failed, by cause: with the line that says why, and what can safely be done. And what was mended by itself. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from daemon.night.model import Action, Group, Repaired
from daemon.night.records import Records
from daemon.wording import CAUSE_WORDS, number
from jobs.causes import gpu_out_of_memory
from jobs.model import UNCOUNTED, Attempt, Cause, End, Job, State

#: What the failure had nothing to do with the job: once more as it is.
AGAIN = frozenset({Cause.GPU_FAULT, Cause.LOST, Cause.SIGNAL, Cause.FETCH, Cause.HANG})
LINE_CHARACTERS = 300


def groups(records: Records) -> tuple[Group, ...]:
    """Jobs that failed in the night and have not been tried again, by cause and sweep; the largest group first."""
    found: dict[tuple[Cause | None, str], list[Job]] = {}
    for job in records.ended(State.FAILED):
        found.setdefault((job.outcome.cause if job.outcome else None, job.sweep), []).append(job)
    waited: dict[str, list[str]] = {}
    for job in records.ended(State.CANCELLED):
        if job.because_of:
            waited.setdefault(job.because_of, []).append(job.id)
    made = [_group(cause, sweep, jobs, waited, records) for (cause, sweep), jobs in found.items()]
    return tuple(sorted(made, key=lambda group: (-len(group.jobs), -group.failed_at)))


def repaired(records: Records) -> tuple[Repaired, ...]:
    """Jobs whose run failed in the night and that succeeded later, or are about to run again; the latest first."""
    return tuple(sorted(_repaired(records), key=lambda one: -one.failed_at))


def _group(cause: Cause | None, sweep: str, jobs: list[Job], waited: Mapping[str, list[str]], records: Records) -> Group:  # fmt: skip
    jobs = sorted(jobs, key=lambda job: int(job.id))
    lines = {job.id: _line(job, records) for job in jobs}
    (line, _), *_ = Counter(lines.values()).most_common(1)
    latest = max((job for job in jobs if lines[job.id] == line), key=lambda job: job.finished_at or 0.0)
    return Group(
        cause=cause,
        words=CAUSE_WORDS[cause] if cause else "for a reason not known",
        jobs=tuple(job.id for job in jobs),
        names=tuple(dict.fromkeys(job.name for job in jobs)),
        line=line,
        line_of=latest.id,
        hint=_hint(latest),
        sweep=sweep,
        sweep_name=records.sweep_name(sweep),
        action=_action(cause, jobs),
        waited=tuple(child for job in jobs for child in _below(job.id, waited)),
        failed_at=max(job.finished_at or 0.0 for job in jobs),
    )


def _below(job_id: str, waited: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Who was cancelled because of it, and because of those."""
    for child in waited.get(job_id, ()):
        yield child
        yield from _below(child, waited)


def _line(job: Job, records: Records) -> str:
    text = records.lines.get(job.id) or (job.outcome.message if job.outcome else "")
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= LINE_CHARACTERS else line[: LINE_CHARACTERS - 1] + "…"


def _hint(job: Job) -> str:
    hint = job.outcome.hint if job.outcome else ""
    # said of an attempt; this job is not tried again by itself
    return "" if hint.startswith("It is tried again") else hint


def _action(cause: Cause | None, jobs: Sequence[Job]) -> Action | None:
    if cause in AGAIN:
        return Action(verb="retry", label=_label(jobs), jobs=_ids(jobs))
    ways: Mapping[Cause, tuple[Callable[[Job], dict[str, Any]], str]] = {
        Cause.OOM_GPU: (_half_batch, "with half the batch"),
        Cause.NAN: (_half_rate, "with half the learning rate"),
        Cause.TIMEOUT: (_twice_the_time, "with twice the time"),
    }
    if cause is None or cause not in ways:
        return None
    change, how = ways[cause]
    changes = {job.id: changed for job in jobs if (changed := change(job))}
    able = [job for job in jobs if job.id in changes]
    return Action(verb="retry", label=f"{_label(able)} {how}", jobs=_ids(able), changes=changes) if able else None


def _half_batch(job: Job) -> dict[str, Any]:
    try:
        return dict(gpu_out_of_memory(job.effective_spec).next_fields or {})
    except (KeyError, TypeError, ValueError):  # a document of another version
        return {}


def _half_rate(job: Job) -> dict[str, Any]:
    rate = job.effective_spec.get("learning_rate")
    return {"learning_rate": rate / 2} if isinstance(rate, (int, float)) and rate > 0 else {}


def _twice_the_time(job: Job) -> dict[str, Any]:
    return {"max_runtime_s": 2 * job.max_runtime_s} if job.max_runtime_s else {}


def _ids(jobs: Iterable[Job]) -> tuple[str, ...]:
    return tuple(job.id for job in jobs)


def _label(jobs: Sequence[Job]) -> str:
    return "Retry it" if len(jobs) == 1 else "Retry both" if len(jobs) == 2 else f"Retry all {len(jobs)}"


def _repaired(records: Records) -> Iterator[Repaired]:
    for job in records.jobs:
        failed = [run for run in job.attempts if _failed_in(run, records)]
        state = records.state_of(job)
        if failed and state not in (None, State.FAILED, State.CANCELLED):
            run = failed[-1]
            yield Repaired(
                job=job.id,
                name=job.name,
                cause=run.cause,
                words=CAUSE_WORDS[run.cause] if run.cause else "failed",
                changed="" if run.cause in UNCOUNTED else _changed(job),
                done=state is State.SUCCEEDED,
                failed_at=run.ended_at or 0.0,
            )


def _failed_in(run: Attempt, records: Records) -> bool:
    return run.end is End.FAILED and run.ended_at is not None and records.span.since <= run.ended_at <= records.span.until  # fmt: skip


def _changed(job: Job) -> str:
    """per_device_train_batch_size 8 → 4."""
    parts = [
        f"{name} {number(job.spec.get(name))} → {number(value)}"
        for name, value in job.next_fields.items()
        if value != job.spec.get(name)
    ]
    return ", ".join(parts)
