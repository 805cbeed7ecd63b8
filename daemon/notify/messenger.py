"""The process: it looks at the rig once a second, decides, stores, and lets each channel send in a thread of its own.

A channel that hangs holds up itself only. Whatever is lost with this process is in the outbox.
"""

import http.client
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from daemon import peers
from daemon.notify.config import Channel, Ping, SecretMissing, secret_names
from daemon.notify.decide import Memory, Night, Rules, Seen, decide
from daemon.notify.look import Lookout
from daemon.notify.message import Message, line, redacted
from daemon.notify.outbox import Delivery, Outbox
from daemon.notify.senders import NotSent, Sending, in_words, ping, send
from daemon.notify.timing import Pace, choose
from daemon.places import Refused
from daemon.rig_secrets import read_secrets
from daemon.settings import Settings
from daemon.store import Store
from daemon.window import Windows

log = logging.getLogger(__name__)

EVERY_S = 1.0
#: The place in the stream of events is written down at least this often; what is read twice after a kill is told once.
KEEP_CURSOR_S = 60.0
TIDY_EVERY_S = 86_400.0
#: A ping that did not get through is tried again.
PING_AGAIN_S = 30.0
UNNOTED_S = 300.0
#: What a sender may raise beside bugs.
EXPECTED = (NotSent, SecretMissing, OSError, http.client.HTTPException)


