"""When a channel sends which of its messages: quiet hours, the pause between two, several in one. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from daemon.notify.config import Channel
from daemon.notify.message import Kind
from daemon.notify.outbox import Delivery
from daemon.window import Windows


@dataclass(frozen=True)
class Pace:
    """How often a person may be disturbed, and when not at all."""

    zone: ZoneInfo
    #: None: at no time.
    quiet: Windows | None = None
    gap_s: float = 300.0

    def is_quiet(self, now: float) -> bool:
        """Whether these are quiet hours."""
        return self.quiet is not None and self.quiet.is_open(now, self.zone)


def choose(waiting: Sequence[Delivery], channel: Channel, pace: Pace, *, last_sent_at: float | None, now: float) -> Sequence[Delivery]:  # fmt: skip
    """What goes now: nothing, one delivery, or several that are to be put into one message.

    A test goes at once. One that was tried before goes by itself: it may have arrived, and its id says so.
    """
    due = [delivery for delivery in waiting if _is_due(delivery, channel, now)]
    if tests := [delivery for delivery in due if delivery.message.kind is Kind.TEST]:
        return tests[:1]
    if channel.quiet and pace.is_quiet(now):
        return ()
    again = [delivery for delivery in due if delivery.attempts]
    fresh = [delivery for delivery in due if not delivery.attempts]
    reports = [delivery for delivery in fresh if delivery.message.kind is Kind.REPORT]
    if not channel.pushes or reports or again:
        return (reports or again or fresh)[:1] if channel.pushes else due[:1]
    if last_sent_at is not None and 0 <= now - last_sent_at < pace.gap_s:
        return ()
    return fresh


def _is_due(delivery: Delivery, channel: Channel, now: float) -> bool:
    after_s = channel.report_after_s if delivery.message.kind is Kind.REPORT else 0.0
    return max(delivery.next_at, delivery.message.at + after_s) <= now
