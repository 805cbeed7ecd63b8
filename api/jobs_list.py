"""What the page of all jobs shows: those that were asked for, running first, then failed, waiting, and done.

Unfinished jobs are in memory (the planner's facts); those that ended are searched page by page, so that a hundred thousand
cost no more than fifty.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from heapq import nsmallest
from typing import Any
from urllib.parse import parse_qs, urlencode
from zoneinfo import ZoneInfo

from api.panels import near
from api.wording import CAUSE_WORDS
from daemon.explain import explain
from daemon.plan import Facts
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
SPAN = re.compile(r"([1-9][0-9]{0,3})([hd])")
SPAN_S = {"h": 3600.0, "d": 86_400.0}
SPANS: Mapping[str, str] = {"12h": "12 hours", "24h": "24 hours", "7d": "7 days", "30d": "30 days"}


@dataclass(frozen=True)
class Filters:
    """What somebody asks for, as it stands in the address. What cannot be understood is told in `problem`."""

    states: tuple[State, ...] = ()
    causes: tuple[Cause, ...] = ()
    kind: str = ""
    tag: str = ""
    sweep: str = ""
    q: str = ""
    since: str = ""
    ended_since: float | None = None
    problem: str = ""

    @classmethod
    def of(cls, query: str, now: float, zone: ZoneInfo) -> "Filters":
        """Read them from an address's query."""
        told = parse_qs(query, max_num_fields=50)
        problems: list[str] = []
        states = [_one_of(State, word, "state", problems) for word in told.get("state", [])]
        causes = [_one_of(Cause, word, "cause", problems) for word in told.get("cause", [])]
        since = told.get("since", [""])[0][:40]
        at = since_moment(since, now, zone)
        if since and at is None:
            problems.append(f"“{since}” is no time: 24h, 7d, or a day as 2026-11-24.")
        words = {name: told.get(name, [""])[0][:128] for name in ("kind", "tag", "sweep", "q")}
        return cls(
            states=tuple(dict.fromkeys(state for state in states if state)),
            causes=tuple(dict.fromkeys(cause for cause in causes if cause)),
            since=since if at is not None else "",
            ended_since=at,
            problem=" ".join(problems),
            **words,
        )

    @property
    def wanted(self) -> Wanted:
        """The same for the store."""
        return Wanted(
            states=self.states,
            causes=self.causes,
            kind=self.kind,
            tag=self.tag,
            sweep=self.sweep,
            text=self.q,
            ended_since=self.ended_since,
        )

    @property
    def any(self) -> bool:
        """Whether anything is asked for at all."""
        return bool(self.query())

    def query(self, **changes: Any) -> str:
        """The address's query; changes replace a filter, an empty one takes it out."""
        told: dict[str, Any] = {
            "state": [str(state) for state in self.states],
            "cause": [str(cause) for cause in self.causes],
            "kind": self.kind,
            "tag": self.tag,
            "sweep": self.sweep,
            "since": self.since,
            "q": self.q,
        } | changes
        return urlencode({name: value for name, value in told.items() if value}, doseq=True)


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


def since_moment(text: str, now: float, zone: ZoneInfo) -> float | None:
    """The moment that `24h`, `7d`, a date, a date with time, or epoch seconds mean; None when it is none of them."""
    if span := SPAN.fullmatch(text):
        return now - int(span[1]) * SPAN_S[span[2]]
    if re.fullmatch(r"[0-9]{9,11}(\.[0-9]{1,6})?", text):
        return float(text)
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()
    except (ValueError, OverflowError):
        return None


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
    if filters.ended_since is not None:
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
        head = nsmallest(start + limit, found, key=lambda job: (job.offer is None, job.rank, int(job.id)))
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


def _one_of(kind: Any, word: str, name: str, problems: list[str]) -> Any:
    if word in list(kind):
        return kind(word)
    if word:
        problems.append(f"There is no {name} “{word[:40]}”.")
    return None
