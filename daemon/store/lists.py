"""Jobs are looked up: one, many, a page of a filtered list."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from daemon.store.keys import ENDED, JOBS, kind_key, state_key, tag_key
from daemon.store.records import Records
from daemon.store.wanted import Wanted
from daemon.store.wire import TOGETHER, chunks, texts
from jobs.model import Job, State

#: How many records a filtered page may look at before it hands back a cursor.
SCANNED_PER_PAGE = 2_000
EVERY = Wanted()


@dataclass(frozen=True)
class Page:
    """Jobs, newest first, and where the next page begins."""

    jobs: tuple[Job, ...]
    next: str | None


class Lists(Records):
    """Verbs that only read jobs."""

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
            ids += texts(self.redis.zrange(state_key(state), 0, -1))
        return {job.id: job for chunk in chunks(ids, TOGETHER) for job in self._fetch(chunk)}

    def counts(self) -> dict[str, int]:
        """How many jobs stand in each state."""
        with self.redis.pipeline(transaction=False) as pipe:
            for state in State:
                pipe.zcard(state_key(state))
            return dict(zip([str(state) for state in State], pipe.execute(), strict=True))

    def page(self, wanted: Wanted = EVERY, *, limit: int = 50, cursor: str | None = None) -> Page:
        """Jobs that match, newest first. Reads one index in order, however many jobs there are.

        `next` may be set on a short page: the scan stopped at its bound and goes on from there.
        """
        index = _index(wanted)
        found: list[Job] = []
        below, scanned = f"({cursor}" if cursor else "+inf", 0
        while scanned < SCANNED_PER_PAGE:
            ids = texts(self.redis.zrange(index, below, "-inf", desc=True, byscore=True, offset=0, num=limit + 1))
            for job in self._fetch(ids):
                if len(found) == limit:
                    return Page(tuple(found), found[-1].id)
                if wanted.holds(job):
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
        jobs = tuple(self._fetch(texts(job_id for job_id, _ in found[:limit])))
        if len(found) <= limit:
            return Page(jobs, None)
        same = ends.count(ends[-1]) + (passed if ends[-1] == float(top) else 0)
        return Page(jobs, f"{ends[-1]!r}-{same}")

    def ended_between(self, start: float, end: float, *, limit: int = 10_000) -> list[Job]:
        """Jobs whose end lies in this time, the latest first. Reads no others, however many there are."""
        found = self.redis.zrange(ENDED, end, start, desc=True, byscore=True, offset=0, num=limit)
        return [job for chunk in chunks(texts(found), TOGETHER) for job in self._fetch(chunk)]


def _index(wanted: Wanted) -> str:
    """The shortest list that has every job that can match."""
    states = (State.FAILED,) if wanted.causes else wanted.states  # only a failure has a cause
    if len(states) == 1:
        return state_key(states[0])
    return tag_key(wanted.tag) if wanted.tag else kind_key(wanted.kind) if wanted.kind else JOBS
