"""What a job has taken so far, as its own process can tell: the time of all attempts, and the GPU's energy where it counts it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jobs.energy_counter import EnergyCounter, spent_j
from jobs.rundir import RunDir, read_json

#: Reads a GPU's counter: joules since its driver was loaded; None when it has none.
Counter = Callable[[], float | None]


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

    def __init__(self, folder: RunDir, counters: Sequence[Counter] | None = None):
        gpus = filter(None, os.environ.get("OVERNIGHT_GPU_UUID", "").split(","))
        self._folder = folder
        self._counters = [EnergyCounter(uuid).read_j for uuid in gpus] if counters is None else counters
        self._began = [read_j() for read_j in self._counters]

    def read(self, now: float) -> Spent:
        """What was taken until now, epoch seconds."""
        record = read_json(self._folder.state) or {}
        attempts = [run for run in record.get("attempts", ()) if isinstance(run, Mapping) and run.get("started_at")]
        ends = [*(run.get("ended_at") for run in attempts[:-1]), now]
        times = [float(end) - float(run["started_at"]) for run, end in zip(attempts, ends, strict=False) if end]
        earlier = [(run.get("usage") or {}).get("energy_j") for run in attempts[:-1]]
        own = _sum([spent_j(began, read_j()) for began, read_j in zip(self._began, self._counters, strict=True)])
        return Spent(time_s=sum(times) if times else None, energy_j=_sum([*earlier, own]))


def _sum(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if parts and len(known) == len(parts) else None
