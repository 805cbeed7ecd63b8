"""What all tests share: a rig's settings in a short temporary folder, and a real, private Redis."""

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from fake_nvml.fakenvml import COMPILER, FakeNvml, build
from hypothesis import settings as hypothesis_settings

from daemon import redis_server
from daemon.settings import Settings
from daemon.store import Store, connect
from jobs import demo_model

# No test is judged by how fast the machine is.
hypothesis_settings.register_profile("any speed", deadline=None)
hypothesis_settings.load_profile("any speed")


def pytest_configure() -> None:
    """A shell that runs us in the background has SIGINT ignored, and every process below would ignore its Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(scope="session")
def fake_nvml_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the fake NVIDIA driver is built, once per session."""
    if shutil.which(COMPILER[0]) is None:
        pytest.skip(f"{COMPILER[0]} is not installed: it builds the fake NVIDIA driver")
    return tmp_path_factory.mktemp("nvml")


@pytest.fixture
def fake_nvml(fake_nvml_folder: Path) -> Callable[..., FakeNvml]:
    """Makes a machine with GPUs of the named profiles: `fake_nvml(["3090", "h200"])`."""

    def make(gpus: Sequence[str], *, hide: Sequence[str] = (), driver: str = "580.95.05") -> FakeNvml:
        return FakeNvml.create(fake_nvml_folder, build(fake_nvml_folder, hide), gpus, driver)

    return make


@pytest.fixture(scope="session")
def tiny_model(pytestconfig: pytest.Config) -> Path:
    """Real weights cut to two layers: every mechanism works on it within seconds. Converted once per checkout."""
    try:
        return demo_model.prepare(pytestconfig.cache.mkdir("models"), layers=2)
    except demo_model.DemoModelMissing as error:
        pytest.skip(str(error))
