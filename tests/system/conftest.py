"""A whole rig in a temporary folder: the real daemon with everything that it starts, and hands to hurt it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from model_folders import write_small
from until import until

from daemon import process_tree, redis_server
from daemon.settings import Settings
from daemon.store import Store, UnknownJob, connect
from daemon.supervisor import MARK, mark
from jobs.model import Job, State, Wish, WishKind
from jobs.rundir import RunDir, read_json, run_dir
from jobs.spec import parse

COUNTER = Path(__file__).parent.parent / "counter.py"


class Rig:
    """One rig and the person who uses it."""

    def __init__(self, settings: Settings, environment: Mapping[str, str]):
        self.settings, self.environment = settings, environment
        self.daemon: subprocess.Popen[bytes] | None = None
        self.store = Store(connect(redis_server.address(settings)))

    # -- where it is

    @property
    def url(self) -> str:
        """Where its API listens, once it does."""
        said = until(lambda: read_json(self.settings.home / "api.json"), evidence=self.evidence)
        return str(said["url"])

    @property
    def token(self) -> str:
        return (self.settings.home / "token").read_text().strip()

    # -- its life

    def start(self) -> None:
        """Start the daemon and wait until its workers listen."""
        with (self.settings.home / "daemon.log").open("ab") as output:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "daemon"], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, **self.environment}, start_new_session=True, cwd=self.settings.home,
            )  # fmt: skip

    def stop(self) -> int:
        """Ask the daemon to stop; returns its exit status."""
        assert self.daemon is not None
        self.daemon.terminate()
        return self.daemon.wait(60)

    def end(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait()
        process_tree.kill_marked(MARK, mark(self.settings))
        if self.settings.redis_url is None:
            redis_server.start(self.settings).stop()

    # -- what its user does

    def submit(self, **document: Any) -> str:
        """Queue one job; returns its id."""
        return self.store.submit([parse(document)], now=1.0)[0][0].id

    def count(self, steps: int, step_s: float = 0.05, *flags: str, **fields: Any) -> str:
        """Queue the counter."""
        argv = [sys.executable, str(COUNTER), str(steps), str(step_s), *flags]
        return self.submit(kind="command", argv=argv, **fields)

    def cancel(self, job_id: str) -> None:
        self.store.wish(job_id, Wish(kind=WishKind.CANCEL, reason="by hand", asked_at=1.0))

    def preempt(self, job_id: str) -> None:
        self.store.wish(job_id, Wish(kind=WishKind.PREEMPT, reason="make room", asked_at=1.0))

    def job(self, job_id: str) -> Job:
        return self.store.get(job_id)

    def until(self, job_id: str, *states: State, within_s: float = 30.0) -> Job:
        """The job when it has come to one of these states."""
        until(lambda: self._state(job_id) in states, within_s=within_s, evidence=self.evidence)
        return self.job(job_id)

    def until_ended(self, job_id: str, within_s: float = 30.0) -> Job:
        return self.until(job_id, State.SUCCEEDED, State.FAILED, State.CANCELLED, within_s=within_s)

    def until_printed(self, job_id: str, text: str, within_s: float = 30.0) -> None:
        """Return when the job's log holds the text."""
        until(lambda: text in self.log(job_id), within_s=within_s, evidence=self.evidence)

    def folder(self, job_id: str) -> RunDir:
        return run_dir(self.settings.runs, job_id)

    def log(self, job_id: str) -> str:
        path = self.folder(job_id).log
        return path.read_text() if path.exists() else ""

    # -- hands to hurt it

    def processes(self) -> dict[int, str]:
        """Everything of this rig that lives, by command line; Redis left out."""
        found = {}
        for pid in process_tree.marked(MARK, mark(self.settings)):
            try:
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:
                continue
        return found

    def worker(self, slot: str) -> int:
        """The worker's pid (its forked horse carries the same command line, its parent is another)."""
        daemon = self.daemon
        assert daemon is not None

        def find() -> int:
            mine = process_tree.children(daemon.pid)
            return next((p for p, line in self.processes().items() if f"--slot {slot} " in line and p in mine), 0)

        return until(find, evidence=self.evidence)

    def horse(self, slot: str) -> int:
        """The pid of RQ's work-horse on this slot."""
        return until(lambda: next(iter(process_tree.children(self.worker(slot))), 0), evidence=self.evidence)

    def child(self, slot: str) -> int:
        """The pid of the attempt's own process on this slot."""
        return until(lambda: next(iter(process_tree.children(self.horse(slot))), 0), evidence=self.evidence)

    def redis_pid(self) -> int:
        return int(self.store.redis.info("server")["process_id"])

    def evidence(self) -> str:
        """What a failed wait shows."""
        parts = []
        for path in [self.settings.home / "daemon.log", *sorted(self.settings.logs.glob("*.log"))]:
            if path.exists():
                parts.append(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-12:]))
        for path in sorted(self.settings.runs.glob("*/log.txt")):
            parts.append(f"--- {path.parent.name}/log.txt\n" + path.read_text(errors="replace")[-800:])
        return "\n".join(parts)

    def _state(self, job_id: str) -> State | None:
        try:
            return self.store.get(job_id).state
        except (UnknownJob, OSError):
            return None


def kill(pid: int) -> None:
    """As the kernel's out-of-memory killer would."""
    os.kill(pid, signal.SIGKILL)


MakeRig = Callable[..., Rig]


@pytest.fixture(scope="session")
def small_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few million weights: a step takes a moment."""
    return write_small(tiny_model, tmp_path_factory.mktemp("small") / "model")


@pytest.fixture
def make_rig(home: Path) -> Iterator[MakeRig]:
    """Builds rigs that are ended with the test."""
    rigs: list[Rig] = []

    def make(*, start: bool = True, environment: Mapping[str, str] | None = None, **settings: Any) -> Rig:
        values = {"rig": "rig", "port": 0, "slots": "cpu:2", "timezone": "UTC", "warm_start": False, "grace_s": 5.0}
        own = settings.pop("home", home)  # each rig of a shared queue has its own
        chosen = Settings(home=own, **{**values, **settings})
        given = {f"OVERNIGHT_{name.upper()}": str(value) for name, value in {**values, **settings}.items()}
        rig = Rig(chosen, {**given, "OVERNIGHT_HOME": str(own), **(environment or {})})
        rigs.append(rig)
        if start:
            rig.start()
            until(lambda: _listens(rig), within_s=30.0, evidence=rig.evidence)
        return rig

    yield make
    for rig in rigs:
        rig.end()


def _listens(rig: Rig) -> bool:
    try:
        return rig.settings.rig in rig.store.rigs()
    except OSError:
        return False
    except Exception as error:  # redis-py has its own ConnectionError, which is not an OSError
        if type(error).__module__.startswith("redis"):
            return False
        raise


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    """A rig with two CPU slots."""
    return make_rig()
