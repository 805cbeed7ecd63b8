"""One NVIDIA GPU, read only: what is asked of it, and how the answers make a sample. `daemon.nvml_calls` asks.

PCIe throughput is never read: that call blocks for 20 ms per direction.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from daemon.gpus import Gpu
from daemon.nvml_calls import (
    INSUFFICIENT_SIZE,
    NOT_FOUND,
    Calls,
    GpuTrouble,
    raise_for_driver,
)
from daemon.owner import MIB, Kind, held_bytes
from daemon.samples import STATES, THROTTLING, GpuProcess, Identity, Sample, SlotNow

# Field ids of nvmlDeviceGetFieldValues
ENERGY_MJ, POWER_MW, POWER_INSTANT_MW, LIMIT_MW, MEMORY_TEMP_C, RECOVERY_ACTION = 83, 185, 186, 190, 82, 230
ECC_UNCORRECTED, PCIE_REPLAYS = 4, 94  # double-bit errors since the driver was loaded; packets sent again
THROTTLED_NS = (74, 269, 270, 271)  # in the order of THROTTLING
THROTTLED_COLUMNS = ("thr_power_ms", "thr_sw_therm_ms", "thr_hw_therm_ms", "thr_brake_ms")
FIELDS = (ENERGY_MJ, POWER_MW, POWER_INSTANT_MW, LIMIT_MW, *THROTTLED_NS, RECOVERY_ACTION)
SLOW_FIELDS = (MEMORY_TEMP_C, ECC_UNCORRECTED, PCIE_REPLAYS)
VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t

SM_CLOCK, MEMORY_CLOCK = 1, 2
#: Bits of the clock-event reasons that slow a GPU down. Bit 0, an idle GPU, is none of them.
THROTTLE_REASONS = {
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
#: These drivers fill process lists with a longer structure: what the binding reads from them is garbage.
GARBLED_PROCESS_LISTS = ((535, 43), (535, 85))

MISSES_UNTIL_SUSPECT = 5
#: The link and the video encoder are asked at every second thorough round.
THOROUGH_ROUNDS_PER_LINK = 2
#: nvmlDeviceGetTemperatureThreshold's number for where the GPU slows down by itself.
SLOWDOWN_THRESHOLD = 1
PROCESS_ROOM = 64

#: Puts names and owners to processes: daemon.owner's `Whose`.
Owners = Callable[[Iterable[GpuProcess]], tuple[GpuProcess, ...]]


class Card:
    """One GPU. `read` takes a sample and keeps what the live view needs beside it."""

    def __init__(self, nvml: Any, index: int, handle: Any, *, retry_s: float, whose: Owners | None = None) -> None:
        self._nvml = nvml
        self._calls = Calls(nvml, handle)
        self._retry_s = retry_s
        self._whose = whose
        self._rests_until = 0.0
        self.state = "ok"
        self.gpu = self._gpu(index)
        if GARBLED_PROCESS_LISTS[0] <= _version(self.gpu.driver) <= GARBLED_PROCESS_LISTS[1]:
            self._calls.never |= {"processes_v3", "processes_v2"}
        self.identity = self._identity()
        self._sample = Sample(0)
        self._thorough_rounds = 0
        self._fan: int | None = None
        self._pstate: int | None = None
        self._slow: dict[int, int] = {}
        self._encoder: int | None = None
        self._margin_c: int | None = None
        self._link: tuple[int | None, int | None] = (None, None)
        self._link_max = self._calls.ask("MaxPcieLinkGeneration"), self._calls.ask("MaxPcieLinkWidth")
        self._recovery_action: int | None = None
        self._processes: tuple[GpuProcess, ...] = ()
        self._foreign_util: int | None = None
        self._util_seen_us = 0

    @property
    def uuid(self) -> str:
        return self.gpu.uuid

    @property
    def handle(self) -> Any:
        """The driver's; None while it rests."""
        return self._calls.handle

    @property
    def reason(self) -> str:
        """What was wrong last."""
        return self._calls.reason

    @property
    def processes(self) -> tuple[GpuProcess, ...]:
        """Those of the last thorough look."""
        return self._processes

    def read(self, ts: int, *, at: float, thoroughly: bool) -> Sample:
        """A sample for second `ts`, at `at` of the monotonic clock; what changes slowly only when `thoroughly`."""
        if self.handle is None and at >= self._rests_until:
            self._wake(at)
        self._sample = Sample(ts)
        if self.handle is not None:
            try:
                self._sample = self._take(ts, thoroughly)
                self.state = "suspect" if max(self._calls.misses.values(), default=0) >= MISSES_UNTIL_SUSPECT else "ok"
            except GpuTrouble as trouble:
                self.rest(trouble.state, str(trouble), until=at + self._retry_s)
        return self._sample._replace(state=STATES.index(self.state))

    def rest(self, state: str, reason: str, *, until: float) -> None:
        """Leave this GPU alone for a while."""
        self._calls.handle, self._rests_until = None, until
        self.state, self._calls.reason = state, reason
        self._processes, self._recovery_action, self._foreign_util = (), None, None

    def now(self) -> SlotNow:
        """The live view's entry."""
        sample = self._sample
        return SlotNow(
            name=self.gpu.name,
            index=self.gpu.index,
            state=self.state,
            utilization_ratio=_scaled(sample.util, 100),
            memory_used_bytes=None if sample.mem_mib is None else sample.mem_mib << 20,
            memory_total_bytes=self.gpu.memory_bytes,
            temperature_c=sample.temp_c,
            power_w=_scaled(sample.power_mw, 1000),
            power_limit_w=_scaled(sample.limit_mw, 1000),
            energy_j=_scaled(sample.energy_mj, 1000),
            sm_clock_hz=None if sample.sm_mhz is None else sample.sm_mhz * 1_000_000,
            fan_ratio=_scaled(sample.fan, 100),
            memory_utilization_ratio=_scaled(sample.mem_util, 100),
            memory_temperature_c=sample.mem_temp_c,
            memory_clock_hz=None if sample.mem_mhz is None else sample.mem_mhz * 1_000_000,
            power_instant_w=_scaled(sample.power_inst_mw, 1000),
            pstate=sample.pstate,
            throttled_s={
                reason: ms / 1000 for reason, ms in zip(THROTTLING, sample.throttled_ms, strict=True) if ms is not None
            },
            throttle_temperature_c=self._slowdown_c,
            pcie_generation=self._link[0],
            pcie_generation_max=self._link_max[0],
            pcie_width=self._link[1],
            pcie_width_max=self._link_max[1],
            pcie_replays=self._slow.get(PCIE_REPLAYS),
            encoder_ratio=_scaled(self._encoder, 100),
            ecc_uncorrected=self._slow.get(ECC_UNCORRECTED),
            throttle_reasons=tuple(name for bit, name in THROTTLE_REASONS.items() if (sample.reasons or 0) & bit),
            recovery_action=self._recovery_action,
            processes=self._processes,
            own_memory_bytes=self._held(Kind.OWN),
            foreign_memory_bytes=self._held(Kind.OTHER),
            foreign_utilization_ratio=_scaled(sample.foreign_util, 100),
            mig=self.gpu.mig,
        )

    def details(self) -> dict[str, Any]:
        """What `overnight doctor` looks at."""
        ecc = self._calls.ask("EccMode")
        return {
            "gpu": asdict(self.gpu),
            "now": asdict(self.now()),
            "limits": self.identity.limits,
            "persistence": bool(self._calls.ask("PersistenceMode")),
            "display": bool(self._calls.ask("DisplayActive")),
            "ecc": None if ecc is None else bool(ecc[0]),
            "remapped_rows": self._calls.ask("RemappedRows"),
        }

    def _wake(self, at: float) -> None:
        try:
            self._calls.handle = self._nvml.nvmlDeviceGetHandleByUUID(self.uuid)
        except self._nvml.NVMLError as error:
            raise_for_driver(error)
            self.rest("lost", f"HandleByUUID answered {type(error).__name__}", until=at + self._retry_s)

    def _gpu(self, index: int) -> Gpu:
        memory, mig, pci = self._memory(), self._calls.ask("MigMode"), self._calls.ask("PciInfo")
        return Gpu(
            uuid=_text(self._nvml.nvmlDeviceGetUUID(self.handle)),
            index=index,
            name=_text(self._calls.ask("Name")) or "NVIDIA GPU",
            memory_bytes=memory[1] if memory else 0,
            bus_id=_text(pci.busId) if pci else "",
            driver=_text(self._nvml.nvmlSystemGetDriverVersion()),
            power_limit_w=_scaled(self._calls.ask("EnforcedPowerLimit"), 1000),
            mig=bool(mig and mig[0]),
        )

    def _identity(self) -> Identity:
        gpu, range_mw = self.gpu, self._calls.ask("PowerManagementLimitConstraints") or (None, None)
        thresholds = {kind: self._calls.ask("TemperatureThreshold", kind) for kind in (0, 1, 2, 3, 5)}
        self._threshold_c: int | None = thresholds[SLOWDOWN_THRESHOLD]
        self._slowdown_c = self._threshold_c
        limits = {
            "memory_bytes": gpu.memory_bytes,
            "power_mw": {
                "min": range_mw[0],
                "default": self._calls.ask("PowerManagementDefaultLimit"),
                "max": range_mw[1],
            },
            "threshold_c": thresholds,
        }
        return Identity(self.uuid, gpu.name, gpu.bus_id, _text(self._calls.ask("Serial")) or None, gpu.driver, limits)

    def _take(self, ts: int, thoroughly: bool) -> Sample:
        load, memory = self._calls.ask("UtilizationRates"), self._memory()
        field = self._fields((*FIELDS, *SLOW_FIELDS) if thoroughly else FIELDS)
        if thoroughly:
            self._take_slow(field)
        self._recovery_action = field.get(RECOVERY_ACTION)
        temp_c = self._calls.or_ask(self._calls.ask("TemperatureV", 0), "Temperature", 0)
        if self._margin_c is not None and temp_c is not None:
            self._slowdown_c, self._margin_c = temp_c + self._margin_c, None
        return Sample(
            ts,
            util=load.gpu if load else None,
            mem_util=load.memory if load else None,
            mem_mib=memory[0] >> 20 if memory else None,
            temp_c=temp_c,
            mem_temp_c=self._slow.get(MEMORY_TEMP_C),
            # The average is not known before Ampere, where the instant reading has a window as long.
            power_mw=self._calls.or_ask(field.get(POWER_MW, field.get(POWER_INSTANT_MW)), "PowerUsage"),
            power_inst_mw=field.get(POWER_INSTANT_MW),
            limit_mw=self._calls.or_ask(field.get(LIMIT_MW), "EnforcedPowerLimit"),
            energy_mj=self._calls.or_ask(field.get(ENERGY_MJ), "TotalEnergyConsumption"),
            sm_mhz=self._calls.ask("ClockInfo", SM_CLOCK),
            mem_mhz=self._calls.ask("ClockInfo", MEMORY_CLOCK),
            reasons=self._calls.or_ask(self._calls.ask("CurrentClocksEventReasons"), "CurrentClocksThrottleReasons"),
            pstate=self._pstate,
            fan=self._fan,
            own_mib=_mib(self._held(Kind.OWN)),
            foreign_mib=_mib(self._held(Kind.OTHER)),
            foreign_util=self._foreign_util,
            **{
                name: field[number] // 1_000_000
                for name, number in zip(THROTTLED_COLUMNS, THROTTLED_NS, strict=True)
                if number in field
            },
        )

    def _take_slow(self, field: dict[int, int]) -> None:
        """What changes slowly, or costs the driver much."""
        self._fan, self._pstate = self._calls.ask("FanSpeed"), self._calls.ask("PerformanceState")
        self._slow = {number: field[number] for number in SLOW_FIELDS if number in field}
        self._processes = self._whose(self._list_processes()) if self._whose else self._list_processes()
        self._foreign_util = self._ask_foreign_util()
        if self._thorough_rounds % THOROUGH_ROUNDS_PER_LINK == 0:
            self._link = self._calls.ask("CurrPcieLinkGeneration"), self._calls.ask("CurrPcieLinkWidth")
            encoder = self._calls.ask("EncoderUtilization")
            self._encoder = encoder[0] if encoder else None
            if not self._threshold_c:  # server cards tell how far they are from it instead
                self._margin_c = self._calls.ask("MarginTemperature")
        self._thorough_rounds += 1

    def _memory(self) -> tuple[int, int] | None:
        """Used and total bytes. Version 1 counts the driver's reserve as used, and an idle GPU looks in use."""
        memory = self._calls.or_ask(self._calls.ask("MemoryInfo", version=self._nvml.nvmlMemory_v2), "MemoryInfo")
        return (int(memory.used), int(memory.total)) if memory else None

    def _fields(self, numbers: Sequence[int]) -> dict[int, int]:
        """The fields that this GPU knows, in one driver call."""
        values = self._calls.ask("FieldValues", list(numbers)) or ()
        return {v.fieldId: int(getattr(v.value, VALUE_MEMBERS[v.valueType])) for v in values if v.nvmlReturn == 0}

    def _list_processes(self) -> tuple[GpuProcess, ...]:
        compute, graphics = self._list("Compute"), self._list("Graphics")
        return tuple(
            GpuProcess(
                pid, memory_bytes, "C+G" if pid in compute and pid in graphics else "C" if pid in compute else "G"
            )
            for pid, memory_bytes in sorted({**graphics, **compute}.items())
        )

    def _held(self, kind: Kind) -> int | None:
        """Bytes that such processes hold; None where lists of processes cannot be had."""
        if self._whose is None or self.handle is None or {"processes_v3", "processes_v2"} <= self._calls.never:
            return None
        return held_bytes(self._processes, kind)

    def _ask_foreign_util(self) -> int | None:
        """Per cent of the multiprocessors that others had lately; asked only while they work beside us."""
        pids = {owner: {p.pid for p in self._processes if p.owner == owner.value} for owner in (Kind.OWN, Kind.OTHER)}
        if not all(pids.values()):
            return None
        rows: list[tuple[int, int, int]] | None = self._calls.attempt("ProcessUtilization", self._process_utilization)
        if rows is None:
            return None
        self._util_seen_us = max((at for _, at, _ in rows), default=self._util_seen_us)
        shares: dict[int, list[int]] = {}
        for pid, _, share in rows:
            if pid in pids[Kind.OTHER] and share <= 100:  # more is a known mistake of the driver's
                shares.setdefault(pid, []).append(share)
        return min(100, round(sum(sum(found) / len(found) for found in shares.values())))

    def _process_utilization(self) -> list[tuple[int, int, int]]:
        """Process, time in us, per cent. That nothing ran since the last look is no error."""
        try:
            found = self._nvml.nvmlDeviceGetProcessUtilization(self.handle, self._util_seen_us)
        except self._nvml.NVMLError as error:
            if error.value in (0, NOT_FOUND):  # 0: the binding raises when the list is empty
                return []
            raise
        return [(row.pid, row.timeStamp, row.smUtil) for row in found]

    def _list(self, kind: str) -> dict[int, int | None]:
        for version in ("v3", "v2"):
            call = partial(self._call_list, f"nvmlDeviceGet{kind}RunningProcesses_{version}")
            rows: dict[int, int | None] | None = self._calls.attempt(f"processes_{version}", call)
            if rows is not None:
                return rows
        return {}

    def _call_list(self, name: str) -> dict[int, int | None]:
        """Bytes by pid. The binding's own function asks twice, and on a real driver this is the dearest call of all."""
        function, room, code = self._nvml._nvmlGetFunctionPointer(name), PROCESS_ROOM, INSUFFICIENT_SIZE
        while code == INSUFFICIENT_SIZE and room <= 4096:
            rows, count = (self._nvml.c_nvmlProcessInfo_v2_t * room)(), ctypes.c_uint(room)
            code = function(self.handle, ctypes.byref(count), rows)
            room = 2 * max(room, count.value)
        self._nvml._nvmlCheckReturn(code)
        unknown = self._nvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value
        return {row.pid: None if row.usedGpuMemory == unknown else row.usedGpuMemory for row in rows[: count.value]}


def _mib(count: int | None) -> int | None:
    return None if count is None else count // MIB


def _scaled(value: int | None, divisor: int) -> float | None:
    return None if value is None else value / divisor


def _text(value: str | bytes | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def _version(driver: str) -> tuple[int, ...]:
    return tuple(int(part) for part in driver.split(".")[:2] if part.isdigit())
