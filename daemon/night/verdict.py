"""One sentence for the morning, and its colour. Pure.

Red: somebody is needed. Amber: a part of the rig is silent, its disk is nearly full, or a GPU stood idle while jobs could run;
that outweighs a night in which every job went well, since nobody can be sure of such a night.
"""

from collections.abc import Iterator, Sequence

from daemon.idle import Idle, Reason
from daemon.night.model import Best, Colour, Counts, Group, Heartbeat, Trouble, Verdict, Waits
from daemon.night.records import Records
from daemon.wording import clock, count, duration, number, percent

DISK_LOW_RATIO = 0.10
IDLE_WITH_WORK_S = 600.0


def verdict(
    records: Records,
    *,
    counts: Counts,
    groups: Sequence[Group],
    troubles: Sequence[Trouble],
    best: Best | None,
    waits: Waits,
    idle: Sequence[Idle],
) -> Verdict:
    """The colour by the rules above, and the sentence."""
    need = sum(len(group.jobs) for group in groups) + len(troubles)
    red = [f"{count(len(group.jobs), 'job')} failed: {group.words}" for group in groups]
    red += [trouble.words for trouble in troubles]
    amber = [*_doubts(records, idle)]
    colour = Colour.RED if need else Colour.AMBER if amber else Colour.GREEN
    parts = [_what(counts, need), _best(best), _rest(waits, counts, records)]
    if not need and amber:
        parts.insert(1, amber[0])
    sentence = ". ".join(f"{part[0].upper()}{part[1:]}" for part in parts if part)
    return Verdict(colour=colour, sentence=f"{sentence}.", reasons=(*red, *amber))


def _what(counts: Counts, need: int) -> str:
    """2 of 14 failed, 2 need you."""
    if not counts.ended and not counts.running:
        return "Nothing ran" + (f", {count(need, 'thing')} need{'s' if need == 1 else ''} you" if need else "")
    if counts.failed:
        return f"{number(counts.failed)} of {number(counts.ended)} failed, {number(need)} need{'s' if need == 1 else ''} you"
    if not counts.ended:
        said = f"{count(counts.running, 'job')} running, nothing has ended yet"
    else:
        said = f"All {number(counts.ended)} done" if counts.ended > 1 else "1 job done"
    return f"{said}, {count(need, 'thing')} need{'s' if need == 1 else ''} you" if need else said


def _best(best: Best | None) -> str:
    return f"best {best_words(best)}" if best else ""


def best_words(best: Best) -> str:
    """eval_loss 1.108 (-17 %)."""
    said = f"{best.metric} {number(best.value)}"
    return f"{said} ({signed(best.change)})" if best.change is not None else said


def signed(change: float) -> str:
    """-17 %, +0.4 %."""
    value = change * 100
    return f"{value:+.0f} %" if abs(value) >= 9.5 or value == 0 else f"{value:+.1f} %"


def _rest(waits: Waits, counts: Counts, records: Records) -> str:
    left = counts.queued + counts.running
    if not left:
        return "the queue is empty"
    if waits.drains_at is None:
        return f"{count(counts.queued, 'job')} waiting" if counts.queued else ""
    will = "will be" if waits.sure else "may be"
    return f"the queue {will} empty about {clock(waits.drains_at, records.now, records.zone)}"


def _doubts(records: Records, idle: Sequence[Idle]) -> Iterator[str]:
    yield from (_silent(beat) for beat in records.heartbeats if beat.stale)
    if records.disk_bytes and records.disk_free_bytes is not None:
        ratio = records.disk_free_bytes / records.disk_bytes
        if ratio < DISK_LOW_RATIO:
            yield f"the disk has {percent(ratio)} left"
    longest = max((one for one in idle if one.reason is Reason.KEPT_BACK), key=lambda one: one.seconds, default=None)
    if longest is not None and longest.seconds > IDLE_WITH_WORK_S:
        title = next((slot.title for slot in records.slots if slot.id == longest.slot), longest.slot)
        now, zone = records.span.until, records.zone
        when = f"{clock(longest.start, now, zone)} to {clock(longest.end, now, zone)}"
        yield f"{title} stood idle {when} although jobs could run"


def _silent(beat: Heartbeat) -> str:
    if beat.age_s is None:
        return f"the {beat.name} does not answer" if beat.name != "Redis" else "Redis does not answer"
    return f"the {beat.name} was last heard {duration(beat.age_s)} ago"
