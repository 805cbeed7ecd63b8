"""The forecast: the same `plan` as tonight's, carried out ahead of time. Pure.

Every offer runs at once and lasts as long as history or its own progress says; every end, window and `not_before` is a new
moment at which `plan` is asked. What the planner would do, the forecast shows; it has no rules of its own.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from daemon.explain import explain
from daemon.history import resumes, still_s
from daemon.outlook import Basis, Forecast, Outlook, Run
from daemon.plan import Cancel, Facts, Interrupt, Offer, blocker, plan
from daemon.situation import place_in_queue
from daemon.starts import A_MOMENT_S, LONGEST_MIN_RUN_S
from daemon.window import Windows
from jobs.model import End, Job, Outcome, Priority, State, WishKind

__all__ = ["Basis", "Forecast", "Outlook", "Run", "forecast"]

DAY_S = 86_400.0
#: So far ahead. Nobody believes a forecast beyond it.
HORIZON_S = 7 * DAY_S
#: A bound for the work, in jobs looked at. A thousand jobs need a third of it.
MAX_WORK = 300_000
#: Besides its jobs, a look costs as much as so many.
LOOK_COSTS = 50
#: `plan` sees so many of the jobs that could start, and of backlog, which fills gaps from behind. The others start later anyway.
SEEN, BACKLOG_SEEN = 64, 16
#: Of a job that is like no other, and of a kind that has never run.
UNKNOWN_S = 3_600.0
#: The planner looks so often, so it acts so much after the moment at which it could.
LOOK_S = 1.0
#: In one moment: what was interrupted makes room for what is offered, and so on.
LOOKS_PER_MOMENT = 8

#: Seconds that a job takes from its start on this slot (the first of its own); None: nobody knows.
Lasts = Callable[[Job, str], float | None]


def forecast(
    facts: Facts,
    windows: Windows = Windows(),  # noqa: B008 - frozen
    *,
    lasts: Lasts | None = None,
    guess_s: Callable[[str], float | None] = lambda kind: None,
    by: float | None = None,
    horizon_s: float = HORIZON_S,
    max_work: int = MAX_WORK,
    until_done: str | None = None,
) -> Forecast:
    """Carry the plan out ahead.

    `by`: a deadline instead of the window's end. `guess_s`: what a kind usually takes. `until_done`: stop when this job is, and
    tell of this one only.
    """
    ahead = _Ahead(facts, windows, lasts or (lambda job, slot: facts.expected_s.get(job.id)), guess_s)
    ahead.run(facts.now + horizon_s, max_work, until_done)
    window_end = _window_end(facts, windows)
    shown = _in_order(facts) if until_done is None else [facts.jobs[until_done]]
    outlooks = {job.id: ahead.outlook(job, facts) for job in shown}
    return Forecast(facts.now, window_end, by if by is not None else window_end, outlooks, ahead.now, ahead.cut)


class _Ahead:
    """The rig as it will be, moment by moment."""

    def __init__(self, facts: Facts, windows: Windows, lasts: Lasts, guess_s: Callable[[str], float | None]):
        self.now, self.cut = facts.now, False
        self._base, self._windows, self._lasts, self._guess_s = facts, windows, lasts, guess_s
        self._jobs = dict(facts.jobs)
        self._fates = dict(facts.fates)
        # a worker that starts and a card that cools will not be long; other use of a card is taken to stay
        self._slots = {s.slot.id: replace(s, ready=True, resting=None) for s in facts.slots}
        self._waiting = {job.id: job for job in facts.waiting if not job.held}
        self._work, self._in_order = 0, True
        #: Moments at which nothing happens, but the planner may think again.
        self._later = [job.not_before for job in self._waiting.values() if job.not_before]
        heapq.heapify(self._later)
        self._some_give_way = any(job.priority is Priority.BACKLOG for job in facts.jobs.values())
        self._ends: list[tuple[float, str]] = []
        self._running: dict[str, Run] = {}
        self._left_s: dict[str, float] = {}
        self._basis: dict[str, Basis] = {}
        self._runs: dict[str, list[Run]] = {}
        self._never: dict[str, str] = {}
        #: Jobs and slots whose times rest on a guess.
        self._unsure: set[str] = set()
        self._opens_at, self._closes_at = facts.window_opens_at, facts.closes_at
        self._told = _Told(self)
        for job in facts.jobs.values():
            if job.slots:
                self._take_over(job)

    # -- time goes on -----------------------------------------------------------------------------------------------------

    def run(self, end: float, max_work: int, until_done: str | None) -> None:
        """Until nothing is left to happen, `end`, the bound, or the end of one job."""
        while self._work < max_work:
            self._look()
            if until_done is not None and until_done not in self._jobs:
                return
            moment = self._next_moment()
            if moment is None or moment > end:
                self._leave_open(end)
                return
            self._go_to(moment)
        self.cut = True
        self._leave_open(end)

    def _look(self) -> None:
        for _ in range(LOOKS_PER_MOMENT):
            made_room = False
            for decision in plan(self._facts()):
                match decision:
                    case Offer(job, slots):
                        self._start(job, slots)
                    case Interrupt(job):
                        made_room |= self._interrupt(job)
                    case Cancel(job):
                        made_room |= self._cancel(job, decision.reason)
                    case _:
                        pass  # lost workers and stale offers are accidents; nobody forecasts them
            if not made_room:
                return

    def _next_moment(self) -> float | None:
        while self._later and self._later[0] <= self.now:
            heapq.heappop(self._later)
        while self._ends and not self._is_end(*self._ends[0]):
            heapq.heappop(self._ends)
        moments = [self._closes_at, self._opens_at, *self._later[:1], *(end for end, _ in self._ends[:1])]
        known = [moment for moment in moments if moment is not None and moment > self.now - 1e-9]
        busy = self._running or self._waiting
        return max(self.now, min(known)) if known and busy else None

    def _go_to(self, moment: float) -> None:
        self.now = moment
        while self._ends and self._ends[0][0] <= moment:
            end, job_id = heapq.heappop(self._ends)
            if self._is_end(end, job_id):
                self._finish(job_id)
        if any(at is not None and at <= moment for at in (self._closes_at, self._opens_at)):
            zone = self._base.zone
            self._closes_at, self._opens_at = (
                self._windows.closes_at(moment, zone),
                self._windows.opens_at(moment, zone),
            )

    def _is_end(self, end: float, job_id: str) -> bool:
        """Whether it still is: a run that was interrupted leaves its old one."""
        return job_id in self._running and self._running[job_id].end_at == end

    def _facts(self) -> Facts:
        facts = replace(
            self._base,
            now=self.now,
            slots=tuple(self._slots.values()),
            jobs=self._jobs,
            fates=self._fates,
            window_open=self._opens_at is None,
            window_opens_at=self._opens_at,
            closes_at=self._closes_at,
            expected_s=self._told,
            leases={},
        )
        # only those in front, or a look would cost more the longer the queue is
        able, checks, never = self._front(facts)
        waiting = (*able, *checks, *never)
        jobs = {job.id: job for job in (*(self._jobs[name] for name in self._running), *waiting)}
        told = {name: seconds for name in jobs if (seconds := self._seconds(name)) is not None}
        facts = replace(facts, jobs=jobs, expected_s=told)
        # what the facts would find out again
        vars(facts).update(waiting=tuple(sorted(waiting, key=place_in_queue)), startable=tuple(able))
        return facts

    def _front(self, facts: Facts) -> tuple[list[Job], list[Job], list[Job]]:
        """The first that could start; those that only could be checked; and those that never can, for the planner to say so."""
        if not self._in_order:
            self._waiting = {job.id: job for job in sorted(self._waiting.values(), key=place_in_queue)}
            self._in_order = True
        able: list[Job] = []
        checks: list[Job] = []
        never: list[Job] = []
        left = {True: BACKLOG_SEEN, False: SEEN}
        self._work += LOOK_COSTS
        for job in self._waiting.values():
            self._work += 1
            is_backlog = job.priority is Priority.BACKLOG
            if not left[is_backlog]:
                if not self._some_give_way or not any(left.values()):
                    break
            elif blocker(facts, job) is None:
                able.append(job)
                left[is_backlog] -= 1
            elif job.preflight_due and blocker(facts, job, preflight=True) is None:
                checks.append(job)
            elif job.after and not any(parent in self._jobs for parent, _ in job.parents):
                never.append(job)
        return able, checks, never

    # -- jobs start and end ---------------------------------------------------------------------------------------------------

    def _take_over(self, job: Job) -> None:
        """What runs or is about to, at the beginning."""
        if job.state is State.QUEUED:
            self._jobs[job.id] = job.claimed(fence=job.fence, owner="forecast", now=self.now)
            self._begin(job, job.slots, self.now, self._length(job, job.slots[0]))
            return
        if job.in_preflight:
            check_s = self._base.expected_s.get(job.id, self._base.policy.preflight_s)
            self._jobs[job.id] = replace(job, progress=None, wish=None)
            self._begin(job, job.slots, job.attempts[-1].started_at, check_s)
            self._carry_out(job)
            return
        if job.progress is not None and job.progress.eta_s is not None:
            self._basis[job.id] = Basis.PROGRESS
        left_s = self._base.expected_s.get(job.id)
        if left_s is None and job.progress is not None:
            left_s = job.progress.eta_s
        if left_s is None or (job.id not in self._basis and self._lasts(job, job.slots[0]) is None):
            guessed_s = still_s(self._guess(job), self.now - job.attempts[-1].started_at)
            left_s = guessed_s if left_s is None else left_s
        else:
            self._basis.setdefault(job.id, Basis.HISTORY)
        # its own word is in the numbers now; later in the night it would be an old one
        self._jobs[job.id] = replace(job, progress=None, wish=None)
        self._begin(job, job.slots, job.attempts[-1].started_at, left_s)
        self._carry_out(job)

    def _carry_out(self, job: Job) -> None:
        """What was asked of a running job already."""
        if job.wish is not None:
            self._end(job.id) if job.wish.kind is WishKind.CANCEL else self._interrupt(job.id)

    def _start(self, job_id: str, slots: tuple[str, ...]) -> None:
        job = self._jobs[job_id]
        offered = job.offered(rig=self._base.rig, slots=slots, now=self.now)
        self._jobs[job_id] = offered.claimed(fence=offered.fence, owner="forecast", now=self.now)
        del self._waiting[job_id]
        self._begin(job, slots, self.now, self._length(job, slots[0]))

    def _begin(self, job: Job, slots: tuple[str, ...], start_at: float, left_s: float) -> None:
        if self._basis.get(job.id) in (Basis.GUESS, Basis.UNKNOWN) or any(slot in self._unsure for slot in slots):
            self._unsure.add(job.id)
        for slot in slots:
            self._occupy(slot, job.id)
        run = Run(job.id, slots, start_at, self.now + left_s)
        self._running[job.id] = run
        heapq.heappush(self._ends, (run.end_at, job.id))
        for moment in self._second_thoughts(job, run):
            heapq.heappush(self._later, moment)

    def _second_thoughts(self, job: Job, run: Run) -> Iterator[float]:
        """When the planner may decide otherwise although nothing happens: it looks every second, the forecast does not."""
        policy = self._base.policy
        if policy.start_gap_s:
            yield self.now + policy.start_gap_s
        if not self._some_give_way:
            return
        yield run.end_at - policy.saving_s - A_MOMENT_S + LOOK_S
        if job.priority is Priority.BACKLOG:
            run_s, longest_s = policy.min_run_s, max(LONGEST_MIN_RUN_S, policy.min_run_s)
            while 0 < run_s < longest_s:
                yield run.start_at + run_s
                run_s *= 2
            yield run.start_at + longest_s

    def _finish(self, job_id: str) -> None:
        if self._jobs[job_id].in_preflight:
            self._pass(job_id)
        else:
            self._end(job_id)

    def _end(self, job_id: str) -> None:
        self._close(job_id, done=True)
        del self._jobs[job_id]
        self._fates[job_id] = State.SUCCEEDED  # a forecast is for a night in which nothing fails

    def _pass(self, job_id: str) -> None:
        """Its preflight is over: it waits for its own place. Only from there on it is told when it starts."""
        run = self._close(job_id, done=False)
        self._runs[job_id].pop()
        job = self._jobs[job_id]
        if job_id in self._base.expected_s and self._base.jobs[job_id].in_preflight:  # it told of the preflight
            whole_s = self._lasts(job, run.slots[0])
            self._left_s[job_id] = self._guess(job) if whole_s is None else whole_s
        back = job.ended(fence=job.fence, outcome=Outcome(end=End.CHECKED), now=self.now)
        self._jobs[job_id] = self._waiting[job_id] = replace(back, measured=job.measured)
        self._in_order = False

    def _interrupt(self, job_id: str) -> bool:
        if job_id not in self._running:
            return False
        run = self._close(job_id, done=False)
        job = self._jobs[job_id]
        if not job.in_preflight:
            self._left_s[job_id] = run.end_at - (self.now if resumes(job) else run.start_at)
        back = job.ended(fence=job.fence, outcome=Outcome(end=End.INTERRUPTED), now=self.now)
        self._jobs[job_id] = back
        self._waiting[job_id], self._in_order = back, False
        return True

    def _cancel(self, job_id: str, reason: str) -> bool:
        if self._waiting.pop(job_id, None) is None:
            return False
        del self._jobs[job_id]
        self._fates[job_id] = State.CANCELLED
        self._never[job_id] = reason
        return True

    def _close(self, job_id: str, *, done: bool) -> Run:
        run = self._running.pop(job_id)
        for slot in run.slots:
            self._occupy(slot, None)
            self._unsure.discard(slot)
            if job_id in self._unsure:
                self._unsure.add(slot)
        self._runs.setdefault(job_id, []).append(replace(run, end_at=self.now, done=done))
        return run

    def _leave_open(self, end: float) -> None:
        """What runs when the forecast stops: its end is known when nothing comes in between."""
        for run in self._running.values():
            self._runs.setdefault(run.job, []).append(
                run if run.end_at <= end else replace(run, end_at=end, done=False)
            )

    def _occupy(self, slot: str, job_id: str | None) -> None:
        if slot in self._slots:  # else it is another rig's
            self._slots[slot] = replace(self._slots[slot], job=job_id)

    # -- how long ---------------------------------------------------------------------------------------------------------------

    def _length(self, job: Job, slot: str) -> float:
        if job.preflight_due:
            return self._base.policy.preflight_s
        if job.id in self._left_s:
            return self._left_s[job.id]
        lasts_s = self._lasts(job, slot)
        if lasts_s is None:
            return self._guess(job)
        self._basis[job.id] = Basis.HISTORY
        return lasts_s

    def _guess(self, job: Job) -> float:
        guess_s = self._guess_s(job.kind)
        self._basis[job.id] = Basis.UNKNOWN if guess_s is None else Basis.GUESS
        return min(UNKNOWN_S if guess_s is None else guess_s, job.max_runtime_s or math.inf)

    def _seconds(self, job_id: str) -> float | None:
        """What `plan` is told of a job, as the ledger would: what is known, and a guess of what runs."""
        if (run := self._running.get(job_id)) is not None:
            basis = self._basis.get(job_id)
            if basis is Basis.PROGRESS:
                return max(0.0, run.end_at - self.now)
            # near its end it will be told as history tells it then
            return None if basis is Basis.UNKNOWN else still_s(run.end_at - run.start_at, self.now - run.start_at)
        known_s = self._base.expected_s.get(job_id)
        return self._left_s.get(job_id, known_s) if known_s is not None else None

    # -- what comes out -----------------------------------------------------------------------------------------------------------

    def outlook(self, job: Job, facts: Facts) -> Outlook:
        runs = tuple(self._runs.get(job.id, ()))
        known = facts.expected_s.get(job.id) is not None
        basis = self._basis.get(job.id) or (Basis.HISTORY if known else Basis.GUESS if self._guess_s(job.kind) else Basis.UNKNOWN)  # fmt: skip
        never = self._never.get(job.id) or (blocker(facts, job) if not runs and job.held else None)
        return Outlook(job, basis, runs, job.id not in self._unsure, explain(facts, job), never)


class _Told(Mapping[str, float]):
    """`Facts.expected_s` of a moment to come."""

    def __init__(self, ahead: _Ahead):
        self._ahead = ahead

    def __getitem__(self, job_id: str) -> float:
        seconds = self._ahead._seconds(job_id)
        if seconds is None:
            raise KeyError(job_id)
        return seconds

    def __iter__(self) -> Iterator[str]:
        return (job_id for job_id in self._ahead._jobs if job_id in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _in_order(facts: Facts) -> Iterable[Job]:
    """Running jobs, then the waiting ones as they stand in the queue."""
    return sorted(facts.jobs.values(), key=lambda job: (not job.slots, *place_in_queue(job)))


def _window_end(facts: Facts, windows: Windows) -> float | None:
    if facts.window_open:
        return facts.closes_at
    return None if facts.window_opens_at is None else windows.closes_at(facts.window_opens_at, facts.zone)
