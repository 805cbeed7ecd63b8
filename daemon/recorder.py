"""`telemetry.sqlite` and its one writer. Knows no driver and reads no clock.

    gpu      one row per GPU or CPU slot ever seen
    s        one row per slot and second; NULL: not read; kept for 14 days
    s60      the same in minutes, with averages and peaks; kept for a year
    s600     and in ten minutes; s3600 in hours: for longer times; kept as long as s60
    event    XIDs, lost GPUs, driver trouble; kept for ever
    proc     who was on a GPU from when to when, with the most memory seen; kept as long as s60

Rows are committed every 10 s, as a commit per second would write five times as much to the disk. Until then they stand
in `gpu-now.json` ("unsaved"), which is replaced each second: a reader takes first that file, then the database, and
misses nothing, and a killed sampler's last rows are saved by the next one.
"""
# ruff: noqa: S608 - these statements are made of this module's and the records' own names

import json
import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from daemon.samples import GpuProcess, Identity, Minute, Sample, database_path, summarize_minute, summarize_minutes

#: Table, how long its rows are kept, and how much is deleted at once: more would keep readers waiting.
PRUNING = (
    ("s", 14 * 86_400, 20_000),
    ("s60", 365 * 86_400, 20_000 * 60),
    ("s600", 365 * 86_400, 20_000 * 600),
    ("s3600", 365 * 86_400, 20_000 * 3600),
    ("proc", 365 * 86_400, 20_000 * 60),
)
#: Where each longer summary comes from; so much of it is made at once, when a database of an earlier version has none.
LONGER = (("s60", "s600", 600), ("s600", "s3600", 3600))
CATCH_UP_S = 30 * 86_400
#: When the disk is full: rows per slot that wait for better times.
UNSAVED_LIMIT = 300
#: The same XID of one GPU within this is one event: a faulty kernel logs hundreds.
SAME_EVENT_S = 5.0

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS gpu(gid INTEGER PRIMARY KEY, uuid TEXT UNIQUE NOT NULL, name TEXT, bus_id TEXT, serial TEXT,
    driver TEXT, limits_json TEXT, first_ts INTEGER, last_ts INTEGER);
