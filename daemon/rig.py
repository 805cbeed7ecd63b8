"""The rig's slots: one per GPU, by NVML UUID; CPU slots where there is no GPU."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

DEFAULT_CPU_SLOTS = 2
#: A card that has been away for so long was taken out: it is forgotten at the next start.
ABSENT_KEPT_S = 7 * 86_400.0


class NoSuchSlot(ValueError):
    """The setting `slots` names what is not there."""


@dataclass(frozen=True)
class Slot:
    """What one worker owns."""

    id: str  # the GPU's UUID, or cpu:0
    name: str
    index: int  # for people only: it may change at a reboot
    memory_bytes: int = 0
    #: Since when the driver has not shown it at a start; None: it was there.
    absent_since: float | None = None

    @property
    def is_gpu(self) -> bool:
        return not self.id.startswith("cpu:")

    @property
    def title(self) -> str:
        """What people call it."""
        return f"GPU {self.index}" if self.is_gpu else f"CPU slot {self.index}"

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(**record)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def with_absent(gpus: Sequence[Slot], known: Iterable[Slot], *, now: float) -> list[Slot]:
    """The GPUs that are there, and those of an earlier life that are not: a lost card is missed, never forgotten at once.

    Without them a driver that comes up late would leave a rig of GPUs with CPU slots for the night.
    """
    there = {gpu.id for gpu in gpus}
    missed = [replace(slot, absent_since=slot.absent_since or now) for slot in known if slot.is_gpu]
    kept = [slot for slot in missed if slot.id not in there and now - (slot.absent_since or now) < ABSENT_KEPT_S]
    return [*gpus, *kept]


def choose_slots(setting: str, gpus: Iterable[Slot]) -> tuple[Slot, ...]:
    """The slots that the setting asks for: `auto`, `cpu:N`, or UUIDs with commas. Raises NoSuchSlot."""
    by_id = {gpu.id: gpu for gpu in gpus}
    if setting == "auto":
        return tuple(by_id.values()) or cpu_slots(DEFAULT_CPU_SLOTS)
    if setting.startswith("cpu:"):
        count = setting.removeprefix("cpu:")
        if not count.isdigit() or not 1 <= int(count) <= 64:
            raise NoSuchSlot(f"slots: {setting!r} is not cpu:1 to cpu:64")
        return cpu_slots(int(count))
    wanted = [part.strip() for part in setting.split(",") if part.strip()]
    if missing := [uuid for uuid in wanted if uuid not in by_id]:
        there = ", ".join(by_id) or "none"
        raise NoSuchSlot(f"slots: no GPU has the UUID {missing[0]!r}; there are: {there}")
    return tuple(by_id[uuid] for uuid in dict.fromkeys(wanted))


def cpu_slots(count: int) -> tuple[Slot, ...]:
    """Slots for a machine without a GPU: each counts as one GPU."""
    return tuple(Slot(id=f"cpu:{n}", name=f"CPU slot {n}", index=n) for n in range(count))
