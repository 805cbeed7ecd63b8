"""Where jobs stand among those of their priority: from ranks and a wish to ranks. Pure.

A rank is a double; between two of them there is nearly always room for one more. Where there is none, as few neighbours as
needed get a new rank, too. No rank rises above the newest job's, so that whatever is submitted later stands behind all.
"""

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

from jobs.model import InvalidTransition, Job, Priority, State, priority_of, rank_of

#: Neighbours stay this far apart. The largest ranks (2e12) are doubles with steps of 2**-12.
SMALLEST_STEP = 2.0**-8


class Side(StrEnum):
    """On which side of what."""

    FIRST = "first"
    LAST = "last"
    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True)
class Place:
    """Where jobs are to stand: before or after all of their priority, or beside another job."""

    side: Side
    anchor: str = ""


def parse_place(text: object) -> Place:
    """`first`, `last`, `before:139`, `after:139`. Raises ValueError."""
    side, colon, anchor = str(text).partition(":")
    is_id = anchor.isascii() and anchor.isdigit() and len(anchor) <= 18
    if not isinstance(text, str) or (
        side not in ("before", "after") or not is_id if colon else side not in ("first", "last")
    ):
        raise ValueError('is "first", "last", "before:ID" or "after:ID"')
    return Place(Side(side), str(int(anchor)) if colon else "")


def arranged(
    ranks: Mapping[str, float], jobs: Sequence[Job], place: Place | None, *, sequence: int
) -> tuple[dict[str, float], int]:
    """New ranks for jobs, as they will be, among all unfinished ones, and the last number that was given out.

    Without a place a job keeps its rank, and takes it along into another priority.
    """
    new: dict[str, float] = {}
    for priority in dict.fromkeys(job.priority for job in jobs):
        mine = [job.id for job in jobs if job.priority is priority]
        among = {job_id: rank for job_id, rank in ranks.items() if priority_of(rank) is priority}
        if place is not None:
            new |= placed(among, mine, place, priority=priority, sequence=sequence)
        else:
            for job_id in mine:
                if job_id not in among:
                    rank = ranks[job_id] - rank_of(priority_of(ranks[job_id]), 0) + rank_of(priority, 0)
                    found = kept(among, job_id, rank, priority=priority, sequence=sequence)
                    new, among = new | found, among | found
        sequence = max([sequence, *(ceil(new[job_id] - rank_of(priority, 0)) for job_id in mine if job_id in new)])
    return new, sequence


def check_neighbour(jobs: Sequence[Job], place: Place, neighbour: Job) -> None:
    """Raises InvalidTransition, in words, when these jobs cannot stand beside that one."""
    if neighbour.state is not State.QUEUED:
        raise InvalidTransition(f"job {neighbour.id} is {neighbour.state}; only a waiting job has a place in the queue")
    for job in jobs:
        if job.id == neighbour.id:
            raise InvalidTransition(f"job {job.id} cannot stand {place.side} itself")
        if job.priority is not neighbour.priority:
            raise InvalidTransition(
                f"job {job.id} has priority {job.priority} and job {neighbour.id} {neighbour.priority}, and a job moves "
                f"among those of its own priority; change it first: overnight edit {job.id} --priority {neighbour.priority}"
            )


def placed(
    ranks: Mapping[str, float], moved: Sequence[str], place: Place, *, priority: Priority, sequence: int
) -> dict[str, float]:
    """The new ranks that put `moved`, in their order, to a place among `ranks`, the jobs of this priority.

    Empty when they stand there already. `sequence`: the last number that was given out; those that come last get the next ones.
    """
    standing = in_order(ranks)
    own = set(moved)
    others = [job_id for job_id in standing if job_id not in own]
    match place.side:
        case Side.FIRST:
            at = 0
        case Side.LAST:
            at = len(others)
        case Side.BEFORE:
            at = others.index(place.anchor)
        case Side.AFTER:
            at = others.index(place.anchor) + 1
    if [*others[:at], *moved, *others[at:]] == standing:
        return {}
    return _inserted(others, ranks, moved, at, priority=priority, sequence=sequence)


def kept(
    ranks: Mapping[str, float], job_id: str, rank: float, *, priority: Priority, sequence: int
) -> dict[str, float]:
    """The rank of a job that comes from another priority with this one; its own unless somebody else has it."""
    if rank not in ranks.values():
        return {job_id: rank}
    others = in_order(ranks)
    at = bisect([ranks[other] for other in others], rank)
    return _inserted(others, ranks, [job_id], at, priority=priority, sequence=sequence)


def in_order(ranks: Mapping[str, float]) -> list[str]:
    """Ids as the planner sees them."""
    return sorted(ranks, key=lambda job_id: (ranks[job_id], int(job_id)))


def _inserted(
    others: Sequence[str],
    ranks: Mapping[str, float],
    moved: Sequence[str],
    at: int,
    *,
    priority: Priority,
    sequence: int,
) -> dict[str, float]:
    """Ranks for `moved` between the first `at` and the rest; of the others, more and more are moved until there is room."""
    if at == len(others):
        return {job_id: rank_of(priority, sequence + n) for n, job_id in enumerate(moved, 1)}
    reach = 0
    while True:
        first, last = max(0, at - reach), min(len(others) - 1, at + reach)  # the last one of all stays where it is
        together = [*others[first:at], *moved, *others[at:last]]
        low = ranks[others[first - 1]] if first else None
        if found := _spread(low, ranks[others[last]], len(together)):
            return dict(zip(together, found, strict=True))
        reach = 2 * reach or 1


def _spread(low: float | None, high: float, count: int) -> list[float]:
    """So many ranks in between, evenly; nothing when there is no room."""
    if low is None:
        return [high - count + n for n in range(count)]
    step = (high - low) / (count + 1)
    return [low + n * step for n in range(1, count + 1)] if step >= SMALLEST_STEP else []
