"""A night without a rig: made-up jobs, real durations that only time tells, and a planner that is asked at every event.

Shares no code with `daemon.forecast`: it is what the forecast is measured by. Knows nothing else of the benchmarks.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from zoneinfo import ZoneInfo

from daemon.history import still_s
from daemon.plan import Cancel, Decision, Facts, Interrupt, Offer, SlotFacts
from daemon.rig import Slot
from daemon.window import Windows
from jobs.model import End, Job, Outcome, Priority, State, rank_of

UTC = ZoneInfo("UTC")
#: A Wednesday, 22:00 UTC.
EVENING = 1_795_644_000.0
#: However badly a planner does: nobody waits for the result for ever.
MOST_EVENTS = 200_000
#: How long the planner lets backlog run before it gives way, and how near an end it waits instead (daemon.starts).
GUARDS_S, ALMOST_S = (60.0, 120.0, 240.0, 300.0), 44.0
IN_USE = "in use by its owner"

Planner = Callable[[Facts], list[Decision]]


@dataclass(frozen=True)
class Task:
    """One job as it really is, and as it is thought to be."""

    number: int
    #: On a card of speed 1.
    lasts_s: float
    expected_s: float | None = None
    arrives_at: float = EVENING
    gpus: int = 1
    vram_bytes: int | None = None
    priority: Priority = Priority.NORMAL
    window: str = "night"
    after: tuple[str, ...] = ()
    #: Whether an interrupted run goes on where it stopped.
    resumes: bool = True

    def job(self) -> Job:
        """Its record when it is submitted."""
        kind = "finetune" if self.resumes else "command"
        return Job(
            id=str(self.number), kind=kind, name=f"job {self.number}", spec={}, created_at=self.arrives_at,
            rank=rank_of(self.priority, self.number), priority=self.priority, gpus=self.gpus, vram_bytes=self.vram_bytes,
            after=self.after, window=self.window,
        )  # fmt: skip


@dataclass(frozen=True)
class Night:
    """A rig, its owner and the jobs that come."""

    slots: tuple[Slot, ...]
    tasks: tuple[Task, ...]
    windows: Windows = Windows()  # noqa: RUF009 - frozen
    window_end: str = "checkpoint"
    #: How fast each card is; 1 where it does not say.
    speeds: Mapping[str, float] = field(default_factory=dict)
    #: (slot, from, to): its owner uses it.
    in_use: tuple[tuple[str, float, float], ...] = ()
    start_at: float = EVENING
    #: What a running job of unknown length is taken for.
    guess_s: float | None = None

    def speed(self, slots: Iterable[str]) -> float:
        """A gang is as fast as its slowest card."""
        return min(self.speeds.get(slot, 1.0) for slot in slots)


@dataclass(frozen=True)
class Stay:
    """One run of a job."""

    job: str
    slots: tuple[str, ...]
    start_at: float
    end_at: float
    done: bool


@dataclass
class Played:
    """How a night went."""

    night: Night
    stays: list[Stay] = field(default_factory=list)
    ends: dict[str, float] = field(default_factory=dict)
    starts: dict[str, float] = field(default_factory=dict)
    #: The facts at each moment at which the planner was asked, when they were wanted.
    seen: list[Facts] = field(default_factory=list)

    @property
    def makespan_s(self) -> float:
        """From the first arrival to the last end; inf when not all have ended."""
        if len(self.ends) < len(self.night.tasks):
            return math.inf
        return max(self.ends.values()) - self.night.start_at

    def waited_s(self, task: Task) -> float:
        """Everything between its arrival and its end that it did not run."""
        ran_s = sum(stay.end_at - stay.start_at for stay in self.stays if stay.job == str(task.number))
        return self.ends.get(str(task.number), math.inf) - task.arrives_at - ran_s


class _Clockwork:
    """The rig, moment by moment."""

    def __init__(self, night: Night, planner: Planner, keep_facts: bool):
        self.night, self.planner, self.keep_facts = night, planner, keep_facts
        self.now = night.start_at
        self.played = Played(night)
        self.jobs: dict[str, Job] = {}
        self.fates: dict[str, State] = {}
        self.tasks = {str(task.number): task for task in night.tasks}
        self.to_come = sorted(night.tasks, key=lambda task: (-task.arrives_at, -task.number))
        #: Work left, in seconds on a card of speed 1.
        self.left_s = {name: task.lasts_s for name, task in self.tasks.items()}
        self.window: tuple[float | None, float | None] | None = None
        #: Running: since when, at which speed.
        self.since: dict[str, tuple[float, float]] = {}

    def play(self) -> Played:
        for _ in range(MOST_EVENTS):
            self._arrive()
            self._ask()
            moment = min(self._moments(), default=math.inf)
            if not math.isfinite(moment):
                return self.played
            self.now = moment
            for name in [name for name in self.since if self._end_of(name) <= moment + 1e-9]:
                self._stop(name, done=True)
        raise RuntimeError("the night does not end")

    def _arrive(self) -> None:
        while self.to_come and self.to_come[-1].arrives_at <= self.now:
            task = self.to_come.pop()
            self.jobs[str(task.number)] = task.job()

    def _ask(self) -> None:
        for _ in range(10):
            facts = self._facts()
            if self.keep_facts:
                self.played.seen.append(facts)
            decisions = self.planner(facts)
            for decision in decisions:
                self._act(decision)
            if not any(isinstance(decision, (Interrupt, Cancel)) for decision in decisions):
                return

    def _act(self, decision: Decision) -> None:
        match decision:
            case Offer(job, slots):
                free = {s.slot.id for s in self._slots() if s.free}
                assert set(slots) <= free, f"job {job} is offered {slots}, free are {free}"
                offered = self.jobs[job].offered(rig="rig", slots=slots, now=self.now)
                self.jobs[job] = offered.claimed(fence=offered.fence, owner="it", now=self.now)
                self.since[job] = (self.now, self.night.speed(slots))
                self.played.starts.setdefault(job, self.now)
            case Interrupt(job):
                self._stop(job, done=False)
            case Cancel(job):
                self.fates[job] = State.CANCELLED
                del self.jobs[job]

    def _stop(self, name: str, *, done: bool) -> None:
        job, (since, speed) = self.jobs[name], self.since.pop(name)
        self.played.stays.append(Stay(name, job.slots, since, self.now, done))
        if done:
            del self.jobs[name]
            self.fates[name], self.played.ends[name] = State.SUCCEEDED, self.now
            return
        if self.tasks[name].resumes:
            self.left_s[name] -= (self.now - since) * speed
        self.jobs[name] = job.ended(fence=job.fence, outcome=Outcome(end=End.INTERRUPTED), now=self.now)

    def _end_of(self, name: str) -> float:
        since, speed = self.since[name]
        return since + self.left_s[name] / speed

    def _moments(self) -> Iterable[float]:
        if not self.jobs and not self.to_come:
            return
        later = [task.arrives_at for task in self.to_come[-1:]] + [self._end_of(name) for name in self.since]
        later += [at for _, start, end in self.night.in_use for at in (start, end) if at > self.now]
        later += [at for at in self._window() if at is not None]
        yield from later
        yield from (at for at in self._second_thoughts() if at > self.now)

    def _window(self) -> tuple[float | None, float | None]:
        """When it closes and when it opens; found out anew when that has come."""
        if self.window is None or any(at is not None and at <= self.now for at in self.window):
            windows = self.night.windows
            self.window = windows.closes_at(self.now, UTC), windows.opens_at(self.now, UTC)
        return self.window

    def _second_thoughts(self) -> Iterable[float]:
        """A real planner looks every second: when backlog runs, it may decide otherwise although nothing happens."""
        if all(self.tasks[name].priority is not Priority.BACKLOG for name in self.since):
            return
        for name, (since, speed) in self.since.items():
            task = self.tasks[name]
            if task.expected_s is not None:
                done_s = task.lasts_s - self.left_s[name]
                yield since + (task.expected_s - done_s) / speed - ALMOST_S
            if task.priority is Priority.BACKLOG:
                yield from (since + guard_s for guard_s in GUARDS_S)

    def _slots(self) -> tuple[SlotFacts, ...]:
        taken = {slot: name for name, job in self.jobs.items() for slot in job.slots}
        used = {slot for slot, start, end in self.night.in_use if start <= self.now < end}
        return tuple(
            SlotFacts(slot, job=taken.get(slot.id), problem=IN_USE if slot.id in used else None)
            for slot in self.night.slots
        )

    def _facts(self) -> Facts:
        closes_at, opens_at = self._window()
        return Facts(
            now=self.now, rig="rig", zone=UTC, slots=self._slots(), jobs=dict(self.jobs), fates=dict(self.fates),
            window_open=opens_at is None, window_opens_at=opens_at, closes_at=closes_at, window_end=self.night.window_end,
            expected_s={name: s for name in self.jobs if (s := self._expected_s(name)) is not None},
        )  # fmt: skip

    def _expected_s(self, name: str) -> float | None:
        """As `daemon.history` would: what is thought, less what has been done; more, when it overruns."""
        task = self.tasks[name]
        if task.expected_s is None:
            known = self.night.guess_s is not None and name in self.since
            return still_s(self.night.guess_s or 0.0, self.now - self.since[name][0]) if known else None
        done_s = task.lasts_s - self.left_s[name]
        if name not in self.since:
            return max(task.expected_s - done_s, 0.0)
        since, speed = self.since[name]
        elapsed_s = self.now - since
        return still_s((task.expected_s - done_s) / speed, elapsed_s)


def play(night: Night, planner: Planner, *, keep_facts: bool = False) -> Played:
    """The whole night, until nothing is left to happen."""
    return _Clockwork(night, planner, keep_facts).play()


def cards(*memory_gib: float) -> tuple[Slot, ...]:
    """GPUs with so much memory each."""
    return tuple(Slot(f"GPU-{n}", f"card {gib:g}", n, round(gib * 2**30)) for n, gib in enumerate(memory_gib))


def with_expected(tasks: Sequence[Task], error: Callable[[Task], float | None]) -> tuple[Task, ...]:
    """The same jobs with what is thought of their lengths."""
    return tuple(replace(task, expected_s=error(task)) for task in tasks)
