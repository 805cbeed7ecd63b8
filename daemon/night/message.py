"""The night in a few lines of plain text: for a phone's lock screen. Pure.

At most 400 bytes of UTF-8. What matters most comes first; what does not fit is left out, from behind.
"""

from collections.abc import Iterator
from zoneinfo import ZoneInfo

from daemon.night.model import Best, Group, Lane, Night
from daemon.night.verdict import signed
from daemon.wording import THIN, clock, count, energy, number, percent, plain

MOST_BYTES = 400
#: Names longer than this are cut; where there is little room, to the second.
NAME, SHORT_NAME = 40, 16
GROUPS = 3


def title(night: Night) -> str:
    """2 of 14 failed, best 1.108 (-17 %)."""
    counts, best = night.counts, night.best
    if counts.failed:
        said = f"{number(counts.failed)} of {number(counts.ended)} failed"
    elif night.troubles:
        said = f"{count(len(night.troubles), 'thing')} need{'s' if len(night.troubles) == 1 else ''} you"
    elif counts.ended:
        said = f"{number(counts.done)} done" if counts.done == 1 else f"all {number(counts.done)} done"
    else:
        said = "nothing ran" if not counts.running else f"{number(counts.running)} running"
    if best is not None:
        said += f", best {number(best.value)}" + (f" ({signed(best.change)})" if best.change is not None else "")
    return _line(said)


def text(night: Night, *, most_bytes: int = MOST_BYTES) -> str:
    """The message's body."""
    for name in (NAME, SHORT_NAME):
        lines = list(_lines(night, name))
        if _size(lines) <= most_bytes:
            return "\n".join(lines)
    while len(lines) > 1 and _size(lines) > most_bytes:
        lines.pop()
    return "\n".join(lines).encode()[:most_bytes].decode(errors="ignore")


def _lines(night: Night, name: int) -> Iterator[str]:
    """The most important first."""
    zone = ZoneInfo(night.zone)
    yield _line(f"{_moment(night.since, zone)} to {_moment(night.until, zone)}")
    yield _line(_counts(night, zone))
    for trouble in night.troubles[:GROUPS]:
        yield _line(f"NEEDS YOU {trouble.words}", 3 * name)
    for group in night.needs_you[:GROUPS]:
        yield _line(_group(group, name))
    if (more := len(night.needs_you) - GROUPS) > 0:
        yield f"and {more} more causes" if more > 1 else "and 1 more cause"
    if not night.need_you and night.verdict.reasons:
        yield _line(f"LOOK {night.verdict.reasons[0]}", 3 * name)
    if night.best is not None:
        yield _line(_best(night.best, name))
    if mended := [one for one in night.repaired if one.done]:
        yield f"{count(len(mended), 'failure')} mended by a retry"
    if busy := [lane for lane in night.lanes if lane.busy_ratio is not None]:
        yield _line(", ".join(_busy(lane) for lane in busy[:8]))
    if body := _body(night):
        yield _line(body)


def _counts(night: Night, zone: ZoneInfo) -> str:
    counts, waits = night.counts, night.waits
    parts = [(counts.done, "done"), (counts.failed, "failed"), (counts.running, "running"), (counts.queued, "queued")]
    said = ", ".join(f"{number(amount)} {word}" for amount, word in parts if amount) or "nothing ran"
    at = waits.drains_at if counts.queued or counts.running else None
    return f"{said} (empty about {clock(at, night.made_at, zone)})" if at is not None else said


def _group(group: Group, name: int) -> str:
    whose = group.sweep_name or group.names[0]
    more = "" if len(group.names) < 2 or group.sweep_name else " and others"
    return f"FAILED {len(group.jobs)} x {group.words}: {_cut(whose, name)}{more}"


def _best(best: Best, name: int) -> str:
    was = f" (was {number(best.baseline.value)})" if best.baseline else ""
    return f"BEST {_cut(best.name, name)} {best.metric} {number(best.value)}{was}"


def _busy(lane: Lane) -> str:
    return f"{lane.title} {percent(lane.busy_ratio or 0.0)}"


def _body(night: Night) -> str:
    parts = [energy(night.energy.wall_j)] if night.energy.wall_j is not None else []
    if (hottest := night.heat.temperature_max_c) is not None:
        parts.append(f"max {number(hottest)} C")
        slowed = ", ".join(name.replace("_", " ") for name in night.heat.throttled_s)
        parts.append(f"throttled by {slowed}" if slowed else "no throttling")
    if night.disk_free_bytes is not None:
        parts.append(f"disk {night.disk_free_bytes / 1e9:.0f} GB free")
    return ", ".join(parts)


def _moment(at: float, zone: ZoneInfo) -> str:
    return clock(at, at + 2 * 86_400, zone)  # with its day: "Sat 22:10"


def _line(said: str, most: int = 200) -> str:
    """One line of text: jobs' words cannot break it, colour it or turn it."""
    return _cut(said, most)


def _cut(said: str, most: int) -> str:
    clean = " ".join(plain(said.replace(THIN, " ")).split())
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def _size(lines: list[str]) -> int:
    return len("\n".join(lines).encode())
