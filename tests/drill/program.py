"""One job of the drill: it counts, saves each step for good, and tells an observer outside of the rig what it does.

python program.py LEDGER STEPS STEP_S [--stubborn] [--rank] [--leaves] [--pauses N] [--fails N]

--stubborn  ignores SIGTERM                    --pauses N  exits 75 after every N steps: "saved, run me again"
--rank      has a rank in a session of its own  --fails N   exits 3 at this step
--leaves    leaves a process behind in a session of its own
"""

import argparse
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

EXIT_SAVED, EXIT_FAILED, EXIT_RANK_DIED = 75, 3, 4
LONG_S = 600.0


class Observer:
    """Lines in a ledger that lies outside of the rig: a power cut of the rig's disk does not touch it."""

    def __init__(self, ledger: Path):
        self.ledger = ledger

    def tell(self, word: str, number: int = 0) -> None:
        """Add a line in one write."""
        with self.ledger.open("ab", buffering=0) as file:
            file.write(f"{time.time():.6f} {os.getpid()} {word} {number}\n".encode())

    def alone(self, role: str) -> object:
        """Take the role's lock until this process ends. Tells OVERLAP when another process still has it."""
        lock = Path(f"{self.ledger}.{role}").open("w")  # noqa: SIM115 - for as long as this process lives
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.tell("OVERLAP")
        return lock


def count(observer: Observer, options: argparse.Namespace) -> int:
    """The work. Returns the exit status."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: None if options.stubborn else stop.set())
    lock = observer.alone("lock")
    checkpoint = Path(os.environ["OVERNIGHT_CHECKPOINT_DIR"]) / "count"
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    observer.tell("start", done)
    print(f"start {done} attempt {os.environ['OVERNIGHT_ATTEMPT']}", flush=True)
    rank = other(options.ledger, "rank") if options.rank else None
    if options.leaves:
        other(options.ledger, "left")
    code = steps(observer, options, checkpoint, done, stop, rank)
    if rank is not None:
        rank.kill()
        rank.wait()
    del lock
    return code


def steps(
    observer: Observer,
    options: argparse.Namespace,
    checkpoint: Path,
    done: int,
    stop: threading.Event,
    rank: "subprocess.Popen[bytes] | None",
) -> int:
    while done < options.steps:
        if stop.wait(options.step_s):
            return EXIT_SAVED
        if rank is not None and rank.poll() is not None:
            return EXIT_RANK_DIED
        done += 1
        save(checkpoint, done)
        observer.tell("saved", done)
        if options.fails == done:
            return EXIT_FAILED
        if options.pauses and done % options.pauses == 0 and done < options.steps:
            return EXIT_SAVED
    observer.tell("end", done)
    print(f"end {done}", flush=True)
    return 0


def save(checkpoint: Path, done: int) -> None:
    """Aside, synced, renamed, synced: once this returns a power cut does not undo it."""
    draft = checkpoint.with_suffix(".tmp")
    with draft.open("w") as file:
        file.write(str(done))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(checkpoint)
    folder = os.open(checkpoint.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def other(ledger: Path, role: str) -> "subprocess.Popen[bytes]":
    """Another process of this job, in a session of its own as torchrun's ranks are."""
    return subprocess.Popen([sys.executable, __file__, str(ledger), "0", "0", "--role", role], start_new_session=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ledger", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("step_s", type=float)
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--rank", action="store_true")
    parser.add_argument("--leaves", action="store_true")
    parser.add_argument("--pauses", type=int, default=0)
    parser.add_argument("--fails", type=int, default=0)
    parser.add_argument("--role", default="")
    options = parser.parse_args()
    observer = Observer(options.ledger)
    if options.role:
        lock = observer.alone(options.role)
        time.sleep(LONG_S)
        del lock
        return 0
    return count(observer, options)


if __name__ == "__main__":
    sys.exit(main())
