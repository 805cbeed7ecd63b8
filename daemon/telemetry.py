"""The reading side of telemetry. Knows no driver, waits for nobody, and never breaks a job: without data there is none.

A reader takes first the rows that `gpu-now.json` carries and then those of the database, so the last seconds of a short
job count although the sampler commits every 10 s (`daemon.recorder`).

Energy is the difference of the driver's counter, where it has one; the sum of power x time is its cross-check, and its
substitute where the counter began anew. Both are the GPU boards' alone, within about 5 % of a meter.
"""

import logging
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.energy import LONGEST_STEP_S, EnergyMethod, Reading, Tally, tally, total_energy, with_counters
from daemon.samples import GpuProcess, Sample, SlotNow, database_path, now_path, unsaved_rows
from jobs.rundir import read_json

log = logging.getLogger(__name__)

#: A sampler silent this long hangs or is gone.
STALE_S = 5.0
#: Longer series are read in minutes.
RAW_UP_TO_S = 7200.0


@dataclass(frozen=True)
class Live:
    """What the sampler said last. `age_s` is None when it never spoke."""

    at: float | None
    age_s: float | None
    source: str
    problem: str | None
    slots: Mapping[str, SlotNow] = field(default_factory=dict)
    pid: int | None = None

    @property
    def stale(self) -> bool:
        """Whether the sampler hangs, is gone, or never began."""
        return self.age_s is None or self.age_s > STALE_S


@dataclass(frozen=True)
class Usage:
    """What some slots did between two moments; None: not known.

    Memory is that of the fullest GPU, with all that was on it. `energy_deviation` is the counter's surplus over the sum
    of power x time, as a ratio: beyond 0.1 one of the two cannot be trusted.
    """

    gpu_s: float
    energy_j: float | None
    energy_method: EnergyMethod | None
    coverage: float
    peak_memory_bytes: int | None
    utilization_mean: float | None
    temperature_max_c: float | None
    energy_deviation: float | None = None


@dataclass(frozen=True)
class GpuEvent:
    """What happened to a GPU, or without a slot to the driver: xid, lost, stale, suspect, recovered, driver."""

    at: float
    slot: str | None
    source: str
    kind: str
    code: int | None
    text: str


def latest(home: Path, *, now: float) -> Live:
    """The live view."""
    value = read_json(now_path(home))
    if value is None:
        return Live(None, None, "none", "The sampler has not reported yet.")
    try:
        slots = {slot: _slot_now(reading) for slot, reading in value["slots"].items()}
        return Live(value["at"], max(0.0, now - value["at"]), value["source"], value["problem"], slots, value["pid"])
    except (KeyError, TypeError):
        return Live(None, None, "none", "The last report is of another version's sampler.")


def series(home: Path, slot: str, start: float, end: float, points: int = 600) -> list[dict[str, Any]]:
    """Averages and peaks of a slot, at most about `points` of them, oldest first; where nothing was read is no point.

    Keys: at, utilization_mean, utilization_max, memory_max_bytes, temperature_mean_c, temperature_max_c, power_mean_w,
    power_max_w, sm_clock_mean_hz.
    """
    rows = _rows(home, RAW_SERIES, 1, slot, start, end, points) if end - start <= RAW_UP_TO_S else []
    # What is older than the raw samples are kept is left in minutes.
    return [_point(row) for row in rows or _rows(home, MINUTE_SERIES, 60, slot, start, end, points)]


def summarize(
    home: Path,
    slots: Sequence[str],
    start: float,
    end: float,
    *,
    energy_start: Mapping[str, float] | None = None,
    energy_end: Mapping[str, float] | None = None,
) -> Usage:
    """What a job on these slots used.

    The energy counters (J) are for those who read them at the very start and end. The live view's may be a second old:
    without them the counter is interpolated between the samples, which is more exact than that.
    """
    wall_s = max(0.0, end - start) * len(slots)
    tallies: list[Tally] = []
    inside: list[Reading] = []
    for slot in slots:
        rows = _query(home, READINGS, slot, start=start - LONGEST_STEP_S, end=end + LONGEST_STEP_S)
        readings = [Reading._make(row) for row in rows]
        inside += [reading for reading in readings if start <= reading.at <= end]
        counters = (energy_start or {}).get(slot), (energy_end or {}).get(slot)
        tallies.append(with_counters(tally(readings, start, end), *counters))
    energy = total_energy(tallies)
    utils = [reading.util for reading in inside if reading.util is not None]
    return Usage(
        gpu_s=wall_s,
        energy_j=energy.joules if energy else None,
        energy_method=energy.method if energy else None,
        energy_deviation=energy.deviation if energy else None,
        coverage=min(1.0, sum(one.covered_s for one in tallies) / wall_s) if wall_s else 0.0,
        peak_memory_bytes=max((r.mem_mib << 20 for r in inside if r.mem_mib is not None), default=None),
        utilization_mean=sum(utils) / len(utils) / 100 if utils else None,
        temperature_max_c=max((r.temp_c for r in inside if r.temp_c is not None), default=None),
    )


