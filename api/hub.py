"""Live events: one thread follows the queue's stream and hands each change to every open connection, which never wait for it.

A client that is too slow is told to start over (`resync`) instead of being waited for. One that comes back names the last
event that it saw and gets what it missed, without a gap and without a repeat.
"""

import asyncio
import json
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import redis
from starlette.concurrency import run_in_threadpool

from daemon.store import Event, Store
from jobs.model import Job, Progress

log = logging.getLogger(__name__)

MAX_STREAMS = 64
#: Messages that wait for one client.
QUEUE_LENGTH = 1_000
#: A client that missed more is told to start over.
BACKFILL_EVENTS = 5_000
#: Well below redis-py's own timeout of a silent connection (5 s), which would end the waiting with an error.
BLOCK_MS = 2_000
REDIS_PAUSE_S = 0.5
START_TIMEOUT_S = 5.0
JOIN_S = 1.0
#: These tell of a job's record as it is now.
FROM_RECORD = ("state", "progress")


@dataclass(frozen=True)
class Message:
    """One event as clients get it: of type state, progress, rig or resync."""

    id: str
    type: str
    data: Mapping[str, Any]
    #: The jobs that it is about, by number: first and last.
    first: int = 0
    last: int = 0
    job: Job | None = field(default=None, compare=False)

    def is_about(self, job_id: str) -> bool:
        return self.type == "resync" or self.first <= int(job_id) <= self.last

    @cached_property
    def frame(self) -> bytes:
        """As it stands in the stream of all events; made once for all clients."""
        return frame(self.type, self.data, self.id)


class TooManyStreams(Exception):
    """As many connections follow the events as are allowed."""


class Hub:
    """All open streams of this process."""

    def __init__(self, store: Store):
        self._store = store
        self._clients: set[Subscription] = set()
        self._closing = threading.Event()
        self._ready = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._pump, name="events", daemon=True)
        #: The last event that was read, and Redis's number for the connection that waits for the next one.
        self._last: str | None = None
        self._connection_id: int | None = None

    @property
    def count(self) -> int:
        """How many follow now."""
        return len(self._clients)

    @property
    def is_closed(self) -> bool:
        return self._closing.is_set()

    async def check(self) -> None:
        """Return when another stream may begin. Raises TooManyStreams, or TimeoutError when Redis is away."""
        if self.count >= MAX_STREAMS:
            raise TooManyStreams
        await asyncio.wait_for(self._ready.wait(), START_TIMEOUT_S)

    def start(self) -> None:
        """Begin to follow the stream. Call it inside the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """End every stream. Call it inside the event loop."""
        self._closing.set()
        for client in self._clients:
            client.wake()

    def begin_anew(self) -> None:
        """End the streams that are open now: whoever still may comes back, and goes on where its stream was. From any thread."""
        self._call(self._end_streams)

    def _end_streams(self) -> None:
        for client in self._clients:
            client.end()

    def join(self) -> None:
        """Wait until the thread has ended; it is woken from its waiting for events. Call it after `close`."""
        deadline = time.monotonic() + JOIN_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            try:
                if self._connection_id is not None:
                    self._store.redis.client_unblock(self._connection_id)
            except redis.RedisError as error:
                log.debug("the event thread could not be woken: %s", error)
            self._thread.join(JOIN_S / 20)

    @asynccontextmanager
    async def subscribe(self, since: str | None) -> "AsyncIterator[Subscription]":
        """What happens after `since`, or from now on. Call `check` before."""
        client = Subscription(self)
        self._clients.add(client)  # first, then what is missing: no gap
        try:
            client.begin(*await run_in_threadpool(self._missed, since))
            yield client
        finally:
            self._clients.discard(client)

    def _missed(self, since: str | None) -> tuple[str, list[Message]]:
        """The id up to which the messages tell everything, and the messages."""
        newest = self._store.last_event_id()
        if since is None or since == newest:
            return newest, []
        oldest = self._store.first_event_id()
        if oldest is None or event_key(since) < event_key(oldest) or event_key(since) > event_key(newest):
            return newest, [Message(newest, "resync", {})]
        events = self._store.events(since, count=BACKFILL_EVENTS + 1)
        if len(events) > BACKFILL_EVENTS:
            return newest, [Message(newest, "resync", {})]
        return events[-1].id if events else newest, dress(events, self._store)

    def _pump(self) -> None:
        """In a thread of its own: follow the stream for as long as the process lives, though Redis comes and goes."""
        while not self._closing.is_set():
            try:
                # one connection for the waiting, so that it can be woken by its number
                with self._store.redis.client() as connection:  # type: ignore[no-untyped-call]
                    self._connection_id = connection.client_id()
                    self._follow(Store(connection))
            except redis.RedisError as error:
                log.debug("the event stream is away: %s", error)
                self._connection_id = None
                self._closing.wait(REDIS_PAUSE_S)

    def _follow(self, store: Store) -> None:
        self._last = self._last or store.last_event_id()
        self._call(self._ready.set)
        while not self._closing.is_set():
            events = store.events(self._last, block_ms=BLOCK_MS)
            # without a listener nobody needs the records behind the events
            messages = dress(events, store) if events and self._clients else []
            self._last = events[-1].id if events else self._last
            if messages:
                self._call(self._deliver, messages)

    def _call(self, function: Any, *arguments: Any) -> None:
        """Run it in the event loop, unless that has ended."""
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            self._closing.set()

    def _deliver(self, messages: Sequence[Message]) -> None:
        for client in self._clients:
            client.put(messages)


class Subscription:
    """One connection's view of the events."""

    def __init__(self, hub: Hub):
        self._hub = hub
        self._waiting: deque[Message] = deque()
        self._something = asyncio.Event()
        self._begun = self._ended = False
        #: The last event that was handed out.
        self.seen = "0-0"

    def begin(self, seen: str, missed: Sequence[Message]) -> None:
        """Start with what was missed; what came in meanwhile follows, without a repeat."""
        later = [m for m in self._waiting if not m.id or event_key(m.id) > event_key(seen)]
        self._waiting = deque([*missed, *later])
        self.seen, self._begun = seen, True
        if self._waiting:
            self._something.set()

    def put(self, messages: Sequence[Message]) -> None:
        """Hand over; a client that does not keep up has to start over."""
        fresh = [m for m in messages if not self._begun or event_key(m.id) > event_key(self.seen)]
        if len(self._waiting) + len(fresh) > QUEUE_LENGTH:
            self._waiting.clear()
            fresh = [Message(messages[-1].id, "resync", {})]
        self._waiting.extend(fresh)
        self._something.set()

    def wake(self) -> None:
        """Look whether the hub has closed."""
        self._something.set()

    @property
    def _is_over(self) -> bool:
        return self._ended or self._hub.is_closed

    def end(self) -> None:
        """Hand out nothing more."""
        self._ended = True
        self.wake()

    async def next(self, timeout_s: float) -> list[Message] | None:
        """What has happened; empty after `timeout_s` without anything, None when the stream ends."""
        if self._is_over:
            return None
        try:
            await asyncio.wait_for(self._something.wait(), timeout_s)
        except TimeoutError:
            return []
        if self._is_over:
            return None
        self._something.clear()
        messages = list(self._waiting)
        self._waiting.clear()
        self.seen = next((m.id for m in reversed(messages) if m.id), self.seen)
        return messages


