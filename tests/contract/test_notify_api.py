"""What the API, the page and the commands say of messages, and what they never say."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.panels import banners, look
from daemon.__main__ import publish
from daemon.facts import Ledger
from daemon.notify.message import Kind, Message
from daemon.notify.outbox import Outbox
from daemon.settings import Settings
from daemon.store import Store

NOW = 1_795_003_200.0
CHANNELS = {
    "phone": {"kind": "ntfy", "url": "https://ntfy.sh/HIDDEN", "token": "secret:TOKEN"},
    "hook": {"kind": "webhook", "url": "https://host.example/HIDDEN?k=HIDDEN", "secrets": ["secret:KEY"], "sends": ["job"]},
    "switch": {"kind": "ping", "url": "https://hc-ping.com/HIDDEN"},
}  # fmt: skip


@pytest.fixture
def told(settings: Settings) -> Settings:
    """A rig with channels."""
    return Settings(**{**dict(settings), "notify": CHANNELS, "notify_quiet": "23:00-06:30"})


@pytest.fixture
def owner(told: Settings, store: Store) -> Iterator[TestClient]:
    app = create_app(told, store, now=lambda: NOW)
    token = told.token_file.read_text().strip()
    with TestClient(app, base_url="http://localhost", headers={"Authorization": f"Bearer {token}"}) as client:
        yield client


def test_the_channels_are_listed_before_anything_was_sent(owner: TestClient) -> None:
    found = owner.get("/api/v1/notify").json()
    assert (found["report"], found["jobs"], found["quiet_hours"], found["messages"]) == (
        "07:00",
        "never",
        "23:00-06:30",
        [],
    )
    phone, hook, switch = found["channels"]
    assert (phone["name"], phone["kind"], phone["target"], phone["quiet"]) == (
        "phone",
        "ntfy",
        "https://ntfy.sh/…",
        True,
    )
    assert (hook["target"], hook["sends"], hook["quiet"]) == ("https://host.example/…", ["job"], False)
    assert (switch["sends"], switch["last_sent_at"], switch["failing_since"]) == ([], None, None)


def test_a_test_goes_into_the_outbox_for_every_channel_or_for_one(owner: TestClient, told: Settings) -> None:
    everywhere = owner.post("/api/v1/notify/test")
    assert everywhere.status_code == 202
    assert everywhere.json()["channels"] == ["phone", "hook", "switch"]
    one = owner.post("/api/v1/notify/test", json={"channel": "hook"}).json()
    outbox = Outbox.open(told.home)
    assert [d.id for d in outbox.waiting("hook")] == [everywhere.json()["id"], one["id"]]
    assert len(outbox.waiting("phone")) == 1
    messages = owner.get("/api/v1/notify").json()["messages"]
    assert [message["id"] for message in messages] == [one["id"], everywhere.json()["id"]]
    assert messages[0]["deliveries"] == [
        {"channel": "hook", "state": "waiting", "attempts": 0, "error": None, "next_try_at": None, "done_at": None}
    ]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [({"channel": "phon"}, 404, "did you mean 'phone'"), ({"chanel": "phone"}, 422, "channel"), ({"channel": 3}, 422, "channel"), ([], 422, "channel")],
)  # fmt: skip
def test_a_test_that_cannot_be_is_refused_in_words(owner: TestClient, body: Any, status: int, words: str) -> None:
    answer = owner.post("/api/v1/notify/test", json=body)
    assert answer.status_code == status
    assert words in answer.text


def test_without_a_channel_a_test_says_where_one_is_made(client: TestClient) -> None:
    answer = client.post("/api/v1/notify/test")
    assert (answer.status_code, "config.toml" in answer.text) == (409, True)
    assert client.get("/api/v1/notify").json()["channels"] == []


def test_s34_nowhere_in_the_api_is_an_address_that_opens_something(owner: TestClient, told: Settings, store: Store) -> None:  # fmt: skip
    publish(told, store, (), None)
    for path in ("/api/v1/notify", "/api/v1/rig", "/api/v1/openapi.json", "/", "/settings"):
        answer = owner.get(path)
        assert answer.status_code == 200
        assert "HIDDEN" not in answer.text, path
    assert "HIDDEN" not in str(store.rigs())


def test_looking_changes_nothing(owner: TestClient, told: Settings) -> None:
    owner.get("/api/v1/notify")
    assert not (told.home / "messages.sqlite").exists()
    owner.post("/api/v1/notify/test")
    before = (told.home / "messages.sqlite").read_bytes()
    owner.get("/api/v1/notify")
    assert (told.home / "messages.sqlite").read_bytes() == before


def test_the_page_says_when_messages_have_been_failing_for_long(told: Settings, store: Store) -> None:
    outbox, message = Outbox.open(told.home), Message(key="a", kind=Kind.URGENT, title="t", text="x", at=NOW)
    outbox.put([(message, ["phone"])])
    outbox.failed(outbox.waiting("phone")[0], "HTTP status 403", now=NOW - 3700)

    def texts(now: float) -> list[str]:
        return [f"{banner.text} {banner.detail}" for banner in banners(look(store, Ledger(store), told, now))]

    assert not [text for text in texts(NOW - 3600) if "Messages" in text]
    [text] = [text for text in texts(NOW) if "Messages" in text]
    assert "Messages to phone have been failing since" in text
    assert "HTTP status 403" in text
    outbox.sent(outbox.waiting("phone")[0], now=NOW)
    assert not [text for text in texts(NOW) if "Messages" in text]
    (told.home / "messages.sqlite").write_bytes(b"broken" * 1000)
    assert not [text for text in texts(NOW) if "Messages" in text]
