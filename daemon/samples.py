"""What the sampler hands on: a second, a minute and the latest moment of one slot, and the file `gpu-now.json`.

The sampler reads in the middle of each second, so a sample with `ts` describes the moment ts + 0.5.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

#: What slows a GPU down, in the order of the columns thr_* and of the driver's counters.
THROTTLING = ("power_cap", "sw_thermal", "hw_thermal", "power_brake")

STATES = ("ok", "stale", "lost", "suspect")


class Sample(NamedTuple):
    """One slot in one second; a row of table `s`."""

    ts: int
    util: int | None = None
    mem_util: int | None = None
    mem_mib: int | None = None
    temp_c: int | None = None
    mem_temp_c: int | None = None
    power_mw: int | None = None
    power_inst_mw: int | None = None
    limit_mw: int | None = None
    energy_mj: int | None = None
    sm_mhz: int | None = None
    mem_mhz: int | None = None
    reasons: int | None = None
    pstate: int | None = None
    fan: int | None = None
    state: int = 0
    #: How long it has been slowed down since the driver was loaded, by reason.
    thr_power_ms: int | None = None
    thr_sw_therm_ms: int | None = None
    thr_hw_therm_ms: int | None = None
    thr_brake_ms: int | None = None
    #: What processes of ours and of others hold, as the driver lists them, and the others' share of the multiprocessors (%).
    own_mib: int | None = None
    foreign_mib: int | None = None
    foreign_util: int | None = None

    @property
    def throttled_ms(self) -> tuple[int | None, ...]:
        """The driver's counters, in the order of `THROTTLING`."""
        return self.thr_power_ms, self.thr_sw_therm_ms, self.thr_hw_therm_ms, self.thr_brake_ms


class Minute(NamedTuple):
    """One slot in one minute; a row of table `s60`. Energy and throttled times are those of this minute alone."""

    ts: int
    n: int
    util_avg: float | None
    util_max: int | None
    mem_max: int | None
    temp_avg: float | None
    temp_max: int | None
    power_avg: float | None
    power_max: int | None
    sm_avg: float | None
    reasons_or: int | None
    energy_mj: int | None
    thr_power_ms: int | None
    thr_sw_therm_ms: int | None
    thr_hw_therm_ms: int | None
    thr_brake_ms: int | None


@dataclass(frozen=True)
class Identity:
    """What table `gpu` says about a slot."""

    uuid: str
    name: str
    bus_id: str | None = None
    serial: str | None = None
    driver: str | None = None
    limits: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class GpuProcess:
    """A process on a GPU, of any user; the kind is nvidia-smi's: C, G or C+G."""

    pid: int
    memory_bytes: int | None
    kind: str
    #: Its name, and whose it is: own, desktop, unseen, other (daemon.owner); empty: nobody has looked.
    name: str = ""
    owner: str = ""


@dataclass(frozen=True)
class SlotNow:
    """The latest readings of one slot; None: cannot be read."""

    name: str
    index: int
    state: str = "ok"
    utilization_ratio: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    sm_clock_hz: int | None = None
    fan_ratio: float | None = None
    memory_utilization_ratio: float | None = None
    memory_temperature_c: float | None = None
    memory_clock_hz: int | None = None
    power_instant_w: float | None = None
    pstate: int | None = None
    #: Since the driver was loaded, by the names of `THROTTLING`.
    throttled_s: Mapping[str, float] = field(default_factory=dict)
    throttle_temperature_c: float | None = None  # where it slows down by itself
    pcie_generation: int | None = None
    pcie_generation_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    pcie_replays: int | None = None
    encoder_ratio: float | None = None
    ecc_uncorrected: int | None = None
    throttle_reasons: tuple[str, ...] = ()
    recovery_action: int | None = None  # NVML field 230; above 0 the driver asks for a reset or a reboot
    processes: tuple[GpuProcess, ...] = ()
    #: What our processes and those of others hold; the desktop's is in neither.
    own_memory_bytes: int | None = None
    foreign_memory_bytes: int | None = None
    #: The others' share of the multiprocessors while ours work beside them.
    foreign_utilization_ratio: float | None = None
    mig: bool = False  # split: no job can have the whole card

    def to_json(self) -> dict[str, Any]:
        """For `gpu-now.json`. Not `asdict`, which copies all the way down: that was the sampler's dearest call."""
        return {**vars(self), "processes": [vars(process) for process in self.processes]}


