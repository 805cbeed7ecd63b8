"""The night for the page: made from records and telemetry, and kept for a moment, so that no look at the page waits for it twice.

One thread makes it anew when something has happened; whoever looks meanwhile waits for it, but not for long.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
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
#: The forecast of a long queue costs more than the night itself.
FORECAST_S = 60.0
#: For the morning's one sentence a bound of the work; a queue beyond it is told without its end.
FORECAST_WORK = 60_000


@dataclass(frozen=True)
class _Known:
    night: Night
    at: float
    mark: Hashable
    foreseen: bool


class NightUnknown(Exception):
    """The queue does not answer, or the night could not be made (then the log says why)."""


class Nights:
    """The last night of this rig. Safe to use from several threads."""

    def __init__(self, store: Store, ledger: Ledger, settings: Settings, now: Callable[[], float]):
        self._store, self._ledger, self._settings, self._now = store, ledger, settings, now
        self._known: _Known | None = None
        self._forecast: tuple[float, Forecast] | None = None
        self._lock = threading.Lock()
        self._maker = ThreadPoolExecutor(2, "night")
        self._making: Future[_Known] | None = None
        self._foreseeing: Future[None] | None = None

    def made(self, facts: Facts) -> Night:
        """The night of this very moment, for whoever acts on it. Raises redis.RedisError."""
        return read_last(self._store, self._ledger, self._settings, facts.now, facts=facts)

    def last(self, facts: Facts, mark: Hashable, *, patience_s: float = 0.0) -> tuple[Night, bool]:
        """The night up to now, and whether it is so: after `patience_s` what was known before must do.

        `mark`: whatever is another when a job has started or ended since. Raises NightUnknown.
        """
        deadline = time.monotonic() + patience_s
        known = self._known or self._make_anew(facts, mark).result()
        for _ in range(2):  # the one that was being made already may be older than the mark
            if not self._is_old(known, mark):
                break
            try:
                known = self._make_anew(facts, mark).result(max(0.0, deadline - time.monotonic()))
            except (TimeoutError, NightUnknown):
                break
        foresees = self._foreseeing is not None and not self._foreseeing.done()
        return known.night, not self._is_old(known, mark) and (known.foreseen or not foresees)

    def forget(self) -> None:
        """Make it anew at the next look."""
        self._known = None

    def close(self) -> None:
        """End the thread."""
        self._maker.shutdown(wait=False, cancel_futures=True)

    def _is_old(self, known: _Known, mark: Hashable) -> bool:
        is_current = mark == known.mark and known.foreseen == (self._forecast is not None)
        return not is_current or not 0 <= self._now() - known.at < OLD_S

    def _make_anew(self, facts: Facts, mark: Hashable) -> "Future[_Known]":
        """In a thread; who comes meanwhile waits for the same one."""
        with self._lock:
            if self._making is None or self._making.done():
                self._making = self._maker.submit(self._make, facts, mark)
            return self._making

    def _make(self, facts: Facts, mark: Hashable) -> _Known:
        foreseen_at, forecast = self._forecast or (0.0, None)
        if not 0 <= facts.now - foreseen_at < FORECAST_S and (self._foreseeing is None or self._foreseeing.done()):
            self._foreseeing = self._maker.submit(self._foresee, facts)
        try:
            night = read_last(self._store, self._ledger, self._settings, facts.now, forecast=forecast, facts=facts)
        except redis.RedisError as error:
            raise NightUnknown from error
        except Exception as error:  # the page has more to show than the night: it goes on without
            log.exception("the night could not be made")
            raise NightUnknown from error
        self._known = known = _Known(night, facts.now, mark, forecast is not None)
        return known

    def _foresee(self, facts: Facts) -> None:
        try:
            self._forecast = facts.now, self._ledger.foresee(facts, self._settings, max_work=FORECAST_WORK)
        except Exception:  # nobody waits for it who could tell
            log.exception("the night could not be foretold")
