"""The planner's promises, on facts alone."""

from dataclasses import replace

from plan_facts import NOW, facts, job, offers, running

from daemon.explain import explain
from daemon.plan import Cancel, DeclareLost, Interrupt, Withdraw, plan
from jobs.model import End, Outcome, Priority, State, Wish, WishKind


def test_one_offer_for_each_free_slot_first_come_first_served() -> None:
    assert offers(facts(job(1), job(2), job(3))) == {"1": ("GPU-0",), "2": ("GPU-1",)}


def test_a_higher_priority_goes_first_whenever_it_came() -> None:
    found = offers(facts(job(1, priority=Priority.BACKLOG), job(2), job(3, priority=Priority.HIGH), gpus=1))
    assert list(found) == ["3"]


def test_a_busy_paused_or_workerless_slot_gets_nothing() -> None:
    assert offers(facts(running(1, "GPU-0"), job(2), paused_slots=("GPU-1",))) == {}
    idle = facts(job(1), gpus=1)
    assert offers(replace(idle, slots=(replace(idle.slots[0], ready=False),))) == {}


def test_a_gang_gets_all_its_gpus_in_one_offer() -> None:
    assert offers(facts(job(1, gpus=2))) == {"1": ("GPU-0", "GPU-1")}


def test_small_jobs_do_not_starve_a_gang() -> None:
    found = facts(running(1, "GPU-0"), job(2, gpus=2), job(3), job(4))
    assert offers(found) == {}
    assert "needs 2 GPUs; GPU 0 is busy with job 1" in (explain(found, found.jobs["2"]) or "")


def test_a_gang_that_can_not_start_on_this_rig_holds_nobody_up() -> None:
    assert offers(facts(job(1, gpus=3), job(2))) == {"2": ("GPU-0",)}
    assert offers(facts(job(1, gpus=2), job(2), paused_slots=("GPU-1",))) == {"2": ("GPU-0",)}


def test_the_smallest_card_that_is_free_is_taken_first() -> None:
    assert offers(facts(job(1), memory=[24, 8])) == {"1": ("GPU-1",)}


def test_after_waits_for_success_and_cancels_when_there_can_be_none() -> None:
    child = job(2, after=("1",))
    assert offers(facts(running(1, "GPU-0"), child)) == {}
    assert offers(facts(child, fates={"1": State.SUCCEEDED})) == {"2": ("GPU-0",)}
    for fate in ({"1": State.FAILED}, {"1": State.CANCELLED}, {}):
        decisions = plan(facts(child, fates=fate))
        assert [type(d) for d in decisions] == [Cancel] and "job 1" in decisions[0].reason  # type: ignore[union-attr]


def test_outside_the_window_only_jobs_for_any_hour_start() -> None:
    closed = {"window_open": False, "window_opens_at": NOW + 3600}
    found = facts(job(1), job(2, window="any"), **closed)
    assert offers(found) == {"2": ("GPU-0",)}
    assert "outside the window; it opens at" in (explain(found, found.jobs["1"]) or "")


def test_at_closing_time_night_jobs_save_and_go_back_unless_they_may_finish() -> None:
    found = facts(running(1, "GPU-0"), running(2, "GPU-1", window="any"), window_open=False)
    assert [(type(d), d.job) for d in plan(found)] == [(Interrupt, "1")]
    assert plan(replace(found, window_end="finish")) == []


def test_who_was_asked_to_stop_is_not_asked_again() -> None:
    asked = running(1, "GPU-0").asked(Wish(kind=WishKind.PREEMPT, reason="", asked_at=NOW))
    assert plan(facts(asked, window_open=False)) == []


def test_a_paused_rig_starts_nothing_and_stops_nothing() -> None:
    assert plan(facts(running(1, "GPU-0"), job(2), paused=True)) == []


def test_not_before_and_held_are_respected_and_explained() -> None:
    found = facts(job(1, not_before=NOW + 60), job(2, held=True), job(3))
    assert offers(found) == {"3": ("GPU-0",)}
    assert "not before" in (explain(found, found.jobs["1"]) or "")
    assert "held" in (explain(found, found.jobs["2"]) or "")


def test_an_offer_that_nobody_claims_is_withdrawn() -> None:
    offered = job(1).offered(rig="rig", slots=("GPU-0",), now=NOW - 61)
    assert plan(facts(offered)) == [Withdraw("1", 1)]
    assert plan(facts(replace(offered, offer=replace(offered.offer, at=NOW - 59)))) == []  # type: ignore[type-var]


def test_a_lease_that_ran_out_is_lost_only_after_a_late_renewal_had_its_chance() -> None:
    assert plan(facts(running(1, "GPU-0"), leases={"1": -1.0})) == []
    assert plan(facts(running(1, "GPU-0"), leases={"1": -5.0})) == [DeclareLost("1", 1)]


def test_another_rigs_jobs_are_left_alone() -> None:
    other = job(1).offered(rig="other", slots=("GPU-9",), now=0.0).claimed(fence=1, owner="x", now=0.0)
    assert plan(facts(other, leases={"1": -100.0}, window_open=False)) == []


def test_every_waiting_job_says_why() -> None:
    found = facts(running(1, "GPU-0", eta_s=600.0), running(2, "GPU-1"), job(3), job(4), gpus=2)
    assert explain(found, found.jobs["3"]) == "needs a GPU; GPU 0 is busy with job 1 until about 13:56"
    assert (explain(found, found.jobs["4"]) or "").startswith("1 job ahead; ")
    assert explain(found, found.jobs["1"]) is None


def test_an_ended_job_is_no_business_of_the_planner() -> None:
    done = running(1, "GPU-0").ended(fence=1, outcome=Outcome(end=End.SUCCEEDED), now=NOW)
    assert plan(facts(done)) == []


def test_a_gpu_that_the_sampler_lost_gets_no_job_and_the_reason_is_told() -> None:
    found = facts(job(1), gpus=1)
    found = replace(found, slots=(replace(found.slots[0], problem="lost"),))
    assert plan(found) == []
    assert explain(found, found.jobs["1"]) == "needs a GPU; GPU 0 is lost"


def test_a_job_whose_checkpoints_do_not_fit_on_the_disk_waits_and_holds_nobody_up() -> None:
    found = facts(job(1, estimate={"disk_bytes": 5e9}), job(2), gpus=1, disk_room_bytes=4e9)
    assert offers(found) == {"2": ("GPU-0",)}
    assert explain(found, found.jobs["1"]) == "needs 5.0 GB for its checkpoints; the rig's disk has 4.0 GB to give"
    assert list(offers(replace(found, disk_room_bytes=6e9))) == ["1"]


def test_a_full_disk_holds_the_queue_and_says_so() -> None:
    found = facts(job(1), hold="the rig's disk has 0.4 GB left")
    assert plan(found) == [] and explain(found, found.jobs["1"]) == "the rig's disk has 0.4 GB left"
