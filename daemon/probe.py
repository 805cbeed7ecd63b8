"""What the driver of this machine answers, call by call: `python -m daemon.probe [--rounds N] [--seconds S]`.

Read only. Prints JSON: for each GPU each call that the sampler makes, or could make, with its answer or refusal and how long
it took; every field of the batch that is known; how often energy, power and utilisation change. It says what of NVML a
card has, and what our sampler costs it. In a process of its own: a driver that hangs takes nobody along.
"""

import argparse
import ctypes
import json
import os
import signal
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from daemon.nvml import (
    ECC_UNCORRECTED,
    FIELDS,
    MEMORY_TEMP_C,
    PCIE_REPLAYS,
    SLOW_FIELDS,
    Card,
)
from daemon.nvml_calls import DriverTrouble, explain, load_binding
from jobs.process import die_with_parent

#: How often each call is made; the first one, which may load something, is told apart.
ROUNDS = 20
#: How long it is watched how often a reading changes.
SECONDS = 3.0
ALL_FIELDS = range(1, 310)
XID_EVENT = 8
#: No refusal: the list is empty.
NOTHING_RAN = "NVMLError_NotFound"

Json = dict[str, Any]


def calls_of(nvml: Any, handle: Any) -> Mapping[str, Callable[[], Any]]:
    """Every call of the sampler, and those that others make, by name. Each second's come first."""

    def get(name: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
        return lambda: getattr(nvml, f"nvmlDeviceGet{name}")(handle, *arguments, **options)

    return {
        "UtilizationRates": get("UtilizationRates"),
        "MemoryInfo_v2": get("MemoryInfo", version=nvml.nvmlMemory_v2),
        "TemperatureV": get("TemperatureV", 0),
        "ClockInfo SM": get("ClockInfo", 1),
        "ClockInfo memory": get("ClockInfo", 2),
        "CurrentClocksEventReasons": get("CurrentClocksEventReasons"),
        "FieldValues, each second": get("FieldValues", list(FIELDS)),
        "FieldValues, every 5 s": get("FieldValues", [*FIELDS, *SLOW_FIELDS]),
        "FanSpeed": get("FanSpeed"),
        "PerformanceState": get("PerformanceState"),
        "ComputeRunningProcesses": get("ComputeRunningProcesses"),
        "GraphicsRunningProcesses": get("GraphicsRunningProcesses"),
        "ProcessUtilization": get("ProcessUtilization", 0),
        "CurrPcieLinkGeneration": get("CurrPcieLinkGeneration"),
        "CurrPcieLinkWidth": get("CurrPcieLinkWidth"),
        "EncoderUtilization": get("EncoderUtilization"),
        "MarginTemperature": get("MarginTemperature"),
        "MemoryInfo_v1": get("MemoryInfo"),
        "Temperature": get("Temperature", 0),
        "PowerUsage": get("PowerUsage"),
        "TotalEnergyConsumption": get("TotalEnergyConsumption"),
        "EnforcedPowerLimit": get("EnforcedPowerLimit"),
        "TotalEccErrors": get("TotalEccErrors", 1, 0),
        "RemappedRows": get("RemappedRows"),
        "PcieReplayCounter": get("PcieReplayCounter"),
        "TemperatureThreshold slowdown": get("TemperatureThreshold", 1),
        "SupportedEventTypes": get("SupportedEventTypes"),
        "PersistenceMode": get("PersistenceMode"),
        "DisplayActive": get("DisplayActive"),
        "AccountingMode": get("AccountingMode"),
        "MigMode": get("MigMode"),
    }


#: What the sampler asks each second, and every five; the process lists by a call that asks once instead of twice.
EACH_SECOND = ("UtilizationRates", "MemoryInfo_v2", "TemperatureV", "ClockInfo SM", "ClockInfo memory", "CurrentClocksEventReasons", "FieldValues, each second")  # fmt: skip
EVERY_FIVE = ("FanSpeed", "PerformanceState", "ComputeRunningProcesses", "GraphicsRunningProcesses")


def probe(*, rounds: int = ROUNDS, seconds: float = SECONDS) -> Json:
    """Everything, of every GPU that answers. Raises DriverTrouble."""
    nvml = load_binding()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise DriverTrouble(explain(error)) from None
    try:
        count = nvml.nvmlDeviceGetCount()
        return {"driver": _text(nvml.nvmlSystemGetDriverVersion()), "gpus": [_gpu(nvml, index, rounds, seconds) for index in range(count)]}  # fmt: skip
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int, rounds: int, seconds: float) -> Json:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        return {"index": index, "error": type(error).__name__}
    card = Card(nvml, index, handle, retry_s=0.0)
    calls = {name: _measure(nvml, call, rounds) for name, call in calls_of(nvml, handle).items()}
    fields = _fields(nvml, handle)
    took_us = {name: told.get("median_us", 0.0) for name, told in calls.items()}
    return {
        "index": index,
        "uuid": card.uuid,
        "name": card.gpu.name,
        "limits": card.identity.limits,
        "calls": calls,
        "unsupported": sorted(name for name, told in calls.items() if told.get("error", NOTHING_RAN) != NOTHING_RAN),
        "fields": {str(number): value for number, value in fields.items()},
        "fields_wanted_and_missing": sorted(
            n for n in (*FIELDS, MEMORY_TEMP_C, ECC_UNCORRECTED, PCIE_REPLAYS) if n not in fields
        ),
        "sampler_ms_per_s": (sum(took_us[n] for n in EACH_SECOND) + sum(took_us[n] for n in EVERY_FIVE) / 5) / 1000,
        "changes_every_ms": _changes(nvml, handle, seconds),
        "xid_events": _registers(nvml, handle),
    }


