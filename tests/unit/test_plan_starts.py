"""Who starts where: back-filling, fit, backlog, power. On facts alone."""

from dataclasses import replace
from typing import Any

import pytest
from plan_facts import GIB, NOW, because, facts, job, offers, running

from daemon.plan import Facts, Interrupt, Offer, Policy, plan
from jobs.model import Attempt, End, Job, Priority, Wish, WishKind

BACKLOG = {"priority": Priority.BACKLOG}


def interrupted(found: Facts) -> list[str]:
    return [d.job for d in plan(found) if isinstance(d, Interrupt)]


def asked(running_job: Job, ago_s: float = 1.0) -> Job:
    return running_job.asked(Wish(kind=WishKind.PREEMPT, reason="", asked_at=NOW - ago_s))


# -- gangs and back-filling


def test_a_short_job_is_back_filled_before_a_gang_and_a_long_one_is_not() -> None:
    found = facts(running(1, "GPU-0", eta_s=3600), job(2, gpus=2), job(3), job(4), expected_s={"3": 7200, "4": 600})
    assert plan(found) == [Offer("4", ("GPU-1",), ahead_of="2")]
    assert because(found, "2") == (
        "needs 2 GPUs; GPU 0 is busy with job 1 until about 14:46; GPU 1 is kept free for it"
    )
    assert because(found, "3") == "1 job ahead; needs a GPU; GPU 1 is kept for job 2 from about 14:46"


def test_a_job_of_unknown_length_is_not_back_filled_and_says_so() -> None:
    found = facts(running(1, "GPU-0", eta_s=3600), job(2, gpus=2), job(3))
    assert offers(found) == {}
    assert because(found, "3").endswith(
        "GPU 1 is kept for job 2 from about 14:46; how long this one takes is not known"
    )


def test_a_time_limit_is_as_good_as_an_expected_time() -> None:
    found = facts(running(1, "GPU-0", eta_s=3600), job(2, gpus=2), job(3, max_runtime_s=3000))
    assert offers(found) == {"3": ("GPU-1",)}


def test_an_expected_time_needs_a_margin() -> None:
    found = facts(running(1, "GPU-0", eta_s=3600), job(2, gpus=2), job(3), expected_s={"3": 3000})
    assert offers(found) == {}


@pytest.mark.parametrize("eta_s", [None, 0.0, -5.0])
def test_nobody_is_back_filled_when_it_is_not_known_when_the_gang_starts(eta_s: float | None) -> None:
    found = facts(running(1, "GPU-0", eta_s=eta_s), job(2, gpus=2), job(3), expected_s={"3": 1})
    assert offers(found) == {}


def test_a_gang_keeps_only_what_it_needs_and_leaves_the_free_ones_to_others() -> None:
    found = facts(running(1, "GPU-1", eta_s=600), running(2, "GPU-2", eta_s=600), job(3, gpus=2), job(4), gpus=3)
    assert offers(found) == {"4": ("GPU-0",)}


def test_the_window_s_end_frees_kept_slots_as_well() -> None:
    """A night gang that cannot start before closing time holds nobody up until then."""
    night = {"closes_at": NOW + 1800, "expected_s": {"1": 7200}}
    found = facts(running(1, "GPU-0"), job(2, gpus=2), job(3), **night)
    assert offers(found) == {"3": ("GPU-1",)}
    assert offers(facts(running(1, "GPU-0"), job(2, gpus=2), job(3, window="any"), **night)) == {}


def test_a_later_gang_does_not_starve_while_an_earlier_one_waits_elsewhere() -> None:
    """Cards of two sizes: the one that waits for the large card does not leave the small ones to everybody."""
    found = facts(
        running(1, "GPU-0", eta_s=600),
        running(2, "GPU-1"),
        job(3, vram_bytes=40 * GIB),
        job(4, gpus=2, vram_bytes=8 * GIB),
        job(5, vram_bytes=8 * GIB),
        gpus=3,
        memory=[48, 12, 12],
    )
    assert offers(found) == {}
    assert "GPU 2 is kept free for it" in because(found, "4")


