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
    steps = [(a, b, seconds) for a, b in pairwise(readings) if (seconds := min(end, b.at) - max(start, a.at)) > 0]
    total = {}
    for n, name in enumerate(THROTTLING):
        known = _of_counter(steps, n)
        if known is None:
            each = [slowed for step in steps if (slowed := _of_step(*step[:2], n, step[2])) is not None]
            known = sum(each) if each else None
        if known is not None:
            total[name] = round(known, 3)
    return total


def _of_counter(steps: Sequence[tuple[Slowed, Slowed, float]], n: int) -> float | None:
    """From the counter at both ends alone, where it was read each time and never went back: nearly always."""
    if not steps:
        return None
    values = [a.counters_ms[n] for a, _, _ in steps] + [steps[-1][1].counters_ms[n]]
    counts = [value for value in values if value is not None]
    passed_ms = (steps[-1][1].at - steps[0][0].at) * 1000
    if len(counts) < len(values) or sorted(counts) != counts or counts[-1] - counts[0] > passed_ms:
        return None
    if len(steps) == 1:
        return _of_step(*steps[0][:2], n, steps[0][2])
    edges = [_of_step(*step[:2], n, step[2]) or 0.0 for step in (steps[0], steps[-1])]
    return sum(edges) + (counts[-2] - counts[1]) / 1000


def _of_step(a: Slowed, b: Slowed, n: int, seconds: float) -> float | None:
    before, after = a.counters_ms[n], b.counters_ms[n]
    if before is not None and after is not None:
        # below 0: the driver was reloaded; no more can be slow than has passed
        return min(seconds, max(0, after - before) / 1000 * seconds / (b.at - a.at))
    if b.reasons is None or b.at - a.at > LONGEST_STEP_S:
        return None
    return seconds if b.reasons & BITS[n] else 0.0
