"""Weekly windows: the hours in which jobs may run, in the rig's time zone. Pure.

"22:00-08:00"                                  every night
["12:00-13:00", "22:00-08:00"]                 several
{weekdays = "22:00-07:00", sat = "00:00-24:00"}  by day; a range belongs to the day on which it opens
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
GROUPS = {"weekdays": DAYS[:5], "weekend": DAYS[5:], "daily": DAYS}
MINUTES_PER_DAY = 24 * 60


@dataclass(frozen=True)
class Range:
    """Opens on this weekday (0 = Monday) at a minute of the day; ends later, perhaps on the next day."""

    weekday: int
    start_minute: int
    end_minute: int  # > start; above 1440 it lies on the next day


@dataclass(frozen=True)
class Windows:
    """Any number of weekly ranges; none means always open."""

    ranges: tuple[Range, ...] = ()

    @classmethod
    def parse(cls, setting: Any) -> Self:
        """From the setting `window`. Raises ValueError that says what is wrong."""
        if not setting:
            return cls()
        if isinstance(setting, str):
            setting = [part for part in setting.split(",") if part.strip()]
        if isinstance(setting, Mapping):
            return cls(tuple(r for day, texts in setting.items() for r in _of_days(str(day).lower(), texts)))
        if isinstance(setting, Sequence):
            return cls(tuple(r for text in setting for r in _of_days("daily", text)))
        raise ValueError('window is "22:00-08:00", a list of these, or a table by weekday')

    @property
    def longest_s(self) -> float | None:
        """How long the longest range is; None when it is always open."""
        return max((r.end_minute - r.start_minute) * 60.0 for r in self.ranges) if self.ranges else None

    def is_open(self, now: float, zone: ZoneInfo) -> bool:
        """Whether jobs may run at this moment (epoch seconds)."""
        return not self.ranges or self._around(now, zone) is not None

    def closes_at(self, now: float, zone: ZoneInfo) -> float | None:
        """When the open window closes; None when it is closed or never closes."""
        end = self._around(now, zone)
        while end is not None and (later := self._around(end, zone)) is not None:
            if later <= end or later > now + 8 * 86_400:
                return None  # ranges that touch all week long
            end = later
        return end

    def opens_at(self, now: float, zone: ZoneInfo) -> float | None:
        """When it opens next; None when it is open."""
        if self.is_open(now, zone):
            return None
        return min(start for start, _ in self._spans(now, zone) if start > now)

    def _around(self, now: float, zone: ZoneInfo) -> float | None:
        return max((end for start, end in self._spans(now, zone) if start <= now < end), default=None)

    def _spans(self, now: float, zone: ZoneInfo) -> Iterator[tuple[float, float]]:
        """Every opening from yesterday to a week ahead, as epoch seconds."""
        today = datetime.fromtimestamp(now, zone).date()
        for offset in range(-1, 8):
            day = today + timedelta(days=offset)
            for r in self.ranges:
                if r.weekday == day.weekday():
                    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
                    yield _wall(midnight, r.start_minute), _wall(midnight, r.end_minute)


def _wall(midnight: datetime, minute: int) -> float:
    """A wall-clock time as epoch seconds: adding to an aware datetime moves the wall clock, across DST changes too."""
    return (midnight + timedelta(minutes=minute)).astimezone(UTC).timestamp()


def _of_days(name: str, texts: Any) -> Iterator[Range]:
    days = GROUPS.get(name) or ((name,) if name in DAYS else None)
    if days is None:
        raise ValueError(f"window: {name!r} is not a day: use {', '.join((*DAYS, *GROUPS))}")
    for text in [texts] if isinstance(texts, str) else texts:
        start, end = _minutes(text)
        for day in days:
            yield Range(DAYS.index(day), start, end)


def _minutes(text: Any) -> tuple[int, int]:
    try:
        start, end = (_minute(part) for part in str(text).strip().split("-"))
    except ValueError:
        raise ValueError(f"window: {text!r} is not a range of hours like 22:00-08:00") from None
    if start == end:
        raise ValueError(f"window: {text!r} opens and closes at the same minute; use 00:00-24:00 for a whole day")
    return start, end if end > start else end + MINUTES_PER_DAY


def _minute(text: str) -> int:
    hours, minutes = (int(part) for part in text.strip().split(":"))
    value = hours * 60 + minutes
    if not (0 <= hours <= 24 and 0 <= minutes < 60 and value <= MINUTES_PER_DAY):
        raise ValueError(text)
    return value
