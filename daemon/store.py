"""Job records and the queue in Redis. No other module names a key or an RQ queue.

    overnight:job:<id>             string  the record, JSON
    overnight:seq                  counter of job ids
    overnight:jobs                 zset    every job, by number
    overnight:jobs:state:<state>   zset    the same by state; also :kind:<kind>, :tag:<tag>
    overnight:order                zset    every job that waits or runs, by its rank
    overnight:ended                zset    every job that ended, by the time of its end
    overnight:children:<id>        set     jobs that wait, or waited, for this one
    overnight:sweep:<id>           string  what a sweep is, JSON; its id is its first job's
    overnight:sweep:<id>:rungs     hash    "<step>:<job>" -> its metric when it came to this step; for sweeps with halving
    overnight:sweeps               zset    every sweep, by number
    overnight:slot:<rig>:<slot>    string  who occupies it: job, fence, lead slot; absent when free
    overnight:leases               zset    running job -> end of its lease (Redis TIME, seconds)
    overnight:paused               set     rigs ("<rig>") and slots ("<rig>:<slot>") that take no new job
    overnight:quarantine           hash    "<rig>:<slot>" -> a GPU's record of being out of service for a fault, JSON
    overnight:rigs                 hash    rig -> its slots and settings in force, JSON
    overnight:beat:<rig>           string  the daemon's last beat, JSON, with a TTL
    overnight:beats                zset    rig -> the moment of its last beat (Redis TIME, seconds)
    overnight:queue                hash    of this queue: its id, the newest record version that wrote here, the rigs' key
    overnight:inputs:<rig>         set     SHA-256 of the uploads that lie on the rig: where to ask, not the truth
    overnight:epoch:<rig>          counter of the daemon's lives; an older life's offers are refused
    overnight:events               stream  every change, for the planner, the page and messages
    overnight:repeat:<key>         string  Idempotency-Key -> body hash and job ids, with a TTL
    overnight:once:<name>          string  present when something that may happen once has happened, with a TTL
    rq:*                           RQ's own; one queue (a mailbox) per slot. Never read for truth; deleting it is harmless

Every verb is one transaction: read, pure step, write, indexes, event, and for an offer RQ's entry, together or not at all.
Each recognises its own repeat, so that a lost reply may simply be asked again.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, cast

import redis
from redis.client import Pipeline
from rq import Queue
from rq.serializers import JSONSerializer

from daemon import order
from jobs.estimate import UNKNOWN, Outlook
from jobs.model import InvalidTransition, Job, Outcome, Progress, State, Wish, WishKind, priority_of, rank_of
from jobs.pipeline import numbered
from jobs.spec import Spec, dump
from jobs.sweep import Sweep, SweepFacts

#: What RQ calls in the work-horse: a wire name, pinned by a test.
ENTRYPOINT = "workers.execute.run_attempt"

P = "overnight:"
QUARANTINE = P + "quarantine"
SEQ, JOBS, ORDER, ENDED, LEASES, PAUSED, RIGS, EVENTS, BEATS, QUEUE, SWEEPS = (
    P + name
    for name in (
        "seq",
        "jobs",
        "order",
        "ended",
        "leases",
        "paused",
        "rigs",
        "events",
        "beats",
        "queue",
        "sweeps",
    )
)
EVENTS_KEPT = 100_000
REPEAT_KEPT_S = 7 * 86_400
LOST_REPLY_S = 600
BEAT_TTL_S = 15
#: How many records a filtered page may look at before it hands back a cursor.
SCANNED_PER_PAGE = 2_000
RQ_RESULT_TTL_S = 3_600
#: Records that are read, or changed together, in one call.
TOGETHER = 1_000


class UnknownJob(KeyError):
    """No job has this id."""

    def __init__(self, job_id: str):
        super().__init__(job_id)
        self.job_id = job_id


class UnknownSweep(KeyError):
    """No sweep has this id."""


class SlotTaken(Exception):
    """Somebody else occupies the slot."""


class OldEpoch(Exception):
    """A newer daemon has taken over this rig."""


class RepeatedDifferently(Exception):
    """The Idempotency-Key was used for another document."""


@dataclass(frozen=True)
class Event:
    """One change, as told to whoever follows."""

    id: str
    type: str
    job: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Page:
    """Jobs, newest first, and where the next page begins."""

    jobs: tuple[Job, ...]
    next: str | None


@dataclass(frozen=True)
class Occupant:
    """Who occupies a slot."""

    job: str
    fence: int
    lead: str


def job_key(job_id: str) -> str:
    return f"{P}job:{job_id}"


def state_key(state: State) -> str:
    return f"{JOBS}:state:{state}"


def children_key(job_id: str) -> str:
    return f"{P}children:{job_id}"


def sweep_key(sweep_id: str) -> str:
    return f"{P}sweep:{sweep_id}"


def rungs_key(sweep_id: str) -> str:
    return f"{P}sweep:{sweep_id}:rungs"


def slot_key(rig: str, slot: str) -> str:
    return f"{P}slot:{rig}:{slot}"


def inputs_key(rig: str) -> str:
    return f"{P}inputs:{rig}"


def mailbox(rig: str, slot: str) -> str:
    """The RQ queue of one slot, and the name of the worker that listens to it."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"{rig}-{slot}")


