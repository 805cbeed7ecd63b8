"""What the planner knows at one moment, and what follows from it for a single job: whether it could start at all. Pure."""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cached_property, lru_cache
from zoneinfo import ZoneInfo

from daemon.placement import fits
from daemon.rig import Slot
from jobs.estimate import VRAM_RESERVE_BYTES
from jobs.model import Condition, Job, Priority, State


@dataclass(frozen=True)
class Policy:
    """How the owner wants it: from the settings."""

    #: What an interruption costs: saving, and starting again elsewhere.
    saving_s: float = 30.0
    #: A backlog job runs at least so long before it gives way.
    min_run_s: float = 60.0
    #: With `finish`: a job may be expected to end so much after the window.
    window_overrun_s: float = 900.0
    #: What the busy GPUs of the rig may draw together.
    power_budget_w: float | None = None
    #: From one start to the next.
    start_gap_s: float = 0.0
    #: Preflights need no window, and do not wait for a job's `not_before`.
    preflight_any_time: bool = True
    #: How long one takes.
    preflight_s: float = 180.0


@dataclass(frozen=True)
class SlotFacts:
    """One slot as it is now."""

    slot: Slot
    paused: bool = False
    #: Its worker listens.
    ready: bool = True
    #: What is wrong with its GPU: lost, or in use by somebody else.
    problem: str | None = None
    #: The job that was offered it or runs on it.
    job: str | None = None
    #: Why it takes no job for a moment: it is hot, or the last job's memory is not free yet.
    resting: str | None = None
    #: Why a job that runs on it must leave.
    leave: str | None = None
    #: What a job may use of its memory; None: all of it.
    room_bytes: int | None = None
    #: What it draws, and what it may draw.
    power_w: float | None = None
    power_limit_w: float | None = None

    @property
    def usable(self) -> bool:
        """Whether it will take a job at all."""
        return not self.paused and self.problem is None

    @property
    def free(self) -> bool:
        return self.usable and self.ready and self.job is None and self.resting is None

    def fits(self, job: Job) -> bool:
        """Whether its memory is enough for the job now."""
        room_bytes = self.slot.memory_bytes if self.room_bytes is None else self.room_bytes
        return fits(job.vram_bytes or 0, room_bytes)

    @property
    def adds_w(self) -> float:
        """What a job on it adds to the rig's power, at most."""
        return max(0.0, (self.power_limit_w or 0.0) - (self.power_w or 0.0))


@dataclass(frozen=True, eq=False)
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
    #: Those of them that ended before they had passed their preflight, which counted for others.
    unchecked: frozenset[str] = frozenset()
    paused: bool = False
    window_open: bool = True
    window_opens_at: float | None = None
    window_end: str = "checkpoint"
    #: When the open window closes, and how long the longest one is.
    closes_at: float | None = None
    window_s: float | None = None
    #: Seconds that a waiting job will take on a slot, or that a running one has left; missing: unknown.
    expected_s: Mapping[str, float] = field(default_factory=dict)
    policy: Policy = Policy()
    #: Seconds left of each running job's lease.
    leases: Mapping[str, float] = field(default_factory=dict)
    #: Why nothing may start on the whole rig now (a full disk).
    hold: str | None = None
    #: Free space above the floor of the rig's disk.
    disk_room_bytes: float = math.inf
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
        return tuple(sorted(queued, key=place_in_queue))

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
    def turns(self) -> tuple[tuple[Job, bool], ...]:
        """Who may take slots, in order, and whether only for its preflight: of each priority first what is to be checked.

        A job that is to be checked stands here twice, the second time in its own place.
        """
        checks = [job for job in self.waiting if job.preflight_due and blocker(self, job, preflight=True) is None]
        if not checks:
            return tuple((job, False) for job in self.startable)
        both = [*((job, True) for job in checks), *((job, False) for job in self.startable)]
        order = list(Priority)
        return tuple(sorted(both, key=lambda turn: (order.index(turn[0].priority), not turn[1])))

    @cached_property
    def position(self) -> Mapping[str, int]:
        """How many startable jobs stand before each one."""
        return {job.id: ahead for ahead, job in enumerate(self.startable)}

    @cached_property
    def here(self) -> tuple[Job, ...]:
        """Jobs that occupy this rig's slots."""
        found = (job for job in self.jobs.values() if job.rig == self.rig)
        return tuple(sorted(found, key=lambda job: int(job.id)))

    @cached_property
    def left_behind(self) -> tuple[Job, ...]:
        """Jobs that occupy slots of rigs that are silent."""
        found = (job for job in self.jobs.values() if job.rig in self.away) if self.away else ()
        return tuple(sorted(found, key=lambda job: int(job.id)))

    @cached_property
    def leaving(self) -> Mapping[str, str]:
        """Running jobs here that must stop now, and why."""
        return dict(_leaving(self))

    @cached_property
    def today(self) -> date:
        """The date in the rig's zone."""
        return datetime.fromtimestamp(self.now, self.zone).date()

    @cached_property
    def opens(self) -> str:
        """When the window opens, for people; "" when that is not known."""
        return clock(self.window_opens_at, self) if self.window_opens_at else ""

    @cached_property
    def of_sweep(self) -> Mapping[str, int]:
        """How many jobs of each sweep occupy slots."""
        return Counter(job.sweep for job in self.jobs.values() if job.sweep and job.slots)

    @cached_property
    def memories(self) -> tuple[int, ...]:
        """The slots' memories, the smallest first; one that nobody knows is taken for endless."""
        return tuple(sorted(s.slot.memory_bytes or VRAM_RESERVE_BYTES << 20 for s in self.slots))


