"""The report as a message: what ended since the last one, why the failed ones did, what waits. From the records."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

import redis

from daemon.notify.decide import Night, Report, cause_in_words
from daemon.notify.message import line
from daemon.settings import Settings
from daemon.store import Store
from jobs.model import Job, State

PER_READ, MOST = 200, 5_000
#: Failures are told one by one up to so many groups.
GROUPS = 4


def night_of(store: Store, settings: Settings) -> Night:
    """Reads the jobs that ended, when a report is due."""

    def night(since: float, now: float) -> Report | None:
        try:
            ended, counts = _ended(store, since), store.counts()
        except redis.RedisError:
            return None
        if not ended and not counts[State.RUNNING]:
            return None
        return report(ended, counts, since, now, settings.zone)

    return night


def report(ended: Sequence[Job], counts: Mapping[str, int], since: float, now: float, zone: ZoneInfo) -> Report:
    """In words: the verdict as the title, the decisive line of each kind of failure below."""
    by_state = Counter(job.state for job in ended)
    failed = [job for job in ended if job.state is State.FAILED]
    title = f"{len(failed)} of {len(ended)} jobs failed" if failed else f"All {len(ended)} jobs done" if ended else "Nothing has ended yet"  # fmt: skip
    if not failed and by_state[State.CANCELLED]:
        title = f"{by_state[State.SUCCEEDED]} jobs done, {by_state[State.CANCELLED]} cancelled"
    words = [
        f"{by_state[State.SUCCEEDED]} done, {len(failed)} failed",
        *([f"{by_state[State.CANCELLED]} cancelled"] if by_state[State.CANCELLED] else []),
        f"{counts[State.RUNNING]} running, {counts[State.QUEUED]} queued",
    ]
    head = [f"{_moment(since, zone)} to {_moment(now, zone)}", ", ".join(words)]
    return Report(
        title=title,
        text="\n".join([*head, *list(_failures(failed, names=True))[:GROUPS]]),
        long_text="\n".join([*head, "", *_failures(failed, names=True), "", *_list(ended)]),
        bare_text="\n".join([*head, *list(_failures(failed, names=False))[:GROUPS]]),
        needs_you=bool(failed),
    )


def _failures(failed: Sequence[Job], *, names: bool) -> Iterator[str]:
    groups = Counter(cause_in_words(job) or "failure" for job in failed)
    for cause, count in groups.most_common():
        last = next(job for job in reversed(failed) if (cause_in_words(job) or "failure") == cause)
        yield f"FAILED {count} x {cause}: {(line(last.name) if names else '') or f'job {last.id}'}"


def _list(ended: Sequence[Job]) -> Iterator[str]:
    for job in ended:
        message = line(job.outcome.message)[:200] if job.outcome and job.state is State.FAILED else ""
        yield f"{job.id:>6}  {job.state:<9}  {line(job.name)}{f': {message}' if message else ''}"


def _moment(at: float, zone: ZoneInfo) -> str:
    return f"{datetime.fromtimestamp(at, zone):%a %H:%M}"


def _ended(store: Store, since: float) -> list[Job]:
    found: list[Job] = []
    cursor: str | None = None
    while len(found) < MOST:
        page = store.ended(limit=PER_READ, cursor=cursor)
        new = [job for job in page.jobs if (job.finished_at or 0.0) > since]
        found += new
        cursor = page.next
        if cursor is None or len(new) < len(page.jobs):
            break
    return found[::-1]
