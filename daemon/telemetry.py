"""The reading side of telemetry. Knows no driver, waits for nobody, and never breaks a job: without data there is none.

A reader takes first the rows that `gpu-now.json` carries and then those of the database, so the last seconds of a short
job count although the sampler commits every 10 s (`daemon.recorder`).

Energy is the difference of the driver's counter, where it has one; the sum of power x time is its cross-check, and its
substitute where the counter began anew. Both are the GPU boards' alone, within about 5 % of a meter.
"""

import logging
import math
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.contention import contended_s
from daemon.energy import LONGEST_STEP_S, EnergyMethod, Reading, Tally, tally, total_energy, with_counters
from daemon.samples import GpuProcess, Sample, SlotNow, database_path, now_path, unsaved_rows
from daemon.slowdown import Slowed, slowed_s
from daemon.tariff import Tariff
from jobs.rundir import read_json

log = logging.getLogger(__name__)

#: A sampler silent this long hangs or is gone.
STALE_S = 5.0
#: Where a series is read, in what units, and for up to how long: never more than about 9,000 rows.
TIERS = (("recent", 1, 7200.0), ("s60", 60, 4 * 86_400.0), ("s600", 600, 60 * 86_400.0), ("s3600", 3600, math.inf))


@dataclass(frozen=True)
class Live:
    """What the sampler said last. `age_s` is None when it never spoke."""

    at: float | None
    age_s: float | None
    source: str
    problem: str | None
    slots: Mapping[str, SlotNow] = field(default_factory=dict)
    pid: int | None = None
    #: Why nothing new may start on any GPU: the driver was replaced under us.
    hold: str | None = None
    #: Where it reads the kernel's log: kmsg, journal, file; None: it may not, and XIDs are NVML's alone.
    kernel_log: str | None = None

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
    #: The load that the slots exceeded in one of twenty seconds only.
    utilization_p95: float | None = None
    #: How long the slots were slowed down, by the reasons of `daemon.samples.THROTTLING`.
    throttled_s: Mapping[str, float] | None = None
    #: When and where the highest temperature was read.
    temperature_max_at: float | None = None
    temperature_max_slot: str | None = None
    #: At the prices of those hours, for the GPU boards alone; None without a tariff.
    cost: float | None = None
    #: The most that our own processes held on one GPU, as the driver lists them every five seconds.
    peak_own_memory_bytes: int | None = None
    #: How long somebody else used the slots as well, and who held most.
    contended_s: float | None = None
    contended_by: str | None = None


@dataclass(frozen=True)
class GpuEvent:
    """What happened to a GPU, or without a slot to the driver: xid, lost, stale, suspect, recovered, driver."""

    at: float
    slot: str | None
    source: str
    kind: str
    code: int | None
    text: str
    #: The process that the kernel named, and the job that it belonged to.
    pid: int | None = None
    job: str | None = None
    id: int = 0


def latest(home: Path, *, now: float) -> Live:
    """The live view."""
    value = read_json(now_path(home))
    if value is None:
        return Live(None, None, "none", "The sampler has not reported yet.")
    try:
        slots = {slot: _slot_now(reading) for slot, reading in value["slots"].items()}
        return Live(
            value["at"],
            max(0.0, now - value["at"]),
            value["source"],
            value["problem"],
            slots,
            value["pid"],
            value.get("hold"),
            value.get("kernel_log"),
        )
    except (KeyError, TypeError):
        return Live(None, None, "none", "The last report is of another version's sampler.")


def series(home: Path, slot: str, start: float, end: float, points: int = 600) -> list[dict[str, Any]]:
    """Averages and peaks of a slot, at most about `points` of them, oldest first; where nothing was read is no point.

    Keys: at, utilization_mean, utilization_max, memory_max_bytes, temperature_mean_c, temperature_max_c, power_mean_w,
    power_max_w, sm_clock_mean_hz.
    """
    tiers = [tier for tier in TIERS if end - start <= tier[2]] or [TIERS[-1]]
    rows: list[tuple[Any, ...]] = []
    for table, unit_s, _ in tiers[:2]:  # what is older than the raw samples are kept is left in minutes
        statement = RAW_SERIES if table == "recent" else MINUTE_SERIES.format(table=table, last=unit_s - 1)
        rows = rows or _rows(home, statement, unit_s, slot, start, end, points)
    return [_point(row) for row in rows]


