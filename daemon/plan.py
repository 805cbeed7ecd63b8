"""The planner: from facts to decisions. Pure: no clock, no process, no Redis.

`daemon.situation` holds the facts, `daemon.starts` gives out slots on the board of `daemon.placement`, and `daemon.explain`
puts into words why a job waits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from daemon.situation import Facts, Policy, SlotFacts, blocker, is_met
from daemon.starts import Interrupt, Offer, starts
from jobs.model import Condition, State

__all__ = ["Cancel", "Decision", "DeclareLost", "Facts", "Interrupt", "Offer", "Policy", "SlotFacts", "Withdraw", "blocker", "plan"]  # fmt: skip

#: A worker may be late with its lease (Redis was away): it gets this many renewals before it is called lost.
LATE_RENEWALS = 2
#: After a break (Redis was away, the machine slept) every living worker has renewed within so many.
RENEWALS_AFTER_A_BREAK = 5


@dataclass(frozen=True)
class Withdraw:
    """Nobody claimed the offer."""

    job: str
    fence: int


@dataclass(frozen=True)
class DeclareLost:
    """Its worker no longer renews the lease."""

    job: str
    fence: int


@dataclass(frozen=True)
class Cancel:
    """It can never start."""

    job: str
    reason: str
    #: The job whose end is the reason; it comes back when that one is tried again.
    because_of: str = ""


Decision = Offer | Withdraw | DeclareLost | Interrupt | Cancel


def plan(facts: Facts) -> list[Decision]:
    """What to do now."""
    given = starts(facts)
    return [
        *_lost(facts),
        *_stale_offers(facts),
        *_never(facts),
        *(Interrupt(job, reason) for job, reason in facts.leaving.items()),
        *given.interrupts,
        *given.offers,
    ]


def _lost(facts: Facts) -> Iterator[Decision]:
    if facts.seen_for_s < RENEWALS_AFTER_A_BREAK * facts.renew_s:
        return
    for job in (*facts.here, *facts.left_behind):
        left_s = facts.leases.get(job.id)
        if job.state is State.RUNNING and left_s is not None and left_s < -LATE_RENEWALS * facts.renew_s:
            yield DeclareLost(job.id, job.fence)


def _stale_offers(facts: Facts) -> Iterator[Decision]:
    for job in facts.here:
        if job.offer is not None and facts.now - job.offer.at > facts.offer_timeout_s:
            yield Withdraw(job.id, job.fence)
    for job in facts.left_behind:
        if job.offer is not None and facts.seen_for_s >= RENEWALS_AFTER_A_BREAK * facts.renew_s:
            yield Withdraw(job.id, job.fence)


def _never(facts: Facts) -> Iterator[Decision]:
    for job in facts.waiting:
        for parent, condition in job.parents if job.after else ():  # most wait for nobody
            if parent in facts.jobs or is_met(facts, parent, condition):
                continue
            if condition is Condition.CHECKED:
                yield Cancel(job.id, f"job {parent}, which is like it, failed in its preflight", parent)
            else:
                yield Cancel(job.id, f"job {parent}, which it waits for, {_did(facts.fates.get(parent))}", parent)
            break


def _did(fate: State | None) -> str:
    words = {State.FAILED: "failed", State.CANCELLED: "was cancelled", State.SUCCEEDED: "succeeded"}
    return words.get(fate, "is gone") if fate else "is gone"
