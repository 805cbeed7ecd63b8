"""A month of a GPU in the telemetry database, without a sampler that ran for a month: minutes, and what is made of them."""

import sqlite3
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from daemon.recorder import Recorder
from daemon.rig import Slot
from daemon.samples import Identity, Minute, database_path, summarize_minutes

LIMIT_W, IDLE_W = 350, 28
#: Load (0 to 1) of a slot at a moment; None: nothing was read.
Load = Callable[[Slot, float], float | None]


def minute(ts: int, load: float) -> Minute:
    """One minute at this load. Near the power limit it is slowed down for a third of it, near 90 °C for some seconds."""
    power_mw = 1000.0 * (IDLE_W + load * (LIMIT_W - IDLE_W - 4))
    temp_c = 36 + 42 * load
    return Minute(
        ts=ts,
        n=60,
        util_avg=round(load * 98, 1),
        util_max=min(100, round(load * 98) + 2),
        mem_max=320 if load < 0.05 else 11_000 + round(9_000 * load),
        temp_avg=round(temp_c, 1),
        temp_max=round(temp_c) + 2,
        power_avg=round(power_mw, 1),
        power_max=round(power_mw + 9_000),
        sm_avg=round(1_740 - 160 * load, 1),
        reasons_or=0,
        energy_mj=round(power_mw * 60),
        thr_power_ms=20_000 if load > 0.93 else 0,
        thr_sw_therm_ms=4_000 if load > 0.975 else 0,
        thr_hw_therm_ms=0,
        thr_brake_ms=0,
    )


def remember(home: Path, slots: Sequence[Slot], start: float, end: float, load: Load) -> None:
    """Write the minutes from start to end, and the ten minutes and hours of them."""
    recorder = Recorder(home)
    for slot in slots:
        recorder.know(Identity(slot.id, slot.name))
    recorder.save(now=start)
    recorder.close()
    with sqlite3.connect(database_path(home)) as database:
        for slot in slots:
            [gid] = database.execute("SELECT gid FROM gpu WHERE uuid = ?", (slot.id,)).fetchone()
            moments = range(int(start) // 60 * 60, int(end) // 60 * 60, 60)
            rows = [minute(ts, found) for ts in moments if (found := load(slot, ts)) is not None]
            _insert(database, "s60", gid, rows)
            for table, step_s in (("s600", 600), ("s3600", 3600)):
                whole = [row for row in rows if row.ts < int(end) // step_s * step_s]
                steps = groupby(whole, key=lambda row: row.ts // step_s * step_s)
                _insert(database, table, gid, [summarize_minutes(ts, list(group)) for ts, group in steps])


def _insert(database: sqlite3.Connection, table: str, gid: int, rows: Sequence[Minute]) -> None:
    places = ", ".join("?" * (1 + len(Minute._fields)))
    database.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({places})", [(gid, *row) for row in rows])
