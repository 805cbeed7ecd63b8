"""gpustat and nvitop on the fake driver read the same numbers as our API shows: what we tell is what the driver tells."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import scenarios
from fake_nvml.fakenvml import FakeNvml
from starlette.testclient import TestClient
from until import until

from api.app import create_app
from daemon.rig import Slot
from daemon.settings import Settings
from daemon.store import Store
from daemon.telemetry import latest

MIB = 1 << 20
# looked for and not imported: gpustat changes the binding for everybody in its process
lacks_gpustat = pytest.mark.skipif(importlib.util.find_spec("gpustat") is None, reason="gpustat is not installed")
lacks_nvitop = pytest.mark.skipif(importlib.util.find_spec("nvitop") is None, reason="nvitop is not installed")
NVITOP = """
import json
from nvitop import Device
print(json.dumps([{
    "uuid": d.uuid(), "name": d.name(), "util": d.gpu_utilization(), "used": d.memory_used(), "total": d.memory_total(),
    "temp": d.temperature(), "power": d.power_usage(), "limit": d.power_limit(), "fan": d.fan_speed(), "sm": d.sm_clock(),
    "pids": sorted(d.processes()), "lost": d.name() == "N/A",
} for d in Device.all()], default=str))
"""


@pytest.fixture
def fake(fake_nvml: Callable[..., FakeNvml]) -> FakeNvml:
    """Four unequal cards: one busy with a process of ours, one at its limit, one idle, one server card."""
    fake = fake_nvml(list(scenarios.UNEQUAL))
    fake.busy(0)
    fake.processes(0, [(os.getpid(), 20 << 30, "C"), (os.getppid(), 200 * MIB, "G")])
    scenarios.heat(fake, 1)
    return fake


@pytest.fixture
def api(fake: FakeNvml, settings: Settings, store: Store) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What our API says, with a real sampler behind it."""
    names = ["NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3060", "NVIDIA H200"]
    slots = [Slot(fake.uuid(n), name, n, int(fake.gpu[n].memory_total)) for n, name in enumerate(names)]
    store.describe_rig("rig", {"slots": [slot.to_json() for slot in slots]})
    app = create_app(settings, store)
    token = settings.token_file.read_text().strip()
    argv = [sys.executable, "-m", "daemon.sampler", "--home", str(settings.home)]
    sampler = subprocess.Popen(argv, env=fake.env(), stderr=subprocess.DEVNULL)

    def gpus() -> list[dict[str, Any]]:
        client = TestClient(app, base_url="http://localhost", headers={"Authorization": f"Bearer {token}"})
        return list(client.get("/api/v1/gpus").json()["gpus"])

    try:
        until(lambda: len(latest(settings.home, now=time.time()).slots) == 4)
        yield gpus
    finally:
        sampler.terminate()
        sampler.wait(10)


def ask(fake: FakeNvml, argv: list[str]) -> Any:
    done = subprocess.run([sys.executable, *argv], env=fake.env(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@lacks_gpustat
def test_gpustat_reads_what_our_api_shows(fake: FakeNvml, api: Callable[[], list[dict[str, Any]]]) -> None:
    theirs = ask(fake, ["-m", "gpustat", "--json"])["gpus"]
    for ours, gpu in zip(api(), theirs, strict=True):
        sample = ours["sample"]
        assert (gpu["uuid"], gpu["name"], gpu["index"]) == (ours["id"], ours["name"], ours["index"])
        assert gpu["utilization.gpu"] == round(sample["utilization_ratio"] * 100)
        assert gpu["temperature.gpu"] == sample["temperature_c"]
        assert gpu["power.draw"] == round(sample["power_w"])
        assert gpu["enforced.power.limit"] == round(sample["power_limit_w"])
        assert gpu["memory.total"] == sample["memory_total_bytes"] // MIB
        assert gpu["fan.speed"] == (None if sample["fan_ratio"] is None else round(sample["fan_ratio"] * 100))
        assert gpu["memory.used"] == sample["memory_used_bytes"] // MIB
        assert sorted(p["pid"] for p in gpu["processes"]) == [p["pid"] for p in sample["processes"]]


@lacks_nvitop
def test_nvitop_reads_what_our_api_shows(fake: FakeNvml, api: Callable[[], list[dict[str, Any]]]) -> None:
    theirs = ask(fake, ["-c", NVITOP])
    for ours, gpu in zip(api(), theirs, strict=True):
        sample = ours["sample"]
        assert (gpu["uuid"], gpu["name"]) == (ours["id"], ours["name"])
        assert gpu["util"] == round(sample["utilization_ratio"] * 100)
        assert (gpu["used"], gpu["total"]) == (sample["memory_used_bytes"], sample["memory_total_bytes"])
        assert gpu["temp"] == sample["temperature_c"]
        assert (gpu["power"], gpu["limit"]) == (sample["power_w"] * 1000, sample["power_limit_w"] * 1000)
        assert gpu["fan"] == ("N/A" if sample["fan_ratio"] is None else round(sample["fan_ratio"] * 100))
        assert gpu["sm"] * 1_000_000 == sample["sm_clock_hz"]
        assert gpu["pids"] == [p["pid"] for p in sample["processes"]]


@lacks_gpustat
def test_all_three_go_on_when_a_gpu_is_lost(
    fake: FakeNvml, api: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    fake.lose(2)
    until(lambda: api()[2]["state"] == "lost")
    ours = api()
    assert [gpu["sample"]["power_w"] for gpu in ours] == [345.0, 250.0, None, 25.0]
    theirs = ask(fake, ["-m", "gpustat", "--json"])["gpus"]
    assert [gpu.get("power.draw") for gpu in theirs] == [345, 250, None, 25]
