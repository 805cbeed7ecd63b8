"""Which hours a night is. Pure.

A night has the date of its evening and goes from report to report: from the report's hour of that day to the report's hour of
the next one, or to where the window closes when it is still open then. So every end of a job belongs to one night, by day too.
Of these hours a night shows those from its window's opening (without windows: from 18:00) on, and from before when something
ran before.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from daemon.window import Windows

EVENING = time(18)
DAY = timedelta(days=1)

#: When a job first and last ran or ended in a time; None when nothing did.
Work = Callable[[float, float], tuple[float, float] | None]


@dataclass(frozen=True)
class Span:
    """A night's hours. `began_by`: window, start, visit, given, evening."""

    date: date
    since: float
    until: float
    over: bool
    began_by: str


@dataclass(frozen=True)
class Calendar:
    """How a rig's nights follow each other."""

    windows: Windows
    zone: ZoneInfo
    #: The hour of the report.
    report: time
    #: So long after closing time jobs may still save their work or end.
    after_s: float = 0.0

    def named(self, day: date, now: float, work: Work) -> Span:
        """The night of a date, as far as it has come."""
        low, high = self.ends(day - DAY), self.ends(day)
        opening = self._opening(day)
        since, how = (self.begins(day), "evening") if opening is None else (max(low, opening[0]), "window")
        until = high if opening is None else min(high, opening[1] + self.after_s)
        worked = work(low, min(high, now)) if now > low else None
        if worked is not None:
            first, last = worked
            how = "start" if first < since or how == "evening" else how
            since, until = min(since, first) if opening else first, max(until, last)
        return Span(day, since, max(since, min(now, until)), now >= high, how)

    def last(self, now: float, work: Work, *, visit: float | None = None) -> Span:
        """The night that goes on or was last, up to now. `visit`: from there, where no window and no work says more."""
        day = self.last_date(now)
        found = self.named(day, now, work)
        if visit is not None and found.began_by == "evening" and visit < now:
            return Span(day, visit, now, False, "visit")
        return Span(day, min(found.since, now), now, False, found.began_by)

    def given(self, since: float, until: float, now: float) -> Span:
        """Any hours; their date is that of the evening before their end."""
        return Span(self.last_date(min(until, now) - 1), since, min(until, now), now >= until, "given")

    def last_date(self, now: float) -> date:
        """The date of the night that goes on or was last: by day it is still the last one."""
        day = self.date_of(now)
        return day if now >= self.begins(day) else day - DAY

    def date_of(self, moment: float) -> date:
        """The date of the night that what ends at a moment belongs to."""
        day = datetime.fromtimestamp(moment, self.zone).date()
        return day if moment >= self.ends(day - DAY) else day - DAY

    def begins(self, day: date) -> float:
        """When a date's night begins at the latest: at its window's opening, or in the evening."""
        opening = self._opening(day)
        return max(self.ends(day - DAY), opening[0] if opening else self._at(day, EVENING))

    def ends(self, day: date) -> float:
        """When a date's night is over, and the next one's first job may end."""
        report, evening = self.report_at(day), self._at(day + DAY, EVENING)
        probe = report - self.after_s
        closes = self.windows.closes_at(probe, self.zone) if self.windows.ranges else None
        # a window that is open all day is no reason to wait
        return max(report, closes + self.after_s) if closes is not None and closes <= evening else report

    def report_at(self, day: date) -> float:
        """When a date's night is reported: in the morning after it."""
        return self._at(day + DAY, self.report)

    def _at(self, day: date, moment: time) -> float:
        return datetime.combine(day, moment, self.zone).astimezone(UTC).timestamp()

    def _opening(self, day: date) -> tuple[float, float] | None:
        """The longest opening that begins between a date's report and the next; None without one, or when it never closes."""
        if not self.windows.ranges:
            return None
        low, high = self._at(day, self.report), self._at(day + DAY, self.report)
        found: list[tuple[float, float]] = []
        moment = low
        if self.windows.is_open(low - 1, self.zone):  # that one began before
            closes = self.windows.closes_at(low - 1, self.zone)
            if closes is None or closes >= high:
                return None
            moment = closes
        while moment < high:
            opens = moment if self.windows.is_open(moment, self.zone) else self.windows.opens_at(moment, self.zone)
            if opens is None or opens >= high:
                break
            closes = self.windows.closes_at(opens, self.zone)
            if closes is None:
                return None
            found.append((opens, closes))
            moment = closes
        return max(found, key=lambda span: span[1] - span[0], default=None)


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
