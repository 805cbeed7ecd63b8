"""What the pages of the GPUs show: readings of a time as small charts over one axis, jobs and faults where they were. Pure."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from zoneinfo import ZoneInfo

from api.svg import Chart, Mark, Series, Tick, chart, clock_ticks
from api.wording import CAUSE_WORDS, STATE_WORDS, clock, count, duration, number, percent
from daemon.faults import Policy, xid_of
from daemon.samples import THROTTLING, SlotNow
from daemon.slot_past import MOST_POINTS, Interval, Past, Point
from daemon.telemetry import GpuEvent
from jobs.model import Attempt, End, Job, State

#: What can be looked at, by the word in the address.
SPANS = {"1h": 3600.0, "6h": 6 * 3600.0, "24h": 86_400.0, "7d": 7 * 86_400.0, "30d": 30 * 86_400.0}
SPAN_WORDS = {"1h": "1 h", "6h": "6 h", "24h": "24 h", "7d": "7 days", "30d": "30 days"}
USUAL_SPAN = "6h"
#: More blocks than this are drawn as fewer: nobody sees them apart.
MOST_BLOCKS = 120
#: Points further apart than so many steps are not joined.
GAP_STEPS = 2.5
SLOWED_WORDS = {
    "power_cap": "its power limit",
    "sw_thermal": "heat (driver)",
    "hw_thermal": "heat (hardware)",
    "power_brake": "the power supply",
}
EVENT_WORDS = {
    "lost": "The driver lost the GPU",
    "stale": "The GPU does not answer",
    "suspect": "Its readings cannot be right",
    "recovered": "It answers again",
    "driver": "The driver",
}
#: On the axis; the smallest chart has room for them.
TICKS = 6
#: A share of a step; above it the slow-down is drawn, as one of three heights.
SLOWED_FROM = 0.02


@dataclass(frozen=True)
class Block:
    """A stay of a job on the slot, at a share of the time; `text` for those who point at it."""

    x: float
    width: float
    state: str
    text: str


@dataclass(frozen=True)
class Band:
    """A stretch of the time, in percent."""

    x: float
    width: float


@dataclass(frozen=True)
class Bar:
    """A step in which the GPU was slowed down; `height` in percent."""

    x: float
    width: float
    height: int


@dataclass(frozen=True)
class Fault:
    """Something that happened to the GPU. `grave`: it was, or may be, taken out of service for it."""

    x: float
    at: float
    title: str
    detail: str
    grave: bool
    job: str | None


@dataclass(frozen=True)
class HistoryPanel:
    """One chart: a line of means, the peaks behind it, perhaps a limit across."""

    key: str
    title: str
    unit: str
    chart: Chart
    line: str
    peaks: str
    limit: Mark | None
    latest: str
    alt: str


@dataclass(frozen=True)
class Slowdown:
    """When one reason slowed the GPU down."""

    name: str
    bars: tuple[Bar, ...]
    text: str


@dataclass(frozen=True)
class Stay:
    """One attempt of a job on the slot, for the list."""

    job: Job
    run: Attempt
    took_s: float


@dataclass(frozen=True)
class View:
    """Everything about one slot's time."""

    past: Past
    panels: tuple[HistoryPanel, ...]
    ticks: tuple[Tick, ...]
    blocks: tuple[Block, ...]
    gaps: tuple[Band, ...]
    slowed: tuple[Slowdown, ...]
    faults: tuple[Fault, ...]
    stays: tuple[Stay, ...]
    busy_ratio: float
    alt: str


@dataclass(frozen=True)
class Wanted:
    """A chart that is drawn where its value is read."""

    key: str
    title: str
    unit: str
    value: Callable[[Point], float | None]
    peak: Callable[[Point], float | None] | None
    bottom: float
    top: float


WANTED = (
    Wanted("util", "Utilisation", "%", lambda p: _times(p.utilization, 100), lambda p: _times(p.utilization_max, 100), 0, 100),
    Wanted("power", "Power", "W", lambda p: p.power_w, lambda p: p.power_max_w, 0, 10),
    Wanted("temp", "Temperature", "°C", lambda p: p.temperature_c, lambda p: p.temperature_max_c, 20, 90),
    Wanted("memory", "Memory", "GiB", lambda p: _times(p.memory_bytes, 2**-30), None, 0, 1),
    Wanted("clock", "Clock", "MHz", lambda p: _times(p.sm_clock_hz, 1e-6), None, 0, 500),
)  # fmt: skip


