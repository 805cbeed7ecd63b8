"""How long each slot stood idle in a night, and why. Pure: from the jobs' records and the sampler's events.

Only what the records tell is told: a job that could have started and did not was kept back by the planner (a foreign
process, heat, power, a full disk), which says at that moment why.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from daemon.placement import fits
from daemon.telemetry import GpuEvent
from jobs.model import Condition, End, Job

#: A slot between two jobs changes over; longer than so, something kept the next one back.
CHANGE_S = 60.0

Interval = tuple[float, float]


class Reason(StrEnum):
    """Why a slot did nothing."""

    OUT = "out of service"
    PAUSED = "paused"
    CLOSED = "outside the window"
    CHANGING = "changing over"
    KEPT_BACK = "kept back"
    GANG = "kept for a job with several GPUs"
    WAITING = "jobs waited for others or for their time"
    NOTHING = "no job"


@dataclass(frozen=True)
class Idle:
    """One stretch in which a slot did nothing."""

    slot: str
    start: float
    end: float
    reason: Reason

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Night:
    """What the reasons are told from; every list is of (from, to) in epoch seconds."""

    start: float
    end: float
    slots: Sequence[str]
    jobs: Sequence[Job]
    #: When the window was open; None: always.
    open: Sequence[Interval] | None = None
    #: By slot: lost, silent or in quarantine.
    out: Mapping[str, Sequence[Interval]] = field(default_factory=dict)
    paused: Mapping[str, Sequence[Interval]] = field(default_factory=dict)
    #: By slot, in bytes: a job that never fits there is no work for it. Missing: everything fits.
    memory: Mapping[str, int] = field(default_factory=dict)


def idle(night: Night) -> list[Idle]:
    """Every idle stretch, slot by slot, oldest first."""
    room = {slot: night.memory.get(slot) or None for slot in night.slots}
    work = {memory: _work_of(night, memory) for memory in set(room.values())}
    return [found for slot in night.slots for found in _of_slot(night, work[room[slot]], slot)]


def seconds_by_reason(found: Iterable[Idle]) -> dict[str, float]:
    """The sum over all slots, the longest first."""
    total: dict[str, float] = {}
    for one in found:
        total[one.reason] = total.get(one.reason, 0.0) + one.seconds
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def outages(events: Iterable[GpuEvent], *, until: float) -> dict[str, list[Interval]]:
    """From when to when each GPU did not answer, by the sampler's events."""
    out: dict[str, list[Interval]] = {}
    since: dict[str, float] = {}
    for event in events:
        if event.slot is None:
            continue
        if event.kind in ("lost", "stale"):
            since.setdefault(event.slot, event.at)
        elif event.kind == "recovered" and event.slot in since:
            out.setdefault(event.slot, []).append((since.pop(event.slot), event.at))
    for slot, at in since.items():
        out.setdefault(slot, []).append((at, until))
    return out


@dataclass(frozen=True)
class _Work:
    """When there was something to do: for one slot or for several, by night only or at any time; and when it had to wait."""

    single: Sequence[Interval]
    single_any: Sequence[Interval]
    gang: Sequence[Interval]
    gang_any: Sequence[Interval]
    blocked: Sequence[Interval]

    def __iter__(self) -> Iterator[Sequence[Interval]]:
        yield from (self.single, self.single_any, self.gang, self.gang_any, self.blocked)


def _work_of(night: Night, memory: int | None) -> _Work:
    """What slots of this memory could have done."""
    known = {job.id: job for job in night.jobs}
    found: dict[tuple[bool, bool], list[Interval]] = {}
    blocked: list[Interval] = []
    for job in night.jobs:
        ready = max([job.not_before or 0.0, *(_met_at(known.get(parent), c, night.end) for parent, c in job.parents)])
        for start, end in _waited(job, night.end):
            if job.held or (memory is not None and not fits(job.vram_bytes or 0, memory)):
                blocked.append((start, end))
                continue
            blocked.append((start, min(end, max(start, ready))))
            found.setdefault((job.gpus > 1, job.window == "any"), []).append((max(start, min(end, ready)), end))
    return _Work(
        single=_merged(found.get((False, False), ())),
        single_any=_merged(found.get((False, True), ())),
        gang=_merged(found.get((True, False), ())),
        gang_any=_merged(found.get((True, True), ())),
        blocked=_merged(blocked),
    )


def _met_at(parent: Job | None, condition: Condition, end: float) -> float:
    """Until when a parent was waited for; `end`: of the night. One that is not of this night had ended before."""
    if parent is None:
        return 0.0
    checked = [run.ended_at for run in parent.attempts if run.end is End.CHECKED and run.ended_at is not None]
    return checked[0] if condition is Condition.CHECKED and checked else parent.finished_at or end


def _waited(job: Job, end: float) -> Iterator[Interval]:
    """When it was in the queue."""
    runs = [(run.started_at, run.ended_at or end) for run in job.attempts]
    yield from _gaps(_merged(runs), job.created_at, job.finished_at or end)


def _of_slot(night: Night, work: _Work, slot: str) -> Iterator[Idle]:
    runs = [
        (run.started_at, run.ended_at or night.end) for job in night.jobs for run in job.attempts if slot in run.slots
    ]
    out, paused = _merged(night.out.get(slot, ())), _merged(night.paused.get(slot, ()))
    edges = sorted(
        {edge for known in (*work, out, paused, night.open or ()) for interval in known for edge in interval}
    )
    for start, end in _gaps(_merged(runs), night.start, night.end):
        inside = edges[bisect_right(edges, start) : bisect_left(edges, end)]
        yield from _joined(
            Idle(slot, a, b, _reason((a + b) / 2, end - start, work, out, paused, night.open))
            for a, b in pairwise([start, *inside, end])
        )


def _reason(
    at: float, gap_s: float, work: _Work, out: Sequence[Interval], paused: Sequence[Interval], opened: Sequence[Interval] | None,
) -> Reason:  # fmt: skip
    """At a moment around which nothing changes."""
    if _within(at, out):
        return Reason.OUT
    if _within(at, paused):
        return Reason.PAUSED
    is_open = opened is None or _within(at, opened)
    if _within(at, work.single_any) or (is_open and _within(at, work.single)):
        return Reason.CHANGING if gap_s <= CHANGE_S else Reason.KEPT_BACK
    if _within(at, work.gang_any) or (is_open and _within(at, work.gang)):
        return Reason.GANG
    if not is_open:
        return Reason.CLOSED
    return Reason.WAITING if _within(at, work.blocked) else Reason.NOTHING


def _joined(found: Iterable[Idle]) -> Iterator[Idle]:
    """Neighbours with one reason as one stretch."""
    last: Idle | None = None
    for one in found:
        if last is not None and last.reason is one.reason and last.end == one.start:
            last = Idle(last.slot, last.start, one.end, last.reason)
            continue
        if last is not None:
            yield last
        last = one
    if last is not None:
        yield last


def _merged(intervals: Iterable[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _gaps(busy: Sequence[Interval], start: float, end: float) -> Iterator[Interval]:
    at = start
    for begin, until in busy:
        if begin > at:
            yield at, min(begin, end)
        at = max(at, until)
        if at >= end:
            return
    if at < end:
        yield at, end


def _within(at: float, intervals: Sequence[Interval]) -> bool:
    """Whether a moment lies in one of these, which are in order and apart."""
    place = bisect_right(intervals, (at, float("inf")))
    return place > 0 and at < intervals[place - 1][1]