def events(home: Path, start: float, end: float, *, slots: Sequence[str] | None = None) -> list[GpuEvent]:
    """What happened in between, oldest first: to these slots, or when None to all and to the driver."""
    found = [GpuEvent(*row) for row in _query(home, EVENTS, None, start=start, end=end)]
    return [event for event in found if slots is None or event.slot in slots]


# States 0 and 3 are "ok" and "suspect": the others have no readings.
READINGS = """
SELECT ts + 0.5, util, mem_mib, temp_c, power_mw, energy_mj FROM recent
WHERE gid = :gid AND ts BETWEEN :start - 1 AND :end AND state IN (0, 3) ORDER BY ts
"""
RAW_SERIES = """
SELECT min(ts), avg(util), max(util), max(mem_mib), avg(temp_c), max(temp_c), avg(power_mw), max(power_mw), avg(sm_mhz)
FROM recent
WHERE gid = :gid AND ts >= :start AND ts < :end AND state IN (0, 3)
GROUP BY (ts - :start) / :step ORDER BY ts
"""
MINUTE_SERIES = """
SELECT min(ts), sum(util_avg * n) / sum(iif(util_avg IS NULL, NULL, n)), max(util_max), max(mem_max),
    sum(temp_avg * n) / sum(iif(temp_avg IS NULL, NULL, n)), max(temp_max),
    sum(power_avg * n) / sum(iif(power_avg IS NULL, NULL, n)), max(power_max),
    sum(sm_avg * n) / sum(iif(sm_avg IS NULL, NULL, n))
FROM s60
WHERE gid = :gid AND ts >= :start - 59 AND ts < :end
GROUP BY (ts + 59 - :start) / :step ORDER BY ts
"""
INSERT_TAIL = f"INSERT INTO tail VALUES (?{', ?' * len(Sample._fields)})"  # noqa: S608 - of our own names
EVENTS = """
SELECT event.ts, gpu.uuid, source, kind, code, text FROM event LEFT JOIN gpu USING (gid)
WHERE event.ts >= :start AND event.ts < :end ORDER BY event.ts, event.id
"""


def _rows(
    home: Path, statement: str, unit_s: int, slot: str, start: float, end: float, points: int
) -> list[tuple[Any, ...]]:
    step_s = max(1, round((end - start) / points / unit_s)) * unit_s
    return _query(home, statement, slot, start=int(start), end=end, step=step_s)


def _query(home: Path, statement: str, slot: str | None, **parameters: float) -> list[tuple[Any, ...]]:
    """Rows of a statement over the tables of `daemon.recorder` and `recent`: `s` with the rows not yet saved."""
    unsaved = unsaved_rows(read_json(now_path(home)) or {})  # first, as rows go from there into the database
    path = database_path(home)
    if not path.exists():
        return []
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        ) as database:
            database.execute("BEGIN")  # one state of the database for the overlay and the statement
            _overlay(database, unsaved)
            # The number, as SQLite would read the whole of `recent` to compare it with a subquery's.
            return database.execute(statement, {"gid": _gid(database, slot), **parameters}).fetchall()
    except sqlite3.Error as error:
        # Telemetry tells of the work and is no condition of it: a job must end well on a broken database, too.
        log.warning("%s cannot be read (%s)", path, error, extra={"action": "telemetry_unreadable"})
        return []


def _gid(database: sqlite3.Connection, slot: str | None) -> int | None:
    found = database.execute("SELECT gid FROM gpu WHERE uuid = ?", (slot,)).fetchone()
    return found[0] if found else None


def _overlay(database: sqlite3.Connection, unsaved: Mapping[str, Sequence[Sample]]) -> None:
    database.execute("CREATE TEMP TABLE tail AS SELECT * FROM s LIMIT 0")
    for uuid, rows in unsaved.items():
        if (gid := _gid(database, uuid)) is not None:
            database.executemany(INSERT_TAIL, [(gid, *row) for row in rows])
    database.execute("DELETE FROM tail WHERE EXISTS (SELECT 1 FROM s WHERE s.gid = tail.gid AND s.ts = tail.ts)")
    database.execute("CREATE TEMP VIEW recent AS SELECT * FROM s UNION ALL SELECT * FROM tail")


def _slot_now(reading: Mapping[str, Any]) -> SlotNow:
    processes = tuple(GpuProcess(**process) for process in reading["processes"])
    return SlotNow(**{**reading, "processes": processes, "throttle_reasons": tuple(reading["throttle_reasons"])})


def _point(row: tuple[Any, ...]) -> dict[str, Any]:
    at, util, util_max, mem_max, temp, temp_max, power, power_max, sm = row
    return {
        "at": at,
        "utilization_mean": _times(util, 0.01),
        "utilization_max": _times(util_max, 0.01),
        "memory_max_bytes": None if mem_max is None else mem_max << 20,
        "temperature_mean_c": temp,
        "temperature_max_c": temp_max,
        "power_mean_w": _times(power, 0.001),
        "power_max_w": _times(power_max, 0.001),
        "sm_clock_mean_hz": _times(sm, 1_000_000),
    }


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
