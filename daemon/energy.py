"""How much energy the readings of one GPU stand for, and how much of the time they cover. Pure arithmetic."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, NamedTuple

#: Power is not extrapolated over longer gaps; the counter bridges them.
LONGEST_STEP_S = 10.0
#: Samples further apart have a hole between them, in which each stands for half a second.
HOLE_S = 2.5
#: How much before the first and after the last sample those two still stand for.
EDGE_S = 2.0

EnergyMethod = Literal["counter", "integral", "mixed"]


class Reading(NamedTuple):
    """What a summary needs of a sample; `at` is the moment it describes."""

    at: float
    util: int | None
    mem_mib: int | None
    temp_c: int | None
    power_mw: int | None
    energy_mj: int | None
    reasons: int | None = None
    thr_power_ms: int | None = None
    thr_sw_therm_ms: int | None = None
    thr_hw_therm_ms: int | None = None
    thr_brake_ms: int | None = None
    own_mib: int | None = None
    foreign_mib: int | None = None
    foreign_util: int | None = None

    @property
    def throttled_ms(self) -> tuple[int | None, ...]:
        """The driver's counters, in the order of `daemon.samples.THROTTLING`."""
        return self.thr_power_ms, self.thr_sw_therm_ms, self.thr_hw_therm_ms, self.thr_brake_ms


@dataclass
class Tally:
    """What the readings say about one slot's time; `joules` is the better of both measures, step by step."""

    covered_s: float = 0.0
    joules: float = 0.0
    methods: set[EnergyMethod] = field(default_factory=set)
    #: Both measures, over the steps for which both are known.
    counted_j: float = 0.0
    integrated_j: float = 0.0
    began_anew: bool = False

    def add_step(self, a: Reading, b: Reading, seconds: float) -> None:
        """Count so many of the seconds between two readings."""
        gap_s = b.at - a.at
        self.covered_s += seconds if gap_s <= HOLE_S else min(seconds, 1.0)
        # The driver averages power over the second before a reading: the later one tells of the step.
        integrated_j = b.power_mw / 1000 * seconds if b.power_mw is not None and gap_s <= LONGEST_STEP_S else None
        if a.energy_mj is not None and b.energy_mj is not None:
            if b.energy_mj >= a.energy_mj:
                self._add_counted((b.energy_mj - a.energy_mj) / 1000 * seconds / gap_s, integrated_j)
                return
            self.began_anew = True
        if integrated_j is not None:
            self.joules += integrated_j
            self.methods.add("integral")

    def add_edge(self, reading: Reading, seconds: float) -> None:
        """Count seconds at the start or end, next to one reading only."""
        self.covered_s += seconds
        if reading.power_mw is not None:
            self.joules += reading.power_mw / 1000 * seconds
            if reading.energy_mj is None:
                self.methods.add("integral")
            elif not self.methods:
                self.methods.add("counter")

    def _add_counted(self, counted_j: float, integrated_j: float | None) -> None:
        self.joules += counted_j
        self.methods.add("counter")
        if integrated_j is not None:
            self.counted_j += counted_j
            self.integrated_j += integrated_j


@dataclass(frozen=True)
class Energy:
    """Energy and how it was found. The deviation is the counter's surplus over the sum of power x time, as a ratio."""

    joules: float
    method: EnergyMethod
    deviation: float | None


def tally(readings: Sequence[Reading], start: float, end: float) -> Tally:
    """Count the time from start to end by the readings in and next to it."""
    total = Tally()
    for a, b in pairwise(readings):
        if (seconds := min(end, b.at) - max(start, a.at)) > 0:
            total.add_step(a, b, seconds)
    if readings:
        first, last = readings[0], readings[-1]
        if (seconds := min(end, first.at) - max(start, first.at - EDGE_S)) > 0:
            total.add_edge(first, seconds)
        if (seconds := min(end, last.at + EDGE_S) - max(start, last.at)) > 0:
            total.add_edge(last, seconds)
    return total


def with_counters(total: Tally, counter_start: float | None, counter_end: float | None) -> Tally:
    """The tally with the difference of the counters (J) read at the very start and end, where that can be right."""
    if counter_start is None or counter_end is None or counter_end < counter_start or total.began_anew:
        return total
    return replace(total, joules=counter_end - counter_start, methods={"counter"})


def total_energy(tallies: Iterable[Tally]) -> Energy | None:
    """The sum over some slots; None when nothing is known of any."""
    known = [one for one in tallies if one.methods]
    if not known:
        return None
    methods = set[EnergyMethod]().union(*(one.methods for one in known))
    integrated_j = sum(one.integrated_j for one in known)
    return Energy(
        joules=sum(one.joules for one in known),
        method="mixed" if len(methods) > 1 else methods.pop(),
        deviation=sum(one.counted_j for one in known) / integrated_j - 1 if integrated_j else None,
    )
