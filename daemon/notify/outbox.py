"""What is to be sent, on disk: a message is in here, with the memory of what made it, before anybody sends it.

At least once: a process that is killed between sending and noting it sends the message again, with the same id, by which
receivers know it (webhook-id, Message-ID, ntfy's sequence_id). Made once: `key` is unique, and a decision is stored whole.
"""

import json
import logging
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from daemon.notify.message import Kind, Message, merged

log = logging.getLogger(__name__)

FILE = "messages.sqlite"
#: Pauses before a message is tried again, as Standard Webhooks proposes them. Then it is given up.
RETRY_S = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
KEPT_S = 30 * 86_400.0
BUSY_S = 5.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, at REAL NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS deliveries (
    message TEXT NOT NULL REFERENCES messages(id), channel TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'waiting',
    attempts INTEGER NOT NULL DEFAULT 0, next_at REAL NOT NULL DEFAULT 0, done_at REAL, error TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (message, channel));
CREATE INDEX IF NOT EXISTS waiting ON deliveries (channel) WHERE state = 'waiting';
CREATE TABLE IF NOT EXISTS channels (
    name TEXT PRIMARY KEY, last_sent_at REAL, failing_since REAL, last_error TEXT NOT NULL DEFAULT '', last_error_at REAL);
CREATE TABLE IF NOT EXISTS remembered (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Delivery:
    """One message on its way to one channel."""

    id: str
    channel: str
    message: Message
    state: str = "waiting"
    attempts: int = 0
    next_at: float = 0.0
    done_at: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Health:
    """How a channel gets on."""

    last_sent_at: float | None = None
    #: Since when nothing gets through; None: the last try did.
    failing_since: float | None = None
    last_error: str = ""
    last_error_at: float | None = None


class Outbox:
    """Messages and their deliveries. Safe to use from several threads and processes. Raises sqlite3.Error."""

    def __init__(self, database: sqlite3.Connection):
        self._database, self._lock = database, threading.Lock()

    @classmethod
    def open(cls, home: Path) -> Self:
        """The rig's. A damaged file is put aside: a new one is better than none."""
        path = home / FILE
        try:
            return cls(_connect(path))
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            log.error("%s is damaged (%s): it is put aside", path, error)
            path.replace(path.with_suffix(".sqlite.damaged"))
            return cls(_connect(path))

    @classmethod
    def in_memory(cls) -> Self:
        """For messages that the full disk does not take."""
        return cls(_connect(None))

    def close(self) -> None:
        """Not in the middle of another thread's transaction: SQLite would read freed memory. That thread gets sqlite3.Error later."""
        with self._lock:
            self._database.close()

    # -- in ---------------------------------------------------------------------------------------------------------------

    def put(
        self, messages: Sequence[tuple[Message, Sequence[str]]], remember: Mapping[str, Any] | None = None
    ) -> list[str]:
        """Messages with the channels that they go to, and what is to be remembered: together or not at all.

        Returns the ids; one whose key is known already is not stored again.
        """
        with self._transaction() as database:
            ids = [self._add(database, message, channels) for message, channels in messages]
            for name, value in (remember or {}).items():
                database.execute("REPLACE INTO remembered VALUES (?, ?)", (name, json.dumps(value)))
        return ids

    def _add(self, database: sqlite3.Connection, message: Message, channels: Sequence[str]) -> str:
        body = json.dumps(vars(message))
        row = (f"msg_{uuid.uuid4().hex}", message.key, message.at, body)
        if database.execute("INSERT OR IGNORE INTO messages VALUES (?, ?, ?, ?)", row).rowcount == 0:
            known = database.execute("SELECT id FROM messages WHERE key = ?", (message.key,)).fetchone()
            return str(known[0])
        for channel in channels:
            database.execute("INSERT INTO deliveries (message, channel) VALUES (?, ?)", (row[0], channel))
        return row[0]

    def recall(self, name: str) -> Any:
        """What was remembered last, or None."""
        with self._lock:
            found = self._database.execute("SELECT value FROM remembered WHERE name = ?", (name,)).fetchone()
        return json.loads(found[0]) if found else None

    # -- out --------------------------------------------------------------------------------------------------------------

    def waiting(self, channel: str) -> list[Delivery]:
        """What has not been sent there, the oldest first."""
        return self._deliveries("d.channel = ? AND d.state = 'waiting'", (channel,))

    def merge(self, parts: Sequence[Delivery], *, now: float) -> Delivery:
        """Make one of several that nobody has tried to send yet."""
        channel = parts[0].channel
        message = merged([part.message for part in parts], key=f"merged:{channel}:{parts[0].id}:{len(parts)}")
        with self._transaction() as database:
            message_id = self._add(database, message, [channel])
            for part in parts:
                database.execute(
                    "UPDATE deliveries SET state = 'merged', done_at = ? WHERE message = ? AND channel = ?",
                    (now, part.id, channel),
                )
        return Delivery(message_id, channel, message)

    def sent(self, delivery: Delivery, *, now: float) -> None:
        """It has arrived."""
        with self._transaction() as database:
            _note(database, delivery, "sent", now, now, "")
            _tell_well(database, delivery.channel, now)

    def failed(
        self, delivery: Delivery, error: str, *, now: float, retry_after_s: float = 0.0, gone: bool = False
    ) -> None:
        """It has not. It is tried again, until it was tried often enough, or at once not when nobody will ever take it."""
        over = gone or is_test(delivery) or delivery.attempts >= len(RETRY_S)
        wait_s = 0.0 if over else max(RETRY_S[delivery.attempts], min(retry_after_s, RETRY_S[-1]))
        with self._transaction() as database:
            _note(database, delivery, "given_up" if over else "waiting", now + wait_s, now if over else None, error)
            _tell_ill(database, delivery.channel, error, now)

    def pinged(self, channel: str, error: str, *, now: float) -> None:
        """How a dead-man ping went; it is no message."""
        with self._transaction() as database:
            if error:
                _tell_ill(database, channel, error, now)
            else:
                _tell_well(database, channel, now)

    # -- looking ----------------------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Health]:
        """By channel: those that were ever tried."""
        with self._lock:
            rows = self._database.execute(
                "SELECT name, last_sent_at, failing_since, last_error, last_error_at FROM channels"
            ).fetchall()
        return {name: Health(*rest) for name, *rest in rows}

    def latest(self, limit: int = 20) -> list[Delivery]:
        """Of the newest messages, all deliveries."""
        return self._deliveries("m.id IN (SELECT id FROM messages ORDER BY at DESC, rowid DESC LIMIT ?)", (limit,))

    def of(self, message_id: str) -> list[Delivery]:
        """One message's deliveries."""
        return self._deliveries("m.id = ?", (message_id,))

    def tidy(self, *, now: float) -> None:
        """Forget what was sent long ago, and what waits for a channel that is gone."""
        with self._transaction() as database:
            database.execute("DELETE FROM deliveries WHERE message IN (SELECT id FROM messages WHERE at < ?)", (now - KEPT_S,))  # fmt: skip
            database.execute("DELETE FROM messages WHERE at < ?", (now - KEPT_S,))

    def _deliveries(self, where: str, values: tuple[Any, ...]) -> list[Delivery]:
        query = (
            "SELECT m.id, d.channel, m.body, d.state, d.attempts, d.next_at, d.done_at, d.error"  # noqa: S608 - ours
            f" FROM deliveries d JOIN messages m ON m.id = d.message WHERE {where} ORDER BY m.at, m.rowid"
        )
        with self._lock:
            rows = self._database.execute(query, values).fetchall()
        return [Delivery(row[0], row[1], Message.from_json(json.loads(row[2])), *row[3:]) for row in rows]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:  # whatever it was: half of it must not stay
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise


def _connect(path: Path | None) -> sqlite3.Connection:
    if path is not None and not path.exists():  # looking at it must not change it
        path.touch(mode=0o600)
    database = sqlite3.connect(path or ":memory:", timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.executescript(SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database


def _note(database: sqlite3.Connection, delivery: Delivery, state: str, next_at: float, done_at: float | None, error: str) -> None:  # fmt: skip
    database.execute(
        "UPDATE deliveries SET state = ?, attempts = ?, next_at = ?, done_at = ?, error = ? WHERE message = ? AND channel = ?",
        (state, delivery.attempts + 1, next_at, done_at, error, delivery.id, delivery.channel),
    )


def _tell_well(database: sqlite3.Connection, channel: str, now: float) -> None:
    database.execute(
        "INSERT INTO channels (name, last_sent_at) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET last_sent_at = excluded.last_sent_at, failing_since = NULL",
        (channel, now),
    )


def _tell_ill(database: sqlite3.Connection, channel: str, error: str, now: float) -> None:
    database.execute(
        "INSERT INTO channels (name, failing_since, last_error, last_error_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET failing_since = COALESCE(failing_since, excluded.failing_since),"
        " last_error = excluded.last_error, last_error_at = excluded.last_error_at",
        (channel, now, error, now),
    )


def is_test(delivery: Delivery) -> bool:
    """Whether somebody waits for it."""
    return delivery.message.kind is Kind.TEST
