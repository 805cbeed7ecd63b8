"""Jobs come into the queue: submitted, or put back from their run folders."""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any, cast

from redis.client import Pipeline

from daemon.preflights import shared
from daemon.store.keys import ALIKE, SEQ, idempotency_key, job_key, once_key
from daemon.store.sweeps import Sweeps, write_sweep
from daemon.store.wire import parsed, text
from jobs.estimate import UNKNOWN, Outlook
from jobs.model import Job, priority_of, rank_of
from jobs.pipeline import numbered
from jobs.repeat import fingerprint
from jobs.spec import Spec, dump
from jobs.sweep import Sweep, SweepFacts

REPEAT_KEPT_S = 7 * 86_400
LOST_REPLY_S = 600


class RepeatedDifferently(Exception):
    """The Idempotency-Key was used for another document."""


class Submission(Sweeps):
    """Verbs that make records. They need those of sweeps: a sweep comes in like any batch of jobs."""

    def submit(
        self,
        specs: Sequence[Spec],
        *,
        now: float,
        repeat_key: str | None = None,
        body_hash: str = "",
        sweep: SweepFacts | None = None,
        points: Sequence[Mapping[str, Any]] = (),
        outlooks: Sequence[Outlook] = (),
    ) -> tuple[list[Job], bool]:
        """Put jobs into the queue: all of them, or none. Returns them, and whether they are a repeat's.

        Specs may name each other by provisional numbers (jobs.pipeline). With `sweep` they are one, each at its point.
        `outlooks`: what admission has learned of each; none, or as many as specs.
        Raises RepeatedDifferently. When this returns, Redis has written them to disk (`appendfsync always`).
        """
        # without a key of the caller's, one of our own: a transaction whose reply was lost is run again
        kept_s = REPEAT_KEPT_S if repeat_key else LOST_REPLY_S
        repeat = idempotency_key(repeat_key or uuid.uuid4().hex)

        def body(pipe: Pipeline) -> tuple[list[Job], bool]:
            if known := parsed(pipe.get(repeat)):
                if known["hash"] != body_hash:
                    raise RepeatedDifferently(repeat_key)
                return self._fetch(known["ids"]), True
            first = int(cast(bytes, pipe.get(SEQ)) or 0) + 1
            pairs = enumerate(zip(specs, outlooks or [UNKNOWN] * len(specs), strict=True), first)
            jobs = shared([new_job(numbered(spec, first), number, now, outlook) for number, (spec, outlook) in pairs])
            if sweep is not None:
                jobs = [member(job, str(first), sweep, point) for job, point in zip(jobs, points, strict=True)]
            pipe.multi()
            pipe.incrby(SEQ, len(jobs))
            self._index_new(pipe, jobs)
            if sweep is not None:
                write_sweep(pipe, Sweep(**dict(sweep), id=str(first), last=jobs[-1].id, created_at=now))
            self._tell(pipe, "submitted", jobs[0].id, {"last": jobs[-1].id})
            ids = [job.id for job in jobs]
            pipe.set(repeat, json.dumps({"hash": body_hash, "ids": ids}), ex=kept_s)
            return jobs, False

        return cast(tuple[list[Job], bool], self._transaction(body, SEQ, repeat))

    def repeated(self, repeat_key: str, body_hash: str) -> list[Job] | None:
        """The jobs that this Idempotency-Key made before; None when it is new. Raises RepeatedDifferently."""
        known = parsed(self.redis.get(idempotency_key(repeat_key)))
        if known is None:
            return None
        if known["hash"] != body_hash:
            raise RepeatedDifferently(repeat_key)
        return self._fetch(known["ids"])

    def alike(self, specs: Sequence[Spec]) -> list[Job | None]:
        """For each document the newest job that was submitted for the same work; None when there is none."""
        works = [fingerprint(dump(spec)) for spec in specs]
        found = cast(list[bytes | None], self.redis.hmget(ALIKE, works)) if works else []
        jobs = {job.id: job for job in self._fetch([text(job_id) for job_id in found if job_id is not None])}
        newest = [jobs.get(text(job_id)) if job_id is not None else None for job_id in found]
        # one that was edited since does other work now
        return [job if job and fingerprint(job.spec) == work else None for job, work in zip(newest, works, strict=True)]

    def use_once(self, name: str, ttl_s: int) -> bool:
        """Whether this is the first use of the name; remembered for `ttl_s`."""
        return bool(self.redis.set(once_key(name), "1", nx=True, ex=ttl_s))

    def restore(self, jobs: Iterable[Job]) -> int:
        """Put records read from run folders back where none is left. Returns how many."""
        restored = 0
        for job in jobs:
            if self.redis.exists(job_key(job.id)):
                continue
            with self.redis.pipeline() as pipe:
                self._index_new(pipe, [job])
                pipe.execute()
            restored += 1
            # nothing that comes later may stand before it: a retried or moved job has a later number than its own
            number = max(int(job.id), ceil(job.rank - rank_of(priority_of(job.rank), 0)))
            if number > int(cast(bytes, self.redis.get(SEQ)) or 0):
                self.redis.set(SEQ, number)
            if job.sweep:
                self._restore_sweep(job)
        return restored


def new_job(spec: Spec, number: int, now: float, outlook: Outlook = UNKNOWN) -> Job:
    """The record of a job that was just accepted."""
    name = spec.name or (f"{spec.kind} {spec.argv[0]}" if spec.kind == "command" else f"{spec.kind} {spec.model}")
    return Job(
        id=str(number),
        kind=spec.kind,
        name=name[:128],
        spec=dump(spec),
        created_at=now,
        rank=rank_of(spec.priority, number),
        tags=spec.tags,
        priority=spec.priority,
        gpus=spec.gpus,
        vram_bytes=round(spec.vram_gib * 2**30) if spec.vram_gib else outlook.vram_bytes,
        estimate=outlook.estimate,
        preflight_due=outlook.preflight,
        parallel=outlook.parallel,
        after=spec.dependencies,
        not_before=spec.not_before,
        window=spec.window,
        max_runtime_s=spec.max_runtime_s,
        max_attempts=spec.max_attempts,
    )


def member(job: Job, sweep_id: str, sweep: SweepFacts, point: Mapping[str, Any]) -> Job:
    return replace(job, sweep=sweep_id, point=dict(point), max_concurrent=sweep.max_concurrent)
