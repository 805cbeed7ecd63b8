"""The embedded server: on disk before the answer, adopted after a crash, never started on a newer one's files."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from until import until

from daemon import redis_server
from daemon.settings import Settings
from daemon.store import connect


@pytest.fixture
def server(settings: Settings) -> Iterator[redis_server.Server]:
    started = redis_server.start(settings)
    yield started
    redis_server.start(settings).stop()


def test_every_acknowledged_write_survives_a_kill(server: redis_server.Server, settings: Settings) -> None:
    client = connect(str(server.socket))
    for number in range(200):
        client.set(f"k{number}", number)
    os.kill(server.pid, signal.SIGKILL)
    again = redis_server.start(settings)
    assert again.pid != server.pid
    assert connect(str(again.socket)).dbsize() == 200


def test_it_is_configured_to_lose_nothing_and_to_listen_nowhere(server: redis_server.Server) -> None:
    client = connect(str(server.socket))
    wanted = {
        "appendonly": "yes", "appendfsync": "always", "save": "", "no-appendfsync-on-rewrite": "no",
        "maxmemory-policy": "noeviction", "aof-load-truncated": "yes", "port": "0",
    }  # fmt: skip
    assert {key: client.config_get(key)[key] for key in wanted} == wanted


def test_a_running_server_is_adopted(server: redis_server.Server, settings: Settings) -> None:
    assert redis_server.start(settings).pid == server.pid


def test_a_torn_last_write_does_not_keep_it_from_starting(server: redis_server.Server, settings: Settings) -> None:
    client = connect(str(server.socket))
    for number in range(50):
        client.set(f"k{number}", "x" * 50)
    os.kill(server.pid, signal.SIGKILL)
    log = next(path for path in Path(settings.redis_folder).rglob("*.incr.aof"))
    os.truncate(log, log.stat().st_size - 37)
    again = redis_server.start(settings)
    assert connect(str(again.socket)).dbsize() == 49


def test_an_older_server_is_refused_on_a_newer_ones_files(server: redis_server.Server, settings: Settings) -> None:
    server.stop()
    (settings.redis_folder / "server-version").write_text("99.0.0\n")
    with pytest.raises(redis_server.RedisUnavailable, match=r"written by server 99\.0\.0"):
        redis_server.start(settings)
    (settings.redis_folder / "server-version").unlink()


def test_a_path_too_long_for_a_socket_says_so(home: Path) -> None:
    with pytest.raises(redis_server.RedisUnavailable, match="Choose a shorter OVERNIGHT_HOME"):
        redis_server.start(Settings(home=home / ("x" * 100)))


def test_a_stopped_server_is_gone(server: redis_server.Server) -> None:
    server.stop()
    until(lambda: not server.socket.exists())
