"""What a job has taken so far, as its own process can tell: the time of all attempts, and the GPU's energy where it counts it."""

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.rundir import RunDir, read_json

#: Reads a GPU's counter: joules since its driver was loaded; None when it has none.
Counter = Callable[[str], float | None]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Until this moment. `energy_j` is None when nobody counted it, or not in all attempts."""

    time_s: float | None
    energy_j: float | None

    @property
    def told(self) -> dict[str, str]:
        """For people."""
        found = {}
        if self.time_s is not None:
            found["time"] = f"{self.time_s / 60:.1f} min"
        if self.energy_j is not None:
            found["energy of its GPUs"] = f"{self.energy_j / 3.6e6:.3g} kWh"
        return found


class Meter:
    """Counts from the attempt's start. What earlier attempts took stands in the job's record."""

    def __init__(self, folder: RunDir, *, count: Counter | None = None):
        self._folder, self._count = folder, count or _joules
        self._gpus = [uuid for uuid in os.environ.get("OVERNIGHT_GPU_UUID", "").split(",") if uuid]
        self._began = [self._count(uuid) for uuid in self._gpus]

    def read(self, now: float) -> Spent:
        """What was taken until now, epoch seconds."""
        record = read_json(self._folder.state) or {}
        attempts = [run for run in record.get("attempts", ()) if isinstance(run, Mapping) and run.get("started_at")]
        ends = [*(run.get("ended_at") for run in attempts[:-1]), now]
        times = [float(end) - float(run["started_at"]) for run, end in zip(attempts, ends, strict=False) if end]
        earlier = [(run.get("usage") or {}).get("energy_j") for run in attempts[:-1]]
        return Spent(time_s=sum(times) if times else None, energy_j=_sum([*earlier, self._own()]))

    def _own(self) -> float | None:
        return _sum([
            None if before is None or (after := self._count(uuid)) is None else after - before
            for uuid, before in zip(self._gpus, self._began, strict=True)
        ])  # fmt: skip


def _sum(parts: list[Any]) -> float | None:
    return None if not parts or any(part is None for part in parts) else sum(map(float, parts))


def _joules(uuid: str) -> float | None:
    """NVML's counter (nvmlDeviceGetTotalEnergyConsumption, millijoules; Volta and later)."""
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(uuid))) / 1000
    return None
