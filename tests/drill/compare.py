"""The same faults on this rig and on plain RQ with its defaults: what happened, and after how long work went on.

Plain RQ gets what a careful owner would give it: a Redis that writes every change to disk, and a supervisor that starts a worker
or a server again at the moment in which it dies.
"""

import os
import random
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ledger import Ledgers
from night import SETTINGS
from rig import PROGRAM, Rig, until
from rq import Queue
from rq.job import Job

from daemon import process_tree, redis_server
from daemon.settings import Settings
from daemon.store import connect

WINDOW_S = 100.0
#: What was not hurt is watched for so long.
UNHURT_S = 15.0
AWAY_S, AWAY_AT_END_S = 40.0, 10.0
LONG_STEPS, SHORT_STEPS, STEP_S = 100_000, 50, 0.1
FAULTS = {
    "worker killed": "`kill -9` of the worker",
    "horse killed": "`kill -9` of the work-horse",
    "redis killed": "`kill -9` of Redis",
    "everything killed": "`kill -9` of everything, then a start",
    "redis away": f"Redis away for {AWAY_S:.0f} s in the middle of a job",
    "redis away at the end": f"Redis away for {AWAY_AT_END_S:.0f} s, and the job ends meanwhile",
}


@dataclass
class Seen:
    """What an owner sees after one fault."""

    #: The program that ran was not touched.
    undisturbed: bool
    #: Seconds from the fault (or the restart) to its next start.
    resumed_s: float | None
    #: What its owner is told at last, and after how many seconds from the moment at which Redis was back.
    state: str
    told_s: float | None = None
    #: Another job ran on the only slot while the first one still did.
    two_at_once: bool = False
    #: The program came to its end.
    ended: bool = False


class System(ABC):
    """One slot, one long job on it and one that waits; hands to hurt it. Ours and plain RQ's differ below here only."""

    ledgers: Ledgers

    @abstractmethod
    def submit(self, name: str, steps: int) -> None:
        """Queue a job that counts so far."""

    @abstractmethod
    def state(self, name: str) -> str:
        """What the owner is told; "no answer" when nobody tells."""

    @abstractmethod
    def hurt(self, fault: str) -> None:
        """Worker, horse or everything; a supervisor starts again what it would."""

    @abstractmethod
    def redis(self, *, back: bool) -> None:
        """Take Redis away, or let it come back."""

    def keep(self) -> None:  # noqa: B027 - a system that supervises itself has nothing to add
        """What a supervisor does all the time."""


def observe(system: System, fault: str) -> Seen:
    """Carry out one fault and watch."""
    at_the_end = fault == "redis away at the end"
    system.submit("first", SHORT_STEPS if at_the_end else LONG_STEPS)
    until(lambda: len(system.ledgers.lines("first")) > 10, within_s=60, what="the job runs")
    if fault not in ("redis away", "redis away at the end"):
        system.submit("second", LONG_STEPS)
    program = system.ledgers.starts("first")[-1].pid
    at = time.time()
    if fault.startswith("redis"):
        away_s = {"redis away": AWAY_S, "redis away at the end": AWAY_AT_END_S}.get(fault, 0.0)
        system.redis(back=False)
        _keep(system, away_s)
        system.redis(back=True)
        at += away_s
        if fault == "redis away":
            system.submit("second", LONG_STEPS)
    else:
        system.hurt(fault)
        if fault == "everything killed":
            at = time.time()
    return _watch(system, program, at, at_the_end=at_the_end)


def _watch(system: System, program: int, at: float, *, at_the_end: bool) -> Seen:
    told_s, end = None, at + WINDOW_S
    undisturbed = process_tree.is_alive(program) or any(line.word == "end" for line in system.ledgers.lines("first"))
    two = False
    while time.time() < end:
        system.keep()
        lives = process_tree.is_alive(program)
        two |= lives and bool(system.ledgers.starts("second"))
        if system.ledgers.starts("first", after=at):
            break
        if at_the_end and system.state("first") in ("succeeded", "finished"):
            told_s = max(0.0, time.time() - at)
            break
        if undisturbed and not at_the_end and time.time() - at > UNHURT_S and (two or isinstance(system, Ours)):
            break
        time.sleep(0.02)
    starts = system.ledgers.starts("first", after=at)
    resumed = starts[0].at - at if starts else None
    ended = any(line.word == "end" for line in system.ledgers.lines("first"))
    return Seen(undisturbed, resumed, system.state("first"), told_s, two, ended)


def _keep(system: System, seconds: float) -> None:
    end = time.time() + seconds
    while time.time() < end:
        system.keep()
        time.sleep(0.05)


# -- ours ---------------------------------------------------------------------------------------------------------------


class Ours(System):
    def __init__(self, rig: Rig, ledgers: Ledgers):
        self.rig, self.ledgers = rig, ledgers
        self._rng = random.Random(1)

    def submit(self, name: str, steps: int) -> None:
        argv = [sys.executable, str(PROGRAM), str(self.ledgers.path(name)), str(steps), str(STEP_S)]
        self.rig.user.submit({"kind": "command", "name": name, "argv": argv})
        until(lambda: (self.rig.user.send(), not self.rig.user.waiting)[1], within_s=30, what="the submission")

    def state(self, name: str) -> str:
        if not self.rig.user.answered():
            return "no answer"
        return str(self.rig.user.jobs(q=name)[0]["state"])

    def hurt(self, fault: str) -> None:
        [running] = self.rig.running()
        if fault == "everything killed":
            self.rig.kill_everything(self._rng)
            self.rig.start()
        else:
            os.kill({"worker killed": running.worker, "horse killed": running.horse}[fault], signal.SIGKILL)

    def redis(self, *, back: bool) -> None:
        if back:
            self.rig.outage.unlink()
        else:
            self.rig.outage.touch()
            os.kill(self.rig.redis_pids()[0], signal.SIGKILL)


