"""Keeps each night's report, and the forecast of its evening, in `$OVERNIGHT_HOME/reports`.

A thread looks every half minute. A report is written at the report's hour, when the night is over, and when nothing is left
to run; what was missed is made from the records when somebody asks for it.
"""

import logging
import threading
from datetime import date

import redis

from api import report_html
from api.context import Context
from daemon.night import Night, calendar, kept, read_last, read_named
from daemon.night.foretold import Promise
from daemon.plan import Facts
from jobs.model import State

log = logging.getLogger(__name__)

#: After a start the workers and the first pages come first.
FIRST_LOOK_S = 20.0
EVERY_S = 30.0
#: For what is kept in the evening, and for the one line that a report says of the queue.
PROMISE_WORK, FORECAST_WORK = 150_000, 60_000
#: No rig is older than the epoch of its clock.
EARLIEST = date(1970, 1, 3)


class NightKeeper:
    """Writes what is kept. `look` is one look of its thread."""

    def __init__(self, rig: Context):
        self._rig = rig
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nights", daemon=True)

    def start(self) -> None:
        """Begin to look, in a thread."""
        self._thread.start()

    def close(self) -> None:
        """End it. A report that is being written is finished in its own time: it appears whole or not at all."""
        self._ended.set()

    def look(self) -> None:
        """Write what is due."""
        rig, now = self._rig, self._rig.now()
        settings = rig.settings
        nights = calendar(settings)
        day = nights.last_date(now)
        facts = rig.facts()
        over = now >= nights.ends(day)
        if not over and facts.jobs and not kept.has_promise(settings.home, day):
            found = rig.ledger.foresee(facts, settings, max_work=PROMISE_WORK)
            kept.keep_promise(settings.home, day, Promise.of(found))
        if self._is_due(day, facts, over, now):
            keep(rig, day)

    def _is_due(self, day: date, facts: Facts, over: bool, now: float) -> bool:
        settings = self._rig.settings
        known, morning = kept.read_mark(settings.home, day), calendar(settings).report_at(day)
        if known is None:
            return over or morning <= now or self._is_drained(day, facts, 0.0)
        if over:
            return not known.over
        return known.made_at < morning <= now or self._is_drained(day, facts, known.made_at)

    def _is_drained(self, day: date, facts: Facts, made_at: float) -> bool:
        """Nothing runs or could, and something ended since the report was made."""
        if facts.startable or any(job.state is State.RUNNING or job.offer is not None for job in facts.jobs.values()):
            return False
        since = max(made_at, calendar(self._rig.settings).begins(day))
        latest = self._rig.store.ended(limit=1).jobs
        return bool(latest) and (latest[0].finished_at or 0.0) > since

    def _run(self) -> None:
        pause_s = FIRST_LOOK_S
        while not self._ended.wait(pause_s):
            pause_s = EVERY_S
            try:
                self.look()
            except redis.RedisError as error:
                log.debug("the night cannot be read: %s", error)
            except OSError as error:  # a full disk, say: the next look tries again
                log.warning("the night's report cannot be kept: %s", error)
            except Exception:  # one night that cannot be told must not end the keeping of all others
                log.exception("the night's report could not be made")


def night_of(rig: Context, day: date) -> Night | None:
    """The night of a date: as it was kept, or made from the records. None when it has not begun.

    Raises redis.RedisError when it must be made and the queue does not answer.
    """
    settings, now, nights = rig.settings, rig.now(), calendar(rig.settings)
    if not EARLIEST <= day <= nights.date_of(now):
        return None
    known = kept.read_night(settings.home, day)
    if known is not None and known.over:
        return known
    try:
        return keep(rig, day) if now >= nights.ends(day) else make(rig, day)
    except redis.RedisError:
        if known is None:
            raise
        return known


def last_night(rig: Context) -> Night:
    """The night that goes on or was last, up to now, as the first screen shows it. Raises redis.RedisError."""
    facts = rig.facts()
    forecast = rig.ledger.foresee(facts, rig.settings, max_work=FORECAST_WORK)
    return read_last(rig.store, rig.ledger, rig.settings, rig.now(), forecast=forecast, facts=facts)


def make(rig: Context, day: date) -> Night:
    """A night as the records tell it now."""
    forecast = rig.ledger.foresee(rig.facts(), rig.settings, max_work=FORECAST_WORK)
    return read_named(rig.store, rig.ledger, rig.settings, rig.now(), day, forecast=forecast)


def keep(rig: Context, day: date) -> Night:
    """The same, written down. A night in which nothing ran leaves no file; nor does a full disk hide the night."""
    night = make(rig, day)
    if not night.empty:
        try:
            kept.keep_night(rig.settings.home, night, report_html.of_night(rig, night))
        except OSError as error:
            log.warning("the report of %s cannot be kept: %s", day, error)
    return night
