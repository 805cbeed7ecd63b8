"""What the API says about the night ahead."""

from datetime import datetime
from typing import Self

from pydantic import BaseModel, Field

from api.views import moment, moment_or_none
from daemon.forecast import Basis, Forecast, Outlook, Run
from daemon.give_way import GiveWay
from daemon.plan import Facts
from daemon.rig import Slot
from jobs.model import Priority, State


class RunView(BaseModel):
    """One stay of a job on its slots."""

    job: str
    slots: list[str]
    start_at: datetime
    end_at: datetime
    done: bool = Field(description="false: it is interrupted then and goes on later.")

    @classmethod
    def of(cls, run: Run) -> Self:
        return cls(job=run.job, slots=list(run.slots), start_at=moment(run.start_at), end_at=moment(run.end_at), done=run.done)  # fmt: skip


class PlannedJob(BaseModel):
    """What is expected of one job."""

    id: str
    name: str
    kind: str
    state: State
    priority: Priority
    gpus: int
    slots: list[str]
    start_at: datetime | None = Field(description="None: beyond the horizon, or never as things stand.")
    end_at: datetime | None
    basis: Basis = Field(description="Where its length comes from: its own progress, history, its kind's median, or nowhere.")  # fmt: skip
    sure: bool = Field(description="Its times rest on no guess, of its own length or of those before it.")
    late: bool
    waiting_because: str | None
    never: str | None = Field(description="Why it will not start as things stand.")
    runs: list[RunView]

    @classmethod
    def of(cls, outlook: Outlook, *, late: bool) -> Self:
        job = outlook.job
        return cls(
            id=job.id,
            name=job.name,
            kind=job.kind,
            state=job.state,
            priority=job.priority,
            gpus=job.gpus,
            slots=list(outlook.slots),
            start_at=moment_or_none(outlook.start_at),
            end_at=moment_or_none(outlook.end_at),
            basis=outlook.basis,
            sure=outlook.sure,
            late=late,
            waiting_because=outlook.waiting_because,
            never=outlook.never,
            runs=[RunView.of(run) for run in outlook.runs],
        )


class LaneView(BaseModel):
    """What runs on one slot, in order of time."""

    slot: str
    index: int
    name: str
    runs: list[RunView]

    @classmethod
    def of(cls, slot: Slot, found: Forecast) -> Self:
        return cls(
            slot=slot.id, index=slot.index, name=slot.name, runs=[RunView.of(run) for run in found.lane(slot.id)]
        )


class GiveWayView(BaseModel):
    """What would have to wait so that a late job is done in time."""

    job: str
    hold: list[str] = Field(description="Empty: it would be late even if nothing ran before it.")
    end_at: datetime | None

    @classmethod
    def of(cls, gives: GiveWay | None) -> Self | None:
        return cls(job=gives.job, hold=list(gives.hold), end_at=moment_or_none(gives.end_at)) if gives else None


class PlanView(BaseModel):
    """The night as it will go when nothing changes: running jobs first, then the queue in its order."""

    at: datetime
    rig: str
    window_ends_at: datetime | None
    deadline: datetime | None = Field(description="What `late` is measured by: the end of the window, or `by`.")
    jobs: list[PlannedJob]
    more: int = Field(description="Jobs that are left out here, by `limit`.")
    lanes: list[LaneView]
    late: list[str] = Field(description="Every job that could run before the deadline and is not done by then.")
    give_way: GiveWayView | None = Field(description="For the first late job.")
    what_if: list[str] = Field(description="The ids that the jobs of a what-if would get.")
    until: datetime = Field(description="The forecast ends here.")
    cut: bool = Field(description="The queue is too long for a forecast of all of it.")

    @classmethod
    def of(cls, found: Forecast, facts: Facts, *, gives: GiveWay | None, what_if: list[str], limit: int) -> Self:
        late = found.late
        are_late = set(late)
        shown = list(found.jobs.values())
        if len(shown) > limit:  # a what-if is never left out
            shown = shown[:limit] + [outlook for outlook in shown[limit:] if outlook.job.id in set(what_if)]
        return cls(
            at=moment(found.at),
            rig=facts.rig,
            window_ends_at=moment_or_none(found.window_ends_at),
            deadline=moment_or_none(found.deadline),
            jobs=[PlannedJob.of(outlook, late=outlook.job.id in are_late) for outlook in shown],
            more=len(found.jobs) - len(shown),
            lanes=[LaneView.of(each.slot, found) for each in facts.slots],
            late=list(late),
            give_way=GiveWayView.of(gives),
            what_if=what_if,
            until=moment(found.until),
            cut=found.cut,
        )