@contextmanager
def ours() -> Iterator[Ours]:
    """A rig of our own with one slot and the defaults of a rig."""
    with TemporaryDirectory(prefix="on-") as name:
        beside = Path(name)
        (beside / "ledgers").mkdir()
        (beside / "h").mkdir()
        rig = Rig(beside / "h", beside, slots="cpu:1", warm_start=SETTINGS["warm_start"])
        try:
            rig.start()
            rig.wait_ready()
            yield Ours(rig, Ledgers(beside / "ledgers"))
        finally:
            rig.end()


# -- plain RQ -------------------------------------------------------------------------------------------------------------


class Plain(System):
    def __init__(self, home: Path):
        self.home, self.ledgers = home, Ledgers(home / "ledgers")
        self._settings = Settings(home=home)
        self._server: redis_server.Server | None = redis_server.start(self._settings)
        self._redis = connect(str(self._server.socket))
        self._jobs: dict[str, str] = {}
        self.worker = self._start_worker()

    def submit(self, name: str, steps: int) -> None:
        checkpoints = self.home / f"checkpoints-{name}"
        checkpoints.mkdir()
        argv = [sys.executable, str(PROGRAM), str(self.ledgers.path(name)), str(steps), str(STEP_S)]
        self._jobs[name] = Queue(connection=self._redis).enqueue("rq_job.run", argv, str(checkpoints)).id

    def state(self, name: str) -> str:
        if self._server is None:
            return "no answer"
        return str(Job.fetch(self._jobs[name], connection=self._redis).get_status(refresh=True).value)

    def hurt(self, fault: str) -> None:
        horse = process_tree.children(self.worker.pid)[0]
        if fault == "worker killed":
            self.worker.kill()
        elif fault == "horse killed":
            os.kill(horse, signal.SIGKILL)
        else:
            for pid in [self.worker.pid, *process_tree.descendants(self.worker.pid)]:
                process_tree.send(pid, signal.SIGKILL)
            self.redis(back=False)
            self.redis(back=True)
        self.keep()

    def redis(self, *, back: bool) -> None:
        if back:
            self._server = redis_server.start(self._settings)
        elif self._server is not None:
            os.kill(self._server.pid, signal.SIGKILL)
            until(lambda: not process_tree.is_alive(self._server.pid), within_s=5, what="Redis dies")  # type: ignore[union-attr]
            self._server.collect()
            self._server = None

    def keep(self) -> None:
        if self.worker.poll() is not None:
            self.worker = self._start_worker()

    def _start_worker(self) -> "subprocess.Popen[bytes]":
        socket = redis_server.socket_path(self._settings)
        argv = [
            Path(sys.executable).with_name("rq"),
            "worker",
            "--url",
            f"unix://{socket}",
            "--path",
            str(PROGRAM.parent),
        ]
        with (self.home / "worker.log").open("ab") as output:
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.home, env={**os.environ, "DRILL_OF": str(self.home)})  # fmt: skip

    def end(self) -> None:
        """Leave nothing behind."""
        self.worker.kill()
        self.worker.wait()
        process_tree.kill_marked("DRILL_OF", str(self.home))
        if self._server is not None:
            self._server.stop()


@contextmanager
def plain() -> Iterator[Plain]:
    """One stock worker with its defaults, on a Redis of its own."""
    with TemporaryDirectory(prefix="on-") as name:
        (Path(name) / "ledgers").mkdir()
        system = Plain(Path(name))
        try:
            yield system
        finally:
            system.end()


# -- both -----------------------------------------------------------------------------------------------------------------


def compare(say: Callable[[str], None]) -> dict[str, tuple[Seen, Seen]]:
    """Every fault on both: ours one after the other, plain RQ's (which mostly wait) side by side."""

    def on_plain(fault: str) -> Seen:
        with plain() as system:
            return observe(system, fault)

    own = {}
    for fault in FAULTS:
        with ours() as system:
            own[fault] = observe(system, fault)
        say(f"ours, {fault}: {in_words(own[fault])}")
    with ThreadPoolExecutor(len(FAULTS)) as pool:
        others = dict(zip(FAULTS, pool.map(on_plain, FAULTS), strict=True))
    for fault, seen in others.items():
        say(f"plain RQ, {fault}: {in_words(seen)}")
    return {fault: (own[fault], others[fault]) for fault in FAULTS}


def in_words(seen: Seen) -> str:
    """One cell of the table."""
    if seen.told_s is not None:
        return f"ran once; its owner is told `{seen.state}` {seen.told_s:.2f} s after Redis is back"
    if seen.resumed_s is not None:
        kept = ", while the first process still ran" if seen.two_at_once else ""
        return f"goes on from its checkpoint after {seen.resumed_s:.2f} s{kept}"
    if seen.ended:
        return f"ran once, and its owner is still told `{seen.state}` after {WINDOW_S:.0f} s"
    what = "the program goes on" if seen.undisturbed else f"does not go on within {WINDOW_S:.0f} s"
    if seen.two_at_once:
        what += " with nobody watching it, and **the next job starts beside it on the same slot**"
    return f"{what}; its owner is told `{seen.state}`"


def as_table(found: dict[str, tuple[Seen, Seen]]) -> str:
    """For a page."""
    rows = ["| fault | here | plain RQ 3.0, defaults |", "|---|---|---|"]
    rows += [f"| {FAULTS[fault]} | {in_words(a)} | {in_words(b)} |" for fault, (a, b) in found.items()]
    return "\n".join(rows)
