"""The forecast: the planner's own decisions, ahead of time."""

import random
from dataclasses import replace
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from bench.rehearsal import EVENING, Night, Task, cards, play, with_expected

from daemon.forecast import Basis, Forecast, forecast
from daemon.give_way import give_way
from daemon.plan import Facts, SlotFacts, plan
from daemon.rig import Slot
from daemon.window import Windows
from jobs.model import Job, Priority, Progress, State, Wish, WishKind, rank_of

UTC = ZoneInfo("UTC")
NOW = 1_795_644_000.0  # a Wednesday, 22:00 UTC
HOUR = 3_600.0
ALWAYS, NIGHT = Windows(), Windows.parse("22:00-08:00")


def job(number: int, *, priority: Priority = Priority.NORMAL, **facts: Any) -> Job:
    rank = rank_of(priority, number)
    return Job(id=str(number), kind=facts.pop("kind", "finetune"), name="", spec={}, created_at=0.0, rank=rank, priority=priority, **facts)  # fmt: skip


def running(number: int, *slots: str, since: float = NOW, eta_s: float | None = None, **facts: Any) -> Job:
    run = job(number, gpus=len(slots), **facts).offered(rig="rig", slots=slots, now=since)
    run = run.claimed(fence=1, owner="me", now=since)
    return run.progressed(fence=1, progress=Progress(eta_s=eta_s)) if eta_s is not None else run


def facts(
    *jobs: Job, gpus: int = 1, hours: dict[int, float] | None = None, windows: Windows = ALWAYS, **more: Any
) -> Facts:
    taken = {slot: j.id for j in jobs for slot in j.slots}
    slots = tuple(SlotFacts(Slot(f"GPU-{n}", "card", n), job=taken.get(f"GPU-{n}")) for n in range(gpus))
    now = more.pop("now", NOW)
    return Facts(
        now=now, rig="rig", zone=UTC, slots=slots, jobs={j.id: j for j in jobs},
        expected_s={str(number): h * HOUR for number, h in (hours or {}).items()},
        window_open=windows.is_open(now, UTC), window_opens_at=windows.opens_at(now, UTC), closes_at=windows.closes_at(now, UTC),
        **more,
    )  # fmt: skip


def times(found: Forecast, number: int) -> tuple[float | None, float | None]:
    """Start and end in hours from now."""
    outlook = found.jobs[str(number)]
    return tuple(None if at is None else (at - NOW) / HOUR for at in (outlook.start_at, outlook.end_at))  # type: ignore[return-value]


def test_an_idle_rig_starts_the_first_job_now_and_the_next_when_it_ends() -> None:
    found = forecast(facts(job(1), job(2), hours={1: 2, 2: 3}))
    assert times(found, 1) == (0, 2) and times(found, 2) == (2, 5)
    assert [run.job for run in found.lane("GPU-0")] == ["1", "2"]
    assert found.late == () and found.window_ends_at is None


def test_a_running_job_ends_when_it_says_so_itself() -> None:
    run = running(1, "GPU-0", since=NOW - HOUR, eta_s=1_800.0)
    found = forecast(facts(run, job(2), hours={2: 1}))
    assert times(found, 1) == (-1, 0.5) and times(found, 2) == (0.5, 1.5)
    assert found.jobs["1"].basis is Basis.PROGRESS


def test_an_offer_that_is_open_counts_as_started() -> None:
    offered = job(1).offered(rig="rig", slots=("GPU-0",), now=NOW)
    assert times(forecast(facts(offered, hours={1: 2})), 1) == (0, 2)


def test_a_gang_starts_when_all_its_gpus_are_free() -> None:
    found = forecast(facts(running(1, "GPU-0"), job(2, gpus=2), gpus=2, hours={1: 1, 2: 1}))
    assert times(found, 2) == (1, 2)
    assert found.jobs["2"].slots == ("GPU-0", "GPU-1")


def test_a_job_that_would_end_after_the_window_closes_is_late_and_goes_on_next_evening() -> None:
    found = forecast(facts(job(1), job(2), hours={1: 6, 2: 6}, windows=NIGHT), NIGHT)
    assert found.window_ends_at == NOW + 10 * HOUR
    assert found.late == ("2",)
    assert times(found, 2) == (6, 26)
    first, second = found.jobs["2"].runs
    assert (first.done, first.end_at) == (False, NOW + 10 * HOUR) and (second.done, second.start_at) == (
        True,
        NOW + 24 * HOUR,
    )


def test_a_command_that_is_interrupted_starts_again_from_its_beginning() -> None:
    found = forecast(
        facts(job(1, kind="command"), job(2), hours={1: 6, 2: 2}, now=NOW + 5 * HOUR, windows=NIGHT), NIGHT
    )
    assert times(found, 1) == (5, 30)


def test_outside_the_window_jobs_start_when_it_opens_and_the_deadline_is_its_next_end() -> None:
    early = NOW - 2 * HOUR
    found = forecast(facts(job(1), job(2, window="any"), hours={1: 1, 2: 1}, now=early, windows=NIGHT), NIGHT)
    assert times(found, 2) == (-2, -1) and times(found, 1) == (0, 1)
    assert found.window_ends_at == NOW + 10 * HOUR


def test_any_moment_can_be_the_deadline() -> None:
    found = forecast(facts(job(1), job(2), hours={1: 2, 2: 3}), by=NOW + 4 * HOUR)
    assert found.late == ("2",) and found.deadline == NOW + 4 * HOUR


