"""The energy counter of the GPU that this process computes on, read at the very start and end of what is measured.

The sampler (daemon.sampler) reads the same counter once a second for everybody; a job cannot see its files, and a cell of a
few seconds needs the moments themselves. Every failure means "not known": a benchmark is no worse for it.
"""

import os
from typing import Any

MJ_PER_J = 1000


class EnergyCounter:
    """Joules of one GPU since its driver was loaded. `uuid`: as NVML names it; "" where there is none."""

    def __init__(self, uuid: str):
        self._nvml, self._handle, self.name = _opened(uuid)

    def read_j(self) -> float | None:
        """The counter now; None where the GPU has none (before Volta, or a part of a card)."""
        if self._handle is None:
            return None
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / MJ_PER_J
        except Exception:  # pynvml's errors are made when it is loaded
            return None

    def memory_used_bytes(self) -> int | None:
        """Memory of the whole card that is taken now, by everybody on it, as the driver counts it."""
        if self._handle is None:
            return None
        try:
            return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        except Exception:  # as above
            return None


def uuid_of_this_process() -> str:
    """The GPU that the worker gave; "" when it gave none, or several."""
    found = os.environ.get("OVERNIGHT_GPU_UUID", "")
    return "" if "," in found else found


def spent_j(start: float | None, end: float | None) -> float | None:
    """Joules in between; None when either is not known, or the counter began anew."""
    if start is None or end is None or end < start:
        return None
    return end - start


def _opened(uuid: str) -> tuple[Any, Any, str]:
    if not uuid:
        return None, None, ""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return pynvml, handle, str(pynvml.nvmlDeviceGetName(handle))
    except Exception:  # no package, no driver, no such GPU
        return None, None, ""
