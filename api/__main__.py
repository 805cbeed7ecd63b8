"""Serve the API and the page: `python -m api`. The daemon starts it; it dies with the daemon."""

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from api import page
from api.app import create_app
from api.auth import TokenUnusable
from daemon import redis_server
from daemon.redis_server import RedisUnavailable
from daemon.settings import Settings, main_settings
from daemon.store import Store, connect
from jobs.process import die_with_parent
from jobs.rundir import write_json

log = logging.getLogger("api")

EX_USAGE, EX_UNAVAILABLE = 2, 69
GRACEFUL_S = 3
BACKLOG = 512
#: A caller hears within a second that Redis is away, instead of waiting for it.
PATIENCE = Retry(ExponentialBackoff(cap=0.2, base=0.02), 3)


class Server(uvicorn.Server):
    """uvicorn that ends its event streams when it is told to stop: it would wait for them for ever."""

    def __init__(self, config: uvicorn.Config, app: Any):
        super().__init__(config)
        self._hub = app.state.hub
        self._loop: asyncio.AbstractEventLoop | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._hub.close)
        super().handle_exit(sig, frame)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Until it is told to stop."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)


def main() -> int:
    """Serve until told to stop. Returns the exit status."""
    parent = os.environ.get("OVERNIGHT_PARENT_PID")
    if parent:
        die_with_parent(signal.SIGTERM, int(parent))
    settings = main_settings({})
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.INFO)
    if not settings.loopback_only and not settings.token_file.exists():
        print(
            f"{settings.host} can be reached by others, and this rig has no token yet. Start it once on 127.0.0.1: "
            f"that makes {settings.token_file}.",
            file=sys.stderr,
        )
        return EX_USAGE
    try:
        store = Store(connect(redis_server.address(settings)))
        store.redis.set_retry(PATIENCE)
        app = create_app(settings, store)
        listener = listen(settings.host, settings.port)
    except (TokenUnusable, RedisUnavailable) as error:
        print(error, file=sys.stderr)
        return EX_USAGE
    except OSError as error:
        fix = "Stop what uses it, or choose another with --port or OVERNIGHT_PORT."
        print(f"Cannot listen on {settings.host} port {settings.port} ({error.strerror}). {fix}", file=sys.stderr)
        return EX_UNAVAILABLE
    with listener:
        serve(app, listener, settings)
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections from now on; port 0 takes a free one. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def serve(app: Any, listener: socket.socket, settings: Settings) -> None:
    """Tell where we listen, and serve. Meanwhile the first look is made ready."""
    written = write_address(settings.home / "api.json", settings.host, listener.getsockname()[1])
    config = uvicorn.Config(
        app,
        # no access log: it would be the one place where a secret in a mistyped address is kept
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=GRACEFUL_S,
    )
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn sends itself the signal again when it is done
    signal.signal(signal.SIGINT, lambda *_: None)
    log.info("listening on %s", written["url"])
    threading.Thread(target=page.warm, args=(app.state.context,), name="warm", daemon=True).start()
    Server(config, app).run(sockets=[listener])
    forget_address(settings.home / "api.json")
    gc.freeze()  # the process ends: to search all that it holds for garbage would take longer than everything else


def write_address(path: Path, host: str, port: int) -> dict[str, Any]:
    """For the commands on this machine: where the API is."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not listened on
    url = f"http://[{near}]:{port}" if ":" in near else f"http://{near}:{port}"
    address = {"host": host, "port": port, "pid": os.getpid(), "url": url}
    write_json(path, address)
    return address


def forget_address(path: Path) -> None:
    """Take it back, unless another process has written its own since."""
    try:
        if json.loads(path.read_text())["pid"] == os.getpid():
            path.unlink()
    except (OSError, ValueError, KeyError):
        log.debug("%s was gone or another's already", path.name)


if __name__ == "__main__":
    sys.exit(main())
