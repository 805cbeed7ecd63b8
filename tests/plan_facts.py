"""Facts for the planner, in a line or two: jobs that wait, jobs that run, and a rig of GPUs."""

from typing import Any
from zoneinfo import ZoneInfo

from daemon.explain import explain
from daemon.plan import Facts, Offer, SlotFacts, plan
from daemon.rig import Slot
from jobs.model import Job, Priority, Progress, State, rank_of

GIB = 2**30
UTC = ZoneInfo("UTC")
NOW = 1_000_000.0


def job(number: int, *, priority: Priority = Priority.NORMAL, **facts: Any) -> Job:
    return Job(
        id=str(number),
        kind="command",
        name=f"job {number}",
        spec={},
        created_at=0.0,
        rank=rank_of(priority, number),
        priority=priority,
        **facts,
    )


def running(number: int, *slots: str, eta_s: float | None = None, ran_s: float = 0.0, **facts: Any) -> Job:
    offered = job(number, gpus=len(slots), **facts).offered(rig="rig", slots=slots, now=NOW - ran_s)
    claimed = offered.claimed(fence=1, owner="me", now=NOW - ran_s)
    return claimed.progressed(fence=1, progress=Progress(step=1, total=2, eta_s=eta_s))


def facts(*jobs: Job, gpus: int = 2, **more: Any) -> Facts:
    """A rig of so many GPUs. `memory`: GiB of each; `paused_slots`: ids; `slot`: further facts by index."""
    occupied = {slot: j.id for j in jobs for slot in j.slots}
    memory = more.pop("memory", [24] * gpus)
    paused = more.pop("paused_slots", ())
    per_slot = more.pop("slot", {})
    slots = tuple(
        SlotFacts(
            Slot(f"GPU-{i}", f"{memory[i]} GiB card", i, memory[i] * GIB),
            **{"job": occupied.get(f"GPU-{i}"), "paused": f"GPU-{i}" in paused, **per_slot.get(i, {})},
        )
        for i in range(gpus)
    )
    more.setdefault("leases", {j.id: 10.0 for j in jobs if j.state is State.RUNNING})
    return Facts(now=NOW, rig="rig", zone=UTC, slots=slots, jobs={j.id: j for j in jobs}, **more)


def offers(found: Facts) -> dict[str, tuple[str, ...]]:
    return {d.job: d.slots for d in plan(found) if isinstance(d, Offer)}


def because(found: Facts, job_id: str) -> str:
    """Why the job waits."""
    return explain(found, found.jobs[job_id]) or ""
