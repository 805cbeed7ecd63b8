"""A slot's past, for a page that shows an hour or a month of it: from the shortest summaries that cover the time.

What no summary has yet (the last minutes) is taken from shorter ones, down to the seconds. Where nothing was read is a gap,
never a line. Energy is the driver's counter; power x time where a card has none.
"""

import logging
import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby
from math import ceil
from pathlib import Path
from typing import NamedTuple

from daemon.samples import THROTTLING
from daemon.slowdown import BITS
from daemon.tariff import Tariff
from daemon.telemetry import TIERS, open_readings

log = logging.getLogger(__name__)

#: More points than this show no more on a phone.
MOST_POINTS = 300
#: Seconds that are in no summary: the last minutes. More are never read.
LATEST_S = 7200
#: A pause shorter than this is none.
SHORTEST_GAP_S = 15.0

Interval = tuple[float, float]


class Piece(NamedTuple):
    """One row of a summary, or one second. None: not read."""

    at: int
    n: int
    util: float | None
    util_max: float | None
    mem_mib: int | None
    temp_c: float | None
    temp_max_c: float | None
    power_mw: float | None
    power_max_mw: float | None
    sm_mhz: float | None
    energy_mj: float | None
    slowed_ms: tuple[float | None, ...]
    span_s: int


