"""The facts for a plan: a live copy of every unfinished job, kept by following the event stream.

Each change of a record adds its event in the same transaction, so a copy that reads the stream to its end is exact.
"""

import math
import shutil
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from daemon import quarantine, telemetry
from daemon.conditions import UNFIT, Condition, Conditions
from daemon.faults import RECOVERY
from daemon.forecast import Forecast, forecast
from daemon.here import Here
from daemon.history import PREFLIGHT_S, Expectations, History
from daemon.plan import Facts, Policy, SlotFacts
from daemon.rig import Slot
from daemon.settings import Settings
from daemon.store import Event, Store
from daemon.telemetry import Live
from jobs.model import Job, State

EVENTS_PER_READ = 1_000
#: Durations are learned from so many of the jobs that ended last.
ENDED_READ, ENDED_PER_READ = 1_000, 200


class Ledger:
    """Unfinished jobs and the fates of those that others wait for. Safe to use from several threads."""

    def __init__(self, store: Store):
        self._store = store
        self._lock = threading.Lock()
        self._here = Here(store)
        self._last: str | None = None
        self._jobs: dict[str, Job] = {}
        self._fates: dict[str, State] = {}
        self._unchecked: set[str] = set()
        #: What earlier jobs took.
        self.history = History()
        self._expectations = Expectations(self.history)
        self._cards: dict[str, str] = {}

    def refresh(self) -> None:
        """Read the stream to its end."""
        with self._lock:
            if self._last is None:
                self._load()
                return
            while events := self._store.events(self._last, count=EVENTS_PER_READ):
                self._follow(events)
                self._last = events[-1].id

    def forget(self) -> None:
        """Load everything anew at the next look: Redis was away or restarted."""
        with self._lock:
            self._last = None

    def facts(
        self,
        now: float,
        settings: Settings,
        *,
        ready: Collection[str] | None = None,
        conditions: Conditions | None = None,
    ) -> Facts:
        """What the planner needs to know at this moment about this rig.

        `ready`: slots whose worker listens; None: all. `conditions`: the loop's own; everybody else takes those of its beat.
        """
        live = telemetry.latest(settings.home, now=now)
        self.refresh()
        rig, paused = settings.rig, self._store.paused()
        told = self._store.rigs().get(rig, {})
        slots = [Slot.from_json(record) for record in told.get("slots", [])]
        held = quarantine.words_of(quarantine.read(self._store, rig).values())
        with self._lock:
            jobs, fates, unchecked = dict(self._jobs), dict(self._fates), frozenset(self._unchecked)
            self._cards |= {slot.id: card(slot) for slot in slots}
        occupied = {slot: job.id for job in jobs.values() if job.rig == rig for slot in job.slots}
        if conditions is not None:
            found = conditions.look(live, occupied, now)
        else:
            judged = (self._store.last_beat(rig) or {}).get("conditions", {})
            found = {slot: Condition.from_json(record) for slot, record in judged.items()}
        for slot in slots:
            if problem := held.get(slot.id) or problem_of(slot, live, told.get("started_at") or 0.0):
                found[slot.id] = replace(found.get(slot.id, Condition()), problem=problem)
        windows, zone = settings.windows, settings.zone
        waiting = [job for job in jobs.values() if job.state is State.QUEUED and job.offer is None]
        rigs = self._here.look(waiting, jobs, settings, now)
        return Facts(
            now=now,
            rig=rig,
            zone=zone,
            slots=tuple(
                SlotFacts(
                    slot,
                    paused=f"{rig}:{slot.id}" in paused,
                    ready=ready is None or slot.id in ready,
                    job=occupied.get(slot.id),
                    **vars(found.get(slot.id, Condition())),
                )
                for slot in slots
            ),
            jobs=jobs,
            fates=fates,
            unchecked=unchecked,
            paused=rig in paused,
            window_open=windows.is_open(now, zone),
            window_opens_at=windows.opens_at(now, zone),
            expected_s=self.expected_s(now, jobs, slots),
            window_end=settings.window_end,
            closes_at=windows.closes_at(now, zone),
            window_s=windows.longest_s,
            policy=policy(settings),
            leases=self._store.leases(),
            hold=disk_hold(settings) or (live.hold if any(slot.is_gpu for slot in slots) else None),
            disk_room_bytes=disk_room_bytes(settings),
            offer_timeout_s=settings.offer_timeout_s,
            renew_s=settings.renew_s,
            not_here=rigs.not_here,
            away=rigs.away,
            others=rigs.others,
        )

    def expected_s(self, now: float, jobs: Mapping[str, Job], slots: Iterable[Slot]) -> Mapping[str, float]:
        """Seconds that these jobs will take on these slots, or have left, as far as history knows."""
        self._expectations = self._expectations.at(now, jobs, {slot.id: card(slot) for slot in slots})
        return self._expectations

    def foresee(self, facts: Facts, settings: Settings, **how: Any) -> Forecast:
        """The forecast of these facts, by what this ledger has learned. `how`: as `daemon.forecast.forecast` takes it."""
        cards = {each.slot.id: card(each.slot) for each in facts.slots}

        def lasts_s(job: Job, slot: str) -> float | None:
            return self.history.expected_s(job, cards.get(slot, ""))

        return forecast(facts, settings.windows, lasts=lasts_s, guess_s=self.history.guess_s, **how)

    def _load(self) -> None:
        last = (
            self._store.last_event_id()
        )  # before the records: what changes in between is read again, which is harmless
        self._jobs = self._store.unfinished()
        self._fates, self._unchecked = {}, set()
        self._learn_fates(self._jobs.values())
        self._learn_history()
        for job in self._jobs.values():
            self.history.learn_preflight(job, self._card_of)
        self._last = last

    def _follow(self, events: Collection[Event]) -> None:
        changed: dict[str, None] = {}
        for event in events:
            if event.type == "submitted":
                first, last = int(event.job), int(event.data["last"])
                changed |= dict.fromkeys(str(number) for number in range(first, last + 1))
            elif event.job:
                changed[event.job] = None
        records = self._store.get_many(list(changed))
        for job_id in changed:
            job = records.get(job_id)
            if job is not None and not job.state.final:
                self._jobs[job_id] = job
                self._forget_fate(job_id)
                self.history.learn_preflight(job, self._card_of)
                continue
            self._jobs.pop(job_id, None)
            self._forget_fate(job_id)
            if job is not None:
                self._learn_fate(job)
                self.history.learn(job, self._card_of)
        self._learn_fates([records[job_id] for job_id in changed if job_id in self._jobs])

    def _learn_fates(self, jobs: Collection[Job]) -> None:
        """Look up parents that had ended before we began to follow."""
        parents = {parent for job in jobs for parent, _ in job.parents}
        unknown = [p for p in parents if p not in self._jobs and p not in self._fates]
        for job in self._store.get_many(unknown).values():
            if job.state.final:
                self._learn_fate(job)

    def _learn_fate(self, job: Job) -> None:
        self._fates[job.id] = job.state
        if job.owes_check:
            self._unchecked.add(job.id)

    def _forget_fate(self, job_id: str) -> None:
        self._fates.pop(job_id, None)
        self._unchecked.discard(job_id)

    def _learn_history(self) -> None:
        """From the jobs that ended last, the oldest first. What is known already is not learned twice."""
        for record in self._store.rigs().values():
            self._cards |= {slot.id: card(slot) for slot in map(Slot.from_json, record.get("slots", ()))}
        ended: list[Job] = []
        cursor: str | None = None
        while len(ended) < ENDED_READ:
            page = self._store.ended(limit=ENDED_PER_READ, cursor=cursor)
            ended += page.jobs
            if (cursor := page.next) is None:
                break
        for job in reversed(ended):
            self.history.learn(job, self._card_of)

    def _card_of(self, slot: str) -> str:
        return self._cards.get(slot, "")


