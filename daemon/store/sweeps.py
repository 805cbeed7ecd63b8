"""Sweeps: what they are, their jobs, and the metrics at which halving compares them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from redis.client import Pipeline

from daemon.store.keys import SWEEPS, job_key, rungs_key, sweep_key
from daemon.store.records import Records
from daemon.store.wire import TOGETHER, chunks, text, texts
from jobs.model import Job, Wish
from jobs.sweep import Sweep


class UnknownSweep(KeyError):
    """No sweep has this id."""


class Sweeps(Records):
    """Verbs about sweeps; a sweep's record never changes but when it is restored."""

    def sweep(self, sweep_id: str) -> Sweep:
        """What a sweep is. Raises UnknownSweep."""
        record = self.redis.get(sweep_key(sweep_id))
        if record is None:
            raise UnknownSweep(sweep_id)
        return Sweep.model_validate_json(cast(bytes, record))

    def sweeps(self, *, limit: int = 50, below: str | None = None) -> list[Sweep]:
        """Sweeps, newest first."""
        top = f"({below}" if below else "+inf"
        ids = texts(self.redis.zrange(SWEEPS, top, "-inf", desc=True, byscore=True, offset=0, num=limit))
        records = self.redis.mget([sweep_key(sweep_id) for sweep_id in ids]) if ids else []
        return [Sweep.model_validate_json(cast(bytes, record)) for record in records if record is not None]

    def sweep_jobs(self, sweep: Sweep) -> list[Job]:
        """Those of its jobs that have not been deleted, by number."""
        ids = [str(number) for number in range(int(sweep.id), int(sweep.last) + 1)]
        jobs = (job for chunk in chunks(ids, TOGETHER) for job in self._fetch(chunk))
        return [job for job in jobs if job.sweep == sweep.id]

    def cancel_sweep(self, sweep: Sweep, wish: Wish) -> int:
        """Ask all of its jobs that wait or run to stop. Returns how many were asked."""
        ids = [job.id for job in self.sweep_jobs(sweep) if not job.state.final]
        return sum(self._ask_together(chunk, wish) for chunk in chunks(ids, TOGETHER))

    def _ask_together(self, job_ids: Sequence[str], wish: Wish) -> int:
        def body(pipe: Pipeline) -> int:
            records = cast(list[Any], pipe.mget([job_key(job_id) for job_id in job_ids]))
            jobs = [Job.from_json(json.loads(record)) for record in records if record is not None]
            steps = [(job, job.asked(wish)) for job in jobs if not job.state.final]
            pipe.multi()
            for before, after in steps:
                if after is not before:
                    self._write(pipe, before, after)
            return len(steps)

        return int(self._transaction(body, *(job_key(job_id) for job_id in job_ids)))

    def add_rungs(self, sweep_id: str, values: Mapping[tuple[int, str], float]) -> None:
        """Keep the metric of jobs at the steps at which a sweep compares them. What is known already stays."""
        with self.redis.pipeline() as pipe:
            for (step, job_id), value in values.items():
                pipe.hsetnx(rungs_key(sweep_id), f"{step}:{job_id}", repr(value))
            pipe.execute()

    def rungs(self, sweep_id: str) -> dict[int, dict[str, float]]:
        """By step: each job's metric when it came to it."""
        found: dict[int, dict[str, float]] = {}
        for name, value in self.redis.hgetall(rungs_key(sweep_id)).items():
            step, _, job_id = text(name).partition(":")
            found.setdefault(int(step), {})[job_id] = float(value)
        return found

    def _restore_sweep(self, job: Job) -> None:
        """What its jobs tell of a sweep whose record was lost; goal and halving are not among it."""
        try:
            known = self.sweep(job.sweep)
            sweep = known.model_copy(update={
                "last": max(known.last, job.id, key=int), "axes": tuple(dict.fromkeys((*known.axes, *job.point))),
            })  # fmt: skip
        except UnknownSweep:
            sweep = Sweep(
                id=job.sweep, last=job.id, created_at=job.created_at, name=f"{job.kind} sweep {job.sweep}", method="list",
                axes=tuple(job.point), base={}, max_concurrent=job.max_concurrent,
            )  # fmt: skip
        with self.redis.pipeline() as pipe:
            write_sweep(pipe, sweep)
            pipe.execute()


def write_sweep(pipe: Pipeline, sweep: Sweep) -> None:
    pipe.set(sweep_key(sweep.id), sweep.model_dump_json())
    pipe.zadd(SWEEPS, {sweep.id: int(sweep.id)})