def view(
    found: Past,
    now: SlotNow | None,
    jobs: Iterable[Job],
    events: Iterable[GpuEvent],
    *,
    slot: str,
    rig: str,
    at: float,
    zone: ZoneInfo,
) -> View:
    """One slot's time, ready to be drawn. `at` is this moment."""
    ticks = clock_ticks(zone, at, most=TICKS)
    gaps = tuple(_bands(found.gaps, found))
    stays = sorted(_stays(jobs, slot, rig, found, at), key=lambda stay: -stay.run.started_at)
    panels = tuple(panel for wanted in WANTED if (panel := _panel(wanted, found, now, gaps)))
    busy_s = sum(_inside((stay.run.started_at, stay.run.ended_at or at), found) for stay in stays)
    return View(
        past=found,
        panels=panels,
        ticks=ticks(found.start, found.end),
        blocks=tuple(_blocks(stays, found, at, zone)),
        gaps=gaps,
        slowed=tuple(_slowdowns(found)),
        faults=tuple(_fault(event, found) for event in events),
        stays=tuple(stays),
        busy_ratio=min(1.0, busy_s / (found.end - found.start)),
        alt=_told(stays, found, at, zone),
    )


def busiest(found: Past) -> str:
    """What kept it slow, in words; nothing when nothing did."""
    slow = {name: seconds for name, seconds in found.slowed_s.items() if seconds >= 1}
    return ", ".join(f"{duration(seconds)} by {SLOWED_WORDS[name]}" for name, seconds in slow.items())


# -- charts -------------------------------------------------------------------------------------------------------------------


def _panel(wanted: Wanted, found: Past, now: SlotNow | None, gaps: Sequence[Band]) -> HistoryPanel | None:
    points = [(point.at, value) for point in found.points if (value := wanted.value(point)) is not None]
    if not points:
        return None
    peaks = [(p.at, v) for p in found.points if wanted.peak and (v := wanted.peak(p)) is not None]
    limit, gap = _limit_of(wanted.key, now), GAP_STEPS * found.step_s
    highest = max(value for _, value in (*points, *peaks, (0.0, limit or 0.0)))
    drawn = chart(
        [Series(wanted.title, points), Series("up to the peaks", _between(points, peaks, gap))],
        marks=[(found.end, limit)] if limit is not None else (),
        x_range=(found.start, found.end),
        y_range=(wanted.bottom, max(wanted.top, highest)),
        gap=gap,
        most=4 * MOST_POINTS,
    )
    if drawn is None:
        return None
    return HistoryPanel(
        key=wanted.key,
        title=wanted.title,
        unit=wanted.unit,
        chart=drawn,
        line=drawn.lines[0].path,
        peaks=drawn.lines[1].path if len(drawn.lines) > 1 else "",
        limit=drawn.marks[0] if drawn.marks else None,
        latest=_latest(wanted, points),
        alt=_alt(wanted, points, peaks, limit, gaps),
    )


def _limit_of(key: str, now: SlotNow | None) -> float | None:
    if now is None:
        return None
    limits = {"power": now.power_limit_w, "memory": _times(now.memory_total_bytes, 2**-30), "temp": now.throttle_temperature_c}  # fmt: skip
    return limits.get(key)


def _between(points: Sequence[tuple[float, float]], peaks: Sequence[tuple[float, float]], gap: float) -> list[tuple[float, float]]:  # fmt: skip
    """Around the area from the means up to the peaks, piece by piece: the chart begins a new path where x jumps ahead."""
    above = dict(peaks)
    pieces = _joined([(at, value) for at, value in points if at in above], gap)
    return [place for piece in pieces for place in (*((at, above[at]) for at, _ in piece), *reversed(piece))]


def _joined(points: Sequence[tuple[float, float]], gap: float) -> Iterator[Sequence[tuple[float, float]]]:
    start = 0
    for index, (before, after) in enumerate(pairwise(points), 1):
        if after[0] - before[0] > gap:
            yield points[start:index]
            start = index
    if points:
        yield points[start:]


def _latest(wanted: Wanted, points: Sequence[tuple[float, float]]) -> str:
    mean = sum(value for _, value in points) / len(points)
    return f"mean {_number(mean, wanted)} {wanted.unit}, peak {_number(max(value for _, value in points), wanted)}"


def _alt(wanted: Wanted, points: Sequence[tuple[float, float]], peaks: Sequence[tuple[float, float]], limit: float | None, gaps: Sequence[Band]) -> str:  # fmt: skip
    values = [value for _, value in points]
    told = f"mean {_number(sum(values) / len(values), wanted)} {wanted.unit}, lowest {_number(min(values), wanted)}"
    told += f", highest {_number(max(value for _, value in (*points, *peaks)), wanted)}"
    told += f"; limit {_number(limit, wanted)}" if limit is not None else ""
    return told + (f"; {count(len(gaps), 'gap')} without readings." if gaps else ".")


def _number(value: float, wanted: Wanted) -> str:
    return f"{value:.1f}" if wanted.key == "memory" else number(round(value))


# -- what happened --------------------------------------------------------------------------------------------------------------


