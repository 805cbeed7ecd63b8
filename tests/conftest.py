"""What all tests share: a rig's settings in a short temporary folder, and a real, private Redis."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import redis_server
from daemon.settings import Settings
from daemon.store import Store, connect


@pytest.fixture
def home() -> Iterator[Path]:
    """A rig's home. Short, because a unix socket's path may have 107 bytes only."""
    path = Path(tempfile.mkdtemp(prefix="on-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def settings(home: Path) -> Settings:
    """Settings of a rig that listens on any free port."""
    return Settings(home=home, rig="rig", port=0, slots="cpu:2", timezone="UTC", warm_start=False)


@pytest.fixture(scope="session")
def redis_address() -> Iterator[str]:
    """The socket of one real server for the whole session."""
    path = Path(tempfile.mkdtemp(prefix="on-"))
    server = redis_server.start(Settings(home=path))
    yield str(server.socket)
    server.stop()
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def store(redis_address: str) -> Iterator[Store]:
    """The queue, empty."""
    store = Store(connect(redis_address))
    store.redis.flushall()
    yield store
    store.redis.close()
