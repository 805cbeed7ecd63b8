"""What the first screen says of a night: the verdict, the tiles, what needs somebody, the best result. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from api import night_links
from api.acts import Act
from api.wording import THIN, clock, count, duration, energy, number, stamp, words
from daemon.night.model import Best, Colour, Group, Night
from jobs.model import State

DASH, TIMES, MINUS = "\u2013", "\u00d7", "\u2212"
#: What a colour says, for those who do not see it.
MOODS: Mapping[Colour, str] = {
    Colour.RED: "Somebody is needed.",
    Colour.AMBER: "Not all of it can be trusted.",
    Colour.GREEN: "All is well.",
}
#: Shorter times in which a slot was idle are no news.
LONG_IDLE_S = 300.0
#: Of a group so many jobs are named.
NAMES = 3


@dataclass(frozen=True)
class Tile:
    """One of the four numbers, which leads to its jobs."""

    state: str
    word: str
    count: int
    href: str
    title: str


def span_words(night: Night, zone: ZoneInfo) -> str:
    """From when to when, with the day of its evening."""
    begins, ends = _day_clock(night.since, zone), clock(night.until, night.until, zone)
    return f"{begins} {DASH} {ends if night.over else 'now'}"


def length_words(night: Night) -> str:
    """9 h 22 min."""
    return duration(max(60, night.until - night.since) // 60 * 60)


def heading(night: Night) -> str:
    """Whether it goes on."""
    return "Last night" if night.over or night.made_at - night.since > 6 * 3600 else "Tonight"


def title(night: Night) -> str:
    """For the browser's tab: 2 failed, 12 done."""
    counts = night.counts
    said = [f"{number(counts.failed)} failed"] if counts.failed else []
    said += [f"{number(counts.done)} done"] if counts.done or not said else []
    return ", ".join(said)


def tiles(night: Night, counts: Mapping[str, int]) -> list[Tile]:
    """Failed and done in the night; running and waiting now. `counts`: the whole queue's, by state."""
    running, queued = counts.get(State.RUNNING, night.counts.running), counts.get(State.QUEUED, night.counts.queued)
    found: tuple[tuple[State, str, int], ...] = (
        (State.FAILED, "failed", night.counts.failed),
        (State.SUCCEEDED, "done", night.counts.done),
        (State.RUNNING, "running", running),
        (State.QUEUED, "waiting", queued),
    )
    return [
        Tile(
            state,
            word,
            amount,
            night_links.state(night, state),
            f"{number(amount)} {word} {'in this night' if state.final else 'at its end' if night.over else 'now'}",
        )
        for state, word, amount in found
    ]


def sentence(night: Night) -> str:
    """The verdict, with the metric as people say it."""
    said = night.verdict.sentence.replace(" %", f"{THIN}%").replace("(-", f"({MINUS}")
    return said.replace(night.best.metric, words(night.best.metric)) if night.best else said


def timeline_words(night: Night, zone: ZoneInfo) -> str:
    """The energy and the longest time in which nothing ran; each lane's own words stand at the lane."""
    used_j = night.energy.wall_j if night.energy.wall_j is not None else night.energy.joules
    parts = [energy(used_j)] if used_j else []
    idle = [(one.end - one.start, lane.title, one) for lane in night.lanes for one in lane.idle]
    length_s, title, longest = max(idle, default=(0.0, "", None), key=lambda found: found[0])
    if longest is not None and length_s >= LONG_IDLE_S:
        hours = f"{clock(longest.start, night.until, zone)} to {clock(longest.end, night.until, zone)}"
        parts.append(f"longest idle: {title}, {hours} ({words(longest.reason)})")
    return f"{_capital('; '.join(parts))}." if parts else "No slot was idle for long."


def group_title(group: Group) -> str:
    """How many and why; of a single job no more than the cause."""
    return f"{number(len(group.jobs))}{THIN}{TIMES} {group.words}" if len(group.jobs) > 1 else _capital(group.words)


def waited_words(group: Group) -> str:
    """What else did not run because of them."""
    many = len(group.waited)
    return f"{_capital(count(many, 'job'))} that waited for {'it' if len(group.jobs) == 1 else 'them'} {'was' if many == 1 else 'were'} cancelled."


def group_names(group: Group) -> str:
    """Whose they are: the sweep, or the first few names."""
    if group.sweep_name:
        return group.sweep_name
    distinct = list(dict.fromkeys(group.names))
    more = len(group.jobs) - min(len(distinct), NAMES)
    return ", ".join(distinct[:NAMES]) + (f" and {number(more)} more" if more > 0 and len(group.jobs) > NAMES else "")


def group_acts(group: Group) -> list[Act]:
    """The safe way on, as a button."""
    if group.action is None or group.action.verb != "retry":
        return []
    jobs = group.action.jobs
    question = f"{_capital(count(len(jobs), 'job'))} {'goes' if len(jobs) == 1 else 'go'} to the end of the queue"
    changed = sorted({words(name) for fields in group.action.changes.values() for name in fields})
    question += f" with another {' and '.join(changed)}" if changed else ""
    question += f", and {'resumes' if len(jobs) == 1 else 'resume'} from the last checkpoint where there is one."
    return [Act("/do/night/retry", group.action.label, f"group-{jobs[0]}", question, name="group", value=key(jobs))]


def key(jobs: Sequence[str]) -> str:
    """Names these very jobs in few characters: what was confirmed is what happens."""
    return f"{len(jobs)}-{hashlib.sha256(','.join(jobs).encode()).hexdigest()[:16]}"


def change_words(best: Best) -> str:
    """17 % better than 1.342; unchanged; 4 % worse."""
    if best.baseline is None:
        return ""
    if best.change is None or best.better is None:
        return f"was {number(best.baseline.value)}"
    if best.change == 0:
        return f"the same as {number(best.baseline.value)}"
    amount = abs(best.change) * 100
    percent = f"{amount:.0f}" if amount >= 9.5 else f"{amount:.2g}"
    return f"{percent}{THIN}% {'better' if best.better else 'worse'} than {number(best.baseline.value)}"


def reasons(night: Night) -> Sequence[str]:
    """Why it is amber, beyond what the sentence says already."""
    return night.verdict.reasons[1:] if night.verdict.colour is Colour.AMBER else ()


def _day_clock(moment: float, zone: ZoneInfo) -> str:
    """Tue 22:10, always with its day."""
    return " ".join((stamp(moment, zone).partition(" ")[0], clock(moment, moment, zone)))


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
