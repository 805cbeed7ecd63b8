"""What the page of all jobs shows: those that were asked for, running first, then failed, waiting, and done.

Unfinished jobs are in memory (the planner's facts); those that ended are searched page by page, so that a hundred thousand
cost no more than fifty.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest

from api.filters import Filters
from api.panels import near
from api.wording import CAUSE_WORDS
from daemon.explain import explain
from daemon.plan import Facts
from daemon.situation import place_in_queue
from daemon.store import Page, Store, Wanted, after
from jobs.model import Cause, Job, State

ROWS = 50
#: Failures whose causes are counted for the groups.
COUNTED = 200
#: Jobs that one bulk action takes at most.
MOST_AT_ONCE = 1_000
#: The parts of the list, in their order.
PARTS: Mapping[str, tuple[State, ...]] = {
    "running": (State.RUNNING,),
    "failed": (State.FAILED,),
    "queued": (State.QUEUED,),
    "done": (State.SUCCEEDED, State.CANCELLED),
}
TITLES = {"running": "Running", "failed": "Failed", "queued": "Waiting", "done": "Done"}
CURSOR = re.compile(r"(running|failed|queued|done)(?:\.([0-9.e+-]{1,40}))?")


@dataclass(frozen=True)
class Part:
    """One part of the list: its jobs, and why each waiting one waits."""

    key: str
    title: str
    jobs: Sequence[Job]
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failures:
    """Failures with one cause: how many, and the last one's message."""

    cause: Cause | None
    words: str
    amount: int
    message: str


@dataclass(frozen=True)
class Listing:
    """One page of the list."""

    parts: Sequence[Part]
    next: str | None
    failures: Sequence[Failures] = ()
    #: There are more failures than were counted.
    more_failures: bool = False

    @property
    def shown(self) -> int:
        return sum(len(part.jobs) for part in self.parts)


def listing(store: Store, facts: Facts, filters: Filters, cursor: str = "", limit: int = ROWS) -> Listing:
    """The page that begins at the cursor; one that cannot be read is the first. Raises redis.RedisError."""
    found = CURSOR.fullmatch(cursor)
    first, inner = (found[1], found[2]) if found else ("running", None)
    keys = list(PARTS)[list(PARTS).index(first) :]
    parts: list[Part] = []
    left, following = limit, None
    failed = _failed(store, filters) if not found else None  # for the groups, and the first of them for the list
    for key in keys:
        if left == 0:
            if _part(store, facts, filters, key, None, 1)[0].jobs:
                following = key
                break
            continue
        if key == "failed" and failed is not None:
            part, more = _first(failed, left)
        else:
            part, more = _part(store, facts, filters, key, inner if key == first else None, left)
        if part.jobs:
            parts.append(part)
        left -= len(part.jobs)
        if more:
            following = f"{key}.{more}"
            break
    return Listing(parts, following, _grouped(failed.jobs) if failed else (), bool(failed and failed.next))


def matching(store: Store, facts: Facts, filters: Filters) -> tuple[list[Job], bool]:
    """Every job that the list holds, as far as one bulk action may take them; and whether there are more."""
    found: list[Job] = []
    cursor: str | None = ""
    while cursor is not None:
        page = listing(store, facts, filters, cursor or "running", limit=200)
        found += [job for part in page.parts for job in part.jobs]
        if len(found) > MOST_AT_ONCE:
            return found[:MOST_AT_ONCE], True
        cursor = page.next
    return found, False


# -- inside -----------------------------------------------------------------------------------------------------------------


def _part(
    store: Store, facts: Facts, filters: Filters, key: str, cursor: str | None, limit: int
) -> tuple[Part, str | None]:
    states = tuple(state for state in PARTS[key] if not filters.states or state in filters.states)
    nothing = Part(key, TITLES[key], ())
    if not states or (filters.causes and State.FAILED not in states):
        return nothing, None
    wanted = Wanted(**{**vars(filters.wanted), "states": states})
    if key in ("failed", "done"):
        page = _searched(store, wanted, limit, cursor)
        return Part(key, TITLES[key], page.jobs), page.next
    if filters.of_ends:
        return nothing, None
    return _unfinished(facts, wanted, key, int(cursor) if cursor and cursor.isdigit() else 0, limit)


def _searched(store: Store, wanted: Wanted, limit: int, cursor: str | None) -> Page:
    try:
        return store.search(wanted, limit=limit, cursor=cursor)
    except ValueError:
        return store.search(wanted, limit=limit)


def _unfinished(facts: Facts, wanted: Wanted, key: str, start: int, limit: int) -> tuple[Part, str | None]:
    found = [job for job in facts.jobs.values() if wanted.holds(job)]
    if key == "running":
        found.sort(key=lambda job: (-(job.started_at or 0.0), int(job.id)))
        head = found[: start + limit]
    else:
        head = nsmallest(start + limit, found, key=lambda job: (job.offer is None, *place_in_queue(job)))
    shown = head[start:]
    around = near(facts, shown) if key == "queued" else facts
    reasons = {job.id: explain(around, job) or "" for job in shown} if key == "queued" else {}
    more = str(start + limit) if start + limit < len(found) else None
    return Part(key, TITLES[key], shown, reasons), more


def _failed(store: Store, filters: Filters) -> Page | None:
    """The latest failures that match; None when none are asked for."""
    if filters.states and State.FAILED not in filters.states:
        return None
    return _searched(store, Wanted(**{**vars(filters.wanted), "states": (State.FAILED,)}), COUNTED, None)


def _first(page: Page, limit: int) -> tuple[Part, str | None]:
    shown = page.jobs[:limit]
    more = page.next if len(shown) == len(page.jobs) else after(shown[-1])
    return Part("failed", TITLES["failed"], shown), more


def _grouped(jobs: Sequence[Job]) -> list[Failures]:
    """The causes of failures, the most frequent first."""
    count: Counter[Cause | None] = Counter()
    messages: dict[Cause | None, str] = {}
    for job in jobs:
        cause = job.outcome.cause if job.outcome else None
        count[cause] += 1
        messages.setdefault(cause, job.outcome.message if job.outcome else "")
    return [
        Failures(cause, CAUSE_WORDS[cause] if cause else "not known", amount, messages[cause])
        for cause, amount in count.most_common()
    ]
