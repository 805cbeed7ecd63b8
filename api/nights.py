"""The night for the page: made from records and telemetry, and kept for a moment, so that no look at the page waits for it twice.

A look gets what is known, and when that is no longer new, one thread makes it anew. Only the first look after a start waits.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import redis

from daemon.facts import Ledger
from daemon.forecast import Forecast
from daemon.night import Night, read_last
from daemon.plan import Facts
from daemon.settings import Settings
from daemon.store import Store

log = logging.getLogger(__name__)

#: Without any event the night still grows, and heartbeats grow old.
OLD_S = 10.0
#: With events: so often at most.
NEW_S = 1.0
#: The forecast of a long queue costs more than the night itself.
FORECAST_S = 60.0
#: For the morning's one sentence a bound of the work; a queue beyond it is told without its end.
FORECAST_WORK = 60_000


@dataclass(frozen=True)
class _Known:
    night: Night
    at: float
    event: str


class Nights:
    """The last night of this rig. Safe to use from several threads."""

    def __init__(self, store: Store, ledger: Ledger, settings: Settings, now: Callable[[], float]):
        self._store, self._ledger, self._settings, self._now = store, ledger, settings, now
        self._known: _Known | None = None
        self._forecast: tuple[float, Forecast] | None = None
        self._lock = threading.Lock()
        self._maker = ThreadPoolExecutor(1, "night")

    def made(self, facts: Facts) -> Night:
        """The night of this very moment, for whoever acts on it. Raises redis.RedisError."""
        return read_last(self._store, self._ledger, self._settings, facts.now, facts=facts)

    def last(self, facts: Facts, event: str) -> Night:
        """The night up to now, or up to a few seconds ago. `event`: the last one that the caller has seen.

        Raises redis.RedisError while nothing is known and the queue does not answer.
        """
        known = self._known
        if known is None:
            return self._make(facts, event).night
        if self._is_old(known, event) and self._lock.acquire(blocking=False):
            self._maker.submit(self._anew, facts, event)
        return known.night

    def close(self) -> None:
        """End the thread."""
        self._maker.shutdown(wait=False, cancel_futures=True)

    def _is_old(self, known: _Known, event: str) -> bool:
        age_s = self._now() - known.at
        return age_s >= OLD_S or age_s < 0 or (event != known.event and age_s >= NEW_S)

    def _anew(self, facts: Facts, event: str) -> None:
        """In the thread, with the lock held."""
        try:
            self._make(facts, event)
        except redis.RedisError as error:
            log.debug("the night could not be read: %s", error)
        except Exception:  # the page goes on with what is known, and says how old that is; the log says why
            log.exception("the night could not be made")
        finally:
            self._lock.release()

    def _make(self, facts: Facts, event: str) -> _Known:
        night = read_last(
            self._store, self._ledger, self._settings, facts.now, forecast=self._foreseen(facts), facts=facts
        )
        self._known = known = _Known(night, facts.now, event)
        return known

    def _foreseen(self, facts: Facts) -> Forecast | None:
        if self._forecast is None or not 0 <= facts.now - self._forecast[0] < FORECAST_S:
            self._forecast = facts.now, self._ledger.foresee(facts, self._settings, max_work=FORECAST_WORK)
        return self._forecast[1]
