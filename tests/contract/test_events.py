"""Live events from a real process: nothing missed, nothing twice, the log before the end, and no way to break the stream."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from live_api import COMMAND, NOW, LiveApi

from api.__main__ import PATIENCE
from api.client import Client, Event, parse_events
from api.guard import CSP
from api.hub import MAX_STREAMS, QUEUE_LENGTH, Hub, Message, Subscription, TooManyStreams
from daemon import redis_server
from daemon.settings import Settings
from daemon.store import Store, connect
from jobs.model import Cause, End, Job, Outcome, Progress
from jobs.rundir import RunDir, append_json_line, run_dir

JOBS = "/api/v1/jobs"


@pytest.fixture
def caller(live: LiveApi) -> Iterator[Client]:
    with Client(live.url, live.token) as client:
        yield client


class Run:
    """A running job, as its worker would tell of it."""

    def __init__(self, live: LiveApi, caller: Client):
        self.store = live.store
        self.id = str(caller.submit(COMMAND)["id"])
        epoch = self.store.new_epoch("rig")
        slot = f"slot-{self.id}"  # one of its own: tests of this module share a rig
        self.fence = self.store.offer(self.id, rig="rig", slots=(slot,), epoch=epoch, now=NOW).fence
        self.store.claim(self.id, fence=self.fence, owner="test", now=NOW, lease_s=60)
        self.folder: RunDir = run_dir(live.settings.runs, self.id)
        self.folder.create()

    def say(self, text: str) -> None:
        with self.folder.log.open("a") as log:
            log.write(text)

    def step(self, step: int, **metrics: float) -> None:
        append_json_line(self.folder.metrics, {"step": step, **metrics})
        self.store.renew(self.id, fence=self.fence, progress=Progress(step=step, total=10), lease_s=60)

    def end(self, outcome: Outcome | None = None) -> Job:
        return self.store.finish(self.id, fence=self.fence, outcome=outcome or Outcome(end=End.SUCCEEDED), now=NOW)


@pytest.fixture
def run(live: LiveApi, caller: Client) -> Run:
    return Run(live, caller)


def collect(events: Iterator[Event], until: Callable[[Event], bool]) -> list[Event]:
    """Events up to the first one that is waited for."""
    found = []
    for event in events:
        found.append(event)
        if until(event):
            return found
    raise AssertionError(f"the stream ended after {found}")


def has_ended(event: Event) -> bool:
    return event.type == "state" and event.data["state"] in ("succeeded", "failed", "cancelled")


def texts(events: list[Event]) -> str:
    return "".join(event.data["text"] for event in events if event.type == "log")


def steps(events: list[Event]) -> list[int]:
    return [row["step"] for event in events if event.type == "metric" for row in event.data["rows"]]


# -- one job ------------------------------------------------------------------------------------------------------------


def test_a_stream_begins_with_how_things_are(caller: Client, run: Run) -> None:
    run.say("hello\n")
    run.step(1, loss=2.0)

    events = collect(caller.events(run.id), lambda event: event.type == "progress")

    assert (texts(events), steps(events)) == ("hello\n", [1])
    state = next(event.data for event in events if event.type == "state")
    assert {"job": run.id, "state": "running", "attempt": 1}.items() <= state.items()
    assert {"step": 1, "total": 10, "fraction": 0.1}.items() <= events[-1].data.items()


def test_everything_that_happens_comes_as_it_happens_and_the_end_comes_last(caller: Client, run: Run) -> None:
    seen: list[Event] = []
    for event in caller.events(run.id):
        seen.append(event)
        if len(seen) == 1:
            run.say("one\n")
            run.step(1, loss=2.0)
        if event.type == "log" and event.data["text"] == "one\n":
            run.say("two\nand the last words")
            run.step(2, loss=1.0)
            run.say("\n")
            run.end()
        if has_ended(event):
            break

    assert texts(seen) == "one\ntwo\nand the last words\n"
    assert steps(seen) == [1, 2]
    assert {event.data["step"] for event in seen if event.type == "progress"} >= {1}
    assert seen[-1].data["state"] == "succeeded"


def test_an_ended_job_is_told_whole_at_once(caller: Client, run: Run) -> None:
    run.say("x" * 50_000 + "\nlast words without an end")
    run.end(Outcome(end=End.FAILED, cause=Cause.BAD_INPUT, message="No.", hint="Do."))

    events = collect(caller.events(run.id), has_ended)

    assert texts(events) == "x" * 50_000 + "\nlast words without an end"
    assert events[-1].data["outcome"] == {"cause": "bad_input", "message": "No.", "hint": "Do."}


def test_who_comes_back_misses_nothing_and_hears_nothing_twice(caller: Client, run: Run) -> None:
    run.say("one\n")
    run.step(1)
    first = collect(caller.events(run.id), lambda event: event.type == "progress")
    run.say("two\n")
    run.step(2)
    run.say("three\n")
    run.end()

    rest = collect(caller.events(run.id, after=first[-1].id), has_ended)

    assert (texts(first), texts(rest)) == ("one\n", "two\nthree\n")
    assert (steps(first), steps(rest)) == ([1], [2])
    ids = [event.id for event in (*first, *rest)]
    assert all(ids)
    assert [event.data["state"] for event in rest if event.type == "state"] == ["succeeded"]


def test_a_waiting_job_says_why(caller: Client, live: LiveApi) -> None:
    job_id = caller.submit({**COMMAND, "not_before": "2100-01-01T00:00:00Z"})["id"]

    [state] = collect(caller.events(job_id), lambda event: event.type == "state")

    assert state.data["waiting_because"].startswith("not before ")


def test_a_job_that_goes_back_to_a_checkpoint_begins_its_curves_anew(caller: Client, run: Run) -> None:
    for step in (1, 2, 3):
        append_json_line(run.folder.metrics, {"step": step})
    seen: list[Event] = []
    for event in caller.events(run.id):
        seen.append(event)
        if event.type == "metric" and len(event.data["rows"]) == 3:
            draft = run.folder.path / "draft"
            draft.write_text('{"step": 1}\n')
            draft.replace(run.folder.metrics)
        elif event.type == "metric":
            break

    assert seen[-1].data == {"job": run.id, "rows": [{"step": 1}], "reset": True}


def test_a_huge_log_begins_near_its_end(caller: Client, run: Run) -> None:
    run.folder.log.write_text("".join(f"line {n}\n" for n in range(300_000)))
    size = run.folder.log.stat().st_size
    run.end()

    events = collect(caller.events(run.id), has_ended)
    logs = [event.data for event in events if event.type == "log"]

    assert texts(events).endswith("line 299999\n")
    assert texts(events).startswith("line ")
    assert logs[0]["skipped_bytes"] > 1_000_000
    assert logs[-1]["offset"] == size


def test_a_stream_may_begin_where_the_page_stopped(live: LiveApi, run: Run) -> None:
    run.say("old\n")
    run.say("new\n")
    run.end()

    events = collect(streamed(live, f"{JOBS}/{run.id}/events", log_from=4), has_ended)

    assert texts(events) == "new\n"


def test_a_deleted_job_ends_its_stream(caller: Client, run: Run) -> None:
    run.end()
    events = []
    for event in caller.events(run.id):
        events.append(event)
        if has_ended(event):
            caller.remove(run.id)

    assert events[-1].data == {"job": run.id, "state": None, "deleted": True}


# -- all jobs -----------------------------------------------------------------------------------------------------------


def test_the_stream_of_all_tells_of_every_job_and_of_the_rig(live: LiveApi, caller: Client) -> None:
    after = live.store.last_event_id()
    run = Run(live, caller)
    run.step(5, loss=1.0)
    caller.pause("")
    caller.resume("")
    run.end()

    events = collect(streamed(live, "/api/v1/events", since=after), lambda e: has_ended(e) and e.data["job"] == run.id)

    mine = [event for event in events if event.type == "rig" or event.data.get("job") == run.id]
    assert mine[0].data == {"job": run.id, "last": run.id, "state": "queued"}
    assert [event.data["paused"] for event in mine if event.type == "rig"] == [True, False]
    assert [event.data["step"] for event in mine if event.type == "progress"] == [5]
    assert [event.id for event in events] == sorted(
        (event.id for event in events), key=lambda i: tuple(map(int, i.split("-")))
    )


def test_a_stream_that_is_cut_again_and_again_tells_the_same_as_one_that_never_was(
    live: LiveApi, caller: Client
) -> None:
    """Cut after each single event, while jobs come and go; what was told meanwhile comes with the next connection."""
    since = live.store.last_event_id()
    with live.client().stream("GET", "/api/v1/events", params={"since": since}) as unbroken:
        whole, told, known = parse_events(unbroken.iter_bytes()), [], list[str]()
        at = since
        for number in range(6):
            job_id = caller.submit(COMMAND)["id"]  # while nobody is connected
            with live.client().stream("GET", "/api/v1/events", headers={"Last-Event-ID": at}) as part:
                events = parse_events(part.iter_bytes())
                caller.cancel(job_id)  # while somebody is
                for event in events:
                    told.append(event)
                    at = event.id
                    if number % 2 or (event.type == "state" and event.data["state"] == "cancelled"):
                        break  # in the middle, or at the end
        last = live.store.last_event_id()
        rest = list(streamed_to(live, at, last))
        ids = [event.id for event in (*told, *rest)]
        for event in whole:
            known.append(event.id)
            if event.id == last:
                break
    assert ids == known, "nothing is missing, nothing comes twice, in order"


def streamed_to(live: LiveApi, since: str, last: str) -> Iterator[Event]:
    """What is still to come up to an event."""
    if since == last:
        return
    with live.client().stream("GET", "/api/v1/events", headers={"Last-Event-ID": since}) as answer:
        for event in parse_events(answer.iter_bytes()):
            yield event
            if event.id == last:
                return


def test_a_new_stream_begins_now_and_knows_where_to_come_back_to(live: LiveApi, caller: Client) -> None:
    with live.client().stream("GET", "/api/v1/events") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "retry: 2000"
        place = next(line for line in lines if line.startswith("id: "))
    assert place == f"id: {live.store.last_event_id()}"


@pytest.mark.parametrize("since", ["1-0", "99999999999999-0"])
def test_an_id_that_is_too_old_or_from_elsewhere_means_start_over(live: LiveApi, caller: Client, since: str) -> None:
    caller.submit(COMMAND)

    [first] = collect(streamed(live, "/api/v1/events", since=since), lambda _: True)

    assert (first.type, first.id) == ("resync", live.store.last_event_id())


def test_s13_logging_out_ends_the_sessions_streams_and_others_go_on(live: LiveApi, caller: Client) -> None:
    with httpx.Client(base_url=live.url, timeout=20, trust_env=False) as leaving:
        assert leaving.post("/login", json={"token": live.token}).status_code == 200
        with leaving.stream("GET", "/api/v1/events") as answer:
            lines = answer.iter_lines()
            place = next(line for line in lines if line.startswith("id: ")).removeprefix("id: ")
            gone = leaving.post("/logout", headers={"Origin": live.url, "Accept": "text/html"})
            assert gone.status_code == 303
            assert [line for line in lines if line] == [], "it ends, though nothing happens on the rig"
        assert leaving.get("/api/v1/events", headers={"Last-Event-ID": place}).status_code == 401
    caller.submit(COMMAND)
    [first] = collect(streamed(live, "/api/v1/events", since=place), lambda _: True)
    assert first.type == "state", "whoever still may goes on where the stream was"


def test_s15_streams_have_the_security_headers(live: LiveApi) -> None:
    with live.client().stream("GET", "/api/v1/events") as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["content-security-policy"] == CSP
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"


GARBAGE = [
    "garbage",
    "1",
    "../..",
    "1-2-3",
    "1" * 60,
    "٣-٣",
    "-1-0",
    "1-0.5",
    "1-0.x.y",
    "0x1-0",
    "1-0 ",
    "'; DROP",
    "1-0\x00",
]


@pytest.mark.parametrize("text", GARBAGE)
@pytest.mark.parametrize("path", ["/api/v1/events", f"{JOBS}/1/events"])
def test_s41_an_id_is_checked_before_the_stream_begins(live: LiveApi, run: Run, path: str, text: str) -> None:
    before = live.log.read_text()
    with live.client() as client:
        answers = [client.get(path, params={"since": text})]
        if text.isascii() and text.isprintable():
            answers.append(client.get(path, headers={"Last-Event-ID": text.strip() + "!"}))

    assert [answer.status_code for answer in answers] == [422] * len(answers)
    assert answers[0].headers["content-type"] == "application/problem+json"
    assert live.log.read_text() == before  # no traceback


def test_an_unknown_job_has_no_stream(live: LiveApi) -> None:
    with live.client() as client:
        assert client.get(f"{JOBS}/999999/events").status_code == 404


# -- the hub itself -------------------------------------------------------------------------------------------------------


def test_a_client_that_does_not_keep_up_is_told_to_start_over(store: Store) -> None:
    async def slow() -> tuple[list[Message] | None, list[Message] | None]:
        hub = Hub(store)
        client = Subscription(hub)
        client.begin("0-0", [])
        message = Message("1-0", "state", {}, 1, 1)
        client.put([replace(message, id=f"{n}-0") for n in range(1, QUEUE_LENGTH + 2)])
        flooded = await client.next(1)
        client.put([replace(message, id=f"{QUEUE_LENGTH + 5}-0")])
        return flooded, await client.next(1)

    flooded, later = asyncio.run(slow())

    assert flooded is not None and later is not None
    assert [(m.type, m.id) for m in flooded] == [("resync", f"{QUEUE_LENGTH + 1}-0")]
    assert [m.type for m in later] == ["state"]


def test_only_so_many_streams_are_open_at_once(store: Store) -> None:
    async def crowd() -> None:
        hub = Hub(store)
        hub.start()
        try:
            async with hub.subscribe(None):
                hub._clients.update(Subscription(hub) for _ in range(MAX_STREAMS))
                with pytest.raises(TooManyStreams):
                    await hub.check()
        finally:
            hub.close()
            hub.join()

    asyncio.run(crowd())


def test_streams_survive_a_queue_that_comes_late_and_goes_away_meanwhile(settings: Settings) -> None:
    async def follow() -> list[str]:
        store = Store(connect(str(redis_server.socket_path(settings))))
        store.redis.set_retry(PATIENCE)
        hub = Hub(store)
        hub.start()  # nobody is there yet
        try:
            server = await asyncio.to_thread(redis_server.start, settings)
            await hub.check()
            async with hub.subscribe(None) as client:
                found = []
                for name in ("first", "second"):
                    await asyncio.to_thread(store.tell, "rig", "", {"rig": name})
                    messages = await client.next(20)
                    found += [message.data["rig"] for message in messages or []]
                    await asyncio.to_thread(server.stop)
                    server = await asyncio.to_thread(redis_server.start, settings)
                return found
        finally:
            hub.close()
            await asyncio.to_thread(hub.join)
            await asyncio.to_thread(server.stop)

    assert asyncio.run(follow()) == ["first", "second"]


def streamed(live: LiveApi, path: str, **params: Any) -> Iterator[Event]:
    """Any stream's events."""
    with live.client(timeout=httpx.Timeout(20)) as client, client.stream("GET", path, params=params) as answer:
        assert answer.status_code == 200, json.loads(answer.read())
        yield from parse_events(answer.iter_bytes())
