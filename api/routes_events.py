"""Server-sent events: of all jobs and the rig, and of one job with its log and metrics.

Types: state, progress, metric, log, rig, resync ("you missed something: read anew what you show"). Every event's id is a
place to go on from, given as `Last-Event-ID` or `?since=`. On a job's stream it holds the places in the two files as well:
`<event>.<log offset>.<metrics offset>`.
"""

import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import redis
from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from api.context import Context, Rig
from api.hub import Message, Subscription, TooManyStreams, frame, progress_of, state_of
from api.problems import RETRY_AFTER_S, ApiError, documented
from api.routes_jobs import EVERYBODY, HeldJob
from api.tails import LogTail, MetricsTail
from daemon.explain import explain
from daemon.store import UnknownJob
from jobs.model import Job, State
from jobs.rundir import run_dir

PLACE = re.compile(r"([0-9]{1,20}-[0-9]{1,20})(?:\.([0-9]{1,15})\.([0-9]{1,15}))?", re.ASCII)
#: A silent connection looks dead to those between: a comment keeps it.
KEEPALIVE_S = 15.0
KEEPALIVE = b": still here\n\n"
#: How soon a browser comes back.
RETRY = b"retry: 2000\n\n"
LOOK_EVERY_S = 0.2
#: A job that prints without end must not keep its own state from being told.
CHUNKS_PER_LOOK = 64
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

router = APIRouter(prefix="/api/v1", tags=["events"])

LastEventId = Annotated[str | None, Header(max_length=100)]
Since = Annotated[str | None, Query(max_length=100, description="As Last-Event-ID")]
Offset = Annotated[int, Query(ge=0, le=10**15, description="Where to begin, in bytes, when no event id says so")]
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


@router.get(
    "/events",
    operation_id="followAll",
    response_class=StreamingResponse,
    responses={**documented(*EVERYBODY, 422, 429), **STREAM},
)
async def follow_all(rig: Rig, last_event_id: LastEventId = None, since: Since = None) -> StreamingResponse:
    """Every change of every job and of the rig, from now on or from an event on."""
    place = _place(last_event_id or since)
    await _check(rig)
    return StreamingResponse(_all_events(rig, place and place[0]), headers=HEADERS, media_type="text/event-stream")


@router.get(
    "/jobs/{job_id}/events",
    operation_id="followJob",
    response_class=StreamingResponse,
    responses={**documented(*EVERYBODY, 404, 422, 429, 502), **STREAM},
)
async def follow_job(
    job: HeldJob,
    rig: Rig,
    last_event_id: LastEventId = None,
    since: Since = None,
    log_from: Offset = 0,
    metrics_from: Offset = 0,
) -> StreamingResponse:
    """One job: its state at once, then every change, new log lines and new metrics. A final state comes after all of them."""
    place = _place(last_event_id or since)
    await _check(rig)
    event, log_at, metrics_at = place or (None, None, None)
    folder = run_dir(rig.settings.runs, job.id)
    stream = JobStream(
        rig,
        job,
        LogTail(folder, log_from if log_at is None else log_at),
        MetricsTail(folder, metrics_from if metrics_at is None else metrics_at),
    )
    return StreamingResponse(stream.events(event), headers=HEADERS, media_type="text/event-stream")


