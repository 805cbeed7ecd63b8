"""Whether each GPU may take a job now: is somebody else on it, is the last job's memory free again, is it too hot.

`Conditions` remembers what a single reading cannot tell: since when. It is fed by the planning loop with what the sampler
published; its verdicts go out with the daemon's beat, so that the page gives the planner's own reasons.
"""

import os
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from daemon.owner import MIB, Kind, Process, look_up, strangers
from daemon.samples import SlotNow
from daemon.settings import Settings
from daemon.supervisor import MARK, mark
from daemon.telemetry import Live

#: What the sampler says of a GPU that must get no new job.
UNFIT = frozenset({"lost", "suspect"})
#: What a desktop may hold; the baseline is never taken for more.
LARGEST_BASELINE_BYTES = 1536 * MIB
#: A process of ours on a GPU whose job has ended is left behind when it is still there after this long: it is ended.
LEFT_BEHIND_S = 5.0
#: An ended job's memory is free when no more than this is held above the baseline; within this time, or something is wrong.
DRAINED_BYTES, DRAIN_S = 256 * MIB, 30.0
#: On an idle GPU, memory that no listed process explains, or work that none does, is somebody's.
UNEXPLAINED_BYTES, UNEXPLAINED_LOAD, UNEXPLAINED_LOAD_S = 1024 * MIB, 0.3, 60.0
#: A GPU that has been too hot for a start this long counts as out of order: nothing is kept for it any more.
LONGEST_REST_S = 900.0
IDLE_SAMPLES = 60


