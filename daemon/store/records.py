"""What all verbs share: a transaction around pure steps, and the one place where a record is written.

From the difference between the record before and after, `_write` derives its indexes, slots, lease and event.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import redis
from redis.client import Pipeline

from daemon.store.keys import (
    ALIKE,
    ENDED,
    EVENTS,
    JOBS,
    LEASES,
    ORDER,
    children_key,
    job_key,
    kind_key,
    slot_key,
    state_key,
    tag_key,
)
from daemon.store.wire import parsed
from jobs.model import Job, State
from jobs.repeat import fingerprint

EVENTS_KEPT = 100_000


class UnknownJob(KeyError):
    """No job has this id."""

    def __init__(self, job_id: str):
        super().__init__(job_id)
        self.job_id = job_id


class Records:
    """Job records in Redis, read and written whole."""

    def __init__(self, connection: "redis.Redis"):
        self.redis = connection

    def ping(self) -> bool:
        """Whether Redis answers."""
        return bool(self.redis.ping())

    def change(self, job_id: str, step: Callable[[Job], Job]) -> Job:
        """Carry out one pure step of the record. What the step raises leaves everything as it was."""

        def body(pipe: Pipeline) -> Job:
            before = self._read(pipe, job_id)
            after = step(before)
            pipe.multi()
            if after is not before:
                self._write(pipe, before, after)
            return after

        return cast(Job, self._transaction(body, job_key(job_id)))

    def _transaction(self, body: Callable[[Pipeline], Any], *keys: str) -> Any:
        """WATCH, run `body` (reads, then `multi`, then writes), EXEC; again when a watched key changed in between."""
        return self.redis.transaction(body, *keys, value_from_callable=True)

    def _read(self, connection: "redis.Redis | Pipeline", job_id: str) -> Job:
        if (job := self._find(connection, job_id)) is None:
            raise UnknownJob(job_id)
        return job

    def _find(self, connection: "redis.Redis | Pipeline", job_id: str) -> Job | None:
        record = parsed(connection.get(job_key(job_id)))
        return Job.from_json(record) if record is not None else None

    def _fetch(self, job_ids: Sequence[str]) -> list[Job]:
        if not job_ids:
            return []
        records = self.redis.mget([job_key(job_id) for job_id in job_ids])
        return [Job.from_json(json.loads(record)) for record in records if record is not None]

    def _index_new(self, pipe: Pipeline, jobs: Sequence[Job]) -> None:
        places: dict[str, dict[str, float]] = {}
        children: dict[str, list[str]] = {}
        for job in jobs:
            pipe.set(job_key(job.id), dumps(job))
            for index in indexes(job):
                places.setdefault(index, {})[job.id] = int(job.id)
            if not job.state.final:
                places.setdefault(ORDER, {})[job.id] = job.rank
            if job.finished_at is not None:
                places.setdefault(ENDED, {})[job.id] = job.finished_at
            for parent, _ in job.parents:
                children.setdefault(parent, []).append(job.id)
        if jobs:
            pipe.hset(ALIKE, mapping={fingerprint(job.spec): job.id for job in jobs})
        for index, members in places.items():
            pipe.zadd(index, members)
        for parent, ids in children.items():
            pipe.sadd(children_key(parent), *ids)

    def _write(self, pipe: Pipeline, before: Job, after: Job) -> None:
        """The record, its indexes, its slots, its lease and its event: derived from the difference, never by hand."""
        pipe.set(job_key(after.id), dumps(after))
        old, new = set(indexes(before)), set(indexes(after))
        for index in old - new:
            pipe.zrem(index, after.id)
        for index in new - old:
            pipe.zadd(index, {after.id: int(after.id)})
        if after.state.final:
            pipe.zrem(ORDER, after.id)
        elif before.state.final or before.rank != after.rank:
            pipe.zadd(ORDER, {after.id: after.rank})
        if before.finished_at != after.finished_at:
            if after.finished_at is not None:
                pipe.zadd(ENDED, {after.id: after.finished_at})
            else:
                pipe.zrem(ENDED, after.id)
        for parent in {parent for parent, _ in after.parents} - {parent for parent, _ in before.parents}:
            pipe.sadd(children_key(parent), after.id)
        for slot in before.slots:
            if slot not in after.slots:
                pipe.delete(slot_key(before.rig, slot))
        for slot in after.slots:
            occupant = {"job": after.id, "fence": after.fence, "lead": after.slots[0]}
            pipe.set(slot_key(after.rig, slot), json.dumps(occupant))
        if after.state is not State.RUNNING:
            pipe.zrem(LEASES, after.id)
        same = (before.state, before.offer, before.wish) == (after.state, after.offer, after.wish)
        told = "progress" if same and before.progress != after.progress else "state"
        self._tell(pipe, told, after.id, {"state": after.state, "kind": after.kind})

    def _tell(self, connection: "redis.Redis | Pipeline", type: str, job_id: str, data: Mapping[str, Any]) -> None:
        fields = {"type": type, "job": job_id, "data": json.dumps(data)}
        connection.xadd(EVENTS, fields, maxlen=EVENTS_KEPT, approximate=True)  # type: ignore[arg-type]


def indexes(job: Job) -> Iterator[str]:
    yield JOBS
    yield state_key(job.state)
    yield kind_key(job.kind)
    for tag in job.tags:
        yield tag_key(tag)


def dumps(job: Job) -> str:
    return json.dumps(job.to_json(), allow_nan=False, separators=(",", ":"))
