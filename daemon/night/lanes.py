"""The timeline: a lane for each slot, with what ran and why it stood idle. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from daemon import idle
from daemon.idle import Idle, Reason
from daemon.night.model import Block, Hours, IdleTime, Lane
from daemon.night.records import Records
from daemon.rig import Slot
from daemon.wording import clock, duration, percent
from jobs.model import Attempt, End, Job

#: More blocks than this in one lane are drawn as groups: nobody sees them one by one.
MOST_BLOCKS = 120
#: Neighbours of one outcome closer than this share of the night are one block then.
NEAR = 1 / 500
#: Shorter stretches are not named in words, and so many are.
WORTH_NAMING_S, NAMED = 600.0, 3
#: Idle times in which a slot could not have worked.
NOT_AVAILABLE = frozenset({Reason.CLOSED})


def idle_times(records: Records) -> list[Idle]:
    """Every stretch in which a slot did nothing."""
    span = records.span
    if span.until <= span.since:
        return []
    night = idle.Night(
        span.since,
        span.until,
        [slot.id for slot in records.slots],
        records.jobs,
        open=records.open,
        out=records.out,
        paused=records.paused,
        memory={slot.id: slot.memory_bytes for slot in records.slots},
    )
    return idle.idle(night)


def lanes(records: Records, idle_found: Sequence[Idle]) -> tuple[Lane, ...]:
    """By slot, in the rig's order."""
    blocks: dict[str, list[Block]] = {}
    for job, run in records.runs():
        if run.rig == records.rig:
            for slot in run.slots:
                blocks.setdefault(slot, []).append(_block(job, run, records))
    by_slot: dict[str, list[Idle]] = {}
    for one in idle_found:
        by_slot.setdefault(one.slot, []).append(one)
    return tuple(_lane(slot, blocks.get(slot.id, []), by_slot.get(slot.id, []), records) for slot in records.slots)


def hours(records: Records, found: Sequence[Idle]) -> Hours:
    """GPU time that there was, that was used, and why the rest was not. Time outside the window was not there."""
    whole_s = (records.span.until - records.span.since) * len(records.slots)
    closed_s = sum(one.seconds for one in found if one.reason in NOT_AVAILABLE)
    unused = [one for one in found if one.reason not in NOT_AVAILABLE]
    available_s = max(0.0, whole_s - closed_s)
    used_s = max(0.0, available_s - sum(one.seconds for one in unused))
    return Hours(available_s=available_s, used_s=used_s, idle_s=idle.seconds_by_reason(unused))


def busy_words(made: Sequence[Lane]) -> str:
    """GPU 0 96 % busy; GPU 1 86 % (idle 23:30 to 00:10: no job)."""
    return ". ".join(f"{lane.title} {lane.words}" for lane in made) + ("." if made else "")


def _lane(slot: Slot, blocks: list[Block], idle_found: list[Idle], records: Records) -> Lane:
    whole_s = records.span.until - records.span.since
    closed_s = sum(one.seconds for one in idle_found if one.reason in NOT_AVAILABLE)
    idle_s = sum(one.seconds for one in idle_found) - closed_s
    available_s = whole_s - closed_s
    ratio = max(0.0, 1.0 - idle_s / available_s) if available_s > 0 else None
    blocks.sort(key=lambda block: (block.start, block.end))
    return Lane(
        slot=slot.id,
        title=slot.title,
        name=slot.name,
        blocks=tuple(_condensed(blocks, whole_s)),
        idle=tuple(_drawn(idle_found, whole_s)),
        busy_ratio=ratio,
        words=_words(ratio, idle_found, records),
    )


def _block(job: Job, run: Attempt, records: Records) -> Block:
    span = records.span
    over = run.ended_at is not None and run.ended_at <= span.until
    end = End.SUCCEEDED if run.end is End.CHECKED else run.end or End.INTERRUPTED
    return Block(
        job=job.id,
        name=f"preflight of {job.name}" if run.preflight else job.name,
        kind=job.kind,
        state=str(end) if over else "running",
        start=max(run.started_at, span.since),
        end=min(run.ended_at or span.until, span.until),
        attempt=run.number,
        attempts=sum(not run.preflight for run in job.attempts),
        cause=run.cause if over else None,
    )


def _condensed(blocks: Sequence[Block], whole_s: float) -> Iterable[Block]:
    """Where there are too many: neighbours that ended alike as one. What failed is never mixed with what did not."""
    if len(blocks) <= MOST_BLOCKS:
        return blocks
    return list(_joined(blocks, whole_s * NEAR))


def _joined(blocks: Sequence[Block], near_s: float) -> Iterator[Block]:
    last: Block | None = None
    for block in blocks:
        if last is not None and last.state == block.state and block.start - last.end <= near_s:
            last = replace(last, end=max(last.end, block.end), jobs=last.jobs + 1)
            continue
        if last is not None:
            yield last
        last = block
    if last is not None:
        yield last


def _drawn(found: Sequence[Idle], whole_s: float) -> Iterator[IdleTime]:
    """Idle times as they are drawn: of too many only those that can be seen."""
    least_s = whole_s * NEAR if len(found) > MOST_BLOCKS else 0.0
    for one in found:
        if one.seconds >= least_s:
            yield IdleTime(start=one.start, end=one.end, reason=one.reason)


def _words(ratio: float | None, found: Sequence[Idle], records: Records) -> str:
    if ratio is None:
        return "was outside the window"
    long = sorted((o for o in found if o.seconds >= WORTH_NAMING_S), key=lambda one: -one.seconds)
    named = sorted(long[:NAMED], key=lambda one: one.start)
    now, zone = records.span.until, records.zone
    told = [f"{clock(one.start, now, zone)} to {clock(one.end, now, zone)} ({one.reason})" for one in named]
    rest_s = sum(one.seconds for one in long[NAMED:])
    told += [f"{duration(rest_s)} more"] if rest_s else []
    return f"{percent(ratio)} busy" + (f", idle {', '.join(told)}" if told else "")
