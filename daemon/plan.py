"""The planner: from facts to decisions, and from facts to the reason why a job waits. Pure: no clock, no process, no Redis.

Order is priority, then first come. A job that asks for several GPUs and does not fit yet holds the free ones, so that
smaller jobs behind it cannot starve it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from zoneinfo import ZoneInfo

from daemon.rig import Slot
from jobs.model import Job, State

#: A worker may be late with its lease (Redis was away): it gets this many renewals before it is called lost.
LATE_RENEWALS = 2
#: After a break (Redis was away, the machine slept) every living worker has renewed within so many.
RENEWALS_AFTER_A_BREAK = 5


@dataclass(frozen=True)
class SlotFacts:
    """One slot as it is now."""

    slot: Slot
    paused: bool = False
    #: Its worker listens.
    ready: bool = True
    #: What is wrong with its GPU, as the sampler tells it.
    problem: str | None = None
    #: The job that was offered it or runs on it.
    job: str | None = None

    @property
    def usable(self) -> bool:
        """Whether it will take a job at all."""
        return not self.paused and self.problem is None

    @property
    def free(self) -> bool:
        return self.usable and self.ready and self.job is None


@dataclass(frozen=True)
class Facts:
    """Everything that a plan depends on."""

    now: float
    rig: str
    zone: ZoneInfo
    slots: tuple[SlotFacts, ...] = ()
    #: Every unfinished job of this queue.
    jobs: Mapping[str, Job] = field(default_factory=dict)
    #: How parents that have ended did so; a parent that is gone is missing here and in `jobs`.
    fates: Mapping[str, State] = field(default_factory=dict)
    paused: bool = False
    window_open: bool = True
    window_opens_at: float | None = None
    #: When the open window closes; None when it is closed or never closes.
    closes_at: float | None = None
    window_end: str = "checkpoint"
    #: Seconds that a waiting job will take, or that a running one has left (daemon.history); missing: unknown.
    expected_s: Mapping[str, float] = field(default_factory=dict)
    #: Seconds left of each running job's lease.
    leases: Mapping[str, float] = field(default_factory=dict)
    #: Why nothing may start on the whole rig now (a full disk).
    hold: str | None = None
    #: How long the queue has been seen without a break.
    seen_for_s: float = math.inf
    offer_timeout_s: float = 60.0
    renew_s: float = 2.0
    #: Where several rigs share the queue (daemon.here): why jobs cannot run on this one, ...
    not_here: Mapping[str, str] = field(default_factory=dict)
    #: ... the rigs that are silent, whose runs and offers are anybody's to settle, ...
    away: frozenset[str] = frozenset()
    #: ... and how many slots each other rig has that lives.
    others: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def waiting(self) -> tuple[Job, ...]:
        """Queued jobs without an offer, in the order in which they start."""
        queued = (job for job in self.jobs.values() if job.state is State.QUEUED and job.offer is None)
        return tuple(sorted(queued, key=lambda job: (job.rank, int(job.id))))

    @cached_property
    def queue(self) -> tuple[Job, ...]:
        """Every queued job: those that are about to start, then `waiting`."""
        return (*(j for j in self.jobs.values() if j.state is State.QUEUED and j.offer is not None), *self.waiting)

    @cached_property
    def place(self) -> Mapping[str, int]:
        """Where each queued job stands, from 1."""
        return {job.id: place for place, job in enumerate(self.queue, 1)}

    @cached_property
    def startable(self) -> tuple[Job, ...]:
        """Waiting jobs that only lack a slot."""
        return tuple(job for job in self.waiting if blocker(self, job) is None)

    @cached_property
    def position(self) -> Mapping[str, int]:
        """How many startable jobs stand before each one."""
        return {job.id: ahead for ahead, job in enumerate(self.startable)}

    @cached_property
    def here(self) -> tuple[Job, ...]:
        """Jobs that occupy this rig's slots."""
        return tuple(job for job in self.jobs.values() if job.rig == self.rig)

    @cached_property
    def left_behind(self) -> tuple[Job, ...]:
        """Jobs that occupy slots of rigs that are silent."""
        return tuple(job for job in self.jobs.values() if job.rig in self.away) if self.away else ()


@dataclass(frozen=True)
class Offer:
    """Give the job these slots; the first one leads."""

    job: str
    slots: tuple[str, ...]


@dataclass(frozen=True)
class Withdraw:
    """Nobody claimed the offer."""

    job: str
    fence: int


@dataclass(frozen=True)
class DeclareLost:
    """Its worker no longer renews the lease."""

    job: str
    fence: int


@dataclass(frozen=True)
class Interrupt:
    """Save and go back to the queue."""

    job: str
    reason: str


@dataclass(frozen=True)
class Cancel:
    """It can never start."""

    job: str
    reason: str


Decision = Offer | Withdraw | DeclareLost | Interrupt | Cancel


def plan(facts: Facts) -> list[Decision]:
    """What to do now."""
    return [*_lost(facts), *_stale_offers(facts), *_never(facts), *_closing(facts), *_offers(facts)]


