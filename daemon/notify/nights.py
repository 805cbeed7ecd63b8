"""The report as a message: the night as the page tells it, in a few lines for a phone and in more for a mail."""

import logging
from collections.abc import Iterator
from zoneinfo import ZoneInfo

import redis

from daemon.facts import Ledger
from daemon.night import Night, read_last, read_since
from daemon.night.message import text, title
from daemon.night.verdict import best_words
from daemon.notify import decide
from daemon.notify.decide import Report
from daemon.notify.message import line
from daemon.settings import Settings
from daemon.store import Store
from daemon.wording import clock, count, number

log = logging.getLogger(__name__)

#: So much is simulated to say when the queue is empty.
FORECAST_WORK = 150_000
LISTED = 100


def night_of(store: Store, settings: Settings) -> decide.Night:
    """Reads the night when a report is due."""

    def report(since: float, now: float) -> Report | None:
        ledger = Ledger(store)  # not kept: a queue of many jobs need not lie in a second process all day
        try:
            facts = ledger.facts(now, settings)
            forecast = ledger.foresee(facts, settings, max_work=FORECAST_WORK)
            night = read_last(store, ledger, settings, now, forecast=forecast, facts=facts)
            if since < night.since and store.ended_between(since, night.since, limit=1):
                # by day something ended, too, and nobody has been told
                night = read_since(store, ledger, settings, now, since, forecast=forecast)
        except redis.RedisError as error:
            log.warning("the night cannot be read: %s", error)
            return None
        return report_of(night)

    return report


def report_of(night: Night) -> Report | None:
    """The night in words; None where nothing ran and nobody is needed."""
    if night.empty and not night.troubles:
        return None
    said = title(night)
    return Report(
        title=f"{said[:1].upper()}{said[1:]}",
        text=text(night),
        long_text="\n".join(_long(night)),
        bare_text="\n".join(_bare(night)),
        needs_you=night.need_you > 0,
        date=night.date,
    )


def _bare(night: Night) -> Iterator[str]:
    """Without a name and without a word of a job."""
    zone, counts = ZoneInfo(night.zone), night.counts
    yield f"{clock(night.since, night.until + 86_400, zone)} to {clock(night.until, night.until, zone)}"
    yield f"{counts.done} done, {counts.failed} failed, {counts.running} running, {counts.queued} queued"
    for group in night.needs_you:
        yield f"FAILED {len(group.jobs)} x {group.words}: job {group.jobs[0]}"
    for trouble in night.troubles:
        yield f"NEEDS YOU {trouble.kind}"
    if night.best is not None:
        yield f"BEST job {night.best.job} {best_words(night.best)}"


def _long(night: Night) -> Iterator[str]:
    """For a mail: the sentence, what needs somebody with its decisive line, what ran."""
    yield line(night.verdict.sentence)
    yield ""
    yield text(night)
    for group in night.needs_you:
        yield ""
        yield f"{count(len(group.jobs), 'job')} failed: {group.words} ({', '.join(group.jobs[:20])})"
        yield f"    {line(group.line)}"
        yield from (f"    {line(hint)}" for hint in [group.hint] if hint)
    for trouble in night.troubles:
        yield ""
        yield line(trouble.words)
        yield from (f"    {line(hint)}" for hint in [trouble.hint] if hint)
    if night.repaired:
        yield ""
        yield f"{count(len(night.repaired), 'failure')} mended by a retry, or about to be:"
        yield from (f"    {one.job}  {line(one.name)}: {one.words}" for one in night.repaired[:LISTED])
    if night.ran:
        yield ""
        for ran in night.ran[:LISTED]:
            result = f"  {ran.metric} {number(ran.value)}" if ran.value is not None else ""
            yield f"{ran.job:>6}  {ran.state:<9}  {line(ran.name)}{result}"
        if more := len(night.ran) - LISTED + night.more:
            yield from ([f"and {more} more"] if more > 0 else [])
