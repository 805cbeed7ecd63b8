"""From everything that was read to one night. Pure: the same records make the same night, before and after a restart."""

from collections.abc import Iterator

from daemon.night import best as results
from daemon.night import failures, lanes
from daemon.night.foretold import drains_at, foretold
from daemon.night.model import Counts, Event, Next, Night, Ran, Trouble, Waits
from daemon.night.records import Records
from daemon.night.verdict import verdict
from daemon.wording import energy, telling_metric
from jobs.metrics import is_finite
from jobs.model import End, Job, State

#: So many jobs are listed; of a longer night the failed and the latest ones.
MOST_RAN = 200
MOST_EVENTS = 50
NEXT_JOBS = 10
#: A GPU that a job held so long at less than this load is worth a line.
LOW_USE, LOW_USE_AFTER_S = 0.20, 1800.0


def night(records: Records) -> Night:
    """The night of these records."""
    span = records.span
    found = lanes.idle_times(records)
    made = lanes.lanes(records, found)
    groups, troubles = failures.groups(records), tuple(_troubles(records))
    best, waits, counts = results.best(records), _waits(records), _counts(records)
    ran = _ran(records)
    said = verdict(records, counts=counts, groups=groups, troubles=troubles, best=best, waits=waits, idle=found)
    known = {job.id: job for job in records.jobs}
    return Night(
        date=span.date.isoformat(),
        rig=records.rig,
        zone=str(records.zone),
        since=span.since,
        until=span.until,
        made_at=records.now,
        over=span.over,
        began_by=span.began_by,
        verdict=said,
        counts=counts,
        lanes=made,
        timeline=_timeline(records, lanes.busy_words(made)),
        energy=records.energy,
        hours=lanes.hours(records, found),
        heat=records.heat,
        events=tuple(_events(records)),
        needs_you=groups,
        troubles=troubles,
        repaired=failures.repaired(records),
        best=best,
        waits=waits,
        foretold=foretold(records.promise, known, span.until) if records.promise else None,
        heartbeats=tuple(records.heartbeats),
        disk_free_ratio=_free_ratio(records),
        disk_free_bytes=records.disk_free_bytes,
        ran=tuple(ran[:MOST_RAN]),
        more=max(0, len(ran) - MOST_RAN),
    )


def _free_ratio(records: Records) -> float | None:
    if records.disk_free_bytes is None or not records.disk_bytes:
        return None
    return records.disk_free_bytes / records.disk_bytes


def _counts(records: Records) -> Counts:
    states = [records.state_of(job) for job in records.jobs]
    # of a long queue only a part was read; of a night that is over nobody knows but the jobs
    queued = states.count(State.QUEUED) if records.span.over else records.queued
    return Counts(
        failed=len(records.ended(State.FAILED)),
        done=len(records.ended(State.SUCCEEDED)),
        running=states.count(State.RUNNING),
        queued=queued,
        cancelled=len(records.ended(State.CANCELLED)),
    )


def _timeline(records: Records, words: str) -> str:
    used_j = records.energy.wall_j
    return f"{words} {energy(used_j)}." if used_j is not None else words


def _troubles(records: Records) -> Iterator[Trouble]:
    titles = {slot.id: slot.title for slot in records.slots}
    for held in records.quarantined:
        words = f"{titles.get(held.slot, held.slot)} is out of service: {held.reason}"
        yield Trouble(kind="gpu", words=words, hint=held.evidence or "overnight gpus check or release", slot=held.slot)
    if records.hold:
        hint = "Free some space; jobs start again by themselves." if records.hold_kind == "disk" else "Restart the machine or the driver."  # fmt: skip
        yield Trouble(kind=records.hold_kind, words=f"nothing starts: {records.hold}", hint=hint)


def _events(records: Records) -> Iterator[Event]:
    for event in records.events[-MOST_EVENTS:]:
        yield Event(at=event.at, slot=event.slot, kind=event.kind, code=event.code, text=event.text)


def _waits(records: Records) -> Waits:
    found = records.forecast
    if found is None:
        return Waits(count=records.queued)
    waiting = [outlook for outlook in found.jobs.values() if outlook.job.state is State.QUEUED]
    return Waits(
        count=records.queued,
        drains_at=drains_at(found),
        sure=all(outlook.sure for outlook in found.jobs.values()),
        jobs=tuple(
            Next(
                job=outlook.job.id,
                name=outlook.job.name,
                start_at=outlook.start_at,
                end_at=outlook.end_at,
                sure=outlook.sure,
                because=outlook.never or outlook.waiting_because or "",
            )
            for outlook in waiting[:NEXT_JOBS]
        ),
        never=sum(outlook.never is not None for outlook in waiting),
    )


def _ran(records: Records) -> list[Ran]:
    """What failed, then what runs, then the rest; the latest first."""
    seen = dict.fromkeys(job.id for job, run in records.runs() if run.end is not End.CHECKED)
    ended = {job.id for job in records.ended(State.SUCCEEDED, State.FAILED)}
    jobs = [job for job in records.jobs if job.id in seen or job.id in ended]
    order = {State.FAILED: 0, State.RUNNING: 1}
    listed = [(job, records.state_of(job) or State.QUEUED) for job in jobs]
    listed.sort(key=lambda pair: (order.get(pair[1], 2), -(pair[0].finished_at or records.span.until), int(pair[0].id)))
    return [_of(job, state, records) for job, state in listed]


def _of(job: Job, state: State, records: Records) -> Ran:
    outcome = job.outcome if records.ended_in(job) else None
    told = results.of_goal(job, records) if outcome else None
    metric, value = told or telling_metric(outcome.metrics if outcome else {}) or ("", None)
    known = [float(run.usage["energy_j"]) for run in job.attempts if is_finite(run.usage.get("energy_j"))]
    return Ran(
        job=job.id,
        name=job.name,
        kind=job.kind,
        state=state,
        start=job.started_at,
        end=job.finished_at if outcome else None,
        attempts=sum(not run.preflight for run in job.attempts),
        metric=metric,
        value=value,
        cause=outcome.cause if outcome else None,
        sweep=job.sweep,
        energy_j=sum(known) if known else None,
        low_use=_low_use(job, records),
    )


def _low_use(job: Job, records: Records) -> float | None:
    run = job.attempts[-1] if job.attempts else None
    if run is None or run.ended_at is None or run.ended_at - run.started_at < LOW_USE_AFTER_S:
        return None
    load = float(run.usage.get("utilization_mean") or 1.0)
    on_gpu = any(slot.is_gpu for slot in records.slots if slot.id in run.slots)
    return load if on_gpu and load < LOW_USE else None