def blocker(facts: Facts, job: Job) -> str | None:
    """Why a waiting job could not start even on an idle rig; None when it could."""
    if job.held:
        return "held until it is released"
    for parent, condition in job.parents:
        if parent in facts.jobs or not condition.met_by(facts.fates.get(parent)):
            state = facts.jobs[parent].state if parent in facts.jobs else facts.fates.get(parent, "gone")
            return f"waits for job {parent}, which is {state}"
    if job.not_before is not None and facts.now < job.not_before:
        return f"not before {clock(job.not_before, facts)}"
    if reason := facts.not_here.get(job.id):
        return reason
    if job.gpus > len(facts.slots):
        larger = [rig for rig, count in facts.others.items() if count >= job.gpus]
        there = f"; rig {larger[0]} has enough" if larger else ""
        return f"needs {job.gpus} GPUs; this rig has {len(facts.slots)}{there}"
    if facts.paused:
        return "the rig is paused"
    if facts.hold:
        return facts.hold
    if not facts.window_open and job.window == "night":
        opens = f"; it opens at {clock(facts.window_opens_at, facts)}" if facts.window_opens_at else ""
        return f"outside the window{opens}"
    return None


def explain(facts: Facts, job: Job) -> str | None:
    """Why the job waits, for its owner; None when it does not."""
    if job.state is not State.QUEUED:
        return None
    if job.offer is not None:
        there = "" if job.offer.rig == facts.rig else f" of rig {job.offer.rig}"
        return f"starting on {_names(facts, job.offer.slots)}{there}"
    if reason := blocker(facts, job):
        return reason
    ahead = facts.position.get(job.id, 0)
    queue = f"{ahead} job{'s' if ahead != 1 else ''} ahead; " if ahead else ""
    return f"{queue}{_lack(facts, job)}"


def clock(moment: float, facts: Facts) -> str:
    """A time of day in the rig's zone, with the date when it is another day's."""
    then, now = datetime.fromtimestamp(moment, facts.zone), datetime.fromtimestamp(facts.now, facts.zone)
    return f"{then:%H:%M}" if then.date() == now.date() else f"{then:%a %d %b %H:%M}"


def _lost(facts: Facts) -> Iterator[Decision]:
    if facts.seen_for_s < RENEWALS_AFTER_A_BREAK * facts.renew_s:
        return
    for job in (*facts.here, *facts.left_behind):
        left_s = facts.leases.get(job.id)
        if job.state is State.RUNNING and left_s is not None and left_s < -LATE_RENEWALS * facts.renew_s:
            yield DeclareLost(job.id, job.fence)


def _stale_offers(facts: Facts) -> Iterator[Decision]:
    for job in facts.here:
        if job.offer is not None and facts.now - job.offer.at > facts.offer_timeout_s:
            yield Withdraw(job.id, job.fence)
    for job in facts.left_behind:
        if job.offer is not None and facts.seen_for_s >= RENEWALS_AFTER_A_BREAK * facts.renew_s:
            yield Withdraw(job.id, job.fence)


def _never(facts: Facts) -> Iterator[Decision]:
    for job in facts.waiting:
        for parent, condition in job.parents:
            fate = facts.fates.get(parent)
            if parent not in facts.jobs and not condition.met_by(fate):
                yield Cancel(job.id, f"job {parent}, which it waits for, {_did(fate)}")
                break


def _closing(facts: Facts) -> Iterator[Decision]:
    if facts.window_open or facts.window_end == "finish":
        return
    for job in facts.here:
        if job.state is State.RUNNING and job.window == "night" and job.wish is None:
            yield Interrupt(job.id, "The window closed; it goes on when it opens.")


def _offers(facts: Facts) -> Iterator[Decision]:
    # the smallest first, so that a job that fits a small GPU does not take a large one
    free = sorted((s for s in facts.slots if s.free), key=lambda s: (s.slot.memory_bytes, s.slot.index))
    usable = sum(s.usable for s in facts.slots)
    for job in facts.startable:
        if not free:
            return
        if job.gpus <= len(free):
            taken, free = free[: job.gpus], free[job.gpus :]
            yield Offer(job.id, tuple(s.slot.id for s in taken))
        elif job.gpus <= usable:
            return  # it holds the free slots until enough are free


def _lack(facts: Facts, job: Job) -> str:
    usable = [s for s in facts.slots if s.usable]
    needs = f"needs {_slots(facts, job.gpus)}"
    if len(usable) < job.gpus:
        out = [f"{_name(s.slot)} is {'paused' if s.paused else s.problem}" for s in facts.slots if not s.usable]
        return f"{needs}; {', '.join(out)}"
    busy = [s for s in usable if s.job is not None]
    if not busy:
        return "starts at the next look" if all(s.ready for s in usable) else "its worker is starting"
    first = min(busy, key=lambda s: _frees_at(facts, s))
    return f"{needs}; {_name(first.slot)} is busy with job {first.job}{_until(facts, first)}"


def _frees_at(facts: Facts, slot: SlotFacts) -> float:
    job = facts.jobs.get(slot.job or "")
    left_s = job.progress.eta_s if job and job.progress else None
    return facts.now + left_s if left_s is not None else float("inf")


def _until(facts: Facts, slot: SlotFacts) -> str:
    end = _frees_at(facts, slot)
    return f" until about {clock(end, facts)}" if end != float("inf") else ""


def _names(facts: Facts, ids: tuple[str, ...]) -> str:
    by_id = {s.slot.id: _name(s.slot) for s in facts.slots}
    return " and ".join(by_id.get(slot_id, slot_id) for slot_id in ids)


def _name(slot: Slot) -> str:
    return f"GPU {slot.index}" if slot.is_gpu else f"CPU slot {slot.index}"


def _slots(facts: Facts, count: int) -> str:
    kind = "GPU" if any(s.slot.is_gpu for s in facts.slots) else "CPU slot"
    return f"a {kind}" if count == 1 else f"{count} {kind}s"


def _did(fate: State | None) -> str:
    return (
        {State.FAILED: "failed", State.CANCELLED: "was cancelled", State.SUCCEEDED: "succeeded"}.get(fate, "is gone")
        if fate
        else "is gone"
    )