def _measure(nvml: Any, call: Callable[[], Any], rounds: int) -> Json:
    """The answer in words, the first time and the others in microseconds; or the refusal."""
    times: list[float] = []
    told: Json = {}
    for _ in range(rounds):
        began = time.perf_counter()
        try:
            answer = call()
        except (nvml.NVMLError, nvml.NVMLLibraryMismatchError) as error:
            told = {"error": type(error).__name__}
        else:
            told = {"answer": _words(answer)}
        times.append((time.perf_counter() - began) * 1e6)
        if "error" in told:
            break
    rest = times[1:] or times
    return told | {"first_us": round(times[0], 1), "median_us": round(statistics.median(rest), 1), "most_us": round(max(rest), 1)}  # fmt: skip


def _fields(nvml: Any, handle: Any) -> dict[int, float]:
    """Every field that this GPU knows, one by one: some drivers refuse a batch with a field that they do not know."""
    members = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
    found: dict[int, float] = {}
    for number in ALL_FIELDS:
        try:
            (value,) = nvml.nvmlDeviceGetFieldValues(handle, [number])
        except (nvml.NVMLError, nvml.NVMLLibraryMismatchError):
            continue
        if value.nvmlReturn == 0 and value.valueType < len(members):
            found[number] = getattr(value.value, members[value.valueType])
    return found


def _changes(nvml: Any, handle: Any, seconds: float) -> Json:
    """How often the driver renews what is read; None: it did not change, or is not there."""
    readings: dict[str, Callable[[], Any]] = {
        "energy": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle),
        "power": lambda: nvml.nvmlDeviceGetPowerUsage(handle),
        "utilization": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
    }
    found: Json = {}
    for name, read in readings.items():
        moments: list[float] = []
        last, until = None, time.monotonic() + seconds / len(readings)
        try:
            while (now := time.monotonic()) < until:
                if (value := read()) != last:
                    last = value
                    moments.append(now)
                time.sleep(0.001)
        except nvml.NVMLError:
            moments = []
        gaps = [b - a for a, b in pairwise(moments[1:])]
        found[name] = round(statistics.median(gaps) * 1000, 1) if gaps else None
    return found


def _registers(nvml: Any, handle: Any) -> bool:
    """Whether NVML would tell XIDs of it."""
    try:
        events = nvml.nvmlEventSetCreate()
        try:
            nvml.nvmlDeviceRegisterEvents(handle, XID_EVENT, events)
        finally:
            nvml.nvmlEventSetFree(events)
    except nvml.NVMLError:
        return False
    return True


def _words(answer: Any) -> Any:
    if isinstance(answer, (int, float, str)) or answer is None:
        return answer
    if isinstance(answer, bytes):
        return _text(answer)
    if isinstance(answer, ctypes.Array):
        return f"{sum(value.nvmlReturn == 0 for value in answer)} of {len(answer)} fields"
    if isinstance(answer, (list, tuple)):
        return [part if isinstance(part, (int, float)) else type(part).__name__ for part in answer][:16]
    if hasattr(answer, "_fields_"):
        named = ((name, getattr(answer, name)) for name, *_ in answer._fields_)
        return {name: value for name, value in named if isinstance(value, (int, float))}
    return str(answer)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m daemon.probe", description="Ask the driver everything, and time it."
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    wanted = parser.parse_args()
    die_with_parent(signal.SIGTERM, os.getppid())
    try:
        print(json.dumps(probe(rounds=wanted.rounds, seconds=wanted.seconds), indent=1))
    except DriverTrouble as trouble:
        print(json.dumps({"error": str(trouble), "gpus": []}))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