@dataclass
class _Line:
    """One channel at work."""

    name: str
    channel: Channel
    thread: threading.Thread | None = None
    #: Of a ping: when, and whether the rig was well.
    pinged_at: float | None = None
    pinged_well: bool = True
    #: The disk did not take a note of how these went: not before when this process tries them again.
    unnoted: dict[str, float] = field(default_factory=dict)

    @property
    def busy(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


class Messenger:
    """Looks, decides, sends."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        outbox: Outbox,
        night: Night,
        *,
        now: Callable[[], float] = time.time,
    ):
        self._settings, self._outbox, self._night, self._now = settings, outbox, night, now
        #: For what a full disk does not take: it is sent all the same.
        self._spare = Outbox.in_memory()
        self._memory, self._kept = _remembered(outbox), 0.0
        place = outbox.recall("place") or {}
        self._lookout = Lookout(store, settings, cursor=place.get("cursor"), looked_at=place.get("at"))
        self._rules = Rules(
            rig=settings.rig,
            zone=settings.zone,
            report=settings.report_rule,
            jobs=settings.notify_jobs,
            prefix=f"{settings.rig}: " if settings.redis_url else "",
        )
        quiet = Windows.parse(settings.notify_quiet) if settings.notify_quiet else None
        self._pace = Pace(settings.zone, quiet, settings.notify_gap_s)
        self._lines = [_Line(name, channel) for name, channel in settings.notify.items()]
        self._tidied_at = 0.0

    def run(self, stopped: threading.Event) -> None:
        """Until it is told to stop. What is on its way then is sent again by the next one, with the same id."""
        while not stopped.is_set():
            try:
                self.run_once()
            except Exception:  # one message that trips us must not silence all the others
                log.exception("this look failed; the next one follows")
            stopped.wait(EVERY_S)

    def run_once(self) -> None:
        """One look; then every channel that is free sends what is due."""
        now = self._now()
        seen = self._lookout.look(now)
        messages, memory = decide(seen, self._memory, self._rules, self._night)
        self._store(messages, memory, now)
        for line_ in self._lines:
            if not line_.busy:
                self._begin(line_, seen, now)
        if now - self._tidied_at > TIDY_EVERY_S:
            self._tidied_at = now
            self._outbox.tidy(now=now)

    def wait(self, timeout_s: float) -> bool:
        """Whether every channel has ended what it does, within this time."""
        deadline = time.monotonic() + timeout_s
        for line_ in self._lines:
            if line_.thread is not None:
                line_.thread.join(max(0.0, deadline - time.monotonic()))
        return not any(line_.busy for line_ in self._lines)

    # -- in ---------------------------------------------------------------------------------------------------------------

    def _store(self, messages: list[Message], memory: Memory, now: float) -> None:
        """Messages and memory in one transaction: a decision is made once, whatever is killed."""
        if not messages and memory == self._memory and now - self._kept < KEEP_CURSOR_S:
            return
        pairs = [(message, self._channels_of(message)) for message in messages]
        place = {"cursor": self._lookout.cursor, "at": now}
        try:
            self._outbox.put(pairs, {"memory": memory.to_json(), "place": place})
            self._kept = now
        except sqlite3.Error as error:
            log.error("the outbox takes nothing (%s): %d message(s) are sent without it", error, len(messages))
            self._spare.put(pairs)
        self._memory = memory
        for message in messages:
            log.info("to be sent: %s (%s)", message.key, message.kind)

    def _channels_of(self, message: Message) -> list[str]:
        return [line_.name for line_ in self._lines if message.kind.value in line_.channel.sends]

    # -- out --------------------------------------------------------------------------------------------------------------

    def _begin(self, line_: _Line, seen: Seen, now: float) -> None:
        channel = line_.channel
        if isinstance(channel, Ping) and self._ping_is_due(line_, channel, seen, now):
            because = "; ".join(trouble.title for trouble in seen.troubles)
            line_.pinged_at, line_.pinged_well = now, not seen.troubles
            self._in_thread(line_, partial(self._ping, line_, channel, because))
            return
        for outbox in (self._spare, self._outbox):
            if delivery := self._next(line_, outbox, now):
                self._in_thread(line_, partial(self._send, line_, delivery, outbox))
                return

    def _next(self, line_: _Line, outbox: Outbox, now: float) -> Delivery | None:
        waiting = [one for one in outbox.waiting(line_.name) if line_.unnoted.get(one.id, now) <= now]
        if not waiting:
            return None
        health = outbox.health().get(line_.name)
        last = health.last_sent_at if health else None
        chosen = choose(waiting, line_.channel, self._pace, last_sent_at=last, now=now)
        if len(chosen) > 1:
            try:
                return outbox.merge(chosen, now=now)
            except sqlite3.Error as error:
                log.error("messages cannot be put together, one goes by itself: %s", error)
        return chosen[0] if chosen else None

    def _in_thread(self, line_: _Line, work: Callable[[], None]) -> None:
        # daemonic: a server that never answers must not hold up our end either
        line_.thread = threading.Thread(target=work, name=f"channel {line_.name}", daemon=True)
        line_.thread.start()

    def _send(self, line_: _Line, delivery: Delivery, outbox: Outbox) -> None:
        error, retry_after_s, gone = "", 0.0, False
        known: Mapping[str, str] = {}
        try:
            known = self._secrets()
            send(delivery, line_.channel, self._sending(known))
        except EXPECTED as problem:
            error = self._told(problem, line_, known)
            if isinstance(problem, NotSent):
                retry_after_s, gone = problem.retry_after_s, problem.gone
        except Exception as problem:  # a bug in one sender: the message waits, the others go on
            log.exception("channel %s", line_.name)
            error = type(problem).__name__
        try:
            if error:
                log.warning("%s did not take %s: %s", line_.name, delivery.id, error)
                outbox.failed(delivery, error, now=self._now(), retry_after_s=retry_after_s, gone=gone)
            else:
                log.info("%s has %s", line_.name, delivery.id)
                outbox.sent(delivery, now=self._now())
        except sqlite3.Error as problem:
            log.error("how %s went cannot be noted: %s", delivery.id, problem)
            line_.unnoted[delivery.id] = self._now() + UNNOTED_S if error else math.inf

    def _ping_is_due(self, line_: _Line, channel: Ping, seen: Seen, now: float) -> bool:
        if line_.pinged_at is None or line_.pinged_well != (not seen.troubles):
            return True
        failing = self._outbox.health().get(line_.name)
        every_s = PING_AGAIN_S if failing and failing.failing_since is not None else channel.every_s
        return not 0 <= now - line_.pinged_at < min(every_s, channel.every_s)

    def _ping(self, line_: _Line, channel: Ping, because: str) -> None:
        error, known = "", {}
        try:
            known = self._secrets()
            ping(channel, self._sending(known), well=not because, because=because)
        except EXPECTED as problem:
            error = self._told(problem, line_, known)
            log.warning("%s did not take a ping: %s", line_.name, error)
        try:
            self._outbox.pinged(line_.name, error, now=self._now())
        except sqlite3.Error as problem:
            log.error("how a ping of %s went cannot be noted: %s", line_.name, problem)

    def _sending(self, secrets: Mapping[str, str]) -> Sending:
        return Sending(self._settings.rig, page_of(self._settings), self._now(), secrets, self._settings.home)

    def _secrets(self) -> dict[str, str]:
        """Read for each message: one that was mended counts at once."""
        try:
            return read_secrets(self._settings.secrets_file)
        except Refused as problem:
            raise NotSent(str(problem)) from None

    def _told(self, problem: Exception, line_: _Line, secrets: Mapping[str, str]) -> str:
        used = [secrets[name] for name in secret_names(line_.channel) if name in secrets]
        return line(redacted(in_words(problem), [*used, *parts_of(line_.channel)]))[:300]


def page_of(settings: Settings) -> str:
    """Where the owner reaches the page, for links; "" where only this machine does."""
    if settings.public_url:
        return settings.public_url.rstrip("/")
    return "" if settings.loopback_only else peers.address(settings)


def open_outbox(home: Path) -> Outbox:
    """The rig's, or one in memory where the disk takes none: what cannot wait is sent all the same."""
    try:
        return Outbox.open(home)
    except (sqlite3.Error, OSError) as error:
        log.error("no outbox (%s): messages are kept in memory", error)
        return Outbox.in_memory()


def _remembered(outbox: Outbox) -> Memory:
    record = outbox.recall("memory")
    try:
        return Memory.from_json(record) if record else Memory()
    except (KeyError, TypeError) as error:  # of another version
        log.warning("what was remembered is of another version (%s): it begins anew", error)
        return Memory()


def parts_of(channel: Channel) -> list[str]:
    """What of a channel's address must not be told: the whole, the path, the query."""
    url = getattr(channel, "url", None)
    if url is None:
        return []
    text = url.get_secret_value()
    rest = text.partition("://")[2]
    return [text, rest, *rest.replace("?", "/").split("/")[1:]]
