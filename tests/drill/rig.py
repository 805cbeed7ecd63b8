"""A whole rig for the drill: the real daemon with all that it starts, found in the process table by what each one is."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from user import User

from daemon import process_tree
from daemon.redis_server import binary, socket_path
from daemon.settings import Settings
from daemon.store import Store, connect
from daemon.supervisor import MARK, mark

T = TypeVar("T")
POLL_S = 0.01
START_S = 60.0
STOP_S = 90.0
PROGRAM = Path(__file__).with_name("program.py")
#: In the environment of everything that a drill starts, jobs included.
DRILL_MARK = "DRILL_OF"
#: A server that does not start while the file OUTAGE is there: Redis stays away for as long as the drill wants.
REDIS = """#!/bin/bash
case "$1" in
    --version) exec {server} --version ;;
    --fix) exec -a valkey-check-aof {server} "$@" ;;
esac
[ -e {outage} ] && exit 1
exec {server} "$@"
"""


class Trouble(Exception):
    """The drill itself cannot go on."""


def until(check: Callable[[], T], *, within_s: float, what: str, poll_s: float = POLL_S) -> T:
    """The first truthy value of `check`. Raises Trouble when it does not come."""
    deadline = time.monotonic() + within_s
    while not (value := check()):
        if time.monotonic() > deadline:
            raise Trouble(f"not within {within_s:g} s: {what}")
        time.sleep(poll_s)
    return value


@dataclass(frozen=True)
class Running:
    """One job as the process table shows it, from its worker down to its program (and that one's rank)."""

    job: str
    slot: str
    worker: int
    horse: int
    child: int
    program: int
    rank: int | None


class Rig:
    """One rig on one home."""

    def __init__(self, home: Path, beside: Path, *, environment: Mapping[str, str] | None = None, **settings: Any):
        """`beside`: a folder outside of the home, for what a power cut must not take."""
        self.outage, server = beside / "outage", beside / "redis-server"
        plain = Settings(home=home)
        server.write_text(REDIS.format(server=binary(plain), outage=self.outage))
        server.chmod(0o755)
        values = {"rig": "drill", "port": free_port(), "timezone": "UTC", "redis_server": server, **settings}
        self.settings = Settings(home=home, **values)
        given = {f"OVERNIGHT_{name.upper()}": str(value) for name, value in values.items()}
        self.mark = str(beside)
        self._environment = {**given, "OVERNIGHT_HOME": str(home), DRILL_MARK: self.mark, **(environment or {})}
        self.daemon: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.user = User(self.settings.port, self.settings.token_file)
        self._log = beside / "daemon.log"

    # -- its life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon; returns at once."""
        self.started_at = time.monotonic()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OVERNIGHT_")}
        with self._log.open("ab") as output:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "daemon"], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**kept, **self._environment}, start_new_session=True, cwd="/",
            )  # fmt: skip

    def wait_ready(self) -> None:
        """Return when jobs can be accepted and run."""
        until(
            lambda: self.user.ready() or self.exit_status is not None,
            within_s=START_S,
            what=f"ready\n{self.log_tail()}",
        )
        if self.exit_status is not None:
            raise Trouble(f"the daemon ended with status {self.exit_status}\n{self.log_tail()}")

    def stop(self, *, tend: Callable[[], None] = lambda: None) -> int:
        """Ask it to stop. Returns its exit status; `tend` is called while it takes its time."""
        assert self.daemon is not None
        self.daemon.terminate()
        until(lambda: (tend(), self.exit_status)[1] is not None, within_s=STOP_S, what=f"the stop\n{self.log_tail()}")
        return self.daemon.wait()

    @property
    def exit_status(self) -> int | None:
        """How the daemon ended; None while it runs."""
        return self.daemon.poll() if self.daemon else None

    def kill_daemon(self) -> None:
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()

    def kill_everything(self, rng: random.Random) -> None:
        """SIGKILL to all of it in any order, Redis included, until nothing is left."""
        while pids := self.everything():
            rng.shuffle(pids)
            for pid in pids:
                process_tree.send(pid, signal.SIGKILL)
            if self.daemon is not None:
                self.daemon.poll()
            time.sleep(0.005)
        if self.daemon is not None:
            self.daemon.wait()

    def end(self) -> None:
        """Leave nothing behind, whatever happened."""
        self.user.close()
        self.outage.unlink(missing_ok=True)
        self.kill_everything(random.Random())

    # -- what the process table shows ---------------------------------------------------------------------------------------

    def everything(self) -> list[int]:
        """Every living process of this rig: marked ones, and Redis."""
        found = set(process_tree.marked(MARK, mark(self.settings))) | set(process_tree.marked(DRILL_MARK, self.mark))
        if self.daemon is not None and self.daemon.poll() is None:
            found.add(self.daemon.pid)
        found |= set(self._of_redis())
        return sorted(found)

    def of_jobs(self) -> list[str]:
        """Command lines of the jobs' own programs."""
        return [line for pid in self.everything() if str(PROGRAM) in (line := command_line(pid))]

    def redis_pids(self) -> list[int]:
        """The servers; a child that rewrites the file for its server, under a name of its own, is none."""
        return [pid for pid in self._of_redis() if "aof-rewrite" not in command_line(pid).partition(" ")[0]]

    def _of_redis(self) -> list[int]:
        name = str(socket_path(self.settings))
        return [
            int(entry.name) for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and name in (line := command_line(int(entry.name))) and "valkey" in line.split()[0]
            and process_tree.is_alive(int(entry.name))
        ]  # fmt: skip

    def workers(self) -> dict[str, int]:
        """Workers' pids by slot."""
        found = {}
        for pid in process_tree.children(self.daemon.pid) if self.daemon else []:
            words = command_line(pid).split()
            if "workers" in words and "--slot" in words:
                found[words[words.index("--slot") + 1]] = pid
        return found

    def helper(self, module: str) -> int | None:
        """The pid of the `api` or the `daemon.sampler`."""
        for pid in process_tree.children(self.daemon.pid) if self.daemon else []:
            words = command_line(pid).split()
            if module in words and "--inventory" not in words:
                return pid
        return None

    def running(self) -> list[Running]:
        """Jobs whose program runs, by name."""
        found = []
        for slot, worker in self.workers().items():
            for horse in process_tree.children(worker):
                for child in process_tree.children(horse):
                    found += [self._running(slot, worker, horse, child, pid) for pid in process_tree.children(child)]
        return sorted(filter(None, found), key=lambda one: one.job)

    def _running(self, slot: str, worker: int, horse: int, child: int, program: int) -> Running | None:
        words = command_line(program).split()
        if str(PROGRAM) not in words:
            return None
        rank = next((pid for pid in process_tree.children(program) if command_line(pid).endswith("--role rank")), None)
        return Running(Path(words[words.index(str(PROGRAM)) + 1]).name, slot, worker, horse, child, program, rank)

    # -- hands ------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        """The queue itself, for faults that forge. The checker never uses it."""
        store = Store(connect(str(socket_path(self.settings))))
        try:
            yield store
        finally:
            store.redis.close()

    def log_tail(self, lines: int = 30) -> str:
        """The end of the daemon's log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:]) if self._log.exists() else ""

    def log_of(self, job_id: str) -> list[str]:
        """What the daemon's log says of a job."""
        words = (f"job {job_id} ", f"job {job_id},", f"job {job_id}'")
        lines = self._log.read_text(errors="replace").splitlines()
        return [line for line in lines if any(word in line for word in words)]


class Handle:
    """One process, and no other that may get its number later."""

    def __init__(self, pid: int):
        self._descriptor = os.pidfd_open(pid)

    def send(self, sig: signal.Signals) -> None:
        """Signal it; nothing when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, sig)

    def close(self) -> None:
        os.close(self._descriptor)


def command_line(pid: int) -> str:
    """The process's arguments with blanks between; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
