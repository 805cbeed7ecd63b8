"""Jobs that ended are searched by several conditions at once, the latest end first, however many there are."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, cast

from daemon.store.keys import ENDED, job_key, kind_key, state_key, tag_key
from daemon.store.lists import Page
from daemon.store.records import Records
from daemon.store.wanted import Wanted
from daemon.store.wire import text, texts
from jobs.model import Job, State

ENDS = (State.SUCCEEDED, State.FAILED, State.CANCELLED)
#: An index with no more members than this is read whole and put in order; else the ends are gone through from the latest.
SMALL = 20_000
#: Records that one page looks at; most are passed over unread where a text is searched.
SCANNED = 5_000
READ_AT_ONCE = 200
#: Texts that stand in a record's JSON as they are.
PLAIN = re.compile(r"[A-Za-z0-9 _.,:;=()+-]*")

#: The moment of an end, and the job: where a page stops.
Place = tuple[float, str]


class Search(Records):
    """The verb that searches what ended."""

    def search(self, wanted: Wanted, *, limit: int = 50, cursor: str | None = None) -> Page:
        """Ended jobs that match, the latest end first. `next` may be set on a short page, as in `Lists.page`.

        Raises ValueError for a cursor that is none.
        """
        after = _place(cursor) if cursor else None
        found: list[Job] = []
        scanned, last = 0, after
        places = self._places(wanted, after)
        while chunk := list(islice(places, min(READ_AT_ONCE, SCANNED - scanned))):
            jobs = {job.id: job for job in self._that_may_match(wanted, [job_id for _, job_id in chunk])}
            for place in chunk:
                job = jobs.get(place[1])
                if job is not None and wanted.holds(job):
                    if len(found) == limit:
                        return Page(tuple(found), _text(last))
                    found.append(job)
                last = place
            scanned += len(chunk)
        return Page(tuple(found), _text(last) if scanned >= SCANNED else None)

    def _that_may_match(self, wanted: Wanted, job_ids: Sequence[str]) -> Iterator[Job]:
        """The records, without those that cannot have the text: to look for it is faster than to read them."""
        rough = wanted.text.lower().encode() if PLAIN.fullmatch(wanted.text) else b""
        for record in self.redis.mget([job_key(job_id) for job_id in job_ids]):
            if record is not None and rough in record.lower():
                yield Job.from_json(json.loads(record))

    def _places(self, wanted: Wanted, after: Place | None) -> Iterator[Place]:
        """Where to look, in order; all that can match is among it."""
        states = [state for state in ENDS if not wanted.states or state in wanted.states]
        sets = [[state_key(state) for state in states]]
        if wanted.tag:
            sets.append([tag_key(wanted.tag)])
        if wanted.kind:
            sets.append([kind_key(wanted.kind)])
        smallest, size = self._smallest(sets)
        since, until = wanted.ended_since, wanted.ended_until
        low = since if since is not None else float("-inf")
        top = until if until is not None else float("inf")
        is_bounded = since is not None or until is not None
        if size <= SMALL and (not is_bounded or int(self.redis.zcount(ENDED, low, top)) > size):
            yield from self._small(smallest, after)
        else:
            yield from self._ends(low, top, after)

    def _smallest(self, sets: Sequence[Sequence[str]]) -> tuple[Sequence[str], int]:
        with self.redis.pipeline(transaction=False) as pipe:
            for key in (key for keys in sets for key in keys):
                pipe.zcard(key)
            sizes = iter([int(size) for size in pipe.execute()])
        sized = [(keys, sum(next(sizes) for _ in keys)) for keys in sets]
        return min(sized, key=lambda one: one[1])

    def _small(self, keys: Sequence[str], after: Place | None) -> Iterator[Place]:
        ids = [job_id for key in keys for job_id in texts(self.redis.zrange(key, 0, -1))]
        ends = self.redis.zmscore(ENDED, cast(Any, ids)) if ids else []
        places = [(float(end), job_id) for job_id, end in zip(ids, ends, strict=True) if end is not None]
        return (place for place in sorted(places, reverse=True) if after is None or place < after)

    def _ends(self, low: float, top: float, after: Place | None) -> Iterator[Place]:
        top = min(top, after[0]) if after else top
        offset = 0
        while True:
            answer = self.redis.zrange(
                ENDED, cast(Any, top), cast(Any, low), desc=True, byscore=True, withscores=True, offset=offset, num=READ_AT_ONCE
            )  # fmt: skip
            rows = cast(list[tuple[bytes, float]], answer)
            for job_id, end in rows:
                if after is None or (float(end), text(job_id)) < after:
                    yield float(end), text(job_id)
            if len(rows) < READ_AT_ONCE:
                return
            offset += READ_AT_ONCE


def after(job: Job) -> str:
    """The cursor that goes on behind an ended job."""
    return f"{float(job.finished_at or 0.0)!r}-{job.id}"


def _place(cursor: str) -> Place:
    end, _, job_id = cursor.rpartition("-")
    if not job_id.isdigit():
        raise ValueError(f"{cursor!r} is no cursor")
    return float(end), job_id


def _text(place: Place | None) -> str | None:
    return f"{place[0]!r}-{place[1]}" if place else None
