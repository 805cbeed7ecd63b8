"""Checkpoints that nobody needs any more: those of fine-tunes that have succeeded a while ago. Their adapters stay.

Failed and cancelled jobs keep theirs: a retry goes on from there. A command's are its own.
"""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from daemon.facts import disk_room_bytes
from daemon.settings import Settings
from jobs import checkpoints
from jobs.model import State
from jobs.rundir import RunDir, read_json

log = logging.getLogger(__name__)

EVERY_S = 3_600.0
#: On a full disk they go this soon: a result that somebody builds on now is left alone.
ON_A_FULL_DISK_S = 86_400.0
DAY_S = 86_400.0


class Housekeeper:
    """Tidies once an hour, beside the loop: removing gigabytes takes its time."""

    def __init__(self, settings: Settings, *, now: float):
        self._settings, self._last = settings, now
        self._thread: threading.Thread | None = None

    def look(self, now: float) -> None:
        """Begin when it is time."""
        if now - self._last < EVERY_S or (self._thread is not None and self._thread.is_alive()):
            return
        self._last = now
        self._thread = threading.Thread(target=tidy, args=(self._settings,), kwargs={"now": now}, daemon=True)
        self._thread.start()


def tidy(settings: Settings, *, now: float) -> int:
    """Remove what is old enough, the oldest first. Returns how many jobs' checkpoints went."""
    count = 0
    try:
        for ended_at, folder in sorted(_done(settings.runs)):
            age_s = now - ended_at
            too_old = age_s >= settings.keep_checkpoints_days * DAY_S
            if too_old or (age_s >= ON_A_FULL_DISK_S and disk_room_bytes(settings) < 0):
                for checkpoint in checkpoints.sealed(folder):
                    checkpoints.remove(checkpoint)
                count += 1
    except OSError as error:  # removed by its owner meanwhile, say: the next hour finds the rest
        log.warning("old checkpoints: %s", error)
    if count:
        log.info("the checkpoints of %d job(s) that succeeded long ago are removed; their adapters stay", count)
    return count


def _done(runs: Path) -> Iterator[tuple[float, Path]]:
    """When each succeeded fine-tune that still has checkpoints has ended, and their folder."""
    for path in runs.iterdir() if runs.is_dir() else ():
        folder = RunDir(path)
        if not checkpoints.sealed(folder.checkpoints):
            continue
        job = read_json(folder.state) or {}
        if job.get("kind") == "finetune" and job.get("state") == State.SUCCEEDED and job.get("finished_at"):
            yield float(job["finished_at"]), folder.checkpoints
