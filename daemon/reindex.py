"""Rebuild job records from run folders, after the queue's own files were lost: `overnight reindex`.

Only what is missing is put back. A job that had never started left no folder: it cannot be known.
"""

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from daemon import redis_server
from daemon.redis_server import RedisUnavailable
from daemon.settings import Settings, main_settings
from daemon.store import Store, connect
from jobs.model import InvalidTransition, Job, State
from jobs.outcome import Exit, judge
from jobs.rundir import RunDir, read_json, run_dir

log = logging.getLogger(__name__)


def reindex(store: Store, settings: Settings, *, now: float) -> int:
    """Put back every job that has a run folder and no record. Returns how many. Harmless beside a running daemon."""
    return store.restore(list(jobs_on_disk(settings.runs, now=now)))


def jobs_on_disk(runs: Path, *, now: float) -> Iterator[Job]:
    """The jobs that the run folders tell of, as they stand when nothing of them runs any more."""
    if not runs.is_dir():
        return
    for path in sorted((p for p in runs.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)):
        folder = run_dir(runs, path.name)
        record = read_json(folder.state)
        if record is None:
            log.warning("%s tells nothing of its job", folder.state)
            continue
        try:
            job = at_rest(Job.from_json(record), folder, now=now)
        except (KeyError, TypeError, ValueError, InvalidTransition) as error:
            log.warning("%s cannot be read: %s", folder.state, error)
            continue
        yield job


def at_rest(job: Job, folder: RunDir, *, now: float) -> Job:
    """The job after the attempt that its folder tells of has ended, one way or another."""
    if job.state is not State.RUNNING:
        return job.withdrawn(fence=job.fence) if job.offer else job
    record = read_json(folder.exit)
    outcome = judge(fence=job.fence, result=read_json(folder.result), exit=Exit.from_json(record) if record else None)
    return job.ended(fence=job.fence, outcome=outcome, now=now)


def main() -> int:
    """The command. Starts the embedded Redis for it when no daemon runs."""
    parser = argparse.ArgumentParser(prog="overnight reindex", description=__doc__)
    parser.add_argument("--home", type=Path)
    settings = main_settings(vars(parser.parse_args()))
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    was_running = (settings.home / "redis" / "q.sock").exists() or settings.redis_url is not None
    try:
        server = None if settings.redis_url else redis_server.start(settings)
    except RedisUnavailable as error:
        print(error, file=sys.stderr)
        return 69
    store = Store(connect(redis_server.address(settings)))
    restored = reindex(store, settings, now=time.time())
    print(f"{restored} job(s) put back from {settings.runs}.")
    if server is not None and not was_running:
        server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
