"""Before an attempt starts: bring the uploads that it reads from the rigs that have them. The lease is kept meanwhile."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict

import redis

from daemon.inputs import InputAway, bring
from daemon.settings import Settings
from daemon.store import Store
from jobs.model import Cause, End, Job, Progress, Wish, WishKind
from jobs.outcome import Exit, StoppedFor
from jobs.rundir import RunDir, write_json
from jobs.spec import FILE_FIELDS, INPUT_REFERENCE

log = logging.getLogger(__name__)

MEGABYTE = 1_000_000


class Stopped(Exception):
    """The attempt was asked to stop while its uploads were on the way."""

    def __init__(self, wish: Wish):
        super().__init__(wish.reason)
        self.wish = wish


def missing(job: Job, settings: Settings) -> list[str]:
    """SHA-256 of the uploads that the job reads and that are not here."""
    named = [INPUT_REFERENCE.fullmatch(str(job.effective_spec.get(name) or "")) for name in FILE_FIELDS]
    digests = dict.fromkeys(match[1] for match in named if match)
    return [digest for digest in digests if not (settings.inputs / digest).is_file()]


def bring_inputs(
    job: Job,
    folder: RunDir,
    settings: Settings,
    store: Store,
    *,
    monotonic: Callable[[], float] = time.monotonic,
) -> bool:
    """Whether the attempt can start. When not, the run folder says why. Raises InvalidTransition when it is not ours any more."""
    keep = Renewal(job, settings, store, monotonic)
    try:
        for digest in missing(job, settings):
            bring(store, settings, digest, tell=keep.tell)
            keep.renew()
    except Stopped as stopped:
        folder.create()
        why = StoppedFor.CANCEL if stopped.wish.kind is WishKind.CANCEL else StoppedFor.PREEMPT
        write_json(folder.exit, asdict(Exit(fence=job.fence, stopped_for=why, reason=stopped.wish.reason)))
        return False
    except InputAway as error:
        folder.create()
        facts = {"end": End.FAILED, "cause": Cause.FETCH, "message": f"Its data is not on this rig, and {error}."}
        hint = {"hint": "It is tried again. Start the rig that has the file, or upload it to this one."}
        write_json(folder.result, {"fence": job.fence, "attempt": job.attempt, **facts, **hint})
        return False
    return True


class Renewal:
    """Keeps the lease while something else than the attempt's process works."""

    def __init__(self, job: Job, settings: Settings, store: Store, monotonic: Callable[[], float]):
        self._job, self._settings, self._store, self._monotonic = job, settings, store, monotonic
        self._renewed = monotonic()
        self._progress = Progress(phase="fetching")

    def tell(self, done_bytes: int, total_bytes: int) -> None:
        """How far it is. Raises Stopped, InvalidTransition."""
        self._progress = Progress(phase="fetching", step=done_bytes // MEGABYTE, total=total_bytes // MEGABYTE)
        if self._monotonic() - self._renewed >= self._settings.renew_s:
            try:
                self.renew()
            except redis.RedisError as error:
                log.warning("job %s fetches its data without Redis: %s", self._job.id, error)

    def renew(self) -> None:
        """Keep the lease now. Raises Stopped, InvalidTransition, RedisError."""
        now = self._monotonic()
        job = self._store.renew(
            self._job.id, fence=self._job.fence, progress=self._progress, lease_s=self._settings.lease_s
        )
        self._renewed = now
        if job.wish is not None:
            raise Stopped(job.wish)
