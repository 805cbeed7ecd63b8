"""What only a real NVIDIA GPU can show of the telemetry: `python -m pytest -m gpu -s tests/gpu`. Results go to docs/gpu-checks.md.

Each test prints what it measured, so that one run fills the page. Nothing on a GPU is changed.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from until import until

from daemon.gpus import Gpu
from daemon.probe import probe
from daemon.telemetry import events, latest, summarize

pytestmark = pytest.mark.gpu

#: Work for the card: SIZE decides how hard. Ends after so many seconds.
LOAD = """
import sys, time, torch
size, seconds = int(sys.argv[1]), float(sys.argv[2])
a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
torch.cuda.synchronize()
print("started", flush=True)
until = time.monotonic() + seconds
while time.monotonic() < until:
    for _ in range(20):
        a = (a @ a).clamp_(-1, 1)
    torch.cuda.synchronize()
"""
ILLEGAL = """
import torch
x = torch.zeros(4, device="cuda")
x[torch.tensor([10**9], device="cuda")]  # a device-side assert
torch.cuda.synchronize()
"""
#: Small products leave pauses; large ones fill the card.
LOADS = {"light": 256, "half": 1024, "full": 8192}
LOAD_S = float(os.environ.get("OVERNIGHT_TEST_LOAD_S", "60"))
#: What the page of figures promises of one card, with a real driver behind it.
MOST_MS_PER_S, MOST_CPU_SHARE = 10.0, 0.005
NEEDED = ("UtilizationRates", "MemoryInfo_v2", "ClockInfo SM", "FieldValues, each second", "ComputeRunningProcesses")


@pytest.fixture(scope="module")
def home(gpu: Gpu, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a sampler records all that the tests do."""
    home = tmp_path_factory.mktemp("gpu")
    argv = [sys.executable, "-m", "daemon.sampler", "--home", str(home)]
    with (home / "sampler.log").open("wb") as log, subprocess.Popen(argv, stderr=log) as sampler:
        until(lambda: latest(home, now=time.time()).slots, within_s=30, evidence=(home / "sampler.log").read_text)
        yield home
        sampler.terminate()


def load(gpu: Gpu, size: int, seconds: float) -> tuple[float, float, int]:
    """Work on the card; from when to when, and whose work it was."""
    environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": gpu.uuid}
    argv = [sys.executable, "-c", LOAD, str(size), str(seconds)]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as work:
        assert work.stdout is not None and work.stdout.readline() == "started\n"
        began = time.time()
        assert work.wait(seconds + 120) == 0
        return began, time.time(), work.pid


def show(name: str, value: Any) -> None:
    print(f"\n{name}: {json.dumps(value, indent=1)}")


def test_every_call_of_the_sampler_is_answered_in_time(gpu: Gpu) -> None:
    (told,) = [one for one in probe()["gpus"] if one.get("uuid") == gpu.uuid]
    calls = told["calls"]
    show("call latencies in us (first, median, most)", {name: [one["first_us"], one["median_us"], one["most_us"]] for name, one in calls.items()})  # fmt: skip
    show("not supported", {"calls": told["unsupported"], "fields": told["fields_wanted_and_missing"]})
    show("changes every ms", told["changes_every_ms"])
    show("sampler, ms of the driver's time per second", told["sampler_ms_per_s"])
    assert not set(NEEDED) & set(told["unsupported"])
    assert told["sampler_ms_per_s"] <= MOST_MS_PER_S


@pytest.mark.parametrize("name", LOADS)
def test_the_energy_counter_and_the_integral_of_power_agree(gpu: Gpu, home: Path, name: str) -> None:
    began, ended, _ = load(gpu, LOADS[name], LOAD_S)
    until(lambda: (latest(home, now=time.time()).at or 0) > ended + 1)
    usage = summarize(home, [gpu.uuid], began, ended)
    show(f"{name} load of {ended - began:.0f} s", {"energy_j": usage.energy_j, "method": usage.energy_method, "deviation": usage.energy_deviation, "utilization": usage.utilization_mean, "coverage": usage.coverage})  # fmt: skip
    assert usage.energy_method == "counter" and usage.coverage > 0.95
    assert usage.energy_deviation is not None and abs(usage.energy_deviation) <= 0.10


def test_a_jobs_summary_is_whole(gpu: Gpu, home: Path) -> None:
    began, ended, _ = load(gpu, LOADS["full"], 20)
    until(lambda: (latest(home, now=time.time()).at or 0) > ended + 1)
    usage = summarize(home, [gpu.uuid], began, ended)
    show("summary", vars(usage))
    for name in ("energy_j", "peak_memory_bytes", "utilization_mean", "utilization_p95", "temperature_max_c", "temperature_max_at", "throttled_s"):  # fmt: skip
        assert getattr(usage, name) is not None, name
    assert usage.utilization_p95 is not None and usage.utilization_p95 > 0.8
    # the load descends from the sampler's parent, as a job does from the daemon
    assert usage.peak_own_memory_bytes and usage.contended_s == 0


def test_the_sampler_costs_little_beside_a_real_driver(gpu: Gpu, home: Path) -> None:
    pid = latest(home, now=time.time()).pid
    before, began = _cpu_s(pid), time.monotonic()
    until(lambda: time.monotonic() - began > 30, within_s=60)
    wall_s = time.monotonic() - began
    shares = {name: (now_s - before[name]) / wall_s for name, now_s in _cpu_s(pid).items()}
    cards = len(latest(home, now=time.time()).slots)
    show("sampler, % of a core", {**{name: round(share * 100, 3) for name, share in shares.items()}, "cards": cards})
    assert sum(shares.values()) <= MOST_CPU_SHARE * max(1.0, cards / 8)


def test_a_jobs_own_mistake_is_told_as_an_xid(gpu: Gpu, home: Path) -> None:
    if latest(home, now=time.time()).kernel_log is None:
        pytest.skip("the kernel's log cannot be read here, and NVML may keep this one to itself")
    began = time.time()
    environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": gpu.uuid}
    failed = subprocess.run([sys.executable, "-c", ILLEGAL], env=environment, capture_output=True, text=True)
    assert failed.returncode != 0
    found = until(lambda: [e for e in events(home, began - 1, time.time()) if e.kind == "xid"], within_s=20)
    show("XIDs", [{"code": e.code, "source": e.source, "after_s": e.at - began, "pid": e.pid, "text": e.text} for e in found])  # fmt: skip


def _cpu_s(pid: int | None) -> dict[str, float]:
    tasks = {
        task.name: int((task / "schedstat").read_text().split()[0]) / 1e9
        for task in Path(f"/proc/{pid}/task").iterdir()
    }
    reads = tasks.pop(str(pid))
    return {"reading and recording": reads, "waiting for XIDs and the kernel's log": sum(tasks.values())}
