"""Numbers, moments and causes as a person reads them. Pure: no clock, no zone of its own."""

from collections.abc import Mapping
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from markupsafe import Markup

from daemon.wording import (
    CAUSE_WORDS,
    DAY_S,
    ESCAPE,
    HOUR_S,
    MINUTE_S,
    THIN,
    UNPRINTABLE,
    clock,
    count,
    duration,
    energy,
    number,
    percent,
    plain,
    telling_metric,
)
from jobs.model import State

# what the daemon says in the same words
__all__ = [
    "CAUSE_WORDS",
    "DAY_S",
    "ESCAPE",
    "HOUR_S",
    "MINUTE_S",
    "THIN",
    "UNPRINTABLE",
    "clock",
    "count",
    "duration",
    "energy",
    "number",
    "percent",
    "plain",
    "telling_metric",
]


STATE_WORDS: Mapping[State, str] = {
    State.QUEUED: "waiting",
    State.RUNNING: "running",
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}


def printable(value: object) -> object:
    """What a template may print: texts without terminal sequences and control characters, everything else as it is."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return plain(value)
    return value


def stamp(moment: float, zone: ZoneInfo) -> str:
    """The whole moment: Tue 24 Nov 2026, 22:14:03 CET."""
    then = datetime.fromtimestamp(moment, zone)
    return f"{then:%a} {then.day} {then:%b %Y, %H:%M:%S %Z}"


def iso(moment: float) -> str:
    """For `datetime` attributes."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def age(seconds: float) -> str:
    """1 s ago, 12 min ago."""
    whole = max(0, int(seconds))
    return f"{duration(whole)} ago" if whole else "just now"


def size(count: float) -> str:
    """Bytes: 812 B, 4.1 KiB, 21.4 GiB."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1000 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f}{THIN}{unit}" if unit == "B" or value >= 100 else f"{value:.1f}{THIN}{unit}"


def brief(amount: int) -> str:
    """A count where there is little room: 9 999, 12.3k, 1.2M."""
    for unit, step in (("M", 1e6), ("k", 1e3)):
        if amount >= 10 * step or (unit == "M" and amount >= step):
            return f"{amount / step:.1f}{unit}" if amount < 100 * step else f"{amount / step:.0f}{unit}"
    return number(amount)


def fixed(value: float) -> str:
    """One digit after the point."""
    return f"{value:.1f}"


def short(text: str) -> str:
    """The hash of an uploaded file by its first digits."""
    return f"{text[:19]}…" if text.startswith("sha256:") and len(text) == 71 else text


def words(name: str) -> str:
    """A field's name as words: eval_loss → eval loss."""
    return name.replace("_per_", "/").replace("_", " ")
