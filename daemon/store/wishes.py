"""What people, and the fate of other jobs, do to a job: stop, reorder, edit, retry, cancel, delete."""

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

from redis.client import Pipeline

from daemon import order
from daemon.store.keys import ALIKE, ENDED, ORDER, SEQ, children_key, job_key, state_key
from daemon.store.records import Records, indexes
from daemon.store.wire import text, texts, watch
from jobs.model import InvalidTransition, Job, State, Wish, WishKind, rank_of
from jobs.repeat import fingerprint


class Wishes(Records):
    """Verbs that change what waits, or ask what runs to stop."""

    def wish(self, job_id: str, wish: Wish, *, only_if: State | None = None) -> Job:
        """Ask a job to stop. Raises InvalidTransition; with `only_if`, also when it is in another state by now."""

        def step(job: Job) -> Job:
            if only_if is not None and job.state is not only_if:
                raise InvalidTransition(f"job {job.id} is {job.state} by now, not {only_if}; it was left alone")
            return job.asked(wish)

        return self.change(job_id, step)

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
                watch(pipe, *map(job_key, others))
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
            parent = self._find(pipe, parent_id)
            fate = parent.state if parent else None
            waits = fate is not None and not fate.final
            unchecked = parent is not None and parent.owes_check
            unmet = [c for p, c in before.parents if p == parent_id and not c.met_by(fate, unchecked=unchecked)]
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
            work = fingerprint(job.spec)
            is_newest = text(cast(bytes, pipe.hget(ALIKE, work) or b"")) == job_id
            pipe.multi()
            if is_newest:
                pipe.hdel(ALIKE, work)
            pipe.delete(job_key(job_id), children_key(job_id))
            for index in (*indexes(job), ENDED):
                pipe.zrem(index, job_id)
            for parent, _ in job.parents:
                pipe.srem(children_key(parent), job_id)
            self._tell(pipe, "deleted", job_id, {})

        self._transaction(body, job_key(job_id))

    def _ranks(self, pipe: Pipeline) -> dict[str, float]:
        """The rank of every unfinished job. Those that an earlier version left out of the index are looked up."""
        answer = cast(list[tuple[bytes, float]], pipe.zrange(ORDER, 0, -1, withscores=True))
        known = {text(job_id): float(rank) for job_id, rank in answer}
        ids = [i for state in (State.QUEUED, State.RUNNING) for i in texts(pipe.zrange(state_key(state), 0, -1))]
        known |= {job.id: job.rank for job in self._fetch([job_id for job_id in ids if job_id not in known])}
        return {job_id: known[job_id] for job_id in ids if job_id in known}

    def _refuse_hopeless(self, pipe: Pipeline, job: Job) -> None:
        """Raises InvalidTransition when a job that it waits for has ended so that it would be cancelled again at once."""
        for parent_id, condition in job.parents:
            watch(pipe, job_key(parent_id))
            parent = self._find(pipe, parent_id)
            fate = parent.state if parent else None
            unchecked = parent is not None and parent.owes_check
            if condition.met_by(fate, unchecked=unchecked) or (fate is not None and not fate.final):
                continue
            if parent is None:
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
            watch(pipe, *keys)
            ids = sorted(set(texts(pipe.sunion(keys))) - set(found), key=int)
            if not ids:
                break
            watch(pipe, *(job_key(child) for child in ids))
            records = cast(list[Any], pipe.mget([job_key(child) for child in ids]))
            jobs = [Job.from_json(json.loads(record)) for record in records if record is not None]
            because = {job.id: job for job in jobs if job.state is State.CANCELLED and job.because_of in level}
            found |= because
            level = list(because)
        return list(found.values())
