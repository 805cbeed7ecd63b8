"""The planner's promises where several rigs share a queue, on facts alone."""

from plan_facts import NOW, facts, job, offers

from daemon.explain import explain
from daemon.plan import DeclareLost, Withdraw, plan
from jobs.model import Job


def on_rig(rig: str, *, claimed: bool) -> Job:
    offered = job(1).offered(rig=rig, slots=("GPU-0",), now=NOW)
    return offered.claimed(fence=1, owner="me", now=NOW) if claimed else offered


def test_a_silent_rigs_run_is_anybodys_to_give_back_once_its_lease_is_over() -> None:
    left = on_rig("b", claimed=True)
    gone = {"away": frozenset({"b"}), "leases": {"1": -10.0}}
    assert plan(facts(left, **gone)) == [DeclareLost("1", 1)]
    assert plan(facts(left, **{**gone, "leases": {"1": 5.0}})) == []  # its worker still renews
    assert plan(facts(left, leases={"1": -10.0})) == []  # it lives: its own daemon sees to it
    assert plan(facts(left, **gone, seen_for_s=1.0)) == []  # Redis was away: everybody looks silent


def test_a_silent_rigs_offer_is_taken_back_at_once() -> None:
    assert plan(facts(on_rig("b", claimed=False), away=frozenset({"b"}))) == [Withdraw("1", 1)]
    assert plan(facts(on_rig("b", claimed=False))) == []


def test_a_job_that_cannot_run_here_holds_no_slot_and_says_why() -> None:
    found = facts(job(1, gpus=2), job(2), not_here={"1": "is for rig b only"})
    assert offers(found) == {"2": ("GPU-0",)}
    assert explain(found, found.jobs["1"]) == "is for rig b only"


def test_a_rig_that_is_large_enough_is_named() -> None:
    found = facts(job(1, gpus=4), others={"b": 8, "c": 1})
    assert explain(found, found.jobs["1"]) == "needs 4 GPUs; this rig has 2; rig b has enough"


def test_a_start_on_another_rig_names_it() -> None:
    found = facts(on_rig("b", claimed=False))
    assert str(explain(found, found.jobs["1"])).endswith("of rig b")