def frame(type: str, data: object, event_id: str = "") -> bytes:
    """One server-sent event. JSON has no line break outside its escapes, so one `data:` line holds it."""
    id_line = f"id: {event_id}\n" if event_id else ""
    return f"{id_line}event: {type}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def event_key(event_id: str) -> tuple[int, int]:
    """For comparing ids."""
    millis, _, sequence = event_id.partition("-")
    return int(millis), int(sequence or 0)


def dress(events: Sequence[Event], store: Store) -> list[Message]:
    """Events with what their jobs' records say now: of a job's many, the last one of each type says all."""
    last = {(event.type, event.job): event.id for event in events if event.type in FROM_RECORD}
    records = store.get_many(list(dict.fromkeys(job for _, job in last))) if last else {}
    told = (event for event in events if last.get((event.type, event.job), event.id) == event.id)
    return [message for event in told if (message := _message(event, records.get(event.job))) is not None]


def state_of(job: Job, waiting_because: str | None = None) -> dict[str, Any]:
    """The data of a `state` event."""
    outcome = job.outcome
    return {
        "job": job.id,
        "kind": job.kind,
        "name": job.name,
        "state": job.state,
        "attempt": job.attempt,
        "slots": job.slots,
        "wish": job.wish.kind if job.wish else None,
        "waiting_because": waiting_because,
        "outcome": outcome and {"cause": outcome.cause, "message": outcome.message, "hint": outcome.hint},
    }


def progress_of(job_id: str, progress: Progress) -> dict[str, Any]:
    """The data of a `progress` event."""
    return {
        "job": job_id,
        "phase": progress.phase,
        "step": progress.step,
        "total": progress.total,
        "fraction": progress.fraction,
        "eta_s": progress.eta_s,
        "metrics": dict(progress.metrics),
    }


def _message(event: Event, job: Job | None) -> Message | None:
    number = int(event.job or 0)
    if event.type == "submitted":
        last = str(event.data["last"])
        return Message(event.id, "state", {"job": event.job, "last": last, "state": "queued"}, number, int(last))
    if event.type == "deleted":
        return Message(event.id, "state", {"job": event.job, "state": None, "deleted": True}, number, number)
    if event.type not in FROM_RECORD:
        return Message(event.id, event.type, dict(event.data), number, number)
    if job is None:
        return None  # deleted since; its own event says so
    if event.type == "progress" and job.progress is not None:
        return Message(event.id, "progress", progress_of(job.id, job.progress), number, number, job)
    return Message(event.id, "state", state_of(job), number, number, job)
