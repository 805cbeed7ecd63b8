"""`python -m daemon.notify`: the daemon starts it where a channel is configured; it dies with the daemon."""

import logging
import os
import signal
import sys
import threading

from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from daemon import redis_server
from daemon.notify.messenger import Messenger, open_outbox
from daemon.notify.nights import night_of
from daemon.settings import main_settings
from daemon.store import Store, connect
from jobs.process import die_with_parent

#: A Redis that is away is told of soon, and tried again with the next look.
PATIENCE = Retry(ExponentialBackoff(cap=0.1, base=0.01), 2)


def main() -> int:
    """Look and send until told to stop. Returns the exit status."""
    if parent := os.environ.get("OVERNIGHT_PARENT_PID"):
        die_with_parent(signal.SIGTERM, int(parent))
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    settings = main_settings({})
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.INFO)
    store = Store(connect(redis_server.address(settings)))
    store.redis.set_retry(PATIENCE)
    Messenger(settings, store, open_outbox(settings.home), night_of(store, settings)).run(stopped)
    return 0


if __name__ == "__main__":
    sys.exit(main())
