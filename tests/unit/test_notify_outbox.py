"""Words and their bounds, the outbox on disk, and when a channel sends what."""

import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from daemon.notify.config import Email, Ntfy, Webhook, masked, plain, secret_names
from daemon.notify.message import SHORT_BYTES, TITLE_BYTES, Kind, Message, cut, line, redacted
from daemon.notify.outbox import FILE, RETRY_S, Delivery, Outbox
from daemon.notify.timing import Pace, choose
from daemon.settings import InvalidSettings, Settings, load
from daemon.supervisor import as_environment
from daemon.window import Windows

PHONE = Ntfy(kind="ntfy", url="https://ntfy.example/topic")
HOOK = Webhook(kind="webhook", url="https://host.example/x", secrets=("secret:HOOK",))


def message(key: str = "a", kind: Kind = Kind.URGENT, **facts: Any) -> Message:
    return Message(**{"key": key, "kind": kind, "title": f"title {key}", "text": f"text {key}", "at": 1.0, **facts})


# -- words ------------------------------------------------------------------------------------------------------------------


@given(st.text(max_size=2000), st.integers(4, 500))
def test_a_cut_text_fits_and_is_whole_characters(text: str, limit: int) -> None:
    text = text.encode(errors="replace").decode()
    short = cut(text, limit)
    assert len(short.encode()) <= limit
    assert short == text or short.endswith("…")


@given(st.text(max_size=3000), st.text(max_size=3000), st.booleans())
def test_s16_a_push_is_bounded_and_has_no_control_characters(title: str, text: str, names: bool) -> None:
    a, b = message(title=title, text=text).words(names=names, short=True)
    assert len(a.encode()) <= TITLE_BYTES
    assert len(b.encode()) <= SHORT_BYTES
    assert not [c for c in a + b.replace("\n", "") if ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u202e\u2066"]
    assert "\n" not in a


def test_a_cut_text_ends_with_a_line_where_that_costs_little() -> None:
    assert cut("first line\nsecond line\nthird", 27) == "first line\nsecond line\n…"


def test_s34_what_is_secret_is_taken_out_of_an_error() -> None:
    assert redacted("POST https://x/topic-9 failed: topic-9", ["topic-9", ""]) == "POST https://x/… failed: …"


def test_s18_a_name_cannot_make_a_second_line() -> None:
    assert line("a\r\nSubject: b\u2028c\x1b]52;x") == "a Subject: b c ]52;x"


# -- channels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        ({"kind": "ntfy", "url": "ntfy.sh/x"}, "is an address like"),
        ({"kind": "ntfy", "url": "https://u:p@ntfy.sh/x"}, "is an address like"),
        ({"kind": "ntfy", "url": "https://ntfy.sh/x", "token": "tk_plain"}, "secrets.toml"),
        ({"kind": "webhook", "url": "https://x/y", "secrets": []}, "at least 1"),
        ({"kind": "carrier-pigeon"}, "carrier-pigeon"),
        ({"kind": "email", "host": "mail", "to": ["a@b"], "passwrd": "secret:X"}, "passwrd"),
    ],
)
def test_a_channel_that_cannot_work_stops_the_start_and_its_secret_is_not_told(tmp_path: Path, channel: dict[str, Any], words: str) -> None:  # fmt: skip
    with pytest.raises(InvalidSettings, match=words) as refused:
        load({"home": tmp_path, "notify": {"phone": channel}}, {})
    assert "tk_plain" not in str(refused.value)
    assert "u:p@" not in str(refused.value)


def test_s34_addresses_are_shown_with_their_host_only(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path,
        notify={
            "phone": {"kind": "ntfy", "url": "https://ntfy.sh/my-hidden-topic"},
            "chat": {"kind": "apprise", "url": "tgram://123456:HIDDEN/42"},
            "hook": {"kind": "webhook", "url": "secret:URL", "secrets": ["secret:KEY"]},
        },
    )
    shown = settings.model_dump_json() + repr(settings)
    assert "HIDDEN" not in shown
    assert "hidden" not in shown
    assert "https://ntfy.sh/…" in shown
    assert settings.notify["hook"].target == "secret:URL"
    assert secret_names(settings.notify["hook"]) == ("URL", "KEY")
    assert load({}, as_environment(settings)) == settings, "the rig's own processes know them"
    assert plain(settings.notify)["phone"]["url"].endswith("my-hidden-topic")


@pytest.mark.parametrize("url", ["https://user:pw@host:1/path?key=1", "tgram://token/chat", "mailto://u:p@host"])
def test_a_masked_address_opens_nothing(url: str) -> None:
    assert not [part for part in ("user", "pw", "path", "key", "token", "chat", "u:p") if part in masked(url)]


