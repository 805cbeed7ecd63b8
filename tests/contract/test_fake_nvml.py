"""The fake driver answers the real nvidia-ml-py as a driver does: structures, versions, error codes, symbols, events."""

import _ctypes
import ctypes.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_nvml.fakenvml import XID_EVENT, FakeNvml, build
from until import until

pynvml = pytest.importorskip("pynvml")


@pytest.fixture(scope="module")
def machine(fake_nvml_folder: Path) -> Iterator[FakeNvml]:
    """A 3090 and an H200, loaded into this process; its library maps one state for good."""
    fake = FakeNvml.create(fake_nvml_folder, build(fake_nvml_folder), ["3090", "h200"])
    loaded = fake.preload()
    os.environ["FAKE_NVML_STATE"] = str(fake.path)
    pynvml.nvmlInit()
    del os.environ["FAKE_NVML_STATE"]
    yield fake
    pynvml.nvmlShutdown()
    # Unload it: what looks for a GPU in this process later must not find these two.
    for library in (pynvml.nvmlLib, loaded):
        _ctypes.dlclose(library._handle)
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()
    assert str(fake.library) not in Path("/proc/self/maps").read_text()


@pytest.fixture
def fake(machine: FakeNvml) -> Iterator[FakeNvml]:
    """The machine, healthy and idle again after each test."""
    yield machine
    for index in range(2):
        machine.recover(index)
        machine.processes(index, [])
        machine.idle(index)
        ctypes.memset(machine.gpu[index].ret, 0, ctypes.sizeof(machine.gpu[index].ret))
    ctypes.memset(machine.state.delay_us, 0, ctypes.sizeof(machine.state.delay_us))


@pytest.fixture
def event_set(fake: FakeNvml) -> Iterator[Any]:
    """Both GPUs' XIDs."""
    events = pynvml.nvmlEventSetCreate()
    for index in range(2):
        pynvml.nvmlDeviceRegisterEvents(handle(index), XID_EVENT, events)
    yield events
    pynvml.nvmlEventSetFree(events)


def handle(index: int) -> Any:
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def ask_in_child(fake: FakeNvml, code: str) -> list[str]:
    """Words that a fresh process with this driver prints."""
    argv = [sys.executable, "-c", f"import pynvml as N, sys\n{code}"]
    child = subprocess.run(argv, env=fake.env(), capture_output=True, text=True, timeout=30)
    assert child.returncode == 0, child.stderr
    return child.stdout.split()


def test_the_real_binding_finds_it_by_its_soname(fake: FakeNvml) -> None:
    assert str(fake.library) in Path("/proc/self/maps").read_text()
    assert pynvml.nvmlSystemGetDriverVersion() == "580.95.05"
    assert [pynvml.nvmlDeviceGetUUID(handle(index)) for index in range(2)] == [fake.uuid(0), fake.uuid(1)]
    assert pynvml.nvmlDeviceGetPciInfo(handle(1)).busId == "00000000:11:00.0"


def test_memory_of_version_1_counts_the_reserve_as_used(fake: FakeNvml) -> None:
    fake.processes(0, [(1234, 1 << 30, "C")])
    first = pynvml.nvmlDeviceGetMemoryInfo(handle(0))
    second = pynvml.nvmlDeviceGetMemoryInfo(handle(0), version=pynvml.nvmlMemory_v2)
    assert second.used == 1 << 30
    assert first.used == second.used + second.reserved


def test_a_geforce_refuses_what_a_server_card_knows_and_the_other_way_round(fake: FakeNvml) -> None:
    for call in (lambda gpu: pynvml.nvmlDeviceGetTotalEccErrors(gpu, 0, 0), pynvml.nvmlDeviceGetRemappedRows):
        call(handle(1))
        with pytest.raises(pynvml.NVMLError_NotSupported):
            call(handle(0))
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetFanSpeed(handle(1))
    fields = pynvml.nvmlDeviceGetFieldValues(handle(0), [82, 185, 197])
    assert [field.nvmlReturn for field in fields] == [
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        0,
        pynvml.NVML_ERROR_NOT_SUPPORTED,
    ]


def test_the_energy_counter_grows_with_power(fake: FakeNvml) -> None:
    fake.power(0, 350_000)
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle(0))
    until(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle(0)) > before + 10_000)
    fake.power(0, 0)
    after = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle(0))
    assert after == pynvml.nvmlDeviceGetTotalEnergyConsumption(handle(0)) > before


def test_process_lists_keep_to_the_protocol_of_two_calls(fake: FakeNvml) -> None:
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(handle(0)) == []
    fake.processes(0, [(10, 5, "C"), (11, 6, "CG"), (12, 7, "G")])
    assert [row.pid for row in pynvml.nvmlDeviceGetComputeRunningProcesses(handle(0))] == [10, 11]
    assert [row.pid for row in pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle(0))] == [11, 12]


