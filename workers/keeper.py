"""Keep one attempt: watch its child, renew its lease, tell its progress, carry out wishes and limits. Runs in the horse.

It does not end the run in Redis: the worker does, when the whole process tree is dead. It leaves exit.json for that.
"""

import logging
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import asdict

import redis

from daemon import telemetry
from daemon.settings import Settings
from daemon.store import Store
from jobs.model import InvalidTransition, Job, Progress, WishKind
from jobs.outcome import Exit, StoppedFor
from jobs.process import oom_kills
from jobs.progress import read_progress
from jobs.rundir import RunDir, write_json
from jobs.spec import RECIPES
from workers import fence
from workers.child import Child, Ended
from workers.log_limit import shorten
from workers.watchdog import Watchdog

log = logging.getLogger(__name__)

#: How often wishes and limits are looked at.
TICK_S = 0.25
#: What hangs seldom saves: a short grace.
HANG_GRACE_S = 10.0


class Keeper:
    """Watches over one running child until it has ended."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        job: Job,
        folder: RunDir,
        child: Child,
        *,
        leased_at: float | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ):
        self._store, self._settings, self._job, self._folder, self._child = store, settings, job, folder, child
        self._monotonic = monotonic
        self._started = self._renewed = self._asked = monotonic()
        self._told: Progress | None = None
        self._beat: object = None
        self._stopped_for: StoppedFor | None = None
        self._reason = ""
        self._kill_at: float | None = None
        self._oom_kills = oom_kills()
        # a command tells no progress: only its own limit says how long it may take
        self._watchdog = Watchdog(settings.hang_after_s, self._started) if job.kind in RECIPES else None
        # an embedded Redis serves this rig only: nobody else can take the run, so it goes on without it
        shared = settings.redis_url is not None and settings.self_fence
        self._fence = fence.SelfFence(child.handle, job.fence, folder, settings.lease_s) if shared else None
        if self._fence is not None and leased_at is not None:
            self._fence.renewed(leased_at)

    def keep(self) -> Exit:
        """Return when the child has ended; exit.json is written then."""
        while not select.select([self._child.handle], [], [], TICK_S)[0]:
            now = self._monotonic()
            self._limits(now)
            self._bound_log()
            self._watch(now)
            try:
                self._talk(now)
            except InvalidTransition as error:
                # another offer was made, or the run was ended by somebody else: this child must not go on
                self._stop(StoppedFor.NOT_OURS, str(error), now, grace_s=0.0)
            except redis.RedisError as error:
                self._without_redis(now, error)
        if self._fence is not None:
            self._fence.stop()
            if self._fence.fired and self._stopped_for is None:
                self._stopped_for, self._reason = StoppedFor.NOT_OURS, fence.REASON
        ended = self._child.wait()
        self._bound_log()
        return self._leave(ended)

    def _talk(self, now: float) -> None:
        progress = self._progress()
        lease_due = now - self._renewed > self._settings.lease_s / 3
        if (progress and progress != self._told and now - self._renewed >= self._settings.renew_s) or lease_due:
            job = self._store.renew(
                self._job.id, fence=self._job.fence, progress=progress, lease_s=self._settings.lease_s
            )
            self._told, self._renewed = progress, now
            if self._fence is not None:
                self._fence.renewed(now)
        else:
            job = self._store.get(self._job.id)
            if job.fence != self._job.fence or job.owner != self._job.owner:
                raise InvalidTransition(f"job {job.id} is no longer this worker's")
        if job.wish is not None:
            why = StoppedFor.CANCEL if job.wish.kind is WishKind.CANCEL else StoppedFor.PREEMPT
            self._stop(why, job.wish.reason, now)

    def _watch(self, now: float) -> None:
        if self._watchdog is None or self._stopped_for is not None:
            return
        self._watchdog.saw(self._progress(), self._beat, now)
        if reason := self._watchdog.hung(now):
            # evidence first: what it hung in, and what its GPUs did
            os.kill(self._child.pid, signal.SIGUSR1)
            live = telemetry.latest(self._settings.home, now=time.time())
            seen = {slot: asdict(live.slots[slot]) for slot in self._job.slots if slot in live.slots}
            write_json(self._folder.gpu, {"at": live.at, "slots": seen})
            self._stop(StoppedFor.HANG, reason, now, grace_s=min(HANG_GRACE_S, self._settings.grace_s))

    def _progress(self) -> Progress | None:
        told = read_progress(self._folder.progress, fence=self._job.fence)
        if told is None:
            return None
        progress, self._beat = told
        return progress

    def _limits(self, now: float) -> None:
        limit_s = self._job.max_runtime_s
        if limit_s is not None and now - self._started > limit_s:
            self._stop(StoppedFor.TIMEOUT, f"It ran longer than max_runtime_s = {limit_s:g}.", now)
        if self._kill_at is not None and now >= self._kill_at:
            self._child.kill()

    def _bound_log(self) -> None:
        try:
            if gone := shorten(self._folder.log, self._settings.max_log_bytes):
                log.info("job %s: %d bytes of its log were cut out", self._job.id, gone)
        except OSError as error:  # a full disk: the next tick tries again
            log.warning("job %s: its log could not be shortened: %s", self._job.id, error)

    def _stop(self, why: StoppedFor, reason: str, now: float, *, grace_s: float | None = None) -> None:
        """SIGTERM once, SIGKILL after the grace. A cancellation outweighs what was asked before."""
        if self._stopped_for is None:
            self._kill_at = now + (self._settings.grace_s if grace_s is None else grace_s)
            self._child.terminate()
        elif why not in (StoppedFor.CANCEL, StoppedFor.NOT_OURS) or self._stopped_for is why:
            return
        self._stopped_for, self._reason = why, reason

    def _without_redis(self, now: float, error: redis.RedisError) -> None:
        if self._asked < now - 10:
            log.warning("job %s goes on without Redis: %s", self._job.id, error)
            self._asked = now

    def _leave(self, ended: Ended) -> Exit:
        told = Exit(
            fence=self._job.fence,
            exit_code=ended.exit_code,
            signal=ended.signal,
            stopped_for=self._stopped_for,
            reason=self._reason,
            oom_killed=ended.signal == 9 and self._stopped_for is None and oom_kills() > self._oom_kills,
            peak_rss_bytes=ended.peak_rss_bytes,
        )
        write_json(self._folder.exit, asdict(told))
        return told
