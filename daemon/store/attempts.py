"""A job gets slots, runs, and ends: the planner's offer, the worker's claim, its lease, the end."""

from dataclasses import dataclass
from typing import cast

from redis.client import Pipeline
from rq import Queue
from rq.serializers import JSONSerializer

from daemon.store.keys import (
    ENTRYPOINT,
    LEASES,
    entry_key,
    epoch_key,
    intermediate_key,
    job_key,
    mailbox,
    mailbox_keys,
    slot_key,
)
from daemon.store.records import Records
from daemon.store.wire import parsed, redis_now, text
from jobs.model import Job, Outcome, Progress

RQ_RESULT_TTL_S = 3_600


class SlotTaken(Exception):
    """Somebody else occupies the slot."""


class OldEpoch(Exception):
    """A newer daemon has taken over this rig."""


@dataclass(frozen=True)
class Occupant:
    """Who occupies a slot."""

    job: str
    fence: int
    lead: str


class Attempts(Records):
    """Verbs of planner and workers. The only ones that use RQ, as a one-slot mailbox per slot."""

    def offer(self, job_id: str, *, rig: str, slots: tuple[str, ...], epoch: int, now: float) -> Job:
        """Give a waiting job its slots, and put it into the lead slot's mailbox. Raises SlotTaken, OldEpoch."""
        keys = [slot_key(rig, slot) for slot in slots]

        def body(pipe: Pipeline) -> Job:
            if int(cast(bytes, pipe.get(epoch_key(rig))) or 0) != epoch:
                raise OldEpoch(rig)
            if taken := [key for key in keys if pipe.exists(key)]:
                raise SlotTaken(taken[0])
            before = self._read(pipe, job_id)
            after = before.offered(rig=rig, slots=slots, now=now)
            pipe.multi()  # before the first buffered command: RQ adds its own to this pipeline
            self._write(pipe, before, after)
            self._queue(rig, slots[0]).enqueue(
                ENTRYPOINT,
                job_id,
                after.fence,
                job_id=f"{job_id}-{after.fence}",
                job_timeout=-1,
                result_ttl=RQ_RESULT_TTL_S,
                failure_ttl=RQ_RESULT_TTL_S,
                pipeline=pipe,
            )
            return after

        return cast(Job, self._transaction(body, job_key(job_id), epoch_key(rig), *keys))

    def claim(self, job_id: str, *, fence: int, owner: str, now: float, lease_s: float) -> Job:
        """queued → running, with a lease. Raises StaleFence or InvalidTransition when the offer is not this one's."""

        def body(pipe: Pipeline) -> Job:
            before = self._read(pipe, job_id)
            after = before.claimed(fence=fence, owner=owner, now=now)
            until = redis_now(pipe) + lease_s
            pipe.multi()
            if after is not before:
                self._write(pipe, before, after)
            pipe.zadd(LEASES, {job_id: until})
            self._forget(pipe, mailbox(after.rig, after.slots[0]), f"{job_id}-{fence}")
            return after

        return cast(Job, self._transaction(body, job_key(job_id)))

    def renew(self, job_id: str, *, fence: int, progress: Progress | None, lease_s: float) -> Job:
        """Keep the lease and tell the progress. Raises StaleFence or InvalidTransition when the run is no longer ours."""

        def body(pipe: Pipeline) -> Job:
            before = self._read(pipe, job_id)
            after = before.progressed(fence=fence, progress=progress or before.progress or Progress())
            until = redis_now(pipe) + lease_s
            pipe.multi()
            if after.progress != before.progress:
                self._write(pipe, before, after)
            pipe.zadd(LEASES, {job_id: until})
            return after

        return cast(Job, self._transaction(body, job_key(job_id)))

    def finish(self, job_id: str, *, fence: int, outcome: Outcome, now: float) -> Job:
        """The attempt is over: final, or back to the queue. Frees its slots. May be repeated."""
        return self.change(job_id, lambda job: job.ended(fence=fence, outcome=outcome, now=now))

    def leases(self) -> dict[str, float]:
        """Seconds left of every running job's lease; negative when it ran out."""
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrange(LEASES, 0, -1, withscores=True)
            (seconds, micros), ends = pipe.execute()
        now = int(seconds) + int(micros) / 1e6
        return {text(job_id): end - now for job_id, end in ends}

    def occupant(self, rig: str, slot: str) -> Occupant | None:
        """Who occupies the slot."""
        record = parsed(self.redis.get(slot_key(rig, slot)))
        return Occupant(**record) if record else None

    def empty_mailbox(self, rig: str, slot: str) -> None:
        """Forget what RQ knows of a dead worker: its name would be refused for minutes, its entry would be stale."""
        self.redis.delete(*mailbox_keys(mailbox(rig, slot)))

    def forget_offer(self, mailbox: str, entry: str) -> None:
        """A mailbox's entry was dealt with: nothing of it is left in RQ's keys. A claim has done it already."""
        with self.redis.pipeline(transaction=False) as pipe:
            self._forget(pipe, mailbox, entry)
            pipe.execute()

    def _forget(self, pipe: Pipeline, mailbox: str, entry: str) -> None:
        pipe.lrem(intermediate_key(mailbox), 1, entry)
        pipe.delete(entry_key(entry))

    def _queue(self, rig: str, slot: str) -> Queue:
        return Queue(mailbox(rig, slot), connection=self.redis, serializer=JSONSerializer)
