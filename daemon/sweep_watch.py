"""What the daemon does for sweeps: it reads how their jobs on this rig get on, and says which are to stop early.

Which jobs those are is `daemon.halving`'s to say; that they stop is a wish, like any other.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from daemon.halving import DEFAULT_GOAL, rungs_reached, to_stop
from daemon.plan import Cancel, Facts
from daemon.store import Store, UnknownSweep
from jobs.metrics import Follower, measurements
from jobs.model import End, Job, State
from jobs.rundir import run_dir
from jobs.sweep import Sweep

log = logging.getLogger(__name__)

#: Another rig's jobs may have come to a step meanwhile.
READ_ALL_EVERY_S = 5.0


@dataclass
class _Watched:
    """One running job's metrics, as far as they were read."""

    fence: int
    follower: Follower
    rungs: dict[int, float] = field(default_factory=dict)


@dataclass
class _Known:
    """A sweep's comparisons, as last read from the queue."""

    rungs: dict[int, dict[str, float]]
    read_at: float


class SweepWatch:
    """Watches the running jobs of sweeps with halving. Reads only what their files have gained."""

    def __init__(self, store: Store, runs: Path):
        self._store, self._runs = store, runs
        self._sweeps: dict[str, Sweep | None] = {}
        self._known: dict[str, _Known] = {}
        self._watched: dict[str, _Watched] = {}

    def look(self, facts: Facts) -> list[Cancel]:
        """The jobs on this rig that are to stop early."""
        running = [job for job in facts.here if job.sweep and job.state is State.RUNNING]
        for gone in self._watched.keys() - {job.id for job in running}:
            del self._watched[gone]
        if not running:
            self._sweeps.clear()
            self._known.clear()
            return []
        found: list[Cancel] = []
        for sweep_id in {job.sweep for job in running}:
            sweep = self._sweep(sweep_id)
            if sweep is not None and sweep.halving is not None:
                # of a pipeline the first stage learns; the later ones only look at what came out
                mine = [job for job in running if job.sweep == sweep_id and sweep.stage_of(job.id) in sweep.stages[:1] + ("",)]  # fmt: skip
                found += self._judge(sweep, mine, facts.now)
        return found

    def _judge(self, sweep: Sweep, jobs: list[Job], now: float) -> Iterator[Cancel]:
        assert sweep.halving is not None
        new = {(rung, job.id): value for job in jobs for rung, value in self._read_on(sweep, job).items()}
        known = self._known.get(sweep.id)
        if new:
            self._store.add_rungs(sweep.id, new)
        if new or known is None or now - known.read_at > READ_ALL_EVERY_S:
            known = self._known[sweep.id] = _Known(self._store.rungs(sweep.id), now)
        may_stop = {job.id for job in jobs if job.wish is None and not _was_stopped(job)}
        stops = to_stop(sweep.halving, sweep.goal or DEFAULT_GOAL, known.rungs, may_stop)
        return (Cancel(job_id, reason) for job_id, reason in stops.items())

    def _read_on(self, sweep: Sweep, job: Job) -> dict[int, float]:
        """The job's metric at steps of comparison that it has come to since the last look."""
        assert sweep.halving is not None
        watched = self._watched.get(job.id)
        if watched is None or watched.fence != job.fence:
            follower = Follower(run_dir(self._runs, job.id).metrics)
            watched = self._watched[job.id] = _Watched(job.fence, follower)
        metric = (sweep.goal or DEFAULT_GOAL).metric
        new: dict[int, float] = {}
        for line in watched.follower.lines():
            told = measurements(line)
            if metric in told and "step" in told:
                for rung in rungs_reached(sweep.halving, told["step"]):
                    if rung not in watched.rungs:
                        watched.rungs[rung] = new[rung] = told[metric]
        return new

    def _sweep(self, sweep_id: str) -> Sweep | None:
        if sweep_id not in self._sweeps:
            try:
                self._sweeps[sweep_id] = self._store.sweep(sweep_id)
            except UnknownSweep:  # lost with the queue's files: its jobs go on without it
                self._sweeps[sweep_id] = None
        return self._sweeps[sweep_id]


def _was_stopped(job: Job) -> bool:
    """It was cancelled before, and somebody wanted it all the same: it is not stopped early again."""
    return any(run.end is End.CANCELLED for run in job.attempts)
