"""The machine itself as CPU slots, for a rig without a GPU. Every slot shows the whole machine: they share it."""

import platform
from pathlib import Path

import psutil

from daemon.samples import Identity, Sample, SlotNow

#: Sensors of the processor, by the names that Linux drivers give them.
CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal", "acpitz")


class Machine:
    """Load, memory and temperature of the machine. It has no energy counter that every user may read."""

    def __init__(self, slots: int) -> None:
        self.slots = [f"cpu:{index}" for index in range(slots)]
        self.name = _cpu_name()
        self._sample = Sample(0)
        self._memory_total_bytes = int(psutil.virtual_memory().total)
        psutil.cpu_percent()  # the first answer is meaningless; the next one counts from here

    def read(self, ts: int) -> dict[str, Sample]:
        """A sample by slot; the load is the mean since the last call."""
        memory = psutil.virtual_memory()
        self._sample = Sample(
            ts,
            util=round(psutil.cpu_percent()),
            mem_mib=(memory.total - memory.available) >> 20,
            temp_c=_cpu_temperature(),
        )
        return dict.fromkeys(self.slots, self._sample)

    def identity(self, slot: str) -> Identity:
        return Identity(slot, self.name, limits={"memory_bytes": self._memory_total_bytes})

    def now(self, slot: str) -> SlotNow:
        """The live view's entry."""
        util, mem_mib = self._sample.util, self._sample.mem_mib
        return SlotNow(
            name=self.name,
            index=int(slot.removeprefix("cpu:")),
            utilization_ratio=None if util is None else util / 100,
            memory_used_bytes=None if mem_mib is None else mem_mib << 20,
            memory_total_bytes=self._memory_total_bytes,
            temperature_c=self._sample.temp_c,
        )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine() or "CPU"


def _cpu_temperature() -> int | None:
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    for name in CPU_SENSORS:
        if sensors.get(name):
            return int(max(sensor.current for sensor in sensors[name]))
    return None
