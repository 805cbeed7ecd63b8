"""Reads what a night is told from. Only jobs that ended, ran or wait are read, however many the store has.

Raises redis.RedisError while the queue does not answer.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from itertools import islice
from typing import Any

from daemon import idle, peers, quarantine, telemetry
from daemon.facts import Ledger, disk_hold
from daemon.forecast import Forecast
from daemon.idle import Interval
from daemon.night import kept, readings, span
from daemon.night.best import BASELINE_TAG
from daemon.night.build import night
from daemon.night.log_line import decisive_line
from daemon.night.model import Heartbeat, Night
from daemon.night.records import Records
from daemon.night.span import Calendar, Span
from daemon.plan import Facts
from daemon.settings import Settings
from daemon.store import Store, UnknownSweep, Wanted
from daemon.supervisor import worker_name
from jobs.model import Cause, Job, State
from jobs.rundir import run_dir
from jobs.sweep import Sweep

DAY_S = 86_400.0
#: Of a night with more jobs the rest is not told.
MOST_JOBS = 10_000
#: A job that ran in a night and went on later is looked for among those that ended so long after it.
ENDED_LATER_S = 3 * DAY_S
#: So many waiting jobs say why a slot was idle as well as all of them do.
WAITING_READ = 2_000
#: Logs are read of so many failures.
LOGS_READ = 50
#: These say in their outcome only that a process ended.
MUTE = frozenset({Cause.USER_ERROR, Cause.SIGNAL})
BASELINES_READ = 50


def read_last(
    store: Store,
    ledger: Ledger,
    settings: Settings,
    now: float,
    *,
    visit: float | None = None,
    forecast: Forecast | None = None,
    facts: Facts | None = None,
) -> Night:
    """The night that goes on or was last, up to now. `facts`: when they are at hand already."""
    look = _Look(store, settings, now, facts or ledger.facts(now, settings))
    found = calendar(settings).last(now, look.work, visit=visit)
    return night(look.records(found, forecast))


def read_named(
    store: Store, ledger: Ledger, settings: Settings, now: float, day: date, *, forecast: Forecast | None = None
) -> Night:
    """The night of a date, made anew from records and telemetry."""
    look = _Look(store, settings, now, ledger.facts(now, settings))
    return night(look.records(calendar(settings).named(day, now, look.work), forecast))


def read_since(
    store: Store,
    ledger: Ledger,
    settings: Settings,
    now: float,
    since: float,
    until: float | None = None,
    *,
    forecast: Forecast | None = None,
) -> Night:
    """Any hours; up to now when no end is given."""
    look = _Look(store, settings, now, ledger.facts(now, settings))
    found = calendar(settings).given(since, now if until is None else until, now)
    if until is None:
        found = Span(found.date, found.since, now, False, found.began_by)
    return night(look.records(found, forecast))


def calendar(settings: Settings) -> Calendar:
    """How this rig's nights follow each other."""
    after_s = settings.window_overrun_s if settings.window_end == "finish" else settings.grace_s
    return Calendar(settings.windows, settings.zone, time.fromisoformat(settings.report_at), after_s)


def jobs_since(store: Store, facts: Facts, start: float, end: float) -> list[Job]:
    """Jobs that ran or waited in this time: those that ended in it or soon after, and those that have not."""
    ended = store.ended_between(start, end + ENDED_LATER_S, limit=MOST_JOBS)
    unfinished = facts.jobs.values()
    begun = [job for job in unfinished if job.attempts or job.offer is not None]
    fresh = islice((job for job in unfinished if not job.attempts and job.offer is None), WAITING_READ)
    return list({job.id: job for job in (*ended, *begun, *fresh)}.values())


def outages(store: Store, settings: Settings, start: float, end: float) -> dict[str, list[Interval]]:
    """When each GPU of this rig was lost, silent or in quarantine."""
    out = idle.outages(telemetry.events(settings.home, start - DAY_S / 2, end), until=end)
    for slot, held in quarantine.read(store, settings.rig).items():
        out.setdefault(slot, []).append((held.at, held.released_at or end))
    return out


def pauses(store: Store, settings: Settings, slots: Sequence[str], end: float) -> dict[str, list[Interval]]:
    """By slot of this rig: its own pauses by hand, and those of the whole rig."""
    found: dict[str, list[Interval]] = {}
    for paused, since, until in store.pauses(settings.rig):
        for slot in slots if paused is None else [paused]:
            found.setdefault(slot, []).append((since, end if until is None else until))
    return found


def openings(settings: Settings, start: float, end: float) -> list[Interval] | None:
    """When the window was open; None: always."""
    if not settings.windows.ranges:
        return None
    return list(span.openings(settings.windows, settings.zone, start, end))


