"""From a kill of everything to the resumed job's own program running again, with many jobs in the queue."""

import random
import sys
import tempfile
import time
from pathlib import Path

from ledger import Ledgers
from rig import PROGRAM, Rig, until

QUEUED = 1_000


def measure(*, trials: int, queued: int = QUEUED) -> list[float]:
    """Seconds from the daemon's start to the program's first line, one per trial."""
    with tempfile.TemporaryDirectory(prefix="on-") as name:
        beside = Path(name)
        (beside / "ledgers").mkdir()
        home = beside / "h"
        home.mkdir()
        ledgers = Ledgers(beside / "ledgers")
        rig = Rig(home, beside, slots="cpu:1", warm_start=False)
        try:
            rig.start()
            rig.wait_ready()
            return _trials(rig, ledgers, trials, queued)
        finally:
            rig.end()


def _trials(rig: Rig, ledgers: Ledgers, trials: int, queued: int) -> list[float]:
    argv = [sys.executable, str(PROGRAM), str(ledgers.path("long")), "1000000", "0.05"]
    rig.user.submit({"kind": "command", "name": "long", "argv": argv, "max_attempts": 100})
    rig.user.send()
    base = {"kind": "command", "argv": ["true"]}
    for _ in range(queued // 500):
        rig.user.submit_batch([{**base, "name": f"waits {n}"} for n in range(500)])
    until(lambda: (rig.user.send(), not rig.user.waiting)[1], within_s=60, what="1,000 jobs in the queue")
    until(lambda: ledgers.starts("long"), within_s=30, what="the job starts")
    rng, times = random.Random(1), []
    for _ in range(trials):
        time.sleep(1.0)
        rig.kill_everything(rng)
        began = time.time()
        rig.start()
        until(lambda: ledgers.starts("long", after=began), within_s=60, what="the job resumes", poll_s=0.002)  # noqa: B023
        times.append(ledgers.starts("long", after=began)[0].at - began)
        rig.wait_ready()
    return times