def test_a_child_starts_after_its_parent_and_not_before_is_respected() -> None:
    found = forecast(
        facts(job(1), job(2, after=("1",)), job(3, not_before=NOW + HOUR), gpus=2, hours={1: 2, 2: 1, 3: 1})
    )
    assert times(found, 2) == (2, 3) and times(found, 3) == (1, 2)


def test_a_job_that_waits_for_a_failure_will_never_start_in_a_night_without_one() -> None:
    found = forecast(facts(job(1), job(2, after=("failed:1",)), hours={1: 1, 2: 1}))
    assert found.jobs["2"].start_at is None
    assert "job 1" in (found.jobs["2"].never or "")
    assert found.late == ()


def test_a_held_job_has_no_times_and_is_not_late() -> None:
    found = forecast(facts(job(1, held=True), hours={1: 99}, windows=NIGHT), NIGHT)
    assert times(found, 1) == (None, None) and found.late == ()
    assert found.jobs["1"].never == "held until it is released"


def test_a_paused_rig_makes_everything_late() -> None:
    found = forecast(facts(job(1), hours={1: 1}, windows=NIGHT, paused=True), NIGHT)
    assert times(found, 1) == (None, None) and found.late == ("1",)
    assert found.jobs["1"].waiting_because == "the rig is paused"


def test_an_unknown_length_is_said_to_be_one_and_what_comes_after_it_is_not_sure() -> None:
    guesses = {"finetune": 2 * HOUR}.get
    found = forecast(facts(job(1), job(2), job(3, kind="command"), hours={2: 1}), guess_s=guesses)
    assert [found.jobs[name].basis for name in "123"] == [Basis.GUESS, Basis.HISTORY, Basis.UNKNOWN]
    assert times(found, 1) == (0, 2) and times(found, 2) == (2, 3)
    assert [found.jobs[name].sure for name in "123"] == [False, False, False]


def test_the_card_that_a_job_gets_decides_how_long_it_takes() -> None:
    found = forecast(facts(job(1), job(2), gpus=2, hours={1: 2, 2: 2}), lasts=lambda job, slot: HOUR if slot == "GPU-0" else 2 * HOUR)  # fmt: skip
    assert times(found, 1) == (0, 1) and times(found, 2) == (0, 2)


def test_a_job_that_was_asked_to_stop_makes_room_now() -> None:
    wish = Wish(kind=WishKind.CANCEL, reason="", asked_at=NOW)
    found = forecast(facts(running(1, "GPU-0").asked(wish), job(2), hours={1: 5, 2: 1}))
    assert times(found, 2) == (0, 1)


def test_what_would_have_to_give_is_the_least_important_that_is_enough() -> None:
    low = job(4, priority=Priority.BACKLOG)
    four = facts(job(1), job(2), job(3), low, hours={1: 4, 2: 4, 3: 4, 4: 1}, windows=NIGHT)
    found = forecast(four, NIGHT)
    assert found.late == ("3", "4")
    gives = give_way(four, found, partial(forecast, windows=NIGHT))
    assert gives is not None and (gives.job, gives.hold, gives.end_at) == ("3", ("2",), NOW + 8 * HOUR)


def test_a_job_longer_than_the_night_has_nobody_to_blame() -> None:
    long = facts(job(1), job(2), hours={1: 1, 2: 11}, windows=NIGHT)
    gives = give_way(long, forecast(long, NIGHT), partial(forecast, windows=NIGHT))
    assert gives is not None and gives.hold == () and gives.end_at is None


def test_the_work_is_bounded_and_says_when_it_stopped() -> None:
    found = forecast(facts(*(job(n) for n in range(1, 50)), hours=dict.fromkeys(range(1, 50), 1.0)), max_work=1_000)
    assert found.cut and times(found, 5) == (4, 5) and times(found, 40) == (None, None)


@pytest.mark.parametrize("seed", range(12))
def test_when_durations_come_true_the_night_goes_as_it_was_foretold(seed: int) -> None:
    dice = random.Random(seed)
    gpus = dice.randint(1, 4)
    tasks = [
        Task(
            n,
            dice.uniform(60, 4 * HOUR),
            gpus=dice.choice([1, 1, 1, min(2, gpus)]),
            priority=dice.choice(list(Priority)),
        )
        for n in range(1, 25)
    ]
    night = Night(cards(*[24] * gpus), with_expected(tasks, lambda task: task.lasts_s), NIGHT)
    played = play(night, plan, keep_facts=True)
    assert len(played.ends) == len(tasks)
    evening = played.seen[0]
    assert evening.now == EVENING and all(j.state is State.QUEUED for j in evening.jobs.values())
    found = forecast(evening, NIGHT)
    for name, end_at in played.ends.items():
        assert found.jobs[name].start_at == pytest.approx(played.starts[name], abs=1), name
        assert found.jobs[name].end_at == pytest.approx(end_at, abs=1), name


def test_jobs_beyond_those_that_the_planner_is_shown_still_get_their_turn() -> None:
    many = [job(n, gpus=2 if n % 7 == 0 else 1) for n in range(1, 200)]
    found = forecast(facts(*many, gpus=3, hours=dict.fromkeys(range(1, 200), 0.5)))
    assert all(outlook.end_at for outlook in found.jobs.values())


def test_the_forecast_changes_nothing() -> None:
    before = facts(running(1, "GPU-0"), job(2), hours={1: 1, 2: 1})
    again = replace(before, jobs=dict(before.jobs))
    forecast(before)
    assert (before.jobs, before.slots, before.fates) == (again.jobs, again.slots, again.fates)
    assert plan(before) == plan(again)