@dataclass(frozen=True)
class Point:
    """A step of the time that is shown: averages and peaks; `slowed` is the share of it, by the reasons of THROTTLING."""

    at: float
    utilization: float | None
    utilization_max: float | None
    memory_bytes: int | None
    temperature_c: float | None
    temperature_max_c: float | None
    power_w: float | None
    power_max_w: float | None
    sm_clock_hz: float | None
    slowed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Past:
    """What is known of one slot in this time."""

    start: float
    end: float
    step_s: float
    pieces: Sequence[Piece] = ()

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """At most about MOST_POINTS, oldest first."""
        steps = groupby(self.pieces, key=lambda piece: int((piece.at - self.start) // self.step_s))
        return tuple(_point(self.start + (step + 0.5) * self.step_s, list(pieces)) for step, pieces in steps)

    @cached_property
    def gaps(self) -> tuple[Interval, ...]:
        """Where nothing was read."""
        return tuple(_gaps(self.pieces, self.start, self.end, max(SHORTEST_GAP_S, self.step_s)))

    @cached_property
    def coverage(self) -> float:
        """The share of the time that was read."""
        return 1.0 - sum(end - start for start, end in self.gaps) / (self.end - self.start)

    @cached_property
    def energy_j(self) -> float | None:
        """None when neither counter nor power was read."""
        known = [used for piece in self.pieces if (used := _energy_j(piece)) is not None]
        return sum(known) if known else None

    @cached_property
    def slowed_s(self) -> dict[str, float]:
        """How long it was slowed down, by reason; one about which nothing is known is missing."""
        return {
            name: seconds for n, name in enumerate(THROTTLING) if (seconds := _slowed_s(self.pieces, n)) is not None
        }

    @cached_property
    def utilization_mean(self) -> float | None:
        found = _mean((piece.util, piece.n) for piece in self.pieces)
        return None if found is None else found / 100

    @cached_property
    def hottest(self) -> tuple[float, float] | None:
        """The highest temperature, and when it was."""
        known = [(piece.temp_max_c, -piece.at) for piece in self.pieces if piece.temp_max_c is not None]
        return (max(known)[0], -max(known)[1]) if known else None

    def cost(self, tariff: Tariff) -> float | None:
        """At the prices of those hours, for the board alone; None without prices."""
        if not tariff.known or self.energy_j is None:
            return None
        known = [(piece.at, used) for piece in self.pieces if (used := _energy_j(piece)) is not None]
        moments, sums = [at for at, _ in known], [0.0, *accumulate(used for _, used in known)]
        return tariff.cost(self.start, self.end, lambda begin, until: sums[bisect_left(moments, until)] - sums[bisect_left(moments, begin)])  # fmt: skip


def past(home: Path, slot: str, start: float, end: float, *, most: int = MOST_POINTS) -> Past:
    """What the sampler has read of a slot; nothing where the database cannot be read."""
    tier = next(n for n, (_, _, longest_s) in enumerate(TIERS) if end - start <= longest_s)
    unit_s = TIERS[tier][1]
    step_s = ceil((end - start) / most / unit_s) * unit_s
    # on the grid of its step: the same moments are averaged each time that somebody looks
    begin = start // step_s * step_s
    try:
        opened = open_readings(home, slot)
        if opened is None:
            return Past(begin, end, step_s)
        with closing(opened[0]) as database:
            return Past(begin, end, step_s, _pieces(database, opened[1], tier, begin, end))
    except sqlite3.Error as error:
        log.warning("the past of %s cannot be read (%s)", slot, error, extra={"action": "telemetry_unreadable"})
        return Past(begin, end, step_s)


# A counter that went back began anew: of that step nothing is known.
SECONDS = f"""
SELECT ts, 1, util, util, mem_mib, temp_c, temp_c, power_mw, power_mw, sm_mhz,
    iif(energy_mj >= lag(energy_mj) OVER (ORDER BY ts), energy_mj - lag(energy_mj) OVER (ORDER BY ts), NULL),
    {
    ", ".join(
        f"coalesce(min(1000, max(0, {name} - lag({name}) OVER (ORDER BY ts))), iif(reasons IS NULL, NULL, (reasons & {bit} > 0) * 1000))"
        for name, bit in zip(("thr_power_ms", "thr_sw_therm_ms", "thr_hw_therm_ms", "thr_brake_ms"), BITS, strict=True)
    )
}
FROM recent WHERE gid = :gid AND ts >= :start - 2 AND ts < :end AND state IN (0, 3) ORDER BY ts
"""  # noqa: S608 - of our own names
SUMMARY = """
SELECT ts, n, util_avg, util_max, mem_max, temp_avg, temp_max, power_avg, power_max, sm_avg, energy_mj,
    thr_power_ms, thr_sw_therm_ms, thr_hw_therm_ms, thr_brake_ms
FROM {table} WHERE gid = :gid AND ts >= :start AND ts < :end ORDER BY ts
"""


def _pieces(database: sqlite3.Connection, gid: int | None, tier: int, start: float, end: float) -> list[Piece]:
    found: list[Piece] = []
    for table, unit_s, _ in reversed(TIERS[: tier + 1]):
        since = max(start, end - LATEST_S) if table == "recent" else start
        statement = SECONDS if table == "recent" else SUMMARY.format(table=table)
        rows = database.execute(statement, {"gid": gid, "start": since, "end": end})
        found += [Piece._make([*row[:11], row[11:], unit_s]) for row in rows if row[0] >= since]
        start = found[-1].at + found[-1].span_s if found else start
    return found


def _point(at: float, pieces: Sequence[Piece]) -> Point:
    memory = [piece.mem_mib for piece in pieces if piece.mem_mib is not None]
    seconds = sum(piece.n for piece in pieces)
    slowed = {
        name: min(1.0, total_s / seconds) for n, name in enumerate(THROTTLING) if (total_s := _slowed_s(pieces, n))
    }
    return Point(
        at=at,
        utilization=_scaled(_mean((piece.util, piece.n) for piece in pieces), 0.01),
        utilization_max=_scaled(_most(piece.util_max for piece in pieces), 0.01),
        memory_bytes=max(memory) << 20 if memory else None,
        temperature_c=_mean((piece.temp_c, piece.n) for piece in pieces),
        temperature_max_c=_most(piece.temp_max_c for piece in pieces),
        power_w=_scaled(_mean((piece.power_mw, piece.n) for piece in pieces), 0.001),
        power_max_w=_scaled(_most(piece.power_max_mw for piece in pieces), 0.001),
        sm_clock_hz=_scaled(_mean((piece.sm_mhz, piece.n) for piece in pieces), 1e6),
        slowed=slowed,
    )


def _gaps(pieces: Sequence[Piece], start: float, end: float, shortest_s: float) -> Iterator[Interval]:
    at = start
    for piece in pieces:
        if piece.at - at > shortest_s:
            yield at, piece.at
        at = piece.at + piece.span_s
    if end - at > shortest_s:
        yield at, end


def _energy_j(piece: Piece) -> float | None:
    if piece.energy_mj is not None:
        return piece.energy_mj / 1000
    return None if piece.power_mw is None else piece.power_mw / 1000 * piece.n


def _slowed_s(pieces: Iterable[Piece], n: int) -> float | None:
    known = [slowed for piece in pieces if (slowed := piece.slowed_ms[n]) is not None]
    return sum(known) / 1000 if known else None


def _mean(values: Iterable[tuple[float | None, int]]) -> float | None:
    known = [(value, n) for value, n in values if value is not None]
    weight = sum(n for _, n in known)
    return sum(value * n for value, n in known) / weight if weight else None


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