def database_path(home: Path) -> Path:
    return home / "telemetry.sqlite"


def now_path(home: Path) -> Path:
    return home / "gpu-now.json"


def publish(path: Path, value: object) -> None:
    """Replace the file whole; compact and not synced, as the next one comes in a second."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.write_text(json.dumps(value, separators=(",", ":"), allow_nan=False))
    draft.replace(path)


def unsaved_rows(now: Mapping[str, Any]) -> dict[str, list[Sample]]:
    """The rows by UUID that a `gpu-now.json` carries because the database does not have them yet."""
    width = len(Sample._fields)  # rows of another version are not ours to read
    return {uuid: [Sample(*row) for row in rows if len(row) == width] for uuid, rows in now.get("unsaved", {}).items()}


def summarize_minute(ts: int, rows: Sequence[Sample], previous: Sample | None) -> Minute:
    """One minute's row from its samples and the one before them."""
    reasons = [row.reasons for row in rows if row.reasons is not None]
    steps = list(pairwise([*([previous] if previous else []), *rows]))
    return Minute(
        ts,
        len(rows),
        _mean(row.util for row in rows),
        _most(row.util for row in rows),
        _most(row.mem_mib for row in rows),
        _mean(row.temp_c for row in rows),
        _most(row.temp_c for row in rows),
        _mean(row.power_mw for row in rows),
        _most(row.power_mw for row in rows),
        _mean(row.sm_mhz for row in rows),
        _union(reasons) if reasons else None,
        _grown((a.energy_mj, b.energy_mj) for a, b in steps),
        *(_grown((a.throttled_ms[n], b.throttled_ms[n]) for a, b in steps) for n in range(len(THROTTLING))),
    )


def summarize_minutes(ts: int, rows: Sequence[Minute]) -> Minute:
    """A longer time's row from those of its parts."""
    reasons = [row.reasons_or for row in rows if row.reasons_or is not None]
    return Minute(
        ts,
        sum(row.n for row in rows),
        _weighted((row.util_avg, row.n) for row in rows),
        _most(row.util_max for row in rows),
        _most(row.mem_max for row in rows),
        _weighted((row.temp_avg, row.n) for row in rows),
        _most(row.temp_max for row in rows),
        _weighted((row.power_avg, row.n) for row in rows),
        _most(row.power_max for row in rows),
        _weighted((row.sm_avg, row.n) for row in rows),
        _union(reasons) if reasons else None,
        _sum(row.energy_mj for row in rows),
        _sum(row.thr_power_ms for row in rows),
        _sum(row.thr_sw_therm_ms for row in rows),
        _sum(row.thr_hw_therm_ms for row in rows),
        _sum(row.thr_brake_ms for row in rows),
    )


def _weighted(values: Iterable[tuple[float | None, int]]) -> float | None:
    known = [(value, n) for value, n in values if value is not None]
    weight = sum(n for _, n in known)
    return round(sum(value * n for value, n in known) / weight, 1) if weight else None


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _grown(steps: Iterable[tuple[int | None, int | None]]) -> int | None:
    """How far a counter went; a step back is a reload of the driver, which counts from 0 again."""
    known = [max(0, b - a) for a, b in steps if a is not None and b is not None]
    return sum(known) if known else None


def _mean(values: Iterable[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 1) if known else None


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _union(masks: Iterable[int]) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union