def test_names_of_jobs_do_not_go_to_a_public_topic_unless_it_is_wanted() -> None:
    public = {"kind": "ntfy", "url": "https://ntfy.sh/x"}
    assert not Ntfy(**public).tells_names
    assert Ntfy(**public, token="secret:T").tells_names
    assert Ntfy(**public, names=True).tells_names
    assert PHONE.tells_names
    assert not Ntfy(kind="ntfy", url="https://ntfy.example/x", names=False).tells_names


def test_mail_is_no_push_and_keeps_no_quiet_hours() -> None:
    mail = Email(kind="email", host="mail.example", to=("me@example.org",))
    assert (mail.quiet, mail.short, PHONE.quiet, PHONE.short) == (False, False, True, True)
    with pytest.raises(ValidationError):
        Email(kind="email", host="mail.example", to=())


# -- the outbox -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox.open(tmp_path)


def test_a_message_and_the_memory_of_it_outlive_a_restart(tmp_path: Path) -> None:
    Outbox.open(tmp_path).put([(message(), ["phone", "mail"])], {"memory": {"x": 1}})
    again = Outbox.open(tmp_path)
    assert again.recall("memory") == {"x": 1}
    assert [d.message for d in again.waiting("phone")] == [message()]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_the_same_message_is_stored_once_whoever_says_it_again(outbox: Outbox, tmp_path: Path) -> None:
    [first] = outbox.put([(message(), ["phone"])])
    assert Outbox.open(tmp_path).put([(replace(message(), title="later"), ["phone"])]) == [first]
    assert [d.message.title for d in outbox.waiting("phone")] == ["title a"]


def test_a_failure_half_way_stores_neither_messages_nor_memory(outbox: Outbox) -> None:
    with pytest.raises(TypeError):
        outbox.put([(message("a"), ["phone"]), (message("b", data={"x": object()}), ["phone"])], {"memory": 1})
    assert outbox.waiting("phone") == []
    assert outbox.recall("memory") is None


def test_a_failed_delivery_waits_longer_each_time_and_is_given_up_in_the_end(outbox: Outbox) -> None:
    outbox.put([(message(), ["hook"])])
    waits, now = [], 100.0
    while delivery := next(iter(outbox.waiting("hook")), None):
        outbox.failed(delivery, "HTTP status 500", now=now)
        [after] = outbox.of(delivery.id)
        waits.append(after.next_at - now)
        now = after.next_at
    assert waits == [*RETRY_S, 0.0]
    assert RETRY_S[0] == 5.0
    assert RETRY_S[-1] == 86_400.0
    assert after.state == "given_up"
    assert outbox.health()["hook"].failing_since == 100.0
    outbox.put([(message("b"), ["hook"])])
    outbox.sent(outbox.waiting("hook")[0], now=now)
    assert outbox.health()["hook"].failing_since is None
    assert outbox.health()["hook"].last_sent_at == now


def test_the_other_side_may_ask_for_a_longer_pause_or_never_to_be_asked_again(outbox: Outbox) -> None:
    outbox.put([(message("a"), ["hook"]), (message("b"), ["hook"])])
    a, b = outbox.waiting("hook")
    outbox.failed(a, "HTTP status 429", now=0.0, retry_after_s=90.0)
    outbox.failed(b, "HTTP status 410", now=0.0, gone=True)
    assert (outbox.of(a.id)[0].next_at, outbox.of(b.id)[0].state) == (90.0, "given_up")


def test_a_test_that_failed_is_not_repeated_for_days(outbox: Outbox) -> None:
    outbox.put([(message(kind=Kind.TEST), ["phone"])])
    outbox.failed(outbox.waiting("phone")[0], "no", now=0.0)
    assert outbox.waiting("phone") == []


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"this is no database, whatever its name says" * 100)
    outbox = Outbox.open(tmp_path)
    outbox.put([(message(), ["phone"])])
    assert len(outbox.waiting("phone")) == 1
    assert (tmp_path / "messages.sqlite.damaged").exists()


def test_old_messages_go(outbox: Outbox) -> None:
    outbox.put([(message("old", at=0.0), ["phone"]), (message("new", at=40 * 86_400.0), ["phone"])])
    outbox.tidy(now=40 * 86_400.0)
    assert [d.message.key for d in outbox.latest()] == ["new"]


def test_several_become_one_and_their_parts_are_not_sent_again(outbox: Outbox) -> None:
    outbox.put([(message("low", priority=2), ["phone", "hook"]), (message("high", priority=4), ["phone"])])
    one = outbox.merge(outbox.waiting("phone"), now=5.0)
    assert outbox.waiting("phone") == [one]
    assert one.message.title == "title high (and 1 more)"
    assert one.message.text == "- title high\n- title low"
    assert [d.message.key for d in outbox.waiting("hook")] == ["low"]