@dataclass
class _Look:
    """One look: what one part of it read, another one need not read again."""

    store: Store
    settings: Settings
    now: float
    facts: Facts
    _jobs: dict[tuple[float, float], list[Job]] = field(default_factory=dict)

    def jobs(self, start: float, end: float) -> list[Job]:
        """As `jobs_since`; a time within one that was read already is not read again."""
        for (low, high), jobs in self._jobs.items():
            if low <= start and end <= high:
                return [job for job in jobs if job.finished_at is None or job.finished_at >= start]
        return self._jobs.setdefault((start, end), jobs_since(self.store, self.facts, start, end))

    def work(self, start: float, end: float) -> tuple[float, float] | None:
        """When a job first and last ran or ended in this time."""
        moments: list[float] = []
        for job in self.jobs(start, end):
            for run in job.attempts:
                if run.started_at < end and (run.ended_at is None or run.ended_at > start):
                    moments += max(start, run.started_at), min(end, run.ended_at or end)
            if job.finished_at is not None and start <= job.finished_at < end:
                moments.append(job.finished_at)
        return (min(moments), max(moments)) if moments else None

    def records(self, found: Span, forecast: Forecast | None) -> Records:
        store, settings, facts = self.store, self.settings, self.facts
        jobs = self.jobs(found.since, found.until)
        slots = [each.slot for each in facts.slots]
        energy, heat = readings.of_night(settings, [slot.id for slot in slots], found.since, found.until)
        events = telemetry.events(settings.home, found.since, found.until)
        held = [one for one in quarantine.read(store, settings.rig).values() if one.active and one.at <= found.until]
        sweeps = dict(_sweeps(store, jobs, found))
        current = {} if found.over else self._now()
        return Records(
            now=self.now,
            rig=settings.rig,
            zone=settings.zone,
            span=found,
            slots=slots,
            jobs=jobs,
            queued=sum(job.state is State.QUEUED for job in facts.jobs.values()),
            sweeps=sweeps,
            baselines=_baselines(store, jobs, sweeps, found),
            open=openings(settings, found.since, found.until),
            out=outages(store, settings, found.since, found.until),
            paused=pauses(store, settings, [slot.id for slot in slots], found.until),
            energy=energy,
            heat=heat,
            events=events,
            quarantined=held,
            lines=self._lines(jobs, found),
            forecast=None if found.over else forecast,
            promise=kept.read_promise(settings.home, found.date),
            **current,
        )

    def _now(self) -> dict[str, Any]:
        """What can only be said of this moment."""
        settings, facts = self.settings, self.facts
        live = telemetry.latest(settings.home, now=self.now)
        beat = self.store.last_beat(settings.rig)
        disk = shutil.disk_usage(settings.home)
        return {
            "heartbeats": tuple(heartbeats(settings, facts, beat, live.age_s, self.now)),
            "disk_free_bytes": disk.free,
            "disk_bytes": disk.total,
            "hold": facts.hold,
            "hold_kind": "disk" if disk_hold(settings) else "driver",
        }

    def _lines(self, jobs: Sequence[Job], found: Span) -> dict[str, str]:
        failed = [job for job in jobs if job.state is State.FAILED and found.since <= (job.finished_at or 0) <= found.until]  # fmt: skip
        mute = [job for job in failed if job.outcome is not None and job.outcome.cause in MUTE and _says_little(job)]
        lines = {job.id: decisive_line(run_dir(self.settings.runs, job.id)) for job in mute[:LOGS_READ]}
        return {job_id: line for job_id, line in lines.items() if line}


def heartbeats(
    settings: Settings, facts: Facts, beat: Mapping[str, Any] | None, sampler_age_s: float | None, now: float
) -> Iterator[Heartbeat]:
    """When each part of the rig last said that it lives; silent for three of its periods it is stale."""
    at = beat.get("at") if beat else None
    age_s = max(0.0, now - at) if isinstance(at, (int, float)) else None
    yield Heartbeat(name="daemon", age_s=age_s, limit_s=3 * peers.beat_every_s(settings))
    yield Heartbeat(name="Redis", age_s=0.0, limit_s=settings.lease_s)  # it has just answered
    yield Heartbeat(name="sampler", age_s=sampler_age_s, limit_s=telemetry.STALE_S)
    processes = (beat or {}).get("processes") or {}
    for each in facts.slots:
        name = f"worker of {each.slot.title}"
        job = facts.jobs.get(each.job or "")
        if (report := processes.get(worker_name(each.slot.id))) is not None and not report.get("alive"):
            yield Heartbeat(name=name, age_s=None, limit_s=0.0)
        elif job is not None and job.state is State.RUNNING and job.slots[0] == each.slot.id and job.id in facts.leases:
            # a lease is renewed every `renew_s`: what is missing of it is the time since
            silent_s = max(0.0, settings.lease_s - facts.leases[job.id])
            yield Heartbeat(name=name, age_s=silent_s, limit_s=3 * settings.renew_s)


def _sweeps(store: Store, jobs: Sequence[Job], found: Span) -> Iterator[tuple[str, Sweep]]:
    ended = (job for job in jobs if job.finished_at is not None and found.since <= job.finished_at <= found.until)
    for sweep_id in dict.fromkeys(job.sweep for job in ended if job.sweep):
        try:
            yield sweep_id, store.sweep(sweep_id)
        except UnknownSweep:
            continue  # its record was lost: its jobs are told without it


def _baselines(store: Store, jobs: Sequence[Job], sweeps: Mapping[str, Sweep], found: Span) -> list[Job]:
    """Jobs of earlier nights that results of this one may be compared with."""
    done = [job for job in jobs if job.state is State.SUCCEEDED and found.since <= (job.finished_at or 0) <= found.until]  # fmt: skip
    if not done:
        return []
    tagged = list(store.page(Wanted(tag=BASELINE_TAG), limit=BASELINES_READ).jobs)
    first = list(store.get_many(list(sweeps)).values())
    kinds = {job.kind for job in done if job.spec.get("adapter")}
    bare = [job for kind in sorted(kinds) for job in store.page(Wanted(kind=kind), limit=BASELINES_READ).jobs]
    return [job for job in {j.id: j for j in (*tagged, *first, *bare)}.values() if (job.finished_at or found.until + 1) <= found.until]  # fmt: skip


def _says_little(job: Job) -> bool:
    """A process's exit, not an exception of ours."""
    return job.kind == "command" or (job.outcome is not None and job.outcome.cause is Cause.SIGNAL)
