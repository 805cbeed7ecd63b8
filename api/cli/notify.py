"""`overnight notify`: where messages go and how that gets on; and a test of it."""

import time
from collections.abc import Mapping
from typing import Any

import click

from api.cli import output
from api.cli.session import FAILED, Session, fail, with_rig

Json = dict[str, Any]

#: A mail server has half a minute; the messenger looks once a second.
PATIENCE_S, LOOK_EVERY_S = 45.0, 0.3


@click.group("notify", invoke_without_command=True)
@with_rig
def notify(session: Session) -> None:
    """Where messages go, what was sent last, and what went wrong."""
    if click.get_current_context().invoked_subcommand is not None:
        return
    found = session.client.notify()
    if session.as_json:
        output.emit(found)
        return
    if not found["channels"]:
        output.say("No channel is configured: the rig tells nobody anything. docs/messages.md has examples.", err=False)
        return
    head = ("CHANNEL", "KIND", "SENDS", "LAST SENT", "WAITING", "TO")
    output.show(output.table(head, (_row(channel) for channel in found["channels"]), give_way="TO"))
    for channel in found["channels"]:
        if channel["failing_since"]:
            since = output.clock(channel["failing_since"])
            output.say(f"{channel['name']} has been failing since {since}: {channel['last_error']}", err=False)
    output.say(_when(found), err=False)


@notify.command("test")
@click.argument("channel", required=False)
@with_rig
def test(session: Session, channel: str | None) -> None:
    """Send a test to every channel, or to one, and wait until it has arrived. Exit status 1 when one did not take it."""
    asked = session.client.test_notify(channel)
    message = _settled(session, asked["id"])
    if session.as_json:
        output.emit(message)
    else:
        for way in message["deliveries"]:
            output.say(f"{way['channel']}: {_how(way)}", err=False)
    if any(way["state"] != "sent" for way in message["deliveries"]):
        raise SystemExit(FAILED)


def _settled(session: Session, message_id: str) -> Json:
    """The test when every channel has tried it once."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        sent = session.client.notify(limit=50)["messages"]
        message = next((one for one in sent if one["id"] == message_id), None)
        if message is None:
            fail("The rig knows nothing of this test any more.", FAILED)
        if all(way["attempts"] for way in message["deliveries"]) or time.monotonic() > deadline:
            return dict(message)
        time.sleep(LOOK_EVERY_S)


def _how(way: Mapping[str, Any]) -> str:
    if way["state"] == "sent":
        return "sent"
    if way["error"]:
        return f"not sent: {way['error']}"
    return "nobody has tried it yet: is the rig's messenger running? `overnight rig` lists its processes, logs/messages.log says more"


def _row(channel: Mapping[str, Any]) -> list[str]:
    return [
        channel["name"],
        channel["kind"],
        ", ".join(channel["sends"]) or ("pings" if channel["kind"] == "ping" else "nothing"),
        output.clock(channel["last_sent_at"]) if channel["last_sent_at"] else "never",
        str(channel["waiting"] or ""),
        channel["target"],
    ]


def _when(found: Mapping[str, Any]) -> str:
    report = {"": "There is no report", "queue_end": "The report goes out when nothing runs any more"}
    words = report.get(found["report"], f"The report goes out at {found['report']}")
    quiet = f"; quiet hours {found['quiet_hours']}" if found["quiet_hours"] else ""
    return f"{words}{quiet}."
