"""The night's timeline, drawn: a lane for each slot, a bar for each run, in percent of the night. Pure.

The first screen and the report show the same lanes (`templates/lanes.html`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from api import night_links
from api.svg import Tick, clock_ticks
from api.wording import THIN, clock, count, words
from daemon.night.model import Block, IdleTime, Lane, Night
from jobs.model import State

DASH = "\u2013"
#: A run that is over in no time must still be seen: its least width, in percent of the night.
LEAST_WIDTH = 0.4
#: So many lanes are drawn with room; more of them are drawn lower.
ROOMY_LANES = 4
#: A phone has room for so many hours below the lanes.
MOST_TICKS = 6
#: A bar says no more than its name and its times: longer names are cut.
LONGEST_NAME = 60

#: In the order of the legend.
SHOWN: Mapping[str, str] = {
    "succeeded": "done",
    "failed": "failed",
    "running": "running",
    "interrupted": "interrupted",
    "cancelled": "cancelled",
}


@dataclass(frozen=True)
class Bar:
    """A piece of a lane, in percent of its width. `href`: where its jobs are seen; empty for idle time."""

    state: str
    x: str
    width: str
    title: str
    href: str = ""


@dataclass(frozen=True)
class Row:
    """One lane: what ran, and when nothing did."""

    title: str
    name: str
    bars: tuple[Bar, ...]
    idle: tuple[Bar, ...]
    busy: str
    words: str


@dataclass(frozen=True)
class Timeline:
    """All lanes, their common axis, and the states that occur."""

    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    shown: tuple[tuple[str, str], ...]
    roomy: bool


def timeline(night: Night) -> Timeline | None:
    """The lanes; None when nothing ran on any of them."""
    if not any(lane.blocks for lane in night.lanes):
        return None
    rows = tuple(_row(lane, night) for lane in night.lanes)
    present = {bar.state for row in rows for bar in row.bars}
    shown = tuple((state, word) for state, word in SHOWN.items() if state in present)
    ticks = clock_ticks(ZoneInfo(night.zone), night.until, most=MOST_TICKS)(night.since, night.since + _span_s(night))
    return Timeline(rows, ticks, shown, len(rows) <= ROOMY_LANES)


def _row(lane: Lane, night: Night) -> Row:
    bars, idle = tuple(_bar(block, night) for block in lane.blocks), tuple(_idle(one, night) for one in lane.idle)
    busy = f"{lane.busy_ratio * 100:.0f}{THIN}%" if lane.busy_ratio is not None else DASH
    return Row(lane.title, lane.name, bars, idle, busy, lane.words)


def _bar(block: Block, night: Night) -> Bar:
    state = block.state if block.state in SHOWN else "cancelled"
    again = f", run {block.attempts}" if block.attempts > 1 else ""
    whose = f"#{block.job} {_short(block.name)}: {SHOWN[state]}{again}" if block.jobs == 1 else count(block.jobs, "job")
    x, width = _place(block.start, block.end, night)
    return Bar(state, x, width, f"{whose}, {_hours(block.start, block.end, night)}", _href(block))


def _href(block: Block) -> str:
    if block.jobs == 1:
        return f"/jobs/{block.job}"
    ended = {"state": block.state} if block.state in list(State) else {}
    return night_links.jobs(since=block.start, until=block.end, **ended)


def _idle(one: IdleTime, night: Night) -> Bar:
    x, width = _place(one.start, one.end, night)
    return Bar("idle", x, width, f"idle: {words(one.reason)}, {_hours(one.start, one.end, night)}")


def _place(start: float, end: float, night: Night) -> tuple[str, str]:
    span_s = _span_s(night)
    width = max(LEAST_WIDTH, (end - start) / span_s * 100)
    x = min((start - night.since) / span_s * 100, 100 - width)
    return f"{max(0.0, x):.2f}", f"{width:.2f}"


def _span_s(night: Night) -> float:
    return max(1.0, night.until - night.since)


def _hours(start: float, end: float, night: Night) -> str:
    zone = ZoneInfo(night.zone)
    return f"{clock(start, night.until, zone)}{DASH}{clock(end, night.until, zone)}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
