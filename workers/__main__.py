"""One slot's worker: `python -m workers --slot ID --parent PID`. Settings come by the environment."""

import argparse
import logging
import os
import signal

from daemon.process_tree import become_subreaper, kill_marked
from daemon.redis_server import address
from daemon.settings import main_settings
from daemon.store import connect
from daemon.supervisor import SLOT_MARK, slot_mark
from jobs.environment import look_around
from jobs.process import die_with_parent
from workers import execute
from workers.warm import WarmStart
from workers.worker import SlotWorker


def main() -> None:
    """Listen to the slot's mailbox until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    parser.add_argument("--slot", required=True, help="GPU UUID, or cpu:N")
    parser.add_argument("--parent", required=True, type=int, help="pid of the daemon")
    arguments = parser.parse_args()
    settings = main_settings({})
    die_with_parent(signal.SIGKILL, arguments.parent)
    become_subreaper()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    kill_marked(SLOT_MARK, slot_mark(settings, arguments.slot))
    connection = connect(address(settings))
    execute.settings_of_worker = settings
    look_around()
    execute.warm_start = WarmStart(wanted=settings.warm_start)
    SlotWorker.of(settings, arguments.slot, connection, execute.warm_start).work(logging_level="WARNING")


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    main()
