"""Set the GPUs' power limits once and end: `python -m daemon.power GPU-<uuid>=250 ...`.

A process of its own, run when the daemon starts and `gpu_power_limit_w` is set: the sampler only reads, and the daemon never
loads the driver. Setting a limit needs root; one that is refused is told in a sentence, and the rig goes on without it.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from daemon.nvml_calls import DriverTrouble, explain, load_binding
from daemon.rig import Slot
from jobs.process import die_with_parent

TIMEOUT_S = 10.0
# nvmlReturn_t
INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION = 2, 3, 4


def wanted(setting: float | Mapping[str, float] | None, slots: Iterable[Slot]) -> dict[str, float]:
    """The limit in watts of each of the rig's GPUs that is to have one."""
    gpus = [slot.id for slot in slots if slot.is_gpu]
    if isinstance(setting, Mapping):
        return {uuid: watts for uuid, watts in setting.items() if uuid in gpus}
    return dict.fromkeys(gpus, setting) if setting is not None else {}


def set_limits(limits: Mapping[str, float]) -> list[str]:
    """Set them in a process of its own. Returns what happened, a sentence for each GPU. A silent driver holds nobody up."""
    if not limits:
        return []
    argv = [sys.executable, "-m", "daemon.power", *(f"{uuid}={watts:g}" for uuid, watts in limits.items())]
    child = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        return child.communicate(timeout=TIMEOUT_S)[0].splitlines()
    except subprocess.TimeoutExpired:
        child.kill()  # without waiting: it may sit in the kernel
        return [f"The NVIDIA driver did not set the power limits within {TIMEOUT_S:g} s."]


def main(argv: list[str]) -> int:
    """Set each limit; print a sentence for each. The exit status counts those that were refused."""
    limits = {uuid: float(watts) for uuid, _, watts in (part.partition("=") for part in argv)}
    try:
        nvml = load_binding()
    except DriverTrouble as trouble:
        print(trouble)
        return len(limits)
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        print(explain(error))
        return len(limits)
    refusals = [_set(nvml, uuid, watts) for uuid, watts in limits.items()]
    nvml.nvmlShutdown()
    for uuid, refusal, watts in zip(limits, refusals, limits.values(), strict=True):
        print(refusal or f"{uuid} may draw {watts:g} W.")
    return sum(refusal is not None for refusal in refusals)


def _set(nvml: Any, uuid: str, watts: float) -> str | None:
    """Why it was refused; None when it was not."""
    failed = f"{uuid} keeps its power limit"
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        low_mw, high_mw = nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
        if not low_mw <= watts * 1000 <= high_mw:
            return f"{failed}: it can be set from {low_mw / 1000:g} to {high_mw / 1000:g} W, not to {watts:g} W."
        nvml.nvmlDeviceSetPowerManagementLimit(handle, round(watts * 1000))
    except nvml.NVMLError as error:
        if error.value == NO_PERMISSION:
            return f"{failed}: only root may set it. Run once: sudo nvidia-smi -i {uuid} -pl {watts:g}"
        if error.value in (INVALID_ARGUMENT, NOT_SUPPORTED):
            return f"{failed}: this GPU has none that can be set ({type(error).__name__})."
        return f"{failed}: the driver answered {type(error).__name__}."
    return None


if __name__ == "__main__":
    die_with_parent(signal.SIGTERM, os.getppid())
    sys.exit(main(sys.argv[1:]))
