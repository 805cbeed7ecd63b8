"""Which waiting jobs start on which slots, who gives way to them, and what the others wait for. Pure.

Order is priority, then first come. A job takes the smallest slots that fit. One that does not fit yet keeps the slots that
it will have soonest; jobs behind it use them meanwhile only when they are expected to be gone by then, or are backlog, which
gives way. Backlog jobs leave when a job of another priority could start within moments on their slots.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from daemon.placement import Board, Need, Place
from daemon.situation import Facts, SlotFacts
from jobs.model import End, Job, Priority, State

#: An expected time is trusted with this much on top.
MARGIN, MARGIN_S = 1.25, 30.0
#: Who leaves by itself within the cost of an interruption and this is not interrupted.
A_MOMENT_S = 15.0
#: Each interruption of the last hour doubles how long a backlog job runs before the next one, up to this.
RECENT_S, LONGEST_MIN_RUN_S = 3600.0, 300.0


@dataclass(frozen=True)
class Offer:
    """Give the job these slots; the first one leads."""

    job: str
    slots: tuple[str, ...]
    #: The job before it in the queue that it uses kept slots of: back-filled.
    ahead_of: str = ""


@dataclass(frozen=True)
class Interrupt:
    """Save and go back to the queue."""

    job: str
    reason: str


@dataclass(frozen=True)
class Wait:
    """What a job that only lacks slots waits for."""

    #: The slots that it keeps, and when it will have all of them (epoch seconds; inf: nobody knows).
    slots: tuple[str, ...] = ()
    at: float = math.inf
    #: The jobs that give way to it now.
    asked: tuple[str, ...] = ()
    #: Any other reason.
    reason: str = ""


@dataclass(frozen=True)
class Starts:
    """The part of a plan that gives out slots."""

    offers: tuple[Offer, ...] = ()
    interrupts: tuple[Interrupt, ...] = ()
    #: For the jobs that keep slots, or stopped the round.
    waits: Mapping[str, Wait] = field(default_factory=dict)


@lru_cache(maxsize=2)  # for each moment asked several times: by the plan, and for every job that wants to know
def starts(facts: Facts) -> Starts:
    """Fill the board in the order of the queue."""
    board, running = _board(facts), Counter(facts.of_sweep)
    offers: list[Offer] = []
    leave: dict[str, str] = {}
    waits: dict[str, Wait] = {}
    given: set[str] = set()
    for job, preflight in facts.turns:
        if board.full:
            break
        if job.id in given:
            continue
        if facts.policy.start_gap_s and (gap_s := _gap_s(facts, offers)) > 0:
            waits[job.id] = Wait(
                reason=f"starts are {facts.policy.start_gap_s:g} s apart; the next is in {gap_s:.0f} s"
            )
            break
        lasts_s = _lasts_s(facts, job, preflight=preflight)
        if lasts_s > board.gap_s and job.priority is not Priority.BACKLOG:
            continue
        need = _need(facts, job, lasts_s)
        if board.refuses(need) or (job.max_concurrent and running[job.sweep] >= job.max_concurrent):
            continue
        if taken := board.take(need):
            passed = next((place.keeper.job for place in taken if place.keeper), "")
            offers.append(Offer(job.id, tuple(place.slot for place in taken), passed))
            running[job.sweep] += 1
            given.add(job.id)
        elif preflight:
            board.lacks_w = 0.0  # it takes a slot that is free, and nothing is kept, asked or held up for it
        elif board.lacks_w:
            asked = () if need.gives_way else board.power_from()
            waits[job.id] = Wait(
                reason=f"needs {board.lacks_w:.0f} W more than the rig's power budget has left", asked=asked
            )
            leave |= dict.fromkeys(asked, f"Its power is needed by job {job.id}; it goes on afterwards.")
            if any(s.job for s in facts.slots) or offers:
                break  # nobody passes, or the power would never suffice for a gang
            board.lacks_w = 0.0
        elif kept := board.keep(need):
            waits[job.id] = Wait(tuple(p.slot for p in kept.places), facts.now + kept.at_s, kept.leave)
            leave |= dict.fromkeys(kept.leave, f"It gives way to job {job.id}; it goes on afterwards.")
    return Starts(tuple(offers), tuple(Interrupt(other, why) for other, why in leave.items()), waits)


def _need(facts: Facts, job: Job, lasts_s: float) -> Need:
    policy = facts.policy
    yields_in_s = policy.min_run_s + policy.saving_s if job.priority is Priority.BACKLOG else math.inf
    return Need(job.id, job.gpus, job.vram_bytes or 0, lasts_s, yields_in_s)


def _board(facts: Facts) -> Board:
    """The usable slots as they are, and the power that is left."""
    soon_s = facts.policy.saving_s + A_MOMENT_S
    budget_w = facts.policy.power_budget_w
    drawn_w = sum((s.power_limit_w if s.job else None) or s.power_w or 0.0 for s in facts.slots)
    places = [_place(facts, s, soon_s) for s in facts.slots if s.usable]
    return Board(places, soon_s, math.inf if budget_w is None else budget_w - drawn_w)


def _place(facts: Facts, s: SlotFacts, soon_s: float) -> Place:
    memory_bytes = s.slot.memory_bytes
    room_bytes = memory_bytes if s.room_bytes is None else s.room_bytes
    job = facts.jobs.get(s.job or "")
    place = Place(s.slot.id, s.slot.index, s.slot.name, memory_bytes, room_bytes, s.job, power_w=s.adds_w)
    if job is None:
        # a worker that starts, or a card that cools: it will not be long
        place.free_in_s = 0.0 if s.free else math.inf if s.job else facts.policy.saving_s
        return place
    place.free_in_s, place.power_w = left_s(facts, job), s.power_limit_w or 0.0
    if job.priority is Priority.BACKLOG and job.state is State.RUNNING and not _stops(facts, job):
        place.loss = facts.now - job.attempts[-1].started_at
        guard_s = max(0.0, _min_run_s(facts, job) - place.loss)
        place.asked_free_in_s = soon_s + guard_s if guard_s else facts.policy.saving_s
    return place


def _lasts_s(facts: Facts, job: Job, *, preflight: bool = False) -> float:
    """After so many seconds a job that starts now is gone, with a margin; inf when nobody knows."""
    if preflight:
        return facts.policy.preflight_s * MARGIN + MARGIN_S
    lasts_s = math.inf
    if (expected_s := facts.expected_s.get(job.id)) is not None:
        lasts_s = expected_s * MARGIN + MARGIN_S
    if job.max_runtime_s is not None:
        lasts_s = min(lasts_s, job.max_runtime_s + MARGIN_S)
    return min(lasts_s, _closes_in_s(facts, job))


def left_s(facts: Facts, job: Job) -> float:
    """Seconds until a job leaves its slots; inf when nobody knows, or when it should have been gone by now."""
    if _stops(facts, job):
        asked_at = job.wish.asked_at if job.wish else facts.now
        return max(1.0, asked_at + facts.policy.saving_s - facts.now)
    left_s = facts.expected_s.get(job.id, job.progress.eta_s if job.progress else None)
    if left_s is None or left_s <= 0:
        return math.inf
    return min(left_s, max(1.0, _closes_in_s(facts, job)))


def _stops(facts: Facts, job: Job) -> bool:
    return job.wish is not None or job.id in facts.leaving


def _closes_in_s(facts: Facts, job: Job) -> float:
    """When the window's end stops it; inf when it does not."""
    if facts.closes_at is None or facts.window_end != "checkpoint" or job.window != "night":
        return math.inf
    return facts.closes_at - facts.now


def _min_run_s(facts: Facts, job: Job) -> float:
    """How long a backlog job may run before it gives way: the longer, the more often it has done so lately."""
    lately = sum(run.end is End.INTERRUPTED and (run.ended_at or 0.0) > facts.now - RECENT_S for run in job.attempts)
    longest_s = max(LONGEST_MIN_RUN_S, facts.policy.min_run_s)
    return min(longest_s, facts.policy.min_run_s * 2.0**lately)


def _gap_s(facts: Facts, offers: list[Offer]) -> float:
    """Seconds until the next start may be."""
    last = [job.offer.at if job.offer else job.attempts[-1].started_at for job in facts.here]
    return max([*last, facts.now if offers else -math.inf]) + facts.policy.start_gap_s - facts.now
