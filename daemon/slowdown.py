"""How long a GPU was slowed down, and by what. Pure arithmetic.

The driver counts the nanoseconds itself: the difference of its counters misses nothing. Where it has none, each second whose
reading names a reason counts as a whole one.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from daemon.samples import THROTTLING

#: Bits of the clock-event reasons that stand for each of `THROTTLING`; hw_slowdown (0x8) goes with both of its causes.
BITS = (0x004, 0x020, 0x040, 0x080)
#: Nothing is known about longer gaps where there are no counters.
LONGEST_STEP_S = 2.5


class Slowed(NamedTuple):
    """What one sample says: its moment, the reasons of that moment, and the counters."""

    at: float
    reasons: int | None
    counters_ms: tuple[int | None, ...]


def slowed_s(readings: Sequence[Slowed], start: float, end: float) -> Mapping[str, float]:
    """Seconds by reason between start and end; a reason about which nothing is known is missing."""
    total: dict[str, float] = {}
    for a, b in pairwise(readings):
        seconds = min(end, b.at) - max(start, a.at)
        if seconds <= 0:
            continue
        for n, name in enumerate(THROTTLING):
            if (slowed := _of_step(a, b, n, seconds)) is not None:
                total[name] = total.get(name, 0.0) + slowed
    return {name: round(seconds, 3) for name, seconds in total.items()}


def _of_step(a: Slowed, b: Slowed, n: int, seconds: float) -> float | None:
    before, after = a.counters_ms[n], b.counters_ms[n]
    if before is not None and after is not None:
        # below 0: the driver was reloaded; no more can be slow than has passed
        return min(seconds, max(0, after - before) / 1000 * seconds / (b.at - a.at))
    if b.reasons is None or b.at - a.at > LONGEST_STEP_S:
        return None
    return seconds if b.reasons & BITS[n] else 0.0
