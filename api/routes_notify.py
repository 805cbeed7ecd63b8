"""Messages: how the channels get on, and a test of them."""

import secrets
import sqlite3
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel

from api.context import Context, Rig
from api.problems import ApiError, documented
from api.routes_jobs import EVERYBODY, OptionalBody
from api.views import moment, moment_or_none
from daemon.notify import status
from daemon.notify.outbox import Delivery
from daemon.notify.status import ChannelState
from jobs.spec import FieldError, InvalidSpec, nearest

NOT_CONFIGURED = "No channel is configured on this rig: add one to config.toml and restart it (docs/messages.md)."

router = APIRouter(prefix="/api/v1/notify", tags=["messages"])


class ChannelView(BaseModel):
    """One channel. Its address is shown without what could open it."""

    name: str
    kind: str
    target: str
    sends: list[str]
    quiet: bool
    waiting: int
    last_sent_at: datetime | None
    failing_since: datetime | None
    last_error: str | None
    last_error_at: datetime | None


class DeliveryView(BaseModel):
    """One message's way to one channel: waiting, sent, merged (into another one), given_up."""

    channel: str
    state: str
    attempts: int
    error: str | None
    next_try_at: datetime | None
    done_at: datetime | None


class MessageView(BaseModel):
    """One message."""

    id: str
    kind: str
    title: str
    at: datetime
    deliveries: list[DeliveryView]


class NotifyView(BaseModel):
    """The rig's messages: settings, channels, and the newest ones."""

    report: str
    jobs: str
    quiet_hours: str
    gap_s: float
    channels: list[ChannelView]
    messages: list[MessageView]


class TestView(BaseModel):
    """A test on its way: `GET /notify` tells how it went, by its id."""

    id: str
    channels: list[str]


@router.get("", operation_id="getNotify", responses=documented(*EVERYBODY))
def get_notify(rig: Rig, limit: Annotated[int, Query(ge=0, le=200, description="So many of the newest messages.")] = 20) -> NotifyView:  # fmt: skip
    """The channels, and the newest messages."""
    settings = rig.settings
    try:
        channels, deliveries = status.states(settings), status.latest(settings, limit)
    except sqlite3.Error:
        raise ApiError(503, "The outbox cannot be read now. Try again.") from None
    return NotifyView(
        report=settings.report_rule,
        jobs=settings.notify_jobs,
        quiet_hours=settings.notify_quiet,
        gap_s=settings.notify_gap_s,
        channels=[_channel(rig, state) for state in channels],
        messages=_messages(deliveries),
    )


@router.post("/test", operation_id="testNotify", status_code=202, responses=documented(*EVERYBODY, 400, 404, 409, 415, 422))  # fmt: skip
def test_notify(rig: Rig, body: OptionalBody) -> TestView:
    """Send a test to every channel, or to the one named in `{"channel": "phone"}`."""
    wanted = _wanted(body)
    known = list(rig.settings.notify)
    if not known:
        raise ApiError(409, NOT_CONFIGURED)
    if wanted is not None and wanted not in known:
        raise ApiError(404, f"There is no such channel{nearest(wanted, known)}. This rig has: {', '.join(known)}.")
    channels = known if wanted is None else [wanted]
    try:
        asked = status.ask_for_test(rig.settings, channels, key=secrets.token_hex(8), now=rig.now())
    except sqlite3.Error:
        raise ApiError(503, "The outbox takes nothing now. Try again.") from None
    return TestView(id=asked, channels=channels)


def _wanted(body: Any) -> str | None:
    if not isinstance(body, dict) or set(body) - {"channel"} or not isinstance(body.get("channel", ""), str):
        raise InvalidSpec([FieldError("channel", "is the name of a channel, the only field")])
    return body.get("channel")


def _channel(rig: Context, state: ChannelState) -> ChannelView:
    channel, health = rig.settings.notify[state.name], state.health
    return ChannelView(
        name=state.name,
        kind=channel.kind,
        target=channel.target,
        sends=list(channel.sends),
        quiet=channel.quiet and bool(rig.settings.notify_quiet),
        waiting=state.waiting,
        last_sent_at=moment_or_none(health.last_sent_at),
        failing_since=moment_or_none(health.failing_since),
        last_error=health.last_error or None,
        last_error_at=moment_or_none(health.last_error_at),
    )


def _messages(deliveries: list[Delivery]) -> list[MessageView]:
    """The newest first."""
    by_id: dict[str, list[Delivery]] = {}
    for one in deliveries:
        by_id.setdefault(one.id, []).append(one)
    return [
        MessageView(
            id=message_id,
            kind=str(ways[0].message.kind),
            title=ways[0].message.title,
            at=moment(ways[0].message.at),
            deliveries=[_delivery(way) for way in ways],
        )
        for message_id, ways in reversed(by_id.items())
    ]


def _delivery(way: Delivery) -> DeliveryView:
    return DeliveryView(
        channel=way.channel,
        state=way.state,
        attempts=way.attempts,
        error=way.error or None,
        next_try_at=moment(way.next_at) if way.state == "waiting" and way.next_at else None,
        done_at=moment_or_none(way.done_at),
    )
