"""Which hours a night is. Pure.

A night has the date of its evening and lies between that noon and the next one. With windows it is the longest opening in
there; without, it begins with the first start after 18:00.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from daemon.window import Windows

NOON, EVENING = 12, 18

#: The first start of a job in a time; None when nothing started.
FirstStart = Callable[[float, float], float | None]


@dataclass(frozen=True)
class Span:
    """A night's hours. `began_by`: window, start, visit, given, evening."""

    date: date
    since: float
    until: float
    over: bool
    began_by: str


def named(day: date, windows: Windows, zone: ZoneInfo, now: float, first_start: FirstStart, *, after_s: float = 0.0) -> Span:  # fmt: skip
    """The night of a date. `after_s`: so long after closing time its jobs may still save their work or end."""
    if (opening := _opening(day, windows, zone)) is not None:
        since, end, how = opening[0], opening[1] + after_s, "window"
    else:
        evening, end = at(day, EVENING, zone), at(day + timedelta(days=1), NOON, zone)
        first = first_start(evening, min(end, now)) if now > evening else None
        since, how = (evening, "evening") if first is None else (first, "start")
    return Span(day, since, max(since, min(now, end)), now >= end, how)


def last(windows: Windows, zone: ZoneInfo, now: float, first_start: FirstStart, *, visit: float | None = None) -> Span:
    """The night that is going on or was last, up to now. `visit`: from there, where no window and no start says more."""
    day = last_date(windows, zone, now)
    found = named(day, windows, zone, now, first_start)
    if visit is not None and found.began_by == "evening" and visit < now:
        return Span(day, visit, now, False, "visit")
    return Span(day, min(found.since, now), now, False, found.began_by)


def given(since: float, until: float, zone: ZoneInfo, now: float) -> Span:
    """Any hours; their date is that of the evening before their end."""
    return Span(date_of(min(until, now) - 1, zone), since, min(until, now), now >= until, "given")


def last_date(windows: Windows, zone: ZoneInfo, now: float) -> date:
    """The date of the night that goes on or was last."""
    day = date_of(now, zone)
    return day if now >= begins(day, windows, zone) else day - timedelta(days=1)


def date_of(moment: float, zone: ZoneInfo) -> date:
    """The evening whose night a moment belongs to: it changes at noon."""
    local = datetime.fromtimestamp(moment, zone)
    return local.date() if local.hour >= NOON else local.date() - timedelta(days=1)


def at(day: date, hour: int, zone: ZoneInfo) -> float:
    """An hour of a day as epoch seconds."""
    return datetime(day.year, day.month, day.day, hour, tzinfo=zone).astimezone(UTC).timestamp()


def openings(windows: Windows, zone: ZoneInfo, start: float, end: float) -> Iterator[tuple[float, float]]:
    """When the windows are open between two moments."""
    moment = start
    while moment < end:
        if windows.is_open(moment, zone):
            closes = windows.closes_at(moment, zone) or end
            yield moment, min(closes, end)
            moment = closes
        else:
            moment = windows.opens_at(moment, zone) or end


def begins(day: date, windows: Windows, zone: ZoneInfo) -> float:
    """When a date's night can begin at the earliest: at its window's opening, or at 18:00."""
    opening = _opening(day, windows, zone)
    return at(day, EVENING, zone) if opening is None else opening[0]


def _opening(day: date, windows: Windows, zone: ZoneInfo) -> tuple[float, float] | None:
    """The longest opening that begins between this noon and the next; None when there is none, or it never closes."""
    if not windows.ranges:
        return None
    low, high = at(day, NOON, zone), at(day + timedelta(days=1), NOON, zone)
    found: list[tuple[float, float]] = []
    moment = low
    if windows.is_open(low - 1, zone):  # that one began before
        closes = windows.closes_at(low - 1, zone)
        if closes is None or closes >= high:
            return None
        moment = closes
    while moment < high:
        opens = moment if windows.is_open(moment, zone) else windows.opens_at(moment, zone)
        if opens is None or opens >= high:
            break
        closes = windows.closes_at(opens, zone)
        if closes is None:
            return None
        found.append((opens, closes))
        moment = closes
    return max(found, key=lambda span: span[1] - span[0], default=None)
