"""What the planner is compared with: other ways to give out slots, under the same rules of windows, order and memory."""

import math
from collections.abc import Iterator, Sequence

from daemon.plan import Cancel, Decision, Facts, Interrupt, Offer, SlotFacts
from jobs.model import Job, State

#: As the planner keeps it free beside a job.
RESERVE_BYTES = 512 << 20


def first_come(facts: Facts) -> list[Decision]:
    """Strictly in order: who does not fit yet stops everybody behind it."""
    return [*_closing(facts), *_in_order(facts, skip=False)]


def first_fit(facts: Facts) -> list[Decision]:
    """Whoever fits starts. Gangs may starve."""
    return [*_closing(facts), *_in_order(facts, skip=True)]


def easy(facts: Facts) -> list[Decision]:
    """EASY back-filling: the first that does not fit has a reservation; others pass only when they do not touch it."""
    return [*_closing(facts), *_easy(facts)]


def _closing(facts: Facts) -> Iterator[Decision]:
    """The window's end, and children that can never start: no matter of taste."""
    for job in facts.here:
        if not facts.window_open and job.state is State.RUNNING and job.window == "night":
            yield Interrupt(job.id, "")
    for job in facts.waiting:
        if any(p not in facts.jobs and not condition.met_by(facts.fates.get(p)) for p, condition in job.parents):
            yield Cancel(job.id, "")


def _in_order(facts: Facts, *, skip: bool) -> Iterator[Decision]:
    free = _free(facts)
    for job in facts.startable:
        chosen = [slot for slot in free if _fits(job, slot)][: job.gpus]
        if len(chosen) == job.gpus:
            free = [slot for slot in free if slot not in chosen]
            yield Offer(job.id, tuple(slot.slot.id for slot in chosen))
        elif not skip and _could(job, facts):
            return


def _easy(facts: Facts) -> Iterator[Decision]:
    free = _free(facts)
    reserved: set[str] = set()
    shadow_at: float | None = None
    for job in facts.startable:
        fitting = [slot for slot in free if _fits(job, slot)]
        if shadow_at is not None and facts.now + facts.expected_s.get(job.id, math.inf) > shadow_at:
            fitting = [slot for slot in fitting if slot.slot.id not in reserved]
        chosen = fitting[: job.gpus]
        if len(chosen) == job.gpus:
            free = [slot for slot in free if slot not in chosen]
            yield Offer(job.id, tuple(slot.slot.id for slot in chosen))
        elif shadow_at is None and _could(job, facts):
            shadow_at, reserved = _reservation(job, facts, [slot.slot.id for slot in free])


def _reservation(job: Job, facts: Facts, free: Sequence[str]) -> tuple[float, set[str]]:
    """When it will have enough slots, and which."""
    when = [
        (facts.now if s.slot.id in free else facts.now + facts.expected_s.get(s.job or "", math.inf), s.slot.id)
        for s in facts.slots
        if s.usable and _fits(job, s)
    ]
    soonest = sorted(when)[: job.gpus]
    return soonest[-1][0], {slot for _, slot in soonest}


def _free(facts: Facts) -> list[SlotFacts]:
    return sorted((s for s in facts.slots if s.free), key=lambda s: (s.slot.memory_bytes, s.slot.index))


def _fits(job: Job, slot: SlotFacts) -> bool:
    return not job.vram_bytes or job.vram_bytes + RESERVE_BYTES <= slot.slot.memory_bytes


def _could(job: Job, facts: Facts) -> bool:
    """Whether it will start once what runs has ended: a card in other use stops nobody behind it."""
    return sum(s.usable and _fits(job, s) for s in facts.slots) >= job.gpus