class Store:
    """The jobs, as verbs."""

    def __init__(self, connection: "redis.Redis"):
        self.redis = connection

    # -- submit and read ----------------------------------------------------------------------------------------------

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
        repeat = f"{P}repeat:{repeat_key or uuid.uuid4().hex}"

        def body(pipe: Pipeline) -> tuple[list[Job], bool]:
            if known := _json(pipe.get(repeat)):
                if known["hash"] != body_hash:
                    raise RepeatedDifferently(repeat_key)
                return self._fetch(known["ids"]), True
            first = int(cast(bytes, pipe.get(SEQ)) or 0) + 1
            pairs = enumerate(zip(specs, outlooks or [UNKNOWN] * len(specs), strict=True), first)
            jobs = [new_job(numbered(spec, first), number, now, outlook) for number, (spec, outlook) in pairs]
            if sweep is not None:
                jobs = [_member(job, str(first), sweep, point) for job, point in zip(jobs, points, strict=True)]
            pipe.multi()
            pipe.incrby(SEQ, len(jobs))
            self._index_new(pipe, jobs)
            if sweep is not None:
                self._write_sweep(pipe, Sweep(**dict(sweep), id=str(first), last=jobs[-1].id, created_at=now))
            self._tell(pipe, "submitted", jobs[0].id, {"last": jobs[-1].id})
            ids = [job.id for job in jobs]
            pipe.set(repeat, json.dumps({"hash": body_hash, "ids": ids}), ex=kept_s)
            return jobs, False

        return cast(tuple[list[Job], bool], self._transaction(body, SEQ, repeat))

    def repeated(self, repeat_key: str, body_hash: str) -> list[Job] | None:
        """The jobs that this Idempotency-Key made before; None when it is new. Raises RepeatedDifferently."""
        known = _json(self.redis.get(f"{P}repeat:{repeat_key}"))
        if known is None:
            return None
        if known["hash"] != body_hash:
            raise RepeatedDifferently(repeat_key)
        return self._fetch(known["ids"])

    def use_once(self, name: str, ttl_s: int) -> bool:
        """Whether this is the first use of the name; remembered for `ttl_s`."""
        return bool(self.redis.set(f"{P}once:{name}", "1", nx=True, ex=ttl_s))

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
            self._write_sweep(pipe, sweep)
            pipe.execute()

    def get(self, job_id: str) -> Job:
        """One record. Raises UnknownJob."""
        return self._read(self.redis, job_id)

    def get_many(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """Those of these jobs that exist."""
        return {job.id: job for job in self._fetch(job_ids)}

    def unfinished(self) -> dict[str, Job]:
        """Every job that waits or runs."""
        ids: list[str] = []
        for state in (State.QUEUED, State.RUNNING):
            ids += _texts(self.redis.zrange(state_key(state), 0, -1))
        return {job.id: job for chunk in _chunks(ids, TOGETHER) for job in self._fetch(chunk)}

    def counts(self) -> dict[str, int]:
        """How many jobs stand in each state."""
        with self.redis.pipeline(transaction=False) as pipe:
            for state in State:
                pipe.zcard(state_key(state))
            return dict(zip([str(state) for state in State], pipe.execute(), strict=True))

    def page(
        self,
        *,
        state: State | None = None,
        kind: str | None = None,
        tag: str | None = None,
        text: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Jobs that match, newest first. Reads one index in order, however many jobs there are.

        `next` may be set on a short page: the scan stopped at its bound and goes on from there.
        """
        index = state_key(state) if state else f"{JOBS}:tag:{tag}" if tag else f"{JOBS}:kind:{kind}" if kind else JOBS
        found: list[Job] = []
        below, scanned = f"({cursor}" if cursor else "+inf", 0
        while scanned < SCANNED_PER_PAGE:
            ids = _texts(self.redis.zrange(index, below, "-inf", desc=True, byscore=True, offset=0, num=limit + 1))
            for job in self._fetch(ids):
                if len(found) == limit:
                    return Page(tuple(found), found[-1].id)
                if matches(job, state, kind, tag, text):
                    found.append(job)
            scanned += len(ids)
            if len(ids) <= limit:
                return Page(tuple(found), None)
            below = f"({ids[-1]}"
        return Page(tuple(found), below.removeprefix("("))

    def ended(self, *, limit: int = 50, cursor: str | None = None) -> Page:
        """Jobs that ended, the latest end first."""
        top, _, skip = (cursor or "+inf").partition("-")
        passed = int(skip or 0)  # how many with exactly this end were on earlier pages
        answer = self.redis.zrange(
            ENDED, top, "-inf", desc=True, byscore=True, withscores=True, offset=passed, num=limit + 1
        )
        found = cast(list[tuple[bytes, float]], answer)
        ends = [float(end) for _, end in found[:limit]]
        jobs = tuple(self._fetch(_texts(job_id for job_id, _ in found[:limit])))
        if len(found) <= limit:
            return Page(jobs, None)
        same = ends.count(ends[-1]) + (passed if ends[-1] == float(top) else 0)
        return Page(jobs, f"{ends[-1]!r}-{same}")

    # -- a job's steps -------------------------------------------------------------------------------------------------

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

    def arrange(
        self, job_ids: Sequence[str], step: Callable[[Job], Job] = Job.edited, place: order.Place | None = None
    ) -> list[Job]:
        """Change waiting jobs and where they stand in the queue, in one transaction: all of them, or none.

        `place` counts among the jobs of their priority; without one each keeps its rank. Raises InvalidTransition,
        UnknownJob, and what `step` raises.
        """
        anchors = [place.anchor] if place is not None and place.anchor else []

        def body(pipe: Pipeline) -> list[Job]:
            before = {job_id: self._read(pipe, job_id) for job_id in job_ids}
            after = {job_id: step(job) for job_id, job in before.items()}
            if place is not None and anchors:
                order.check_neighbour([*after.values()], place, self._read(pipe, place.anchor))
            first = int(cast(bytes, pipe.get(SEQ)) or 0)
            ranks, last = order.arranged(self._ranks(pipe), [*after.values()], place, sequence=first)
            if others := [job_id for job_id in ranks if job_id not in before]:
                pipe.watch(*map(job_key, others))  # type: ignore[no-untyped-call]
                before |= {job_id: self._read(pipe, job_id) for job_id in others}
            after |= {job_id: after.get(job_id, before[job_id]).moved(rank=rank) for job_id, rank in ranks.items()}
            pipe.multi()
            if last > first:
                pipe.incrby(SEQ, last - first)
            for job_id, job in after.items():
                if job != before[job_id]:
                    self._write(pipe, before[job_id], job)
            return [after[job_id] for job_id in job_ids]

        keys = map(job_key, dict.fromkeys((*job_ids, *anchors)))
        return cast(list[Job], self._transaction(body, *keys, ORDER, SEQ))

    def offer(self, job_id: str, *, rig: str, slots: tuple[str, ...], epoch: int, now: float) -> Job:
        """Give a waiting job its slots, and put it into the lead slot's mailbox. Raises SlotTaken, OldEpoch."""
        keys = [slot_key(rig, slot) for slot in slots]

        def body(pipe: Pipeline) -> Job:
            if int(cast(bytes, pipe.get(f"{P}epoch:{rig}")) or 0) != epoch:
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

        return cast(Job, self._transaction(body, job_key(job_id), f"{P}epoch:{rig}", *keys))

    def claim(self, job_id: str, *, fence: int, owner: str, now: float, lease_s: float) -> Job:
        """queued → running, with a lease. Raises StaleFence or InvalidTransition when the offer is not this one's."""

        def body(pipe: Pipeline) -> Job:
            before = self._read(pipe, job_id)
            after = before.claimed(fence=fence, owner=owner, now=now)
            until = _redis_now(pipe) + lease_s
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
            until = _redis_now(pipe) + lease_s
            pipe.multi()
            if after.progress != before.progress:
                self._write(pipe, before, after)
            pipe.zadd(LEASES, {job_id: until})
            return after

        return cast(Job, self._transaction(body, job_key(job_id)))

    def finish(self, job_id: str, *, fence: int, outcome: Outcome, now: float) -> Job:
        """The attempt is over: final, or back to the queue. Frees its slots. May be repeated."""
        return self.change(job_id, lambda job: job.ended(fence=fence, outcome=outcome, now=now))

    def wish(self, job_id: str, wish: Wish, *, only_if: State | None = None) -> Job:
        """Ask a job to stop. Raises InvalidTransition; with `only_if`, also when it is in another state by now."""

        def step(job: Job) -> Job:
            if only_if is not None and job.state is not only_if:
                raise InvalidTransition(f"job {job.id} is {job.state} by now, not {only_if}; it was left alone")
            return job.asked(wish)

        return self.change(job_id, step)

    def retry(self, job_id: str, step: Callable[[Job], Job] = Job.edited) -> Job:
        """Queue an ended job again, behind all that wait, changed by a step. Jobs that were cancelled because of it wait
        again where they stood.

        Raises InvalidTransition; also when a job that it waits for has ended so that this one could never start.
        """
        sequence = int(self.redis.incr(SEQ))

        def body(pipe: Pipeline) -> Job:
            before = self._read(pipe, job_id)
            after = step(before.retried(rank=rank_of(before.priority, sequence)))
            after = after.moved(rank=rank_of(after.priority, sequence))
            self._refuse_hopeless(pipe, after)
            revived = self._cancelled_because_of(pipe, job_id)
            pipe.multi()
            self._write(pipe, before, after)
            for child in revived:
                self._write(pipe, child, child.revived())
            return after

        return cast(Job, self._transaction(body, job_key(job_id)))

    def abandon(self, job_id: str, parent_id: str, reason: str, *, now: float) -> Job:
        """Cancel a waiting job because of how a job that it waits for ended; nothing when that one is tried again by now."""

        def body(pipe: Pipeline) -> Job:
            before = self._read(pipe, job_id)
            parent = _json(pipe.get(job_key(parent_id)))
            fate = State(parent["state"]) if parent else None
            waits = fate is not None and not fate.final
            unmet = [c for parent, c in before.parents if parent == parent_id and not c.met_by(fate)]
            wish = Wish(kind=WishKind.CANCEL, reason=reason, asked_at=now, because_of=parent_id)
            after = before.asked(wish) if unmet and not waits and before.state is State.QUEUED else before
            pipe.multi()
            if after is not before:
                self._write(pipe, before, after)
            return after

        return cast(Job, self._transaction(body, job_key(job_id), job_key(parent_id)))

    def delete(self, job_id: str) -> None:
        """Forget an ended job. Raises ValueError when it has not ended."""

        def body(pipe: Pipeline) -> None:
            job = self._read(pipe, job_id)
            if not job.state.final:
                raise ValueError(f"job {job_id} is {job.state}; cancel it first")
            pipe.multi()
            pipe.delete(job_key(job_id), children_key(job_id))
            for index in (*_indexes(job), ENDED):
                pipe.zrem(index, job_id)
            for parent, _ in job.parents:
                pipe.srem(children_key(parent), job_id)
            self._tell(pipe, "deleted", job_id, {})

        self._transaction(body, job_key(job_id))

    # -- sweeps ---------------------------------------------------------------------------------------------------------

    def sweep(self, sweep_id: str) -> Sweep:
        """What a sweep is. Raises UnknownSweep."""
        record = self.redis.get(sweep_key(sweep_id))
        if record is None:
            raise UnknownSweep(sweep_id)
        return Sweep.model_validate_json(cast(bytes, record))

    def sweeps(self, *, limit: int = 50, below: str | None = None) -> list[Sweep]:
        """Sweeps, newest first."""
        top = f"({below}" if below else "+inf"
        ids = _texts(self.redis.zrange(SWEEPS, top, "-inf", desc=True, byscore=True, offset=0, num=limit))
        records = self.redis.mget([sweep_key(sweep_id) for sweep_id in ids]) if ids else []
        return [Sweep.model_validate_json(cast(bytes, record)) for record in records if record is not None]

    def sweep_jobs(self, sweep: Sweep) -> list[Job]:
        """Those of its jobs that have not been deleted, by number."""
        ids = [str(number) for number in range(int(sweep.id), int(sweep.last) + 1)]
        jobs = (job for chunk in _chunks(ids, TOGETHER) for job in self._fetch(chunk))
        return [job for job in jobs if job.sweep == sweep.id]

    def cancel_sweep(self, sweep: Sweep, wish: Wish) -> int:
        """Ask all of its jobs that wait or run to stop. Returns how many were asked."""
        ids = [job.id for job in self.sweep_jobs(sweep) if not job.state.final]
        return sum(self._ask_together(chunk, wish) for chunk in _chunks(ids, TOGETHER))

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
            step, _, job_id = _text(name).partition(":")
            found.setdefault(int(step), {})[job_id] = float(value)
        return found

    # -- slots and rigs -------------------------------------------------------------------------------------------------

    def occupant(self, rig: str, slot: str) -> Occupant | None:
        """Who occupies the slot."""
        record = _json(self.redis.get(slot_key(rig, slot)))
        return Occupant(**record) if record else None

    def leases(self) -> dict[str, float]:
        """Seconds left of every running job's lease; negative when it ran out."""
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrange(LEASES, 0, -1, withscores=True)
            (seconds, micros), ends = pipe.execute()
        now = int(seconds) + int(micros) / 1e6
        return {_text(job_id): end - now for job_id, end in ends}

    def pause(self, rig: str, slot: str | None = None) -> None:
        """No new job starts on the rig, or on one of its slots; kept over restarts."""
        self._set_paused(rig, slot, True)

    def resume(self, rig: str, slot: str | None = None) -> None:
        """Take back a pause."""
        self._set_paused(rig, slot, False)

    def paused(self) -> frozenset[str]:
        """What is paused: `<rig>` and `<rig>:<slot>`."""
        return frozenset(_texts(self.redis.smembers(PAUSED)))

    def quarantines(self, rig: str) -> dict[str, dict[str, Any]]:
        """By slot: the records of this rig's GPUs that were ever out of service for a fault."""
        found = {_text(name): json.loads(record) for name, record in self.redis.hgetall(QUARANTINE).items()}
        return {name.removeprefix(f"{rig}:"): record for name, record in found.items() if name.startswith(f"{rig}:")}

    def change_quarantine(
        self, rig: str, slot: str, step: Callable[[dict[str, Any] | None], dict[str, Any] | None]
    ) -> dict[str, Any] | None:
        """Carry out one pure step of a GPU's record; what it returns unchanged is not written. Kept over restarts."""
        name = f"{rig}:{slot}"

        def body(pipe: Pipeline) -> dict[str, Any] | None:
            before = _json(pipe.hget(QUARANTINE, name))
            after = step(before)
            pipe.multi()
            if after is not None and after != before:
                pipe.hset(QUARANTINE, name, json.dumps(after))
                self._tell(pipe, "rig", "", {"rig": rig, "slot": slot})
            return after

        return cast(dict[str, Any] | None, self._transaction(body, QUARANTINE))

    def new_epoch(self, rig: str) -> int:
        """A new life of the rig's daemon begins: offers of the one before are refused from now on."""
        return int(self.redis.incr(f"{P}epoch:{rig}"))

    def describe_rig(self, rig: str, facts: Mapping[str, Any]) -> None:
        """Publish the rig's slots and settings."""
        with self.redis.pipeline() as pipe:
            pipe.hset(RIGS, rig, json.dumps(facts))
            self._tell(pipe, "rig", "", {"rig": rig})
            pipe.execute()

    def rigs(self) -> dict[str, dict[str, Any]]:
        """Every rig that ever published itself."""
        found = self.redis.hgetall(RIGS)
        return {_text(rig): json.loads(facts) for rig, facts in sorted(found.items())}

    def beat(self, rig: str, facts: Mapping[str, Any]) -> None:
        """The daemon lives."""
        seconds, micros = self.redis.time()
        with self.redis.pipeline() as pipe:
            pipe.set(f"{P}beat:{rig}", json.dumps(facts), ex=BEAT_TTL_S)
            pipe.zadd(BEATS, {rig: int(seconds) + int(micros) / 1e6})
            pipe.execute()

    def last_beat(self, rig: str) -> dict[str, Any] | None:
        """The daemon's last beat; None when it is older than `BEAT_TTL_S`."""
        return _json(self.redis.get(f"{P}beat:{rig}"))

    def beats(self, rigs: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The last beat of each of these rigs; without those that are silent for longer than `BEAT_TTL_S`."""
        names = list(rigs)
        found = self.redis.mget([f"{P}beat:{rig}" for rig in names]) if names else []
        return {rig: json.loads(beat) for rig, beat in zip(names, found, strict=True) if beat is not None}

    def silences(self) -> dict[str, float]:
        """Seconds since the last beat of every rig, by the clock of Redis."""
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrange(BEATS, 0, -1, withscores=True)
            (seconds, micros), beats = pipe.execute()
        now = int(seconds) + int(micros) / 1e6
        return {_text(rig): now - at for rig, at in beats}

    def forget_rig(self, rig: str) -> None:
        """A rig that will not come back: its name, its pauses and what is known of its uploads."""
        paused = [name for name in self.paused() if name == rig or name.startswith(f"{rig}:")]
        with self.redis.pipeline() as pipe:
            pipe.hdel(RIGS, rig)
            pipe.zrem(BEATS, rig)
            pipe.delete(f"{P}beat:{rig}", inputs_key(rig))
            if paused:
                pipe.srem(PAUSED, *paused)
            if held := [f"{rig}:{slot}" for slot in self.quarantines(rig)]:
                pipe.hdel(QUARANTINE, *held)
            self._tell(pipe, "rig", "", {"rig": rig})
            pipe.execute()

    # -- what the rigs of one queue agree on ------------------------------------------------------------------------------

    def queue_fact(self, name: str, first: str) -> str:
        """A fact of this queue. Whoever asks first sets it to `first`; everybody gets the same answer."""
        self.redis.hsetnx(QUEUE, name, first)
        return _text(cast(bytes, self.redis.hget(QUEUE, name)))

    def set_queue_fact(self, name: str, value: str) -> None:
        """Change a fact of this queue."""
        self.redis.hset(QUEUE, name, value)

    def add_inputs(self, rig: str, digests: Iterable[str], *, anew: bool = False) -> None:
        """These uploads lie on the rig. `anew`: and no others."""
        found = list(digests)
        with self.redis.pipeline() as pipe:
            if anew:
                pipe.delete(inputs_key(rig))
            for chunk in _chunks(found, 1_000):
                pipe.sadd(inputs_key(rig), *chunk)
            pipe.execute()

    def drop_input(self, rig: str, digest: str) -> None:
        """The upload does not lie there after all."""
        self.redis.srem(inputs_key(rig), digest)

    def rigs_with_input(self, digest: str, rigs: Iterable[str]) -> list[str]:
        """Those of these rigs that are said to have the upload."""
        names = list(rigs)
        with self.redis.pipeline(transaction=False) as pipe:
            for rig in names:
                pipe.sismember(inputs_key(rig), digest)
            return [rig for rig, there in zip(names, pipe.execute(), strict=True) if there]

    def empty_mailbox(self, rig: str, slot: str) -> None:
        """Forget what RQ knows of a dead worker: its name would be refused for minutes, its entry would be stale."""
        name = mailbox(rig, slot)
        queue = f"rq:queue:{name}"
        self.redis.delete(queue, queue + ":intermediate", f"rq:worker:{name}", f"rq:wip:{name}")

    def forget_offer(self, mailbox: str, entry: str) -> None:
        """A mailbox's entry was dealt with: nothing of it is left in RQ's keys. A claim has done it already."""
        with self.redis.pipeline(transaction=False) as pipe:
            self._forget(pipe, mailbox, entry)
            pipe.execute()

    def ping(self) -> bool:
        """Whether Redis answers."""
        return bool(self.redis.ping())

    # -- events -----------------------------------------------------------------------------------------------------------

    def last_event_id(self) -> str:
        """Where the stream ends now."""
        newest = self.redis.xrevrange(EVENTS, count=1)
        return _text(newest[0][0] or "0-0") if newest else "0-0"

    def first_event_id(self) -> str | None:
        """The oldest event that is still kept; None when there is none."""
        oldest = self.redis.xrange(EVENTS, count=1)
        return _text(oldest[0][0] or "0-0") if oldest else None

    def events(self, after: str, *, block_ms: int | None = None, count: int = 1_000) -> list[Event]:
        """What happened after this id; waits up to `block_ms` for the first."""
        answer = self.redis.xread({EVENTS: after}, count=count, block=block_ms)
        return [parse_event(event_id, fields) for event_id, fields in _entries(answer)]

    def tell(self, type: str, job_id: str, data: Mapping[str, Any]) -> None:
        """Add an event that changes no record."""
        self._tell(self.redis, type, job_id, data)

    # -- inside -----------------------------------------------------------------------------------------------------------

    def _transaction(self, body: Callable[[Pipeline], Any], *keys: str) -> Any:
        """WATCH, run `body` (reads, then `multi`, then writes), EXEC; again when a watched key changed in between."""
        return self.redis.transaction(body, *keys, value_from_callable=True)

    def _read(self, connection: "redis.Redis | Pipeline", job_id: str) -> Job:
        record = _json(connection.get(job_key(job_id)))
        if record is None:
            raise UnknownJob(job_id)
        return Job.from_json(record)

    def _fetch(self, job_ids: Sequence[str]) -> list[Job]:
        if not job_ids:
            return []
        records = self.redis.mget([job_key(job_id) for job_id in job_ids])
        return [Job.from_json(json.loads(record)) for record in records if record is not None]

    def _ranks(self, pipe: Pipeline) -> dict[str, float]:
        """The rank of every unfinished job. Those that an earlier version left out of the index are looked up."""
        answer = cast(list[tuple[bytes, float]], pipe.zrange(ORDER, 0, -1, withscores=True))
        known = {_text(job_id): float(rank) for job_id, rank in answer}
        ids = [i for state in (State.QUEUED, State.RUNNING) for i in _texts(pipe.zrange(state_key(state), 0, -1))]
        known |= {job.id: job.rank for job in self._fetch([job_id for job_id in ids if job_id not in known])}
        return {job_id: known[job_id] for job_id in ids if job_id in known}

    def _index_new(self, pipe: Pipeline, jobs: Sequence[Job]) -> None:
        places: dict[str, dict[str, float]] = {}
        children: dict[str, list[str]] = {}
        for job in jobs:
            pipe.set(job_key(job.id), _dumps(job))
            for index in _indexes(job):
                places.setdefault(index, {})[job.id] = int(job.id)
            if not job.state.final:
                places.setdefault(ORDER, {})[job.id] = job.rank
            if job.finished_at is not None:
                places.setdefault(ENDED, {})[job.id] = job.finished_at
            for parent, _ in job.parents:
                children.setdefault(parent, []).append(job.id)
        for index, members in places.items():
            pipe.zadd(index, members)
        for parent, ids in children.items():
            pipe.sadd(children_key(parent), *ids)

    def _write_sweep(self, pipe: Pipeline, sweep: Sweep) -> None:
        pipe.set(sweep_key(sweep.id), sweep.model_dump_json())
        pipe.zadd(SWEEPS, {sweep.id: int(sweep.id)})

    def _refuse_hopeless(self, pipe: Pipeline, job: Job) -> None:
        """Raises InvalidTransition when a job that it waits for has ended so that it would be cancelled again at once."""
        for parent_id, condition in job.parents:
            _watch(pipe, job_key(parent_id))
            record = _json(pipe.get(job_key(parent_id)))
            fate = State(record["state"]) if record else None
            if condition.met_by(fate) or (fate is not None and not fate.final):
                continue
            if record is None:
                raise InvalidTransition(
                    f"job {job.id} waits for job {parent_id}, which has been deleted: submit it anew"
                )
            retry = "" if fate is State.SUCCEEDED else f": retry job {parent_id}, and this one comes back with it"
            raise InvalidTransition(f"job {job.id} waits for job {parent_id}, which is {fate}{retry}")

    def _cancelled_because_of(self, pipe: Pipeline, job_id: str) -> list[Job]:
        """Every job that was cancelled because of this one, or because of one that was. Watches them."""
        found: dict[str, Job] = {}
        level = [job_id]
        while level:
            keys = [children_key(parent) for parent in level]
            _watch(pipe, *keys)
            ids = sorted(set(_texts(pipe.sunion(keys))) - set(found), key=int)
            if not ids:
                break
            _watch(pipe, *(job_key(child) for child in ids))
            records = cast(list[Any], pipe.mget([job_key(child) for child in ids]))
            jobs = [Job.from_json(json.loads(record)) for record in records if record is not None]
            because = {job.id: job for job in jobs if job.state is State.CANCELLED and job.because_of in level}
            found |= because
            level = list(because)
        return list(found.values())

    def _write(self, pipe: Pipeline, before: Job, after: Job) -> None:
        """The record, its indexes, its slots, its lease and its event: derived from the difference, never by hand."""
        pipe.set(job_key(after.id), _dumps(after))
        old, new = set(_indexes(before)), set(_indexes(after))
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

    def _set_paused(self, rig: str, slot: str | None, paused: bool) -> None:
        name = f"{rig}:{slot}" if slot else rig
        with self.redis.pipeline() as pipe:
            (pipe.sadd if paused else pipe.srem)(PAUSED, name)
            self._tell(pipe, "rig", "", {"rig": rig, "slot": slot, "paused": paused})
            pipe.execute()

    def _forget(self, pipe: Pipeline, mailbox: str, entry: str) -> None:
        pipe.lrem(f"rq:queue:{mailbox}:intermediate", 1, entry)
        pipe.delete(f"rq:job:{entry}")

    def _queue(self, rig: str, slot: str) -> Queue:
        return Queue(mailbox(rig, slot), connection=self.redis, serializer=JSONSerializer)


def connect(url_or_socket: str) -> "redis.Redis":
    """A client for a `redis://` URL or the path of a unix socket."""
    if "://" in url_or_socket:
        return redis.Redis.from_url(url_or_socket)
    return redis.Redis(unix_socket_path=url_or_socket)


def parse_event(event_id: bytes, fields: Mapping[bytes, bytes]) -> Event:
    """An entry of the stream."""
    texts = {_text(key): _text(value) for key, value in fields.items()}
    return Event(_text(event_id), texts["type"], texts["job"], json.loads(texts["data"]))


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
        after=spec.dependencies,
        not_before=spec.not_before,
        window=spec.window,
        max_runtime_s=spec.max_runtime_s,
        max_attempts=spec.max_attempts,
    )


def _member(job: Job, sweep_id: str, sweep: SweepFacts, point: Mapping[str, Any]) -> Job:
    return replace(job, sweep=sweep_id, point=dict(point), max_concurrent=sweep.max_concurrent)


def _indexes(job: Job) -> Iterator[str]:
    yield JOBS
    yield state_key(job.state)
    yield f"{JOBS}:kind:{job.kind}"
    for tag in job.tags:
        yield f"{JOBS}:tag:{tag}"


def matches(job: Job, state: State | None, kind: str | None, tag: str | None, text: str | None) -> bool:
    """Whether a filtered list holds it."""
    return (
        (state is None or job.state is state)
        and (kind is None or job.kind == kind)
        and (tag is None or tag in job.tags)
        and (not text or text.lower() in job.name.lower() or text == job.id)
    )


def _watch(pipe: Pipeline, *keys: str) -> None:
    """The transaction is run again when one of these changes, too."""
    pipe.watch(*keys)  # type: ignore[no-untyped-call]


def _redis_now(pipe: Pipeline) -> float:
    seconds, micros = pipe.time()
    return int(seconds) + int(micros) / 1e6


def _dumps(job: Job) -> str:
    return json.dumps(job.to_json(), allow_nan=False, separators=(",", ":"))


def _json(value: Any) -> dict[str, Any] | None:
    return json.loads(value) if value else None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _texts(values: Any) -> list[str]:
    return [_text(value) for value in values]


def _chunks(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _entries(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """XREAD's answer as [(id, fields)]: its shape differs between redis-py's releases and protocols."""
    if not answer:
        return []
    entries = next(iter(answer.values())) if isinstance(answer, dict) else answer[0][1]
    if entries and isinstance(entries[0], list) and entries[0] and isinstance(entries[0][0], (list, tuple)):
        entries = entries[0]
    return cast(list[tuple[bytes, dict[bytes, bytes]]], entries)
