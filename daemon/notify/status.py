"""How the channels get on, for the API and the page: read from the outbox, which another process writes."""

import logging
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from daemon.notify.message import Kind, Message
from daemon.notify.outbox import FILE, Delivery, Health, Outbox
from daemon.settings import Settings

log = logging.getLogger(__name__)

#: Nothing has got through for so long: the page says so.
FAILING_LONG_S = 3_600.0


@dataclass(frozen=True)
class ChannelState:
    """One channel of config.toml."""

    name: str
    health: Health
    waiting: int


def states(settings: Settings) -> list[ChannelState]:
    """Every channel. Raises sqlite3.Error."""
    if not (settings.home / FILE).exists():
        return [ChannelState(name, Health(), 0) for name in settings.notify]
    with closing(Outbox.open(settings.home)) as outbox:
        known = outbox.health()
        return [ChannelState(name, known.get(name, Health()), len(outbox.waiting(name))) for name in settings.notify]


def latest(settings: Settings, limit: int) -> list[Delivery]:
    """The newest messages' deliveries. Raises sqlite3.Error."""
    if not (settings.home / FILE).exists():
        return []
    with closing(Outbox.open(settings.home)) as outbox:
        return outbox.latest(limit)


def ask_for_test(settings: Settings, channels: Sequence[str], *, key: str, now: float) -> str:
    """Let the messenger send a test message; its id. Raises sqlite3.Error."""
    message = Message(
        key=f"test:{key}",
        kind=Kind.TEST,
        title="Overnight can reach you here",
        text=f"A test of the messages of {settings.rig}. Nothing needs to be done.",
        at=now,
        tags=("crescent_moon",),
    )
    with closing(Outbox.open(settings.home)) as outbox:
        return outbox.put([(message, channels)])[0]


def failing_long(settings: Settings, *, now: float) -> list[tuple[str, Health]]:
    """Channels that nothing has got through for long; none while that cannot be read."""
    if not settings.notify:
        return []
    try:
        found = [(state.name, state.health) for state in states(settings)]
    except sqlite3.Error as error:
        log.warning("the outbox cannot be read: %s", error)
        return []
    return [(name, one) for name, one in found if one.failing_since and now - one.failing_since >= FAILING_LONG_S]