def test_a_gang_prefers_equal_cards() -> None:
    assert offers(facts(job(1, gpus=2), gpus=3, memory=[8, 24, 24])) == {"1": ("GPU-1", "GPU-2")}
    assert offers(facts(job(1, gpus=2), gpus=2, memory=[8, 24])) == {"1": ("GPU-0", "GPU-1")}


# -- fit


def test_a_job_takes_the_smallest_card_that_fits() -> None:
    found = facts(job(1, vram_bytes=10 * GIB), job(2, vram_bytes=6 * GIB), memory=[8, 24])
    assert offers(found) == {"1": ("GPU-1",), "2": ("GPU-0",)}


def test_a_small_job_leaves_the_large_card_to_the_one_that_needs_it() -> None:
    found = facts(job(1, vram_bytes=6 * GIB), job(2, vram_bytes=20 * GIB), memory=[24, 8])
    assert offers(found) == {"1": ("GPU-1",), "2": ("GPU-0",)}


def test_a_job_too_big_for_the_free_card_waits_and_holds_nobody_up() -> None:
    found = facts(running(1, "GPU-1", eta_s=600), job(2, vram_bytes=20 * GIB), job(3), memory=[8, 24])
    assert offers(found) == {"3": ("GPU-0",)}
    assert because(found, "2") == "needs a GPU; GPU 1 is busy with job 1 until about 13:56"


def test_a_job_that_fits_no_card_says_what_would_fit_and_blocks_nobody() -> None:
    found = facts(job(1, vram_bytes=30 * GIB), job(2, gpus=2, vram_bytes=20 * GIB), job(3), memory=[8, 24])
    assert offers(found) == {"3": ("GPU-0",)}
    assert because(found, "1") == "needs 30 GiB per GPU; the largest here has 24 GiB"
    assert because(found, "2") == "needs 2 GPUs with 20 GiB each; this rig has 1"
    whole = facts(job(1, vram_bytes=24 * GIB), memory=[24, 24])
    assert because(whole, "1") == "needs 24 GiB per GPU; the largest here has 24 GiB, of which 0.5 GiB stay free"


def test_what_the_desktop_holds_is_not_there_for_a_job() -> None:
    found = facts(job(1, vram_bytes=22 * GIB), gpus=1, slot={0: {"room_bytes": 21 * GIB}})
    assert offers(found) == {}
    assert because(found, "1") == "needs a GPU; GPU 0 has 21 GiB left of 22 GiB needed"


def test_a_cpu_slot_fits_everything() -> None:
    assert offers(facts(job(1, vram_bytes=99 * GIB), gpus=1, memory=[0])) == {"1": ("GPU-0",)}


# -- windows


def test_with_finish_a_job_that_would_not_end_in_time_waits_and_others_do_not() -> None:
    late: dict[str, Any] = {"window_end": "finish", "closes_at": NOW + 3600, "window_s": 36000.0}
    found = facts(job(1), job(2), job(3, window="any"), expected_s={"1": 9000, "3": 9000}, gpus=3, **late)
    assert offers(found) == {"2": ("GPU-0",), "3": ("GPU-1",)}
    assert because(found, "1") == "would not finish before 14:46"
    assert offers(replace(found, window_end="checkpoint")).keys() == {"1", "2", "3"}


def test_a_job_longer_than_any_window_starts_at_its_beginning() -> None:
    window: dict[str, Any] = {"window_end": "finish", "window_s": 3600.0, "expected_s": {"1": 9000}}
    assert offers(facts(job(1), closes_at=NOW + 3500, **window)) == {"1": ("GPU-0",)}
    assert offers(facts(job(1), closes_at=NOW + 600, **window)) == {}


# -- backlog


def test_backlog_gives_way_to_a_job_that_could_start() -> None:
    found = facts(running(1, "GPU-0", ran_s=600, **BACKLOG), running(2, "GPU-1"), job(3))
    assert interrupted(found) == ["1"]
    assert because(found, "3") == "needs a GPU; job 1 (backlog) gives way to it"