def card(slot: Slot) -> str:
    """What decides how fast it is: the card's name. All CPU slots are alike."""
    return slot.name if slot.is_gpu else "CPU"


def problem_of(slot: Slot, live: Live, started_at: float) -> str | None:
    """Why a slot's GPU gets no new job. One that was missed at the start is lost until this life's sampler sees it well."""
    seen = live.slots.get(slot.id)
    if seen is not None and seen.state in UNFIT:
        return seen.state
    if seen is not None and seen.recovery_action:
        return f"waiting for {RECOVERY.get(seen.recovery_action, 'a recovery')}: the driver asks for it"
    if slot.absent_since is None or (seen is not None and seen.state == "ok" and (live.at or 0.0) > started_at):
        return None
    return "lost"


def policy(settings: Settings) -> Policy:
    """How the owner wants it."""
    budget_w = settings.rig_power_budget_w
    return Policy(
        min_run_s=settings.min_run_s,
        window_overrun_s=settings.window_overrun_s,
        power_budget_w=budget_w,
        start_gap_s=settings.start_gap_s if budget_w is not None else 0.0,
        preflight_any_time=settings.preflight_window == "any",
        preflight_s=PREFLIGHT_S,
    )


def disk_room_bytes(settings: Settings) -> float:
    """Free space above the floor; below zero when the disk is too full."""
    try:
        return float(shutil.disk_usage(settings.home).free - settings.disk_floor_bytes)
    except FileNotFoundError:
        return math.inf


def disk_hold(settings: Settings) -> str | None:
    """Why a full disk holds the queue; None when there is space. It goes on by itself when there is again."""
    if (room_bytes := disk_room_bytes(settings)) >= 0:
        return None
    free_bytes = room_bytes + settings.disk_floor_bytes
    return f"the rig's disk has {free_bytes / 1e9:.1f} GB left; jobs start again at {settings.disk_floor_bytes / 1e9:.1f} GB"
