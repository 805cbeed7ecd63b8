"""Why a job waits, in words for its owner: the plan's own reasons, never a second opinion."""

import math

from daemon.rig import Slot
from daemon.situation import Facts, SlotFacts, blocker, clock, gib
from daemon.starts import Wait, left_s, starts
from jobs.model import Job, State


def explain(facts: Facts, job: Job) -> str | None:
    """Why the job waits; None when it does not."""
    if job.state is not State.QUEUED:
        return None
    if job.offer is not None:
        there = "" if job.offer.rig == facts.rig else f" of rig {job.offer.rig}"
        what = "starting its preflight" if job.preflight_due else "starting"
        return f"{what} on {_names(facts, job.offer.slots)}{there}"
    if job.preflight_due and not blocker(facts, job, preflight=True):
        return f"its preflight comes first, as soon as {_slots(facts, job.gpus)} is free; then: {_itself(facts, job)}"
    return _itself(facts, job)


def _itself(facts: Facts, job: Job) -> str:
    """Why the job itself does not start."""
    if reason := blocker(facts, job):
        return reason
    ahead = facts.position.get(job.id, 0)
    queue = f"{ahead} job{'s' if ahead != 1 else ''} ahead; " if ahead else ""
    return f"{queue}{_lack(facts, job)}"


def _lack(facts: Facts, job: Job) -> str:
    """What a job that could start lacks."""
    if any(offer.job == job.id for offer in starts(facts).offers):
        return "starts at the next look"
    wait = starts(facts).waits.get(job.id, Wait())
    if wait.reason:
        return wait.reason
    needs = f"needs {_slots(facts, job.gpus)}"
    usable = [s for s in facts.slots if s.usable and s.fits(job)]
    if len(usable) < job.gpus:
        return f"{needs}; {', '.join(_why_not(s, job) for s in facts.slots if s not in usable)}"
    out = "".join(f"; {_name(s.slot)} is {s.problem}" for s in facts.slots if s.problem and not s.paused)
    if wait.slots:
        return f"{needs}; {_kept(facts, [s for s in usable if s.slot.id in wait.slots], wait)}{out}"
    return f"{_behind(facts, job, needs, usable)}{out}"


def _kept(facts: Facts, slots: list[SlotFacts], wait: Wait) -> str:
    """What a job waits for that has slots reserved."""
    if wait.asked:
        jobs = " and ".join(f"job {other}" for other in wait.asked)
        return f"{jobs} (backlog) give{'s' if len(wait.asked) == 1 else ''} way to it"
    lacking = [s for s in slots if not s.free]
    last = max(lacking, key=lambda s: _ends_at(facts, s), default=None)
    if last is None:
        return "starts at the next look"
    held = [_name(s.slot) for s in slots if s.free]
    kept = f"; {' and '.join(held)} {'is' if len(held) == 1 else 'are'} kept free for it" if held else ""
    until = f" until about {clock(wait.at, facts)}" if last.job and math.isfinite(wait.at) else ""
    return f"{_busy(last)}{until}{kept}"


def _behind(facts: Facts, job: Job, needs: str, usable: list[SlotFacts]) -> str:
    """What a job waits for that has no slots reserved: those before it."""
    if (
        job.max_concurrent
        and job.sweep
        and any(facts.jobs[offer.job].sweep == job.sweep for offer in starts(facts).offers)
    ):
        return f"its sweep runs {job.max_concurrent} at a time"
    keepers = {slot: (other, wait.at) for other, wait in starts(facts).waits.items() for slot in wait.slots}
    for s in usable:
        if s.free and s.slot.id in keepers:
            other, at = keepers[s.slot.id]
            when = f" from about {clock(at, facts)}" if math.isfinite(at) else ""
            unknown = "" if job.id in facts.expected_s else "; how long this one takes is not known"
            return f"{needs}; {_name(s.slot)} is kept for job {other}{when}{unknown}"
    busy = [s for s in usable if not s.free]
    if not busy:
        return f"{needs}; those ahead start first"
    first = min(busy, key=lambda s: _ends_at(facts, s))
    ends_at = _ends_at(facts, first)
    until = f" until about {clock(ends_at, facts)}" if math.isfinite(ends_at) else ""
    return f"{needs}; {_busy(first)}{until}"


def _busy(s: SlotFacts) -> str:
    if s.job is not None:
        return f"{_name(s.slot)} is busy with job {s.job}"
    return f"{_name(s.slot)} is {s.resting}" if s.resting else f"the worker of {_name(s.slot)} is starting"


def _why_not(s: SlotFacts, job: Job) -> str:
    if s.paused or s.problem:
        return f"{_name(s.slot)} is {'paused' if s.paused else s.problem}"
    return f"{_name(s.slot)} has {gib(s.room_bytes or s.slot.memory_bytes)} left of {gib(job.vram_bytes or 0)} needed"


def _ends_at(facts: Facts, s: SlotFacts) -> float:
    """When the slot is expected to be free; inf when nobody knows."""
    job = facts.jobs.get(s.job or "")
    return facts.now + left_s(facts, job) if job else math.inf


def _names(facts: Facts, ids: tuple[str, ...]) -> str:
    by_id = {s.slot.id: _name(s.slot) for s in facts.slots}
    return " and ".join(by_id.get(slot_id, slot_id) for slot_id in ids)


def _name(slot: Slot) -> str:
    return f"GPU {slot.index}" if slot.is_gpu else f"CPU slot {slot.index}"


def _slots(facts: Facts, count: int) -> str:
    kind = "GPU" if any(s.slot.is_gpu for s in facts.slots) else "CPU slot"
    return f"a {kind}" if count == 1 else f"{count} {kind}s"
