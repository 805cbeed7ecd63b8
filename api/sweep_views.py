"""What the API says about sweeps."""

import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel

from api.views import moment, moment_or_none
from daemon.halving import DEFAULT_GOAL
from daemon.store import Store
from daemon.sweep_table import Row, Table, table
from jobs.metrics import last_values
from jobs.model import Job, State
from jobs.rundir import run_dir
from jobs.sweep import Goal, Halving, Sweep

#: A large table is made again only after it has been of use for so many times the time that it took.
KEPT_FOR_ITS_COST = 10


class SweepSummary(BaseModel):
    """A sweep, without its jobs."""

    id: str
    name: str
    method: str
    axes: list[str]
    created_at: datetime
    jobs: int
    max_concurrent: int | None
    goal: Goal | None
    halving: Halving | None

    @classmethod
    def of(cls, sweep: Sweep) -> Self:
        return cls(
            id=sweep.id,
            name=sweep.name,
            method=sweep.method,
            axes=list(sweep.axes),
            created_at=moment(sweep.created_at),
            jobs=int(sweep.last) - int(sweep.id) + 1,
            max_concurrent=sweep.max_concurrent,
            goal=sweep.goal,
            halving=sweep.halving,
        )


class SweepList(BaseModel):
    """Sweeps, newest first."""

    sweeps: list[SweepSummary]
    next: str | None


class SweepRow(BaseModel):
    """One job of a sweep, or one point's jobs: what made it different, and what came out."""

    job: str
    #: Of a sweep over a pipeline: all jobs of the point, by their ids in the pipeline.
    stages: dict[str, str]
    name: str
    state: State
    stopped_early: bool
    point: dict[str, Any]
    value: float | None
    metrics: dict[str, float]
    message: str
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, row: Row) -> Self:
        job = row.job
        return cls(
            job=job.id,
            stages={stage: each.id for stage, each in row.stages.items()},
            name=job.name,
            state=job.state,
            stopped_early=row.stopped_early,
            point=dict(job.point),
            value=row.value,
            metrics=dict(row.metrics),
            message=job.outcome.message if job.outcome else "",
            started_at=moment_or_none(job.started_at),
            finished_at=moment_or_none(job.finished_at),
        )


class Best(BaseModel):
    """The best of the jobs that succeeded."""

    job: str
    value: float


class SweepView(SweepSummary):
    """A sweep's result: its jobs, the best first."""

    goal: Goal
    counts: dict[str, int]
    metrics: list[str]
    best: Best | None
    rows: list[SweepRow]

    @classmethod
    def of_table(cls, made: Table) -> Self:
        best = made.best
        return cls(
            **{**dict(SweepSummary.of(made.sweep)), "goal": made.goal},
            counts=made.counts,
            metrics=list(made.metrics),
            best=Best(job=best.job.id, value=best.value) if best and best.value is not None else None,
            rows=[SweepRow.of(row) for row in made.rows],
        )


class Tables:
    """Makes sweeps' tables. Many may look at a large one at once: it is not made anew for each."""

    def __init__(self, store: Store, runs: Path, monotonic: Callable[[], float] = time.monotonic):
        self._store, self._runs, self._monotonic = store, runs, monotonic
        self._lock = threading.Lock()
        self._made: dict[str, tuple[Table, float]] = {}

    def of(self, sweep: Sweep) -> Table:
        """The table as it is now, or was a moment ago."""
        with self._lock:
            start = self._monotonic()
            self._made = {name: kept for name, kept in self._made.items() if kept[1] > start}
            if sweep.id in self._made:
                return self._made[sweep.id][0]
            compared = self._compared(sweep)
            made = table(sweep, self._store.sweep_jobs(sweep), lambda job: self._told(job) or compared.get(job.id, {}))
            end = self._monotonic()
            self._made[sweep.id] = (made, end + KEPT_FOR_ITS_COST * (end - start))
            return made

    def _told(self, job: Job) -> Mapping[str, float]:
        """What its run folder tells, where it is on this rig; else how far it has told the queue."""
        return last_values(run_dir(self._runs, job.id).metrics) or (job.progress.metrics if job.progress else {})

    def _compared(self, sweep: Sweep) -> dict[str, dict[str, float]]:
        """By job: the metric at its last comparison, for run folders that are on another rig."""
        if sweep.halving is None:
            return {}
        metric = (sweep.goal or DEFAULT_GOAL).metric
        rungs = self._store.rungs(sweep.id)
        return {job: {metric: value} for step in sorted(rungs) for job, value in rungs[step].items()}
