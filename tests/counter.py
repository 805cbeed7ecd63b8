"""A small job for the fault tests: counts to STEPS, saves each step, and can tell when it runs twice at once.

python counter.py STEPS STEP_S [--stubborn]
"""

import fcntl
import os
import signal
import sys
import threading
from pathlib import Path

steps, step_s, stubborn = int(sys.argv[1]), float(sys.argv[2]), "--stubborn" in sys.argv
checkpoint = Path(os.environ["OVERNIGHT_CHECKPOINT_DIR"]) / "count"
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: None if stubborn else stop.set())
lock = checkpoint.with_suffix(".lock").open("w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("OVERLAP", flush=True)
done = int(checkpoint.read_text()) if checkpoint.exists() else 0
print(f"start {done} attempt {os.environ['OVERNIGHT_ATTEMPT']} resume {os.environ['OVERNIGHT_RESUME']}", flush=True)
while done < steps:
    if stop.wait(step_s):
        print(f"saved {done}", flush=True)
        sys.exit(75)
    done += 1
    draft = checkpoint.with_suffix(".tmp")
    draft.write_text(str(done))
    draft.replace(checkpoint)
print(f"end {done}", flush=True)