CREATE TABLE IF NOT EXISTS s(gid INTEGER, {", ".join(f"{name} INTEGER" for name in Sample._fields)},
    PRIMARY KEY(gid, ts)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS s60(gid INTEGER, {", ".join(Minute._fields)}, PRIMARY KEY(gid, ts)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS s600(gid INTEGER, {", ".join(Minute._fields)}, PRIMARY KEY(gid, ts)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS s3600(gid INTEGER, {", ".join(Minute._fields)}, PRIMARY KEY(gid, ts)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS event(id INTEGER PRIMARY KEY, ts REAL, gid INTEGER, source TEXT, kind TEXT, code INTEGER,
    pid INTEGER, job_id TEXT, text TEXT);
CREATE INDEX IF NOT EXISTS event_by_time ON event(ts);
CREATE TABLE IF NOT EXISTS proc(gid INTEGER, ts INTEGER, last_ts INTEGER, pid INTEGER, kind TEXT, owner TEXT, name TEXT,
    mem_mib INTEGER, PRIMARY KEY(gid, ts, pid)) WITHOUT ROWID;
"""
# by name: in a database of an earlier version, later columns stand behind
INSERT_SAMPLE = f"INSERT OR IGNORE INTO s(gid, {', '.join(Sample._fields)}) VALUES (?{', ?' * len(Sample._fields)})"
INSERT_MINUTE = f"INSERT OR REPLACE INTO s60 VALUES (?{', ?' * len(Minute._fields)})"
SELECT_MINUTES = f"SELECT {', '.join(Minute._fields)} FROM"
INSERT_EVENT = "INSERT INTO event(ts, gid, source, kind, code, text, pid, job_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
INSERT_PROCESS = """
INSERT INTO proc SELECT gid, ?, ?, ?, ?, ?, ?, ? FROM gpu WHERE uuid = ?
ON CONFLICT DO UPDATE SET last_ts = excluded.last_ts, mem_mib = max(coalesce(mem_mib, 0), excluded.mem_mib)
"""
LAST_XIDS = "SELECT uuid, code, max(ts) FROM event JOIN gpu USING (gid) WHERE kind = 'xid' GROUP BY uuid, code"
SELECT_SAMPLE = f"SELECT {', '.join(Sample._fields)} FROM s WHERE gid = ?"


class Recorder:
    """The one writer of a home's `telemetry.sqlite`.

    Rows wait in memory for `save`. Raises sqlite3.Error when the database cannot be written; nothing is lost by that,
    the next `save` tries again. A corrupt database is put aside and begun anew.
    """

    def __init__(self, home: Path) -> None:
        self.path = database_path(home)
        self._identities: dict[str, Identity] = {}
        self._known: dict[str, tuple[int, Identity]] = {}
        self._unsaved: dict[str, deque[Sample]] = {}
        self._events: list[tuple[float, str | None, str, str, int | None, str, int | None, str | None]] = []
        self._last_xid: dict[tuple[str | None, int], float] = {}
        #: Who is on each GPU, since when; and what of it is to be written.
        self._present: dict[str, dict[GpuProcess, int]] = {}
        self._seen: dict[tuple[str, int, int], tuple[int, GpuProcess]] = {}
        self._database = self._open()
        with suppress(sqlite3.DatabaseError):  # `save` finds out, and begins anew
            self._last_xid |= {(uuid, code): ts for uuid, code, ts in self._database.execute(LAST_XIDS)}

    def adopt(self, unsaved: Mapping[str, Sequence[Sample]]) -> None:
        """Save the rows that a killed sampler left in `gpu-now.json`."""
        with _transaction(self._database) as db:
            for uuid, rows in unsaved.items():
                found = db.execute("SELECT gid FROM gpu WHERE uuid = ?", (uuid,)).fetchone()
                if found:
                    db.executemany(INSERT_SAMPLE, [(found[0], *row) for row in rows])

    def know(self, slot: Identity) -> None:
        """Say who a slot is, before its first sample and whenever something about it may have changed."""
        self._identities[slot.uuid] = slot
        self._unsaved.setdefault(slot.uuid, deque(maxlen=UNSAVED_LIMIT))

    def add(self, uuid: str, sample: Sample) -> None:
        """One sample of a known slot. A second one of the same second is dropped."""
        rows = self._unsaved[uuid]
        if not rows or rows[-1].ts != sample.ts:
            rows.append(sample)

    def note(
        self,
        ts: float,
        uuid: str | None,
        source: str,
        kind: str,
        text: str,
        code: int | None = None,
        *,
        pid: int | None = None,
        job: str | None = None,
    ) -> bool:
        """An event; returns whether it is news and no repetition of the XID just before."""
        if code is not None:
            last, self._last_xid[uuid, code] = self._last_xid.get((uuid, code)), ts
            if last is not None and abs(ts - last) <= SAME_EVENT_S:
                return False
        self._events.append((ts, uuid, source, kind, code, text, pid, job))
        return True

    def see(self, ts: int, uuid: str, processes: Sequence[GpuProcess]) -> None:
        """Who is on a GPU now. One that is there again after it was gone counts anew: pids are used again."""
        before = {(one.pid, one.name): since for one, since in self._present.get(uuid, {}).items()}
        self._present[uuid] = {one: before.get((one.pid, one.name), ts) for one in processes}
        for one, since in self._present[uuid].items():
            key = (uuid, since, one.pid)
            most = (
                max(one.memory_bytes or 0, self._seen[key][1].memory_bytes or 0)
                if key in self._seen
                else one.memory_bytes
            )
            self._seen[key] = ts, replace(one, memory_bytes=most)

    @property
    def has_events(self) -> bool:
        return bool(self._events)

    def unsaved(self) -> dict[str, list[Sample]]:
        """What `gpu-now.json` must carry, by UUID."""
        return {uuid: list(rows) for uuid, rows in self._unsaved.items() if rows}

    def save(self, *, now: float) -> None:
        """Commit all that waits, and each whole minute that has no summary yet."""
        try:
            self._save(now)
        except sqlite3.DatabaseError as error:
            if not _is_corrupt(error):
                raise
            self._start_over()
            self._save(now)

    def prune(self, *, now: float) -> None:
        """Delete a slice of what is too old. Once an hour keeps up with what comes in."""
        with _transaction(self._database) as db:
            for gid, _ in self._known.values():
                for table, kept_s, slice_s in PRUNING:
                    oldest = db.execute(f"SELECT min(ts) FROM {table} WHERE gid = ?", (gid,)).fetchone()[0]
                    if oldest is not None:
                        limit = min(int(now - kept_s), oldest + slice_s)
                        db.execute(f"DELETE FROM {table} WHERE gid = ? AND ts < ?", (gid, limit))
        self._database.execute("PRAGMA incremental_vacuum(1000)").fetchall()

    def close(self) -> None:
        self._database.close()

    def _open(self) -> sqlite3.Connection:
        try:
            return _connect(self.path)
        except sqlite3.DatabaseError as error:
            if not _is_corrupt(error):
                raise
            _put_aside(self.path)
            return _connect(self.path)

    def _start_over(self) -> None:
        self._database.close()
        self._known.clear()
        _put_aside(self.path)
        self._database = _connect(self.path)

    def _save(self, now: float) -> None:
        with _transaction(self._database) as db:
            known = {uuid: self._introduce(db, slot, now) for uuid, slot in self._identities.items()}
            for uuid, rows in self._unsaved.items():
                gid = known[uuid][0]
                db.executemany(INSERT_SAMPLE, [(gid, *row) for row in rows])
                if rows:
                    db.execute("UPDATE gpu SET last_ts = ? WHERE gid = ?", (rows[-1].ts, gid))
            for ts, event_uuid, *facts in self._events:
                event_gid = known[event_uuid][0] if event_uuid in known else None
                db.execute(INSERT_EVENT, (ts, event_gid, *facts))
            for (uuid, since, pid), (last, one) in self._seen.items():
                mib = None if one.memory_bytes is None else one.memory_bytes >> 20
                db.execute(INSERT_PROCESS, (since, last, pid, one.kind, one.owner, one.name, mib, uuid))
            for gid, _ in known.values():
                if self._roll_up(db, gid, before=int(now) // 60 * 60):
                    for source, target, step_s in LONGER:
                        _roll_up_further(db, gid, source, target, step_s, before=int(now) // step_s * step_s)
        self._known = known
        for waiting in self._unsaved.values():
            waiting.clear()
        self._events.clear()
        self._seen.clear()

    def _introduce(self, db: sqlite3.Connection, slot: Identity, now: float) -> tuple[int, Identity]:
        """The slot's number in the database, which has what is known of it."""
        known = self._known.get(slot.uuid)
        if known and known[1] == slot:
            return known
        db.execute("INSERT OR IGNORE INTO gpu(uuid, first_ts) VALUES (?, ?)", (slot.uuid, int(now)))
        db.execute(
            "UPDATE gpu SET name = ?, bus_id = ?, serial = ?, driver = ?, limits_json = ? WHERE uuid = ?",
            (slot.name, slot.bus_id, slot.serial, slot.driver, json.dumps(slot.limits), slot.uuid),
        )
        return db.execute("SELECT gid FROM gpu WHERE uuid = ?", (slot.uuid,)).fetchone()[0], slot

    def _roll_up(self, db: sqlite3.Connection, gid: int, *, before: int) -> bool:
        """Summarise the slot's whole minutes that have no summary yet, those of an earlier sampler too; whether any was due."""
        done = db.execute("SELECT max(ts) + 60 FROM s60 WHERE gid = ?", (gid,)).fetchone()[0] or 0
        if done >= before:
            return False
        rows = db.execute(f"{SELECT_SAMPLE} AND ts >= ? AND ts < ? ORDER BY ts", (gid, done, before))
        earlier = db.execute(f"{SELECT_SAMPLE} AND ts < ? ORDER BY ts DESC LIMIT 1", (gid, done)).fetchone()
        previous = Sample(*earlier) if earlier else None
        for ts, group in groupby(map(Sample._make, rows.fetchall()), key=lambda row: row.ts // 60 * 60):
            minute = list(group)
            db.execute(INSERT_MINUTE, (gid, *summarize_minute(ts, minute, previous)))
            previous = minute[-1]
        return True


def _roll_up_further(db: sqlite3.Connection, gid: int, source: str, target: str, step_s: int, *, before: int) -> None:
    """Summarise what is whole in `source` and not yet in `target`, a part of it at a time."""
    done = db.execute(f"SELECT max(ts) + {step_s} FROM {target} WHERE gid = ?", (gid,)).fetchone()[0] or 0
    first = db.execute(f"SELECT min(ts) FROM {source} WHERE gid = ? AND ts >= ?", (gid, done)).fetchone()[0]
    if first is None or first >= before:
        return
    end = min(before, first // step_s * step_s + CATCH_UP_S)
    rows = db.execute(f"{SELECT_MINUTES} {source} WHERE gid = ? AND ts >= ? AND ts < ? ORDER BY ts", (gid, done, end))
    insert = INSERT_MINUTE.replace("s60", target)
    for ts, group in groupby(map(Minute._make, rows.fetchall()), key=lambda row: row.ts // step_s * step_s):
        db.execute(insert, (gid, *summarize_minutes(ts, list(group))))


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    try:
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")  # works before the first table only
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.executescript(SCHEMA)
        known = {row[1] for row in database.execute("PRAGMA table_info(s)")}
        for (
            name
        ) in Sample._fields:  # a column that an earlier version did not have; they are only ever added at the end
            if name not in known:
                database.execute(f"ALTER TABLE s ADD COLUMN {name} INTEGER")
    except sqlite3.Error:
        database.close()
        raise
    return database


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield database
        database.execute("COMMIT")
    except BaseException:  # also what is no Exception: a transaction left open would block all others
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _is_corrupt(error: sqlite3.DatabaseError) -> bool:
    # Errors of the module itself carry no code.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _put_aside(path: Path) -> None:
    """Keep what cannot be read, for a person to look at, and make room."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.replace(path.with_name(path.name + ".broken"))