def test_a_full_disk_is_an_error_of_the_outbox_that_leaves_it_whole(outbox: Outbox, tmp_path: Path) -> None:
    database = outbox._database
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        outbox.put([(message("big", text="x" * 100_000), ["phone"])], {"memory": 1})
    assert outbox.recall("memory") is None


# -- when -------------------------------------------------------------------------------------------------------------------


UTC_NIGHT = 1_000_000_000.0 - 1_000_000_000.0 % 86_400 + 2 * 3600  # 02:00
UTC_NOON = UTC_NIGHT + 10 * 3600


def delivery(key: str = "a", kind: Kind = Kind.URGENT, **facts: Any) -> Delivery:
    return Delivery(key, "phone", message(key, kind), **facts)


def pace(quiet: str = "") -> Pace:
    from zoneinfo import ZoneInfo

    return Pace(ZoneInfo("UTC"), Windows.parse(quiet) if quiet else None, gap_s=300.0)


def test_the_first_push_goes_at_once_and_what_follows_goes_together_after_the_pause() -> None:
    [first] = choose([delivery("a")], PHONE, pace(), last_sent_at=None, now=UTC_NOON)
    rest = [delivery("b"), delivery("c")]
    assert first.id == "a"
    assert choose(rest, PHONE, pace(), last_sent_at=UTC_NOON, now=UTC_NOON + 299) == ()
    assert list(choose(rest, PHONE, pace(), last_sent_at=UTC_NOON, now=UTC_NOON + 300)) == rest


def test_a_report_waits_for_no_pause_and_is_not_put_together_with_others() -> None:
    waiting = [delivery("a"), delivery("r", Kind.REPORT)]
    assert [d.id for d in choose(waiting, PHONE, pace(), last_sent_at=UTC_NOON, now=UTC_NOON + 1)] == ["r"]


def test_a_mailed_report_waits_for_its_page_and_nothing_else_does() -> None:
    mail = Email(kind="email", host="mail.example", to=("me@example.org",))
    report = Delivery("r", "mail", message("r", Kind.REPORT, at=UTC_NOON))
    assert not choose([report], mail, pace(), last_sent_at=None, now=UTC_NOON + 89)
    assert choose([report], mail, pace(), last_sent_at=None, now=UTC_NOON + 90) == [report]
    assert choose([report], PHONE, pace(), last_sent_at=None, now=UTC_NOON) == [report]
    assert choose([report], mail.model_copy(update={"attach": False}), pace(), last_sent_at=None, now=UTC_NOON)


def test_a_program_gets_every_message_by_itself_and_at_any_hour() -> None:
    waiting = [delivery("a"), delivery("b")]
    assert [d.id for d in choose(waiting, HOOK, pace("00:00-06:00"), last_sent_at=UTC_NIGHT, now=UTC_NIGHT + 1)] == [
        "a"
    ]


@pytest.mark.parametrize("kind", [Kind.URGENT, Kind.REPORT, Kind.JOB])
def test_in_quiet_hours_everything_waits_but_a_test(kind: Kind) -> None:
    quiet, waiting = pace("23:00-06:30"), [delivery("a", kind), delivery("b", kind, attempts=1)]
    assert choose(waiting, PHONE, quiet, last_sent_at=None, now=UTC_NIGHT) == ()
    assert choose(waiting, PHONE, quiet, last_sent_at=None, now=UTC_NIGHT + 5 * 3600) != ()
    loud = PHONE.model_copy(update={"quiet": False})
    assert choose(waiting, loud, quiet, last_sent_at=None, now=UTC_NIGHT) != ()
    tested = [*waiting, delivery("t", Kind.TEST)]
    assert [d.id for d in choose(tested, PHONE, quiet, last_sent_at=UTC_NIGHT, now=UTC_NIGHT)] == ["t"]


def test_one_that_was_tried_keeps_its_id_and_its_time() -> None:
    waiting = [delivery("a", attempts=1, next_at=UTC_NOON + 5), delivery("b")]
    assert [d.id for d in choose(waiting, PHONE, pace(), last_sent_at=None, now=UTC_NOON)] == ["b"]
    assert [d.id for d in choose(waiting, PHONE, pace(), last_sent_at=UTC_NOON, now=UTC_NOON + 5)] == ["a"]


def test_an_outbox_that_is_closed_under_a_thread_tells_it_and_nothing_worse(tmp_path: Path) -> None:
    outbox, told = Outbox.open(tmp_path), threading.Event()
    begun = threading.Event()

    def fail_on() -> None:
        try:
            while True:
                outbox.pinged("phone", "no answer", now=1.0)
                begun.set()
        except sqlite3.Error:
            told.set()

    thread = threading.Thread(target=fail_on)
    thread.start()
    assert begun.wait(30)
    outbox.close()
    thread.join(30)
    assert told.is_set()