def _stays(jobs: Iterable[Job], slot: str, rig: str, found: Past, at: float) -> Iterator[Stay]:
    for job in jobs:
        for run in job.attempts:
            stayed = (run.started_at, run.ended_at or at)
            if slot in run.slots and run.rig == rig and _inside(stayed, found) > 0:
                yield Stay(job, run, stayed[1] - stayed[0])


def _blocks(stays: Sequence[Stay], found: Past, at: float, zone: ZoneInfo) -> Iterator[Block]:
    """Oldest first. Of very many, neighbours become one."""
    ordered = sorted(stays, key=lambda stay: stay.run.started_at)
    coarse_s = (found.end - found.start) / MOST_BLOCKS if len(ordered) > MOST_BLOCKS else 0.0
    group: list[Stay] = []
    for stay in ordered:
        if group and (not coarse_s or (stay.run.ended_at or at) - group[0].run.started_at > coarse_s):
            yield _block(group, found, at, zone)
            group = []
        group.append(stay)
    if group:
        yield _block(group, found, at, zone)


def _block(group: Sequence[Stay], found: Past, at: float, zone: ZoneInfo) -> Block:
    start, end = group[0].run.started_at, max(stay.run.ended_at or at for stay in group)
    band = _band((start, end), found)
    states = [_state(stay) for stay in group]
    state = "failed" if "failed" in states else states[0]
    named = f"{group[0].job.name} (#{group[0].job.id}), {how_it_went(group[0])}" if len(group) == 1 else f"{count(len(group), 'run')}, {states.count('failed')} failed"  # fmt: skip
    return Block(band.x, max(band.width, 0.2), state, f"{named}, {clock(start, at, zone)} to {clock(end, at, zone)}")


def _state(stay: Stay) -> str:
    """As the marks of the pages know it."""
    if stay.run.end is None:
        return "running"
    return {"succeeded": "succeeded", "checked": "succeeded", "failed": "failed", "cancelled": "cancelled"}.get(
        str(stay.run.end), "queued"
    )


def how_it_went(stay: Stay) -> str:
    """How this attempt ended."""
    if stay.run.cause:
        return f"failed: {CAUSE_WORDS[stay.run.cause]}"
    if stay.run.end is End.CHECKED:
        return "its preflight passed"
    return STATE_WORDS[State.RUNNING] if stay.run.end is None else str(stay.run.end)


def mark_of(stay: Stay) -> str:
    """The shape beside it in the list."""
    return _state(stay)


def _fault(event: GpuEvent, found: Past) -> Fault:
    x = (min(found.end, max(found.start, event.at)) - found.start) / (found.end - found.start) * 100
    if event.kind == "xid" and event.code is not None:
        xid = xid_of(event.code)
        grave = xid.policy in (Policy.QUARANTINE, Policy.SUSPECT)
        return Fault(round(x, 2), event.at, f"XID {event.code}: {xid.words}", event.text[:200], grave, event.job)
    title = EVENT_WORDS.get(event.kind, event.kind)
    return Fault(round(x, 2), event.at, title, event.text[:200], event.kind in ("lost", "stale"), event.job)


def _slowdowns(found: Past) -> Iterator[Slowdown]:
    """One row for each reason that ever slowed it down in this time."""
    width = found.step_s / (found.end - found.start) * 100
    for name in THROTTLING:
        seconds = found.slowed_s.get(name, 0.0)
        if seconds < 1:
            continue
        bars = tuple(
            Bar(round((point.at - found.start) / (found.end - found.start) * 100 - width / 2, 2), round(width, 3), _step(point.slowed[name]))
            for point in found.points
            if point.slowed.get(name, 0.0) >= SLOWED_FROM
        )  # fmt: skip
        share = seconds / max(1.0, sum(piece.n for piece in found.pieces))
        yield Slowdown(name, bars, f"{SLOWED_WORDS[name]}: {duration(seconds)}, {percent(share)} of the time")


def _step(share: float) -> int:
    return 100 if share > 2 / 3 else 66 if share > 1 / 3 else 33


def _bands(intervals: Iterable[Interval], found: Past) -> Iterator[Band]:
    return (_band(interval, found) for interval in intervals)


def _band(interval: Interval, found: Past) -> Band:
    whole = found.end - found.start
    start, end = max(interval[0], found.start), min(interval[1], found.end)
    return Band(round((start - found.start) / whole * 100, 2), round((end - start) / whole * 100, 2))


def _inside(interval: Interval, found: Past) -> float:
    return min(interval[1], found.end) - max(interval[0], found.start)


def _told(stays: Sequence[Stay], found: Past, at: float, zone: ZoneInfo) -> str:
    """The strip of jobs, for those who do not see it."""
    if not stays:
        return "No job ran in this time."
    failed = sum(_state(stay) == "failed" for stay in stays)
    told = f"{count(len(stays), 'run')} of jobs, {failed} failed; the last began {clock(stays[0].run.started_at, at, zone)}"
    return told + (f"; {count(len(found.gaps), 'gap')} without readings." if found.gaps else ".")


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