def summarize(
    home: Path,
    slots: Sequence[str],
    start: float,
    end: float,
    *,
    energy_start: Mapping[str, float] | None = None,
    energy_end: Mapping[str, float] | None = None,
    tariff: Tariff | None = None,
) -> Usage:
    """What a job on these slots used.

    The energy counters (J) are for those who read them at the very start and end. The live view's may be a second old:
    without them the counter is interpolated between the samples, which is more exact than that.
    """
    wall_s = max(0.0, end - start) * len(slots)
    tallies: list[Tally] = []
    by_slot: dict[str, list[Reading]] = {}
    for slot in slots:
        rows = _query(home, READINGS, slot, start=start - LONGEST_STEP_S, end=end + LONGEST_STEP_S)
        by_slot[slot] = readings = [Reading._make(row) for row in rows]
        counters = (energy_start or {}).get(slot), (energy_end or {}).get(slot)
        tallies.append(with_counters(tally(readings, start, end), *counters))
    energy = total_energy(tallies)
    inside = [(slot, r) for slot, readings in by_slot.items() for r in readings if start <= r.at <= end]
    utils = sorted(reading.util for _, reading in inside if reading.util is not None)
    warm = [(slot, reading) for slot, reading in inside if reading.temp_c is not None]
    hottest = max(warm, key=lambda found: found[1].temp_c or 0, default=None)
    return Usage(
        gpu_s=wall_s,
        energy_j=energy.joules if energy else None,
        energy_method=energy.method if energy else None,
        energy_deviation=energy.deviation if energy else None,
        coverage=min(1.0, sum(one.covered_s for one in tallies) / wall_s) if wall_s else 0.0,
        peak_memory_bytes=max((r.mem_mib << 20 for _, r in inside if r.mem_mib is not None), default=None),
        utilization_mean=sum(utils) / len(utils) / 100 if utils else None,
        utilization_p95=utils[math.ceil(0.95 * len(utils)) - 1] / 100 if utils else None,
        throttled_s=_throttled_s(by_slot.values(), start, end),
        temperature_max_c=hottest[1].temp_c if hottest else None,
        temperature_max_at=hottest[1].at if hottest else None,
        temperature_max_slot=hottest[0] if hottest else None,
        cost=_cost(tariff, by_slot.values(), energy.joules, start, end) if tariff and energy else None,
        peak_own_memory_bytes=max((r.own_mib << 20 for _, r in inside if r.own_mib is not None), default=None),
        contended_s=(contended := _contended_s(by_slot.values(), start, end)),
        contended_by=_contended_by(home, slots, start, end) if contended else None,
    )


def _contended_s(by_slot: Iterable[Sequence[Reading]], start: float, end: float) -> float | None:
    known = [found for readings in by_slot if (found := contended_s(readings, start, end)) is not None]
    return sum(known) if known else None


def _contended_by(home: Path, slots: Sequence[str], start: float, end: float) -> str | None:
    """The other whose process held most meanwhile."""
    found = [row for slot in slots for row in _query(home, OTHERS, slot, start=start, end=end)]
    return max(found)[1] if found else None


def _throttled_s(by_slot: Iterable[Sequence[Reading]], start: float, end: float) -> Mapping[str, float] | None:
    total: dict[str, float] = {}
    for readings in by_slot:
        rows = [Slowed(r.at, r.reasons, r.throttled_ms) for r in readings]
        for name, seconds in slowed_s(rows, start, end).items():
            total[name] = total.get(name, 0.0) + seconds
    return total or None