def test_backlog_does_not_give_way_to_backlog() -> None:
    assert plan(facts(running(1, "GPU-0", ran_s=600, **BACKLOG), job(2, **BACKLOG), gpus=1)) == []


def test_backlog_runs_for_a_while_before_it_gives_way_and_longer_each_time() -> None:
    fresh = running(1, "GPU-0", ran_s=50, **BACKLOG)
    assert interrupted(facts(fresh, job(2), gpus=1)) == []
    older = running(1, "GPU-0", ran_s=100, **BACKLOG)
    assert interrupted(facts(older, job(2), gpus=1)) == ["1"]
    before = Attempt(
        number=1, fence=0, rig="rig", slots=("GPU-0",), started_at=0, ended_at=NOW - 200, end=End.INTERRUPTED
    )
    often = replace(older, attempts=(before, *older.attempts))
    assert interrupted(facts(often, job(2), gpus=1)) == []


def test_no_more_backlog_is_interrupted_than_needed_and_the_youngest_first() -> None:
    old, young = running(1, "GPU-0", ran_s=900, **BACKLOG), running(2, "GPU-1", ran_s=300, **BACKLOG)
    assert interrupted(facts(old, young, job(3))) == ["2"]
    assert set(interrupted(facts(old, young, job(3), job(4)))) == {"1", "2"}


def test_one_gang_is_interrupted_rather_than_two_jobs() -> None:
    found = facts(
        running(1, "GPU-0", ran_s=300, **BACKLOG),
        running(2, "GPU-1", "GPU-2", ran_s=900, **BACKLOG),
        running(3, "GPU-3", ran_s=300, **BACKLOG),
        job(4, gpus=2),
        gpus=4,
    )
    assert interrupted(found) == ["2"]


def test_who_is_leaving_already_is_enough() -> None:
    leaving = asked(running(1, "GPU-0", ran_s=600, **BACKLOG))
    assert interrupted(facts(leaving, running(2, "GPU-1", ran_s=600, **BACKLOG), job(3))) == []
    closing = facts(
        running(1, "GPU-0", ran_s=600, **BACKLOG),
        running(2, "GPU-1", ran_s=600, window="any", **BACKLOG),
        job(3, window="any"),
        window_open=False,
    )
    assert interrupted(closing) == ["1"], "the one that the window stops frees the slot"


def test_nobody_is_interrupted_for_a_slot_that_is_free_in_a_moment() -> None:
    found = facts(running(1, "GPU-0", ran_s=600, **BACKLOG), running(2, "GPU-1", eta_s=20), job(3))
    assert interrupted(found) == []
    assert interrupted(facts(running(1, "GPU-0", ran_s=600, eta_s=20, **BACKLOG), job(3), gpus=1)) == []


def test_nobody_is_interrupted_for_a_gang_that_could_not_start_yet() -> None:
    backlog = running(1, "GPU-0", ran_s=600, **BACKLOG)
    assert interrupted(facts(backlog, running(2, "GPU-1", eta_s=3600), job(3, gpus=2))) == []
    assert interrupted(facts(backlog, running(2, "GPU-1", eta_s=25), job(3, gpus=2))) == ["1"]


def test_nobody_is_interrupted_where_the_job_does_not_fit_or_may_not_start() -> None:
    backlog = running(1, "GPU-0", ran_s=600, **BACKLOG)
    assert interrupted(facts(backlog, running(2, "GPU-1"), job(3, vram_bytes=20 * GIB), memory=[8, 24])) == []
    assert interrupted(facts(backlog, job(3), gpus=1, paused=True)) == []
    assert interrupted(facts(backlog, job(3), gpus=1, paused_slots=("GPU-0",))) == []


def test_backlog_uses_what_a_gang_keeps_because_it_gives_way() -> None:
    found = facts(running(1, "GPU-0"), job(2, gpus=2), job(3), job(4, **BACKLOG))
    assert plan(found) == [Offer("4", ("GPU-1",), ahead_of="2")]
    soon = facts(running(1, "GPU-0", eta_s=60), job(2, gpus=2), job(4, **BACKLOG))
    assert offers(soon) == {}, "it would only be in the way"


# -- who else needs the GPU


