"""Which GPUs this machine has. The driver is asked in a child process: a wedged driver must never block the daemon."""

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML names it; the index may change with a reboot, the UUID never does."""

    uuid: str
    index: int
    name: str
    memory_bytes: int
    bus_id: str
    driver: str
    power_limit_w: float | None
    mig: bool  # split into MIG slices: listed, but no job can be scheduled on the whole card


@dataclass(frozen=True)
class Inventory:
    """The GPUs that answered, and in one plain sentence what is wrong with the others or with the driver."""

    gpus: tuple[Gpu, ...]
    problem: str | None
    #: The driver was replaced while in use: no new process can use a GPU until a reboot.
    replaced: bool = False


def discover(*, timeout_s: float = 10.0) -> Inventory:
    """Ask the driver once. Never raises for a missing, broken or silent driver: that is the inventory's problem."""
    child = subprocess.Popen(
        [sys.executable, "-m", "daemon.sampler", "--inventory"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        answer, errors = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _abandon(child)
        problem = f"The NVIDIA driver did not answer within {timeout_s:g} s: `nvidia-smi` and the kernel log say more."
        return Inventory((), problem)
    if child.returncode != 0:
        reason = errors.strip().splitlines()[-1] if errors.strip() else f"exit status {child.returncode}"
        return Inventory((), f"The GPUs could not be listed ({reason}).")
    return _inventory(json.loads(answer))


def _abandon(child: "subprocess.Popen[str]") -> None:
    """Kill without waiting for long: a process that waits for the driver in the kernel dies only when that returns."""
    child.kill()
    for pipe in (child.stdout, child.stderr):
        if pipe:
            pipe.close()
    with suppress(subprocess.TimeoutExpired):  # Python reaps it later
        child.wait(timeout=1.0)


def _inventory(answer: dict[str, Any]) -> Inventory:
    return Inventory(tuple(Gpu(**gpu) for gpu in answer["gpus"]), answer["problem"], answer["replaced"])