def test_one_lost_gpu_leaves_the_other(fake: FakeNvml) -> None:
    lost, well = handle(0), handle(1)
    fake.lose(0, xid=None)
    for call in (lambda: pynvml.nvmlDeviceGetPowerUsage(lost), lambda: handle(0)):
        with pytest.raises(pynvml.NVMLError_GpuIsLost):
            call()
    assert pynvml.nvmlDeviceGetPowerUsage(well) == 25_000
    assert pynvml.nvmlDeviceGetCount() == 2


def test_one_call_can_fail_alone(fake: FakeNvml) -> None:
    fake.fail(0, "Fan", pynvml.NVML_ERROR_UNKNOWN)
    with pytest.raises(pynvml.NVMLError_Unknown):
        pynvml.nvmlDeviceGetFanSpeed(handle(0))
    assert pynvml.nvmlDeviceGetPowerUsage(handle(0)) == 25_000


def test_an_xid_reaches_who_waits_for_it(fake: FakeNvml, event_set: Any) -> None:
    with pytest.raises(pynvml.NVMLError_Timeout):
        pynvml.nvmlEventSetWait_v2(event_set, 20)
    threading.Timer(0.05, fake.xid, (1, 31)).start()
    event = pynvml.nvmlEventSetWait_v2(event_set, 5000)
    assert event.eventData == 31
    assert pynvml.nvmlDeviceGetUUID(event.device) == fake.uuid(1)


def test_xid_79_is_told_once_and_then_every_wait_fails(fake: FakeNvml, event_set: Any) -> None:
    fake.lose(0)
    assert pynvml.nvmlEventSetWait_v2(event_set, 1000).eventData == 79
    for _ in range(2):
        with pytest.raises(pynvml.NVMLError_GpuIsLost):
            pynvml.nvmlEventSetWait_v2(event_set, 60_000)


def test_a_blocked_call_lets_other_threads_run(fake: FakeNvml) -> None:
    fake.slow("Power", 300_000)
    blocked = threading.Thread(target=pynvml.nvmlDeviceGetPowerUsage, args=(handle(0),))
    blocked.start()
    rounds = 0
    while blocked.is_alive():
        blocked.join(0.001)
        rounds += 1
    assert rounds > 10


def test_a_driver_reload_kills_handles_and_init_makes_new_ones(fake_nvml: Callable[..., FakeNvml]) -> None:
    fake = fake_nvml(["3090"])
    code = """
N.nvmlInit(); gpu = N.nvmlDeviceGetHandleByIndex(0)
print(N.nvmlDeviceGetPowerUsage(gpu), flush=True); sys.stdin.readline()
try: N.nvmlDeviceGetPowerUsage(gpu)
except N.NVMLError as error: print(type(error).__name__)
N.nvmlShutdown(); N.nvmlInit(); print(N.nvmlDeviceGetPowerUsage(N.nvmlDeviceGetHandleByIndex(0)))
"""
    argv = [sys.executable, "-c", f"import pynvml as N, sys\n{code}"]
    with subprocess.Popen(argv, env=fake.env(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout and child.stdout.readline() == "25000\n"
        fake.reload_driver()
        rest, _ = child.communicate("\n", timeout=30)
    assert rest.split() == ["NVMLError_Uninitialized", "25000"]


def test_a_replaced_driver_refuses_at_init(fake_nvml: Callable[..., FakeNvml]) -> None:
    fake = fake_nvml(["3090"])
    fake.state.init_ret = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    code = "try: N.nvmlInit()\nexcept N.NVMLError as error: print(type(error).__name__)"
    assert ask_in_child(fake, code) == ["NVMLError_LibRmVersionMismatch"]


def test_an_older_driver_lacks_symbols(fake_nvml: Callable[..., FakeNvml]) -> None:
    hidden = ["nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetTemperatureV", "nvmlDeviceGetFieldValues"]
    fake = fake_nvml(["3090"], hide=[*hidden, "nvmlDeviceGetComputeRunningProcesses_v3"])
    code = """
N.nvmlInit(); gpu = N.nvmlDeviceGetHandleByIndex(0)
for call in (lambda: N.nvmlDeviceGetMemoryInfo(gpu, version=N.nvmlMemory_v2), lambda: N.nvmlDeviceGetTemperatureV(gpu, 0),
             lambda: N.nvmlDeviceGetFieldValues(gpu, [185]), lambda: N.nvmlDeviceGetComputeRunningProcesses(gpu)):
    try: call()
    except Exception as error: print(type(error).__name__)
print(N.nvmlDeviceGetMemoryInfo(gpu).total >> 30)
"""
    # The last one is no NVMLError: who catches only those falls over it.
    expected = [*["NVMLError_FunctionNotFound"] * 3, "NVMLLibraryMismatchError", "24"]
    assert ask_in_child(fake, code) == expected


@pytest.mark.skipif(ctypes.util.find_library("nvidia-ml") is not None, reason="a real driver is installed")
def test_without_it_there_is_no_library() -> None:
    code = "import pynvml as N\ntry: N.nvmlInit()\nexcept N.NVMLError as error: print(type(error).__name__)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert child.stdout.strip() == "NVMLError_LibraryNotFound"