def blocker(facts: Facts, job: Job, *, preflight: bool = False) -> str | None:
    """Why a waiting job could not start even on an idle rig; None when it could. `preflight`: why this could not."""
    if job.held:
        return "held until it is released"
    for parent, condition in job.parents if job.after else ():
        if not is_met(facts, parent, condition):
            if condition is Condition.CHECKED:
                held = f"; job {parent} is held" if parent in facts.jobs and facts.jobs[parent].held else ""
                return f"waits for the preflight of job {parent}, which counts for this one, too{held}"
            state = facts.jobs[parent].state if parent in facts.jobs else facts.fates.get(parent, "gone")
            return f"waits for job {parent}, which is {state}"
    ahead = preflight and facts.policy.preflight_any_time
    if job.not_before is not None and facts.now < job.not_before and not (ahead and job.not_before == job.spec.get("not_before")):  # fmt: skip
        return f"not before {clock(job.not_before, facts)}"
    if reason := facts.not_here.get(job.id):
        return reason
    if job.gpus > len(facts.slots):
        larger = [rig for rig, count in facts.others.items() if count >= job.gpus]
        there = f"; rig {larger[0]} has enough" if larger else ""
        return f"needs {job.gpus} GPUs; this rig has {len(facts.slots)}{there}"
    if job.vram_bytes and (reason := _too_big(facts, job)):
        return reason
    budget_w = facts.policy.power_budget_w
    if budget_w is not None and (reason := _too_hungry(facts, job, budget_w)):
        return reason
    if facts.paused:
        return "the rig is paused"
    if facts.hold:
        return facts.hold
    if (needed := job.estimate.get("disk_bytes", 0.0)) > facts.disk_room_bytes:
        room = f"{facts.disk_room_bytes / 1e9:.1f} GB"
        return f"needs {needed / 1e9:.1f} GB for its checkpoints; the rig's disk has {room} to give"
    if job.window == "night" and not ahead and (reason := _too_late(facts, job)):
        return reason
    if job.max_concurrent and facts.of_sweep.get(job.sweep, 0) >= job.max_concurrent:
        return f"its sweep runs {job.max_concurrent} at a time"
    return None


def is_met(facts: Facts, parent: str, condition: Condition) -> bool:
    """Whether a job that is waited for lets the other one start."""
    if (live := facts.jobs.get(parent)) is not None:
        return condition is Condition.CHECKED and not live.owes_check
    return condition.met_by(facts.fates.get(parent), unchecked=parent in facts.unchecked)


def place_in_queue(job: Job) -> tuple[float, int]:
    """What the queue is sorted by."""
    return job.rank, int(job.id)


def clock(moment: float, facts: Facts) -> str:
    """A time of day in the rig's zone, with the date when it is another day's."""
    return _clock(int(moment // 60), facts.zone, facts.today)


@lru_cache(maxsize=4096)  # thousands of jobs wait for the same few moments
def _clock(minute: int, zone: ZoneInfo, today: date) -> str:
    then = datetime.fromtimestamp(minute * 60, zone)
    return f"{then:%H:%M}" if then.date() == today else f"{then:%a %d %b %H:%M}"


def gib(count: float) -> str:
    """Bytes as GiB, to one decimal where there is one."""
    return f"{round(count / 2**30, 1):g} GiB"


def _too_big(facts: Facts, job: Job) -> str | None:
    needs = job.vram_bytes or 0
    fitting = len(facts.memories) - bisect_left(facts.memories, needs + VRAM_RESERVE_BYTES)
    if fitting >= job.gpus:
        return None
    if fitting:
        return f"needs {job.gpus} GPUs with {gib(needs)} each; this rig has {fitting}"
    largest = facts.memories[-1]
    kept = f", of which {gib(VRAM_RESERVE_BYTES)} stay free" if needs <= largest else ""
    return f"needs {gib(needs)} per GPU; the largest here has {gib(largest)}{kept}"


def _too_hungry(facts: Facts, job: Job, budget_w: float) -> str | None:
    needs_w = sum(sorted(s.power_limit_w or 0.0 for s in facts.slots)[: job.gpus])
    if needs_w <= budget_w:
        return None
    return f"needs up to {needs_w:.0f} W; the rig's budget is {budget_w:.0f} W"


def _too_late(facts: Facts, job: Job) -> str | None:
    """Outside the window; or, where jobs finish after it, when this one would not end in time."""
    if not facts.window_open:
        return f"outside the window; it opens at {facts.opens}" if facts.opens else "outside the window"
    expected_s = facts.expected_s.get(job.id)
    if facts.window_end != "finish" or facts.closes_at is None or expected_s is None:
        return None
    # one that no window is long enough for starts as early as it can
    unavoidable_s = expected_s - facts.window_s if facts.window_s is not None else 0.0
    over_s = facts.now + expected_s - facts.closes_at
    if over_s <= max(0.0, unavoidable_s) + facts.policy.window_overrun_s:
        return None
    return f"would not finish before {clock(facts.closes_at, facts)}"


def _leaving(facts: Facts) -> Iterator[tuple[str, str]]:
    """Running jobs whose slot somebody else needs, or whose window has closed."""
    closing = not facts.window_open and facts.window_end == "checkpoint"
    reasons = {s.slot.id: s.leave for s in facts.slots if s.leave}
    for job in facts.here:
        if job.state is not State.RUNNING or job.wish is not None:
            continue
        if reason := next((reasons[slot] for slot in job.slots if slot in reasons), None):
            yield job.id, reason
        elif closing and job.window == "night" and not (job.in_preflight and facts.policy.preflight_any_time):
            yield job.id, "The window closed; it goes on when it opens."