class JobStream:
    """One connection that follows one job."""

    def __init__(self, rig: Context, job: Job, log: LogTail, metrics: MetricsTail):
        self._rig, self._job, self._log, self._metrics = rig, job, log, metrics
        self._at = "0-0"

    async def events(self, since: str | None) -> AsyncIterator[bytes]:
        """The stream's bytes."""
        yield RETRY
        try:
            async with self._rig.hub.subscribe(since) as subscription:
                self._at = since or subscription.seen
                if since is None:
                    async for part in self._from_the_start():
                        yield part
                else:
                    async for part in self._files():
                        yield part
                async for part in self._follow(subscription):
                    yield part
        except (redis.RedisError, UnknownJob):
            return  # the client comes back by itself, and hears then how things are

    async def _from_the_start(self) -> AsyncIterator[bytes]:
        """The job as it is, after what it has left so far."""
        self._job = await run_in_threadpool(self._rig.store.get, self._job.id)
        async for part in self._files():
            yield part
        yield await run_in_threadpool(self._state)

    async def _follow(self, subscription: Subscription) -> AsyncIterator[bytes]:
        told_at = time.monotonic()
        while True:
            running = self._job.state is State.RUNNING
            messages = await subscription.next(LOOK_EVERY_S if running else KEEPALIVE_S)
            if messages is None:
                return
            mine = [message for message in messages if message.is_about(self._job.id)]
            for message in mine:
                self._job = message.job or self._job
            if running or mine:
                async for part in self._files():
                    told_at = time.monotonic()
                    yield part
            for message in mine:
                self._at = message.id
                told_at = time.monotonic()
                async for part in self._tell(message):
                    yield part
                if message.data.get("deleted"):
                    return
            if mine and await self._has_moved():
                yield f"id: {self._at}.0.0\n\n".encode()
                return  # it runs on another rig now: whoever comes back is connected with that one
            if time.monotonic() - told_at >= KEEPALIVE_S:
                told_at = time.monotonic()
                yield KEEPALIVE

    async def _has_moved(self) -> bool:
        """Whether another rig has the run folder now."""
        return not self._rig.asked_by_rig and await run_in_threadpool(self._rig.elsewhere.holder, self._job) is not None

    async def _tell(self, message: Message) -> AsyncIterator[bytes]:
        if message.type == "resync":
            yield frame("resync", {}, self._id())
            async for part in self._from_the_start():
                yield part
        elif message.type == "state" and message.job is not None:
            yield await run_in_threadpool(self._state)
        else:
            yield frame(message.type, message.data, self._id())

    async def _files(self) -> AsyncIterator[bytes]:
        """What was added to the log and the metrics."""
        looks = 0
        while looks < CHUNKS_PER_LOOK or self._job.state.final:
            looks += 1
            parts = await run_in_threadpool(lambda: list(self._added()))
            if not parts:
                return
            yield b"".join(parts)

    def _added(self) -> Iterator[bytes]:
        if (rows := self._metrics.read()) is not None:
            yield frame("metric", {"job": self._job.id, "rows": rows.rows, "reset": rows.reset}, self._id())
        if (text := self._log.read(to_the_end=self._job.state.final)) is not None:
            data = {"job": self._job.id, "text": text.text, "offset": text.offset, "skipped_bytes": text.skipped_bytes}
            yield frame("log", data, self._id())

    def _state(self) -> bytes:
        waits = explain(self._rig.facts(), self._job) if self._job.state is State.QUEUED else None
        told = frame("state", state_of(self._job, waits), self._id())
        if self._job.state is State.RUNNING and self._job.progress is not None:
            told += frame("progress", progress_of(self._job.id, self._job.progress), self._id())
        return told

    def _id(self) -> str:
        return f"{self._at}.{self._log.offset}.{self._metrics.offset}"


async def _all_events(rig: Context, since: str | None) -> AsyncIterator[bytes]:
    yield RETRY
    try:
        async with rig.hub.subscribe(since) as subscription:
            if since is None:
                yield f"id: {subscription.seen}\n\n".encode()  # no event, but a place to come back to
            while (messages := await subscription.next(KEEPALIVE_S)) is not None:
                yield b"".join(message.frame for message in messages) or KEEPALIVE
    except redis.RedisError:
        return


async def _check(rig: Context) -> None:
    """Refuse before the stream begins: afterwards nobody could be told."""
    try:
        await rig.hub.check()
    except TooManyStreams:
        raise ApiError(429, "Too many connections follow the events. Close some pages or commands.") from None
    except TimeoutError:
        raise ApiError(503, "The queue is not reachable.", headers={"Retry-After": str(RETRY_AFTER_S)}) from None


def _place(text: str | None) -> tuple[str, int | None, int | None] | None:
    """An event id, with the offsets in the files where it has them. Raises ApiError 422."""
    if not text:
        return None
    if not (found := PLACE.fullmatch(text)):
        raise ApiError(422, "The event id is none that this rig gave.", errors=[("since", "is not an event id")])
    event, log_at, metrics_at = found.groups()
    return event, None if log_at is None else int(log_at), None if metrics_at is None else int(metrics_at)
