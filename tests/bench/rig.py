"""A whole rig in a temporary folder, started as `overnight up` starts it, and ended with everything that it started."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar

from daemon import process_tree, redis_server
from daemon.settings import Settings
from daemon.store import Store, connect
from daemon.supervisor import MARK, mark
from jobs.model import Job, State
from jobs.rundir import RunDir, run_dir

T = TypeVar("T")
ROOT = Path(__file__).parent.parent.parent
#: Rare enough that waiting does not disturb what is measured.
POLL_S = 0.02
START_S = 60.0
#: Two workers import torch and its family at once; a busy machine is slow at that.
PRELOAD_S = 240.0
#: uvicorn closes a connection that rests for 5 s.
KEPT_ALIVE_S = 3.0


class BenchFailed(Exception):
    """A measurement cannot be made; the message says why."""


def until(check: Callable[[], T], *, within_s: float, what: str, poll_s: float = POLL_S) -> T:
    """The first truthy value of `check`. Raises BenchFailed when it does not come."""
    deadline = time.monotonic() + within_s
    while not (value := check()):
        if time.monotonic() > deadline:
            raise BenchFailed(f"not within {within_s:g} s: {what}")
        time.sleep(poll_s)
    return value


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder of its own. Short, because a unix socket's path may have 107 bytes only."""
    path = Path(tempfile.mkdtemp(prefix="on-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Rig:
    """One running rig and its user, who speaks HTTP over one kept connection."""

    def __init__(self, settings: Settings, port: int, daemon: "subprocess.Popen[bytes]"):
        self.settings, self.daemon = settings, daemon
        self.store = Store(connect(str(redis_server.socket_path(settings))))
        self._port = port
        self._http: HTTPConnection | None = None
        self._http_used = 0.0

    # -- what its user does

    def submit(self, **document: Any) -> str:
        """POST one job; returns its id."""
        answer = self.post("/api/v1/jobs", document)
        return str(answer["id"])

    def command(self, *argv: str, **fields: Any) -> str:
        """POST one command."""
        return self.submit(kind="command", argv=list(argv), **fields)

    def post(self, path: str, body: Any) -> Any:
        """One call on the kept connection."""
        if self._http is None or time.monotonic() - self._http_used > KEPT_ALIVE_S:
            self._connect()
        assert self._http is not None
        headers = {
            "Authorization": f"Bearer {self.settings.token_file.read_text().strip()}",
            "Content-Type": "application/json",
        }
        self._http.request("POST", path, json.dumps(body), headers)
        response = self._http.getresponse()
        answer = response.read()
        self._http_used = time.monotonic()
        if response.status not in (200, 201):
            raise BenchFailed(f"POST {path}: {response.status} {answer[:500].decode(errors='replace')}")
        return json.loads(answer)

    def _connect(self) -> None:
        if self._http is not None:
            self._http.close()
        self._http = HTTPConnection("127.0.0.1", self._port, timeout=300)
        self._http.connect()

    def answers(self) -> bool:
        """Whether the API is ready."""
        http = HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            http.request("GET", "/readyz")
            return http.getresponse().status == 200
        except OSError:
            return False
        finally:
            http.close()

    # -- what can be seen of it

    def folder(self, job_id: str) -> RunDir:
        return run_dir(self.settings.runs, job_id)

    def wait_succeeded(self, job_id: str, *, within_s: float = 120.0) -> Job:
        """The job when it has ended. Raises BenchFailed when it did not succeed."""
        until(lambda: self.store.get(job_id).state.final, within_s=within_s, what=f"the end of job {job_id}")
        job = self.store.get(job_id)
        if job.state is not State.SUCCEEDED:
            raise BenchFailed(f"job {job_id} is {job.state}: {job.outcome}\n{self.evidence()}")
        return job

    def processes(self) -> dict[str, int]:
        """Pids by name: daemon, api, sampler, workers, redis."""
        found = {"daemon": self.daemon.pid, "redis": int(self.store.redis.info("server")["process_id"])}
        for pid in process_tree.children(self.daemon.pid):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            module = words[words.index("-m") + 1] if "-m" in words else words[0]
            name = f"worker {words[words.index('--slot') + 1]}" if module == "workers" else module.rpartition(".")[2]
            if pid != found["redis"]:
                found[name] = pid
        return found

    def evidence(self) -> str:
        """The last lines of every log."""
        parts = []
        for path in [self.settings.home / "daemon.log", *sorted(self.settings.logs.glob("*.log"))]:
            if path.exists():
                parts.append(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-8:]))
        for path in sorted(self.settings.runs.glob("*/log.txt"))[-2:]:
            parts.append(f"--- {path.parent.name}/log.txt\n" + path.read_text(errors="replace")[-500:])
        return "\n".join(parts)

    def wait_preloaded(self) -> None:
        """Until every worker has the recipes' imports. Raises BenchFailed when one starts cold."""
        logs = sorted(self.settings.logs.glob("worker-*.log"))
        for path in logs:
            until(lambda path=path: "warm start is" in path.read_text(), within_s=PRELOAD_S, what="preloaded")  # type: ignore[misc]
            if "warm start is ready" not in path.read_text():
                raise BenchFailed("a worker does not preload")

    def stop(self) -> None:
        """Leave nothing behind."""
        if self._http is not None:
            self._http.close()
        self.store.redis.close()
        if self.daemon.poll() is None:
            self.daemon.terminate()
            try:
                self.daemon.wait(60)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait()
        process_tree.kill_marked(MARK, mark(self.settings))
        redis_server.Server(redis_server.socket_path(self.settings), 0).stop()


@contextmanager
def rig(*, environment: Mapping[str, str] | None = None, **settings: Any) -> Iterator[Rig]:
    """A rig with two CPU slots whose workers do not preload, unless told otherwise."""
    values = {"rig": "bench", "slots": "cpu:2", "timezone": "UTC", "warm_start": False, "port": free_port(), **settings}
    with short_folder() as home:
        ours = Settings(home=home, **values)
        given = {f"OVERNIGHT_{name.upper()}": str(value) for name, value in values.items()}
        with (home / "daemon.log").open("ab") as output:
            daemon = subprocess.Popen(
                [sys.executable, "-m", "daemon"], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, **given, "OVERNIGHT_HOME": str(home), **(environment or {})},
                start_new_session=True, cwd=home,
            )  # fmt: skip
        rig = Rig(ours, values["port"], daemon)
        try:
            until(lambda: _listens(rig), within_s=START_S, what="the rig listens")
            yield rig
        except BenchFailed as error:
            raise BenchFailed(f"{error}\n{rig.evidence()}") from None
        finally:
            rig.stop()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(rig: Rig) -> bool:
    """Whether every worker waits at its mailbox and the API answers."""
    try:
        slots = [slot["id"] for slot in rig.store.rigs().get(rig.settings.rig, {}).get("slots", [])]
        waiting = rig.store.redis.client_list()
    except Exception as error:  # redis-py's own ConnectionError is not an OSError
        if isinstance(error, OSError) or type(error).__module__.startswith("redis"):
            return False
        raise
    return bool(slots) and sum(c["cmd"] == "blmove" for c in waiting) == len(slots) and rig.answers()