@dataclass(frozen=True)
class Condition:
    """What the planner needs to know of one slot's GPU; the words follow "GPU 0 is"."""

    problem: str | None = None
    resting: str | None = None
    leave: str | None = None
    room_bytes: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None

    @property
    def verdict(self) -> tuple[bool, bool, bool]:
        """What changes a plan: not the words."""
        return self.problem is None, self.resting is None, self.leave is None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; what another version added is left out."""
        return cls(**{name: value for name, value in record.items() if name in cls.__dataclass_fields__})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Memory:
    """What is remembered of one GPU."""

    idle_used: deque[int] = field(default_factory=lambda: deque(maxlen=IDLE_SAMPLES))
    job: str | None = None
    idle_since: float | None = None
    drained: bool = True
    stranger: str | None = None
    stranger_since: float | None = None
    stranger_seen_at: float | None = None
    #: It is a job of ours that was given another GPU.
    stranger_is_ours: bool = False
    blocked: bool = False
    loaded_since: float | None = None
    hot_since: float | None = None
    over_since: float | None = None

    @property
    def baseline_bytes(self) -> int:
        """What it holds when nobody works on it; 0 until it was seen idle."""
        return min(LARGEST_BASELINE_BYTES, int(statistics.median(self.idle_used))) if self.idle_used else 0

    @property
    def largest_idle_bytes(self) -> int:
        """What it may hold without anybody at work."""
        return self.baseline_bytes if self.idle_used else LARGEST_BASELINE_BYTES


class Conditions:
    """The GPUs of one rig, as they have been lately."""

    def __init__(self, settings: Settings, *, daemon: int | None = None):
        self._settings = settings
        self._mark = f"{MARK}={mark(settings)}"
        self._daemon = daemon or os.getpid()
        self._memories: dict[str, _Memory] = {}
        #: The verdicts of the last look.
        self.latest: dict[str, Condition] = {}
        #: Processes of jobs that have ended, to be ended.
        self.left_behind: dict[int, Process] = {}
        self._left_since: dict[int, float] = {}
        self._occupied: Mapping[str, str] = {}
        self._read_at: float | None = None

    def look(self, live: Live, occupied: Mapping[str, str], now: float) -> dict[str, Condition]:
        """The condition of each GPU. Without a sampler nothing is known, and nothing held: telemetry never stops the work."""
        if live.stale:
            self.latest = {}
            return {}
        # a job that has just left must be noticed before the next sample comes
        fresh = live.at != self._read_at
        self._occupied = occupied
        still_left: dict[int, float] = {}
        for slot, seen in live.slots.items():
            if slot.startswith("cpu:"):
                continue
            memory = self._memories.setdefault(slot, _Memory())
            if fresh or memory.job != occupied.get(slot):
                processes = look_up(seen.processes, mark=self._mark, daemon=self._daemon)
                self._note(slot, memory, seen, processes, live.at or now, now)
                self.latest[slot] = self._judge(memory, seen, now)
                still_left |= {p.pid: self._left_since.get(p.pid, now) for p in processes if self._is_left_behind(p)}
                self.left_behind |= {p.pid: p for p in processes if now - still_left.get(p.pid, now) >= LEFT_BEHIND_S}
        if fresh:
            self._left_since = still_left
            self.left_behind = {pid: one for pid, one in self.left_behind.items() if pid in still_left}
        self._read_at = live.at
        return dict(self.latest)

    # -- what is seen ---------------------------------------------------------------------------------------------------

    def _is_left_behind(self, process: Process) -> bool:
        return bool(process.slot) and process.slot not in self._occupied

    def _astray(self, slot: str, processes: Sequence[Process]) -> tuple[Process, ...]:
        """Those of jobs of ours that were given other GPUs than this one: they ignore what they are pinned to."""
        job = self._occupied.get(slot)
        return tuple(p for p in processes if p.slot and p.matters and self._occupied.get(p.slot, job) != job)

    def _note(
        self, slot: str, memory: _Memory, seen: SlotNow, processes: tuple[Process, ...], at: float, now: float
    ) -> None:
        job = self._occupied.get(slot)
        if memory.job is not None and job is None:
            memory.idle_since, memory.drained = now, False
        elif memory.idle_since is None and job is None:
            memory.idle_since = at  # the daemon begins with it idle
        memory.job = job
        if job is not None:
            memory.idle_since = None
        if memory.idle_since is not None and at > memory.idle_since:
            self._note_idle(memory, seen, processes)
        astray = self._astray(slot, processes)
        self._note_strangers(memory, self._words(astray) or self._stranger(memory, seen, processes, now), now)
        memory.stranger_is_ours = bool(astray)
        self._note_heat(memory, seen, now)

    def _note_idle(self, memory: _Memory, seen: SlotNow, processes: tuple[Process, ...]) -> None:
        used = seen.memory_used_bytes
        if used is None:
            memory.drained = True  # this card does not tell: there is nothing to wait for
            return
        others = sum(p.memory_bytes or 0 for p in processes if p.kind in (Kind.DESKTOP, Kind.OTHER))
        if used <= max(memory.largest_idle_bytes, others) + DRAINED_BYTES:
            memory.drained = True
        explained = used <= memory.largest_idle_bytes + UNEXPLAINED_BYTES
        if memory.drained and explained and not strangers(processes, idle=True):
            memory.idle_used.append(used)

    def _words(self, astray: Sequence[Process]) -> str | None:
        if not astray:
            return None
        most = max(astray, key=lambda process: process.memory_bytes or 0)
        return f"job {self._occupied[most.slot]}, which was given another GPU and does not keep to it: {most}"

    def _stranger(self, memory: _Memory, seen: SlotNow, processes: tuple[Process, ...], now: float) -> str | None:
        """Who else is on it, at this look."""
        idle = memory.job is None
        if found := strangers(processes, idle=idle):
            return str(max(found, key=lambda process: process.memory_bytes or 0))
        working = idle and (seen.utilization_ratio or 0.0) >= UNEXPLAINED_LOAD and memory.drained
        memory.loaded_since = (memory.loaded_since if memory.loaded_since is not None else now) if working else None
        if memory.loaded_since is not None and now - memory.loaded_since >= UNEXPLAINED_LOAD_S:
            return f"somebody whose process is not listed ({seen.utilization_ratio:.0%} busy)"
        shown = sum(process.memory_bytes or 0 for process in processes)
        hidden = (seen.memory_used_bytes or 0) - shown - memory.largest_idle_bytes
        if idle and memory.drained and hidden > UNEXPLAINED_BYTES:
            return f"somebody whose process is not listed ({hidden / 2**30:.1f} GiB)"
        return None

    def _note_strangers(self, memory: _Memory, stranger: str | None, now: float) -> None:
        if stranger is not None:
            memory.stranger, memory.stranger_seen_at = stranger, now
            memory.stranger_since = memory.stranger_since if memory.stranger_since is not None else now
            memory.blocked |= now - memory.stranger_since >= self._settings.foreign_after_s
        elif not memory.blocked:
            memory.stranger_since = memory.stranger_seen_at = None
        elif now - (memory.stranger_seen_at or now) >= self._settings.foreign_quiet_s:
            memory.blocked, memory.stranger_since, memory.stranger_seen_at = False, None, None

    def _note_heat(self, memory: _Memory, seen: SlotNow, now: float) -> None:
        hold_c = self._settings.hold_above_c or self._settings.stop_above_c
        memory.hot_since = _since(memory.hot_since, seen.temperature_c, hold_c, now)
        memory.over_since = _since(memory.over_since, seen.temperature_c, self._settings.stop_above_c, now)

    # -- what follows -----------------------------------------------------------------------------------------------------

    def _judge(self, memory: _Memory, seen: SlotNow, now: float) -> Condition:
        undrained = memory.job is None and not memory.drained and memory.idle_since is not None
        dirty = undrained and now - (memory.idle_since or now) >= DRAIN_S
        held_bytes = max(0, (seen.memory_used_bytes or 0) - memory.baseline_bytes)
        held = f"not free yet: {held_bytes / 2**30:.1f} GiB of the last job's memory are still held"
        problem = self._problem(memory, seen, now) or (held if dirty else None)
        resting = self._heat(memory, seen) or (held if undrained else None)
        if resting and memory.hot_since is not None and now - memory.hot_since >= LONGEST_REST_S:
            problem = problem or resting
        return Condition(
            problem=problem,
            resting=resting,
            leave=self._leave(memory, now),
            room_bytes=_room_bytes(memory, seen),
            power_w=seen.power_w,
            power_limit_w=seen.power_limit_w,
        )

    def _problem(self, memory: _Memory, seen: SlotNow, now: float) -> str | None:
        if seen.state in UNFIT:
            return seen.state
        if not memory.blocked or self._settings.foreign_use == "ignore":
            return None
        if memory.stranger_seen_at is not None and now > memory.stranger_seen_at:
            return f"not taken yet: {memory.stranger} left it less than {self._settings.foreign_quiet_s:g} s ago"
        return f"in use by {memory.stranger}"

    def _heat(self, memory: _Memory, seen: SlotNow) -> str | None:
        if memory.hot_since is None:
            return None
        limit_c = self._settings.hold_above_c or self._settings.stop_above_c
        return f"hot ({seen.temperature_c:.0f} °C); jobs start there below {limit_c:.0f} °C"

    def _leave(self, memory: _Memory, now: float) -> str | None:
        if memory.over_since is not None and now - memory.over_since >= self._settings.stop_after_s:
            return f"Its GPU stayed at {self._settings.stop_above_c:.0f} °C or more; it goes on when the GPU is cooler."
        yields = self._settings.foreign_use == "yield" and not memory.stranger_is_ours
        if memory.blocked and yields and memory.stranger_seen_at == now:
            return f"Its GPU is in use by {memory.stranger}; it goes on elsewhere, or when the GPU is free."
        return None


def _since(before: float | None, value: float | None, limit: float | None, now: float) -> float | None:
    """Since when the value has been at its limit."""
    if value is None or limit is None or value < limit:
        return None
    return before if before is not None else now


def _room_bytes(memory: _Memory, seen: SlotNow) -> int | None:
    """What a job may use: all but what the desktop and others hold."""
    if not seen.memory_total_bytes:
        return None
    held = memory.baseline_bytes
    if memory.job is None and memory.drained:
        held = max(held, seen.memory_used_bytes or 0)
    return max(1, seen.memory_total_bytes - held)
