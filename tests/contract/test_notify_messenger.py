"""The messenger as a whole: a real queue, a real outbox, real servers; and clocks that do as they are told."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from notify_servers import Web, silence, web
from until import until

from daemon.notify import senders
from daemon.notify.__main__ import PATIENCE
from daemon.notify.decide import Report
from daemon.notify.messenger import Messenger
from daemon.notify.nights import night_of
from daemon.notify.outbox import RETRY_S, Outbox
from daemon.rig import cpu_slots
from daemon.settings import Settings
from daemon.store import Store, connect
from jobs.model import Cause, End, Outcome
from jobs.spec import parse

NOON = 1_795_003_200.0 - 1_795_003_200.0 % 86_400 + 12 * 3600
NIGHT = Report("3 of 4 done", "the night in short", long_text="the night at length", bare_text="3 of 4")


class Post:
    """A rig with channels, and hands to move its clock."""

    def __init__(self, settings: Settings, store: Store):
        self.settings, self.store, self.now = settings, store, NOON
        store.describe_rig("rig", {"slots": [slot.to_json() for slot in cpu_slots(2)]})
        self.restart()

    def restart(self) -> None:
        self.outbox = Outbox.open(self.settings.home)
        self.messenger = Messenger(
            self.settings, self.store, self.outbox, lambda since, now: NIGHT, now=lambda: self.now
        )

    def look(self, later_s: float = 0.0) -> None:
        """One look, so much later; until every channel has done what it does."""
        self.now += later_s
        self.store.beat("rig", {"at": self.now, "processes": {}})
        self.messenger.run_once()
        assert self.messenger.wait(20)

    def run(self, name: str, *, fails: bool = False, **fields: Any) -> str:
        """One job from its submission to its end."""
        document = {"kind": "command", "argv": ["x"], "name": name, "max_attempts": 1, **fields}
        job_id = self.store.submit([parse(document)], now=self.now)[0][0].id
        offered = self.store.offer(job_id, rig="rig", slots=("cpu:0",), epoch=self.store.new_epoch("rig"), now=self.now)
        self.store.claim(job_id, fence=offered.fence, owner="me", now=self.now, lease_s=60)
        bad = Outcome(end=End.FAILED, cause=Cause.USER_ERROR, message="KeyError: 'loss'")
        self.store.finish(
            job_id, fence=offered.fence, outcome=bad if fails else Outcome(end=End.SUCCEEDED), now=self.now
        )
        return str(job_id)


MakePost = Callable[..., Post]


@pytest.fixture
def server() -> Iterator[Web]:
    with web() as found:
        yield found


@pytest.fixture
def make(settings: Settings, store: Store) -> Iterator[MakePost]:
    made: list[Post] = []

    def post(**changes: Any) -> Post:
        one = Post(Settings(**{**dict(settings), "disk_floor_bytes": 1, **changes}), store)
        made.append(one)
        return one

    yield post
    for one in made:
        one.outbox.close()


def phone(server: Web, **facts: Any) -> dict[str, Any]:
    return {"phone": {"kind": "ntfy", "url": f"{server.url}/topic", **facts}}


def titles(server: Web) -> list[str]:
    return [asked.json["title"] for asked in server.asked]


def test_a_job_that_asked_for_it_is_told_at_its_end_and_only_once(make: MakePost, server: Web) -> None:
    post = make(notify=phone(server))
    post.look()
    post.run("quiet one")
    post.run("important", notify="end")
    post.look(1)
    assert titles(server) == ["important done"]
    post.restart()
    post.look(1)
    post.look(400)
    assert titles(server) == ["important done"]


def test_what_ended_while_nobody_looked_is_told_at_the_next_start(make: MakePost, server: Web) -> None:
    post = make(notify=phone(server), notify_jobs="failure")
    post.look()
    post.run("while it was off", fails=True)
    post.restart()
    post.look(3600)
    assert titles(server) == ["while it was off failed (user error)"]
    assert "KeyError" in server.asked[0].json["message"]


def test_what_ended_before_there_was_a_channel_is_no_news(make: MakePost, server: Web) -> None:
    post = make(notify=phone(server), notify_jobs="end")
    post.run("long ago")
    post.look()
    post.look(1)
    assert titles(server) == []


def test_after_the_stream_of_events_was_lost_the_records_tell(make: MakePost, server: Web, store: Store) -> None:
    post = make(notify=phone(server), notify_jobs="end")
    post.look()
    post.now += 10
    post.run("in the dark")
    store.redis.delete("overnight:events")
    store.tell("rig", "", {})
    post.look(1)
    assert titles(server) == ["in the dark done"]


def test_a_full_disk_is_told_at_once_and_so_is_its_end(make: MakePost, server: Web, settings: Settings) -> None:
    post = make(notify=phone(server), disk_floor_bytes=2**60)
    post.look()
    post.look(30)
    assert titles(server) == ["The rig's disk is full: no job starts"]
    assert server.asked[0].json["priority"] == 4


def test_the_report_goes_out_at_its_hour(make: MakePost, server: Web) -> None:
    post = make(notify=phone(server), report_at="13:00")
    post.look()
    post.run("a")
    post.look(60)
    post.look(3539)
    assert titles(server) == []
    post.look(1)
    post.look(1)
    assert titles(server) == ["3 of 4 done"]


def test_the_report_is_the_night_as_it_was(make: MakePost, server: Web) -> None:
    post = make(notify=phone(server), report_at="13:00")
    night = night_of(post.store, post.settings)
    post.messenger = Messenger(post.settings, post.store, post.outbox, night, now=lambda: post.now)
    post.look()
    for number in range(3):
        post.now += 60
        post.run(f"run {number}", fails=number == 1)
    post.look(3600)
    [asked] = server.asked
    assert asked.json["title"] == "1 of 3 failed"
    assert "2 done, 1 failed" in asked.json["message"]
    assert "run 1" in asked.json["message"]
    assert asked.json["priority"] == 4


def test_pushes_have_a_pause_between_them_and_come_together(make: MakePost, server: Web) -> None:
    post = make(notify=phone(server), notify_jobs="end", notify_gap_s=300)
    post.look()
    for name in ("one", "two", "three"):
        post.run(name)
        post.look(10)
    assert titles(server) == ["one done"]
    post.look(300)
    assert titles(server) == ["one done", "two done (and 1 more)"]
    assert server.asked[1].json["message"] == "- two done\n- three done"


def test_in_quiet_hours_a_push_waits_and_a_webhook_does_not(make: MakePost, server: Web) -> None:
    with web() as program:
        channels = {**phone(server), "hook": {"kind": "webhook", "url": f"{program.url}/x", "secrets": ["secret:KEY"]}}
        (secrets := make(notify={}).settings.secrets_file).write_text(f'KEY = "whsec_{"QUJD" * 11}"\n')
        secrets.chmod(0o600)
        post = make(notify=channels, notify_jobs="end", notify_quiet="11:00-13:00")
        post.look()
        post.run("one")
        post.look(1)
        assert (len(program.asked), len(server.asked)) == (1, 0)
        post.look(3600)
        assert (len(program.asked), len(server.asked)) == (1, 1)
        assert program.asked[0].json["data"]["name"] == "one"


def test_a_message_that_was_not_taken_is_tried_again_with_the_same_id_across_a_restart(make: MakePost, server: Web) -> None:  # fmt: skip
    server.statuses = [500, 503, 200]
    post = make(notify=phone(server), notify_jobs="end")
    post.look()
    post.run("one")
    post.look(1)
    post.look(1)
    assert len(server.asked) == 1
    post.restart()
    post.look(RETRY_S[0])
    post.look(RETRY_S[1] + 1)
    post.look(RETRY_S[1] + 1)
    assert len(server.asked) == 3
    assert len({asked.json["sequence_id"] for asked in server.asked}) == 1
    assert post.outbox.waiting("phone") == []


def test_a_channel_that_never_answers_holds_up_neither_the_looks_nor_the_others(
    make: MakePost, server: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(senders, "HTTP_TIMEOUT_S", 300.0)
    with ExitStack() as stack:
        port, held = stack.enter_context(silence())
        mail = {"kind": "email", "host": "127.0.0.1", "port": port, "security": "none", "to": ["me@example.org"]}
        post = make(notify={"mail": mail, **phone(server)}, notify_jobs="end", notify_gap_s=0)
        post.look()

        def looked_and_told(title: str) -> bool:
            post.messenger.run_once()  # returns although the mail is on its way
            return title in titles(server)

        for name in ("one", "two"):
            post.run(name)
            post.now += 1
            post.store.beat("rig", {"at": post.now, "processes": {}})
            until(lambda: looked_and_told(f"{name} done"), evidence=lambda: titles(server))  # noqa: B023
        assert not post.messenger.wait(0), "the first mail is still on its way"
        until(lambda: len(held) == 1, evidence=lambda: held)
        assert [d.channel for d in post.outbox.waiting("mail")] == ["mail", "mail"]


def test_messages_go_out_although_the_disk_takes_nothing(make: MakePost, server: Web) -> None:
    post = make(notify=phone(server), notify_jobs="end", notify_gap_s=0)
    post.look()
    database = post.outbox._database
    database.execute(f"PRAGMA max_page_count = {database.execute('PRAGMA page_count').fetchone()[0]}")
    for number in range(40):
        post.run(f"job {number} {'x' * 100}")
    post.look(1)
    post.look(1)
    with pytest.raises(sqlite3.Error):
        post.outbox.put([], {"x": "y" * 1_000_000})
    told = " ".join(asked.json["title"] + asked.json["message"] for asked in server.asked)
    assert "job 0 " in told
    assert len(server.asked) == len({asked.json["sequence_id"] for asked in server.asked}), "each one once"


def test_the_dead_man_switch_is_told_every_so_often_and_at_once_when_something_is_wrong(make: MakePost, server: Web) -> None:  # fmt: skip
    post = make(notify={"switch": {"kind": "ping", "url": f"{server.url}/uuid", "every_s": 60}})
    paths = lambda: [asked.path for asked in server.asked]  # noqa: E731
    post.look()
    post.look(30)
    assert paths() == ["/uuid"]
    post.look(31)
    assert paths() == ["/uuid"] * 2
    post.store.redis.delete("overnight:beat:rig")
    post.now += 1
    post.messenger.run_once()
    assert post.messenger.wait(10)
    assert paths() == ["/uuid", "/uuid", "/uuid/fail"]
    assert server.asked[2].body == b"The daemon is silent"
    post.look(1)
    assert paths()[3:] == ["/uuid"]
    assert post.outbox.health()["switch"].last_sent_at == post.now


def test_a_queue_that_is_away_stops_no_message(make: MakePost, server: Web, settings: Settings, home: Any) -> None:
    post = make(notify=phone(server), notify_jobs="end")
    post.look()
    gone = Store(connect(str(home / "nothing.sock")))
    gone.redis.set_retry(PATIENCE)
    post.messenger = Messenger(post.settings, gone, post.outbox, lambda since, now: NIGHT, now=lambda: post.now)
    for _ in range(3):
        post.now += 40
        post.messenger.run_once()
        assert post.messenger.wait(10)
    assert titles(server) == ["The queue does not answer"]


def test_s34_no_secret_and_no_address_is_in_the_log_or_in_the_outbox(make: MakePost, server: Web, caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    caplog.set_level("DEBUG")
    server.statuses = [403]
    (secrets := make(notify={}).settings.secrets_file).write_text('TOKEN = "tk_CANARY"\n')
    secrets.chmod(0o600)
    post = make(notify={"phone": {"kind": "ntfy", "url": f"{server.url}/HIDDEN", "token": "secret:TOKEN"}}, notify_jobs="end")  # fmt: skip
    post.look()
    post.run("one")
    post.look(1)
    assert server.asked[0].headers["authorization"] == "Bearer tk_CANARY"
    written = caplog.text + "".join(str(row) for row in post.outbox._database.iterdump())
    assert "HTTP status 403" in written
    assert "CANARY" not in written
    assert "HIDDEN" not in written


def test_secrets_that_others_can_read_are_not_used(make: MakePost, server: Web) -> None:
    post = make(notify=phone(server, token="secret:TOKEN"), notify_jobs="end")
    post.settings.secrets_file.write_text('TOKEN = "x"\n')
    post.settings.secrets_file.chmod(0o644)
    post.look()
    post.run("one")
    post.look(1)
    assert server.asked == []
    assert "chmod 600" in post.outbox.health()["phone"].last_error
