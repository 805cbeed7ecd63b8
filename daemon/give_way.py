"""What would have to give so that a late job is done in time. Pure: it asks the forecast again, with jobs held."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from daemon.outlook import Forecast, Outlook
from daemon.plan import Facts
from daemon.situation import place_in_queue
from jobs.model import Job, State

#: So many times it is tried whether a late job fits when others wait.
TRIALS = 5
#: And so often whether one of them need not wait after all.
PRUNED = 8


@dataclass(frozen=True)
class GiveWay:
    """What would have to wait so that a late job is done in time."""

    job: str
    #: Jobs to hold; empty: it would be late even if it started first.
    hold: tuple[str, ...]
    end_at: float | None


def give_way(facts: Facts, found: Forecast, again: Callable[..., Forecast]) -> GiveWay | None:
    """For the first late job: the jobs of lowest rank that would have to wait. `again`: how `found` was made."""
    late = [name for name in found.late if found.jobs[name].job.state is State.QUEUED]
    if not late or found.deadline is None or found.cut:
        return None
    job = found.jobs[late[0]].job
    in_its_way = _in_its_way(found, job)
    needed_s = _overshoot_s(found, job)
    for _ in range(TRIALS):
        hold = _enough(in_its_way, needed_s)
        if (end_at := _end_without(facts, found, job, hold, again)) is not None:
            return _fewer(facts, found, GiveWay(job.id, hold, end_at), again)
        if len(hold) == len(in_its_way):
            break
        needed_s *= 2
    return GiveWay(job.id, (), None)


def _fewer(facts: Facts, found: Forecast, gives: GiveWay, again: Callable[..., Forecast]) -> GiveWay:
    """Without those that need not wait, the most important first."""
    job = facts.jobs[gives.job]
    for name in sorted(gives.hold, key=lambda name: place_in_queue(facts.jobs[name]))[:PRUNED]:
        fewer = tuple(other for other in gives.hold if other != name)
        if fewer and (end_at := _end_without(facts, found, job, fewer, again)) is not None:
            gives = GiveWay(job.id, fewer, end_at)
    return gives


def _end_without(
    facts: Facts, found: Forecast, job: Job, hold: Collection[str], again: Callable[..., Forecast]
) -> float | None:
    """When the job ends while these are held, if that is in time."""
    deadline = found.deadline or 0.0
    jobs = {name: replace(other, held=True) if name in hold else other for name, other in facts.jobs.items()}
    then = again(replace(facts, jobs=jobs), horizon_s=deadline - facts.now, until_done=job.id)
    end_at = then.jobs[job.id].end_at
    return end_at if end_at is not None and end_at <= deadline else None


def _in_its_way(found: Forecast, job: Job) -> list[Outlook]:
    """Waiting jobs that start before it, the least important first. Not those that it waits for."""
    needed = _ancestors(found, job)
    start_at = found.jobs[job.id].start_at
    ahead = [
        outlook
        for outlook in found.jobs.values()
        if outlook.job.state is State.QUEUED and outlook.job.offer is None and outlook.job.id not in needed
        and outlook.job.id != job.id and outlook.start_at is not None and (start_at is None or outlook.start_at < start_at)
    ]  # fmt: skip
    return sorted(ahead, key=lambda outlook: place_in_queue(outlook.job), reverse=True)


def _ancestors(found: Forecast, job: Job) -> set[str]:
    todo, seen = [job], set[str]()
    while todo:
        parents = [parent for parent, _ in todo.pop().parents if parent in found.jobs and parent not in seen]
        seen |= set(parents)
        todo += [found.jobs[parent].job for parent in parents]
    return seen


def _overshoot_s(found: Forecast, job: Job) -> float:
    """GPU seconds of its work that lie behind the deadline."""
    outlook, deadline = found.jobs[job.id], found.deadline or 0.0
    behind_s = sum(max(0.0, run.end_at - max(run.start_at, deadline)) for run in outlook.runs)
    return max(1.0, behind_s) * job.gpus


def _enough(ahead: Collection[Outlook], needed_s: float) -> tuple[str, ...]:
    """So many of them that they free the GPU seconds before the deadline."""
    hold: list[str] = []
    for outlook in ahead:
        if needed_s <= 0:
            break
        hold.append(outlook.job.id)
        needed_s -= sum((run.end_at - run.start_at) * len(run.slots) for run in outlook.runs)
    return tuple(hold)