def _cost(
    tariff: Tariff, by_slot: Collection[Sequence[Reading]], joules: float, start: float, end: float
) -> float | None:
    """The energy goes to the hours as the readings tell; its sum is that of the better measure."""

    def used_j(begin: float, until: float) -> float:
        return sum(tally(readings, begin, until).joules for readings in by_slot)

    if not tariff.known:
        return None
    whole_j = used_j(start, end)
    cost = tariff.cost(start, end, used_j)
    if cost is None or whole_j <= 0:
        return None if cost is None or joules > 0 else 0.0
    return cost * joules / whole_j


def events(
    home: Path, start: float, end: float, *, slots: Sequence[str] | None = None, after: int = 0
) -> list[GpuEvent]:
    """What happened in between, oldest first: to these slots, or when None to all and to the driver.

    `after` is the id of an event that is known already.
    """
    found = [GpuEvent(*row) for row in _query(home, EVENTS, None, start=start, end=end, after=after)]
    return [event for event in found if slots is None or event.slot in slots]


def xid_counts(home: Path) -> list[tuple[str, int, int, float]]:
    """For each slot and XID: how often it was seen, and when last."""
    return _query(home, XID_COUNTS, None)


# States 0 and 3 are "ok" and "suspect": the others have no readings.
READINGS = """
SELECT ts + 0.5, util, mem_mib, temp_c, power_mw, energy_mj, reasons,
    thr_power_ms, thr_sw_therm_ms, thr_hw_therm_ms, thr_brake_ms, own_mib, foreign_mib, foreign_util FROM recent
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
FROM {table}
WHERE gid = :gid AND ts >= :start - {last} AND ts < :end
GROUP BY (ts + {last} - :start) / :step ORDER BY ts
"""
INSERT_TAIL = f"INSERT INTO tail(gid, {', '.join(Sample._fields)}) VALUES (?{', ?' * len(Sample._fields)})"  # noqa: S608 - of our own names
EVENTS = """
SELECT event.ts, gpu.uuid, source, kind, code, text, pid, job_id, event.id FROM event LEFT JOIN gpu USING (gid)
WHERE event.ts >= :start AND event.ts < :end AND event.id > :after ORDER BY event.ts, event.id
"""
OTHERS = """
SELECT coalesce(mem_mib, 0), name || ' (pid ' || pid || ')' FROM proc
WHERE gid = :gid AND owner = 'other' AND ts < :end AND last_ts >= :start
"""
XID_COUNTS = """
SELECT gpu.uuid, code, count(*), max(event.ts) FROM event JOIN gpu USING (gid)
WHERE kind = 'xid' GROUP BY gpu.uuid, code ORDER BY gpu.uuid, code
"""


def _rows(
    home: Path, statement: str, unit_s: int, slot: str, start: float, end: float, points: int
) -> list[tuple[Any, ...]]:
    step_s = max(1, round((end - start) / points / unit_s)) * unit_s
    return _query(home, statement, slot, start=int(start), end=end, step=step_s)


def open_readings(home: Path, slot: str | None) -> tuple[sqlite3.Connection, int | None] | None:
    """A connection that reads the tables of `daemon.recorder` and `recent`, `s` with the rows not yet saved, and the
    slot's number there. None when there is no database yet. Raises sqlite3.Error.
    """
    unsaved = unsaved_rows(read_json(now_path(home)) or {})  # first, as rows go from there into the database
    path = database_path(home)
    if not path.exists():
        return None
    database = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
    )
    try:
        database.execute("BEGIN")  # one state of the database for the overlay and the statement
        _overlay(database, unsaved)
        return database, _gid(database, slot)
    except sqlite3.Error:
        database.close()
        raise


def _query(home: Path, statement: str, slot: str | None, **parameters: float) -> list[tuple[Any, ...]]:
    """Rows of a statement over what `open_readings` opens."""
    try:
        opened = open_readings(home, slot)
        if opened is None:
            return []
        with closing(opened[0]) as database:
            # The number, as SQLite would read the whole of `recent` to compare it with a subquery's.
            return database.execute(statement, {"gid": opened[1], **parameters}).fetchall()
    except sqlite3.Error as error:
        # Telemetry tells of the work and is no condition of it: a job must end well on a broken database, too.
        log.warning("%s cannot be read (%s)", database_path(home), error, extra={"action": "telemetry_unreadable"})
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
