"""What the API says about slots and rigs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel

from api.views import moment
from daemon.quarantine import Quarantine
from daemon.rig import Slot
from daemon.samples import SlotNow
from jobs.model import Job, State


class GpuView(BaseModel):
    """One slot: a GPU, or a CPU slot where there is none."""

    id: str
    rig: str
    name: str
    index: int
    memory_bytes: int
    paused: bool
    state: Literal["idle", "busy", "offered", "paused", "lost", "quarantined"]
    job: str | None
    sample: dict[str, Any] | None
    sample_age_s: float | None
    #: Since when and why it is out of service for a fault; null when it is not.
    quarantine: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        slot: Slot,
        rig: str,
        *,
        paused: bool,
        job: Job | None,
        sample: SlotNow | None,
        age_s: float | None,
        problem: str | None = None,
        held: Quarantine | None = None,
    ) -> Self:
        """`problem`: what keeps jobs off its GPU (daemon.facts)."""
        return cls(
            id=slot.id,
            rig=rig,
            name=slot.name,
            index=slot.index,
            memory_bytes=slot.memory_bytes,
            paused=paused,
            state=_slot_state(paused, job, problem, held),
            job=job.id if job else None,
            sample=asdict(sample) if sample else None,
            sample_age_s=age_s if sample else None,
            quarantine=_quarantine(held) if held else None,
        )


class GpuList(BaseModel):
    """Every slot of every rig of this queue."""

    gpus: list[GpuView]


class WindowView(BaseModel):
    """The hours in which jobs run."""

    setting: Any
    timezone: str
    end: str
    open: bool
    closes_at: datetime | None
    opens_at: datetime | None


class RigView(BaseModel):
    """The rig as it is now."""

    name: str
    paused: bool
    window: WindowView
    jobs: dict[str, int]
    health: dict[str, Any]
    versions: dict[str, str | None]
    settings: dict[str, Any]
    rigs: list[str]


def _quarantine(held: Quarantine) -> dict[str, Any]:
    return {
        "since": moment(held.at),
        "reason": held.reason,
        "evidence": held.evidence,
        "strikes": held.strikes,
        "check": "asked" if held.check_asked else held.check_result or None,
    }


def _slot_state(
    paused: bool, job: Job | None, problem: str | None, held: Quarantine | None
) -> Literal["idle", "busy", "offered", "paused", "lost", "quarantined"]:
    if problem == "lost":
        return "lost"
    if job is not None:
        return "busy" if job.state is State.RUNNING else "offered"
    if held is not None:
        return "quarantined"
    return "paused" if paused else "idle"


def occupied(jobs: Mapping[str, Job]) -> dict[tuple[str, str], Job]:
    """Which job is on which slot of which rig."""
    return {(job.rig, slot): job for job in jobs.values() for slot in job.slots}


def largest(rigs: Mapping[str, Mapping[str, Sequence[Any]]]) -> int:
    """How many slots the largest rig has; 0 when none has told yet."""
    return max((len(facts.get("slots", ())) for facts in rigs.values()), default=0)


def memories_of(rigs: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[list[int]]:
    """Bytes of memory of each rig's slots; 0 for a CPU slot."""
    return [[int(slot.get("memory_bytes") or 0) for slot in facts.get("slots", ())] for facts in rigs.values()]