def test_a_job_leaves_a_slot_that_somebody_needs_and_moves_to_another() -> None:
    found = facts(running(1, "GPU-0"), job(2), slot={0: {"leave": "the owner plays", "problem": "in use by game"}})
    assert plan(found) == [Interrupt("1", "the owner plays"), Offer("2", ("GPU-1",))]
    gone = facts(job(1), slot={0: {"problem": "in use by game (pid 7, 3.1 GiB)"}}, gpus=1)
    assert because(gone, "1") == "needs a GPU; GPU 0 is in use by game (pid 7, 3.1 GiB)"


def test_a_resting_slot_takes_nothing_and_is_kept_for_its_gang() -> None:
    hot = {1: {"resting": "hot (84 °C); jobs start there below 75 °C"}}
    found = facts(job(1, gpus=2), job(2), slot=hot)
    assert offers(found) == {}
    assert because(found, "1") == (
        "needs 2 GPUs; GPU 1 is hot (84 °C); jobs start there below 75 °C; GPU 0 is kept free for it"
    )


# -- power

WATTS = {n: {"power_w": 25.0, "power_limit_w": 350.0} for n in range(4)}


def test_the_power_budget_holds_further_starts() -> None:
    found = facts(job(1), job(2), job(3), gpus=3, slot=WATTS, policy=Policy(power_budget_w=750))
    assert offers(found) == {"1": ("GPU-0",), "2": ("GPU-1",)}
    assert because(found, "3") == "2 jobs ahead; needs 300 W more than the rig's power budget has left"


def test_nobody_passes_a_gang_that_lacks_power() -> None:
    budget = {"slot": WATTS, "policy": Policy(power_budget_w=800), "gpus": 3}
    assert offers(facts(running(1, "GPU-0"), job(2, gpus=2), job(3), **budget)) == {}


def test_a_gang_that_the_budget_never_allows_holds_nobody_up() -> None:
    found = facts(job(1, gpus=2), job(2), slot=WATTS, policy=Policy(power_budget_w=400))
    assert offers(found) == {"2": ("GPU-0",)}
    assert because(found, "1") == "needs up to 700 W; the rig's budget is 400 W"
    barely = facts(job(1, gpus=2), job(2), slot=WATTS, gpus=3, policy=Policy(power_budget_w=710))
    assert offers(barely) == {"2": ("GPU-0",)}, "the idle card draws 25 W as well"


def test_backlog_gives_way_for_its_power() -> None:
    policy = Policy(power_budget_w=400)
    found = facts(running(1, "GPU-0", ran_s=600, **BACKLOG), job(2), slot=WATTS, policy=policy)
    assert interrupted(found) == ["1"] and offers(found) == {}
    found = facts(asked(running(1, "GPU-0", ran_s=600, **BACKLOG)), job(2), slot=WATTS, policy=policy)
    assert plan(found) == []


def test_starts_are_staggered() -> None:
    policy = Policy(power_budget_w=2000, start_gap_s=15)
    found = facts(job(1), job(2), policy=policy)
    assert offers(found) == {"1": ("GPU-0",)}
    assert because(found, "2") == "1 job ahead; starts are 15 s apart; the next is in 15 s"
    assert offers(facts(running(1, "GPU-0", ran_s=14), job(2), policy=policy)) == {}
    assert offers(facts(running(1, "GPU-0", ran_s=16), job(2), policy=policy)) == {"2": ("GPU-1",)}


# -- sweeps


def test_a_sweep_runs_so_many_jobs_at_a_time() -> None:
    sweep = {"sweep": "1", "max_concurrent": 2}
    found = facts(running(1, "GPU-0", **sweep), job(2, **sweep), job(3, **sweep), job(4), gpus=4)
    assert offers(found) == {"2": ("GPU-1",), "4": ("GPU-2",)}
    assert because(found, "3") == "1 job ahead; its sweep runs 2 at a time"
    full = facts(running(1, "GPU-0", **sweep), running(2, "GPU-1", **sweep), job(3, **sweep), gpus=3)
    assert offers(full) == {} and because(full, "3") == "its sweep runs 2 at a time"
