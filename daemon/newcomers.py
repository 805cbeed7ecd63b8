"""GPUs that appear while the rig runs: one that was lost at the rig's very first start, a driver that was loaded late."""

import os
from collections.abc import Collection

from daemon.rig import Slot
from daemon.settings import Settings
from daemon.supervisor import SLOT_MARK, Supervisor, slot_mark, worker_name
from daemon.telemetry import Live


def newcomers(setting: str, slots: Collection[Slot], live: Live) -> tuple[Slot, ...]:
    """GPUs that the sampler sees well and that are no slots yet; with `slots = "auto"` only: a list names what it wants."""
    if setting != "auto" or live.stale:
        return ()
    known = {slot.id for slot in slots}
    return tuple(
        Slot(uuid, seen.name, seen.index, seen.memory_total_bytes or 0)
        for uuid, seen in live.slots.items()
        if uuid not in known and not uuid.startswith("cpu:") and seen.state == "ok"
        if not seen.mig and not seen.recovery_action
    )


def stand_ins(setting: str, slots: Collection[Slot]) -> tuple[Slot, ...]:
    """CPU slots that stood in for GPUs which have come since."""
    if setting != "auto" or not any(slot.is_gpu for slot in slots):
        return ()
    return tuple(slot for slot in slots if not slot.is_gpu)


def add_worker(supervisor: Supervisor, settings: Settings, slot: Slot) -> None:
    """The process that runs jobs on this slot, from now on."""
    own = {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": slot.id if slot.is_gpu else "",
        SLOT_MARK: slot_mark(settings, slot.id),
        "OPENBLAS_NUM_THREADS": "1",
        # counting GPUs through CUDA would make every later fork useless (poison_fork in torch/csrc/cuda/Module.cpp)
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        # read once, when the hub's library is imported: before a preloaded worker knows its first job
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE") or ("0" if settings.allow_hub else "1"),
    }
    supervisor.add(worker_name(slot.id), ["workers", "--slot", slot.id, "--parent", str(os.getpid())], own)
