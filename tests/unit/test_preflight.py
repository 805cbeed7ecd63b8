"""A job's preflight: it comes before the queue, stops nothing, counts for others like it, and what it measures is believed."""

from dataclasses import replace
from typing import Any

import pytest
from plan_facts import GIB, NOW, because, facts, job, offers, running

from daemon.facts import policy
from daemon.forecast import forecast
from daemon.history import History
from daemon.plan import Cancel, Interrupt, Policy, plan
from daemon.preflights import is_wanted, shared, told
from daemon.settings import Settings
from daemon.settle import of_preflight
from daemon.store import new_job
from daemon.window import Windows
from jobs.estimate import Outlook
from jobs.model import Cause, End, InvalidTransition, Job, Outcome, Priority, State, Wish, WishKind
from jobs.spec import parse

HOUR = 3_600.0
PASSED = Outcome(end=End.CHECKED, learned={"expected_s": 2 * HOUR, "step_s": 2.0, "peak_vram_bytes": 11.0 * GIB})


def due(number: int, **more: Any) -> Job:
    return job(number, preflight_due=True, **more)


def checking(found: Job, slot: str = "GPU-0", since: float = NOW) -> Job:
    """Its preflight runs."""
    offered = found.offered(rig="rig", slots=(slot,), now=since)
    return offered.claimed(fence=offered.fence, owner="me", now=since)


def ended(found: Job, outcome: Outcome) -> Job:
    return found.ended(fence=found.fence, outcome=outcome, now=NOW)


def failed(cause: Cause) -> Outcome:
    return Outcome(end=End.FAILED, cause=cause, message="row 97 breaks")


# -- its place -----------------------------------------------------------------------------------------------------------------


def test_it_takes_a_free_slot_before_all_that_wait_longer() -> None:
    assert offers(facts(job(1), job(2), due(3), gpus=1)) == {"3": ("GPU-0",)}
    assert offers(facts(job(1), due(2), due(3), gpus=2)) == {"2": ("GPU-0",), "3": ("GPU-1",)}


def test_once_it_has_passed_the_job_waits_in_its_own_place() -> None:
    passed = ended(checking(due(3)), PASSED)
    assert offers(facts(job(1), passed, gpus=1)) == {"1": ("GPU-0",)}


def test_it_does_not_come_before_what_is_more_urgent() -> None:
    urgent = job(2, priority=Priority.HIGH)
    assert offers(facts(due(1), urgent, gpus=1)) == {"2": ("GPU-0",)}
    assert offers(facts(due(1), job(2, priority=Priority.BACKLOG), gpus=1)) == {"1": ("GPU-0",)}


@pytest.mark.parametrize("priority", Priority)
def test_nothing_that_runs_is_stopped_for_it(priority: Priority) -> None:
    """A backlog job gives way to jobs; a preflight that could only start outside of the window is none."""
    busy = running(1, "GPU-0", priority=priority, window="any", ran_s=500.0)
    found = facts(busy, due(2), gpus=1, window_open=False, window_opens_at=NOW + HOUR)
    assert not [decision for decision in plan(found) if isinstance(decision, Interrupt)]
    assert offers(found) == {}


def test_no_slot_is_kept_for_it() -> None:
    """A gang of two is checked when it has both slots; until then others use the free one."""
    found = facts(running(1, "GPU-0"), due(2, gpus=2), job(3, max_runtime_s=60.0), gpus=2, expected_s={"1": 5_000.0})
    assert offers(found) == {"3": ("GPU-1",)}


def test_a_slot_that_a_gang_keeps_is_used_only_when_it_is_back_in_time() -> None:
    gang = job(2, gpus=2, priority=Priority.HIGH)
    later = facts(running(1, "GPU-0"), gang, due(3), gpus=2, expected_s={"1": 5_000.0})
    soon = facts(running(1, "GPU-0"), gang, due(3), gpus=2, expected_s={"1": 100.0})
    assert offers(later) == {"3": ("GPU-1",)}
    assert offers(soon) == {}


def test_it_needs_no_window_and_does_not_wait_for_the_hour_of_its_job() -> None:
    early = due(1, not_before=NOW + HOUR)
    early = replace(early, spec={"not_before": NOW + HOUR})
    found = facts(due(2), early, gpus=2, window_open=False, window_opens_at=NOW + HOUR)
    assert set(offers(found)) == {"1", "2"}
    assert offers(replace(found, policy=Policy(preflight_any_time=False))) == {}


def test_after_a_failed_download_it_waits_as_every_try_does() -> None:
    again = ended(checking(due(1)), failed(Cause.FETCH))
    assert again.not_before is not None and again.not_before > NOW
    assert offers(facts(again, gpus=1)) == {}


def test_the_end_of_the_window_does_not_stop_it() -> None:
    found = facts(checking(due(1)), gpus=1, window_open=False, window_opens_at=NOW + HOUR)
    assert plan(found) == []
    assert plan(replace(found, policy=Policy(preflight_any_time=False))) != []


@pytest.mark.parametrize("why", [{"held": True}, {"after": ("9",)}])
def test_one_that_is_held_or_waits_for_another_job_is_not_checked_yet(why: dict[str, Any]) -> None:
    parent = running(9, "GPU-1")
    assert offers(facts(parent, due(1, **why), gpus=2)) == {}


def test_the_page_says_that_it_comes_first_and_why_the_job_waits() -> None:
    found = facts(running(9, "GPU-0"), due(1), gpus=1, window_open=False, window_opens_at=NOW + HOUR)
    assert because(found, "1").startswith(
        "its preflight comes first, as soon as a GPU is free; then: outside the window"
    )
    offered = due(1).offered(rig="rig", slots=("GPU-0",), now=NOW)
    assert because(facts(offered, gpus=1), "1") == "starting its preflight on GPU 0"


# -- its life ------------------------------------------------------------------------------------------------------------------


def test_one_that_passes_leaves_the_job_as_if_it_had_not_run_but_wiser() -> None:
    passed = ended(checking(due(1, vram_bytes=20 * GIB)), PASSED)
    assert (passed.state, passed.attempt, passed.started_at, passed.preflight_due) == (State.QUEUED, 0, None, False)
    assert passed.vram_bytes == 11 * GIB and passed.measured["step_s"] == 2.0
    assert [run.preflight for run in passed.attempts] == [True]
    assert [run.preflight for run in checking(passed).attempts] == [True, False]
    assert Job.from_json(passed.to_json()) == passed


def test_what_the_owner_declared_stays() -> None:
    declared = replace(due(1, vram_bytes=20 * GIB), spec={"vram_gib": 20.0})
    assert ended(checking(declared), PASSED).vram_bytes == 20 * GIB


def test_one_that_fails_fails_the_job_and_a_retry_begins_with_it_again() -> None:
    over = ended(checking(due(1)), of_preflight(failed(Cause.BAD_INPUT), 60.0))
    assert over.state is State.FAILED and over.failed_preflight
    assert over.outcome is not None and over.outcome.message == "In its preflight: row 97 breaks"
    again = over.retried(rank=2.0)
    assert again.preflight_due and checking(again).in_preflight


def test_out_of_memory_it_is_tried_again_with_what_it_proposes_and_checked_again() -> None:
    smaller = replace(failed(Cause.OOM_GPU), next_fields={"per_device_train_batch_size": 2})
    again = ended(checking(due(1)), smaller)
    assert again.state is State.QUEUED and again.preflight_due and again.next_fields == smaller.next_fields


def test_an_interrupted_one_comes_again_and_nothing_counts_as_done() -> None:
    again = ended(checking(due(1)), Outcome(end=End.INTERRUPTED))
    assert again.state is State.QUEUED and again.preflight_due and again.attempt == 0


def test_its_job_can_be_cancelled_meanwhile() -> None:
    cancelled = checking(due(1)).asked(Wish(kind=WishKind.CANCEL, reason="by hand", asked_at=NOW))
    over = ended(cancelled, Outcome(end=End.INTERRUPTED))
    assert over.state is State.CANCELLED and not over.failed_preflight
    with pytest.raises(InvalidTransition):
        over.ended(fence=over.fence, outcome=PASSED, now=NOW)


def test_a_cancellation_that_comes_as_it_passes_is_no_less_one() -> None:
    asked = checking(due(1)).asked(Wish(kind=WishKind.CANCEL, reason="by hand", asked_at=NOW))
    over = ended(asked, PASSED)
    assert over.state is State.CANCELLED and over.outcome is not None and over.outcome.message == "by hand"
    assert ended(over, PASSED) is over  # told again: its reply was lost


def test_its_own_wait_for_a_download_does_not_bring_the_jobs_hour_forward() -> None:
    late = due(1, not_before=NOW + HOUR)
    again = ended(checking(replace(late, spec={"not_before": NOW + HOUR})), failed(Cause.FETCH))
    assert again.not_before is not None and again.not_before < NOW + HOUR
    passed = ended(checking(again), PASSED)
    assert passed.not_before == NOW + HOUR
    assert offers(facts(passed, gpus=1)) == {}


# -- for others like it ----------------------------------------------------------------------------------------------------------


def finetune(number: int, outlook: Outlook = Outlook(preflight=True), **fields: Any) -> Job:  # noqa: B008 - frozen
    document = {"kind": "finetune", "model": "m", "data": "/d/rows.jsonl", **fields}
    return new_job(parse(document), number, NOW, outlook)


def test_of_a_sweep_each_shape_is_checked_once() -> None:
    rates = [finetune(n, learning_rate=n * 1e-5, lora={"r": 8 if n < 4 else 16}) for n in range(1, 7)]
    found = shared(rates)
    assert [each.id for each in found if each.preflight_due] == ["1", "4"]
    assert [each.after for each in found[1:3] + found[4:]] == [("checked:1",)] * 2 + [("checked:4",)] * 2


def test_one_that_waits_for_another_job_checks_nobody_but_itself() -> None:
    found = shared([finetune(1, after=["7"]), finetune(2), finetune(3), finetune(4, after=["7"])])
    assert [(each.id, each.preflight_due, each.after) for each in found] == [
        ("1", True, ("7",)), ("2", True, ()), ("3", False, ("checked:2",)), ("4", True, ("7",)),
    ]  # fmt: skip


def test_nobody_waits_for_one_that_is_less_urgent_or_has_other_hours() -> None:
    slow, night = finetune(1, priority="backlog"), finetune(2, not_before=NOW + HOUR)
    found = shared([slow, night, finetune(3), finetune(4, window="any"), finetune(5)])
    assert [each.id for each in found if each.preflight_due] == ["1", "2", "3", "4"]
    assert found[4].after == ("checked:3",)


def family(leader: Job, **more: Any) -> Any:
    return facts(leader, job(2, after=("checked:1",)), job(3, after=("checked:1",)), gpus=3, **more)


def test_the_others_wait_for_it_and_start_when_it_has_passed() -> None:
    waits = family(checking(due(1)))
    assert offers(waits) == {}
    assert because(waits, "2") == "waits for the preflight of job 1, which counts for this one, too"
    assert because(family(due(1, held=True)), "2").endswith("; job 1 is held")
    passed = ended(checking(due(1)), PASSED)
    assert set(offers(family(passed))) == {"1", "2", "3"}
    assert set(offers(family(checking(passed)))) == {"2", "3"}


def without_leader(**fate: Any) -> Any:
    return facts(job(2, after=("checked:1",)), gpus=1, **fate)


def test_when_it_fails_the_others_are_cancelled_because_of_it() -> None:
    found = without_leader(fates={"1": State.FAILED}, unchecked=frozenset({"1"}))
    assert plan(found) == [Cancel("2", "job 1, which is like it, failed in its preflight", "1")]


@pytest.mark.parametrize("fate", [State.FAILED, State.CANCELLED, State.SUCCEEDED])
def test_whatever_becomes_of_the_job_itself_is_no_matter_to_the_others(fate: State) -> None:
    assert offers(without_leader(fates={"1": fate})) == {"2": ("GPU-0",)}


def test_when_its_job_is_cancelled_before_it_or_deleted_the_others_go_on_unchecked() -> None:
    assert offers(without_leader(fates={"1": State.CANCELLED}, unchecked=frozenset({"1"}))) == {"2": ("GPU-0",)}
    assert offers(without_leader()) == {"2": ("GPU-0",)}


# -- who has one, and what is believed -------------------------------------------------------------------------------------------


def wanted(found: Job, history: History | None = None, *, on_gpu: bool = True) -> bool:
    return is_wanted(found, history or History(), over_s=HOUR, on_gpu=on_gpu)


def ran(found: Job, hours: float) -> Job:
    """The job as it has succeeded."""
    at_work = checking(replace(found, preflight_due=False), since=NOW - hours * HOUR)
    return ended(at_work, Outcome(end=End.SUCCEEDED))


def test_it_is_as_the_document_says() -> None:
    assert wanted(finetune(1, preflight=True))
    assert not wanted(finetune(1, Outlook(estimate={"flops": 1e21}), preflight=False))


def test_with_auto_a_fine_tune_that_will_take_over_an_hour_has_one() -> None:
    assert wanted(finetune(1, Outlook(estimate={"flops": 2e17})))
    assert not wanted(finetune(1, Outlook(estimate={"flops": 1e16})))
    assert wanted(finetune(1, Outlook(estimate={"flops": 1e16})), on_gpu=False)
    assert not wanted(finetune(1))  # nothing is known of it


def test_with_auto_experience_counts_more_and_what_has_run_already_needs_none() -> None:
    history, flops = History(), Outlook(estimate={"flops": 1e21, "steps": 100.0})
    history.learn(ran(finetune(1, flops), 0.5))
    assert not wanted(finetune(2, flops, lora={"r": 32}), history)
    history.learn(ran(finetune(3, flops, max_length=4096), 5.0))
    assert wanted(finetune(4, flops, max_length=4096, lora={"r": 32}), history)
    assert not wanted(finetune(5, flops, max_length=4096, learning_rate=1e-5), history)


def test_what_it_measured_is_what_is_expected_of_the_job_and_of_others_like_it() -> None:
    history = History()
    passed = ended(checking(finetune(1, Outlook(preflight=True, estimate={"steps": 3600.0}))), PASSED)
    history.learn_preflight(passed)
    assert history.expected_s(passed) == 2 * HOUR
    assert history.peak_vram_bytes(passed) == 11 * GIB
    assert history.expected_s(finetune(2, Outlook(estimate={"steps": 3600.0}), learning_rate=1e-5)) == 2 * HOUR
    history.learn(ran(finetune(3, Outlook(estimate={"steps": 3600.0})), 3.0))
    assert history.expected_s(passed) == 3 * HOUR


def test_what_one_has_measured_is_taken_in_once_however_often_its_job_is_seen() -> None:
    history = History()
    one, other = (ended(checking(finetune(n)), PASSED) for n in (1, 2))
    history.learn_preflight(one)
    history.learn_preflight(other)
    known = history.version
    for each in (one, other, one):
        history.learn_preflight(each)
    assert history.version == known
    history.learn_preflight(ended(checking(replace(one, preflight_due=True)), PASSED))
    assert history.version > known


def test_its_own_run_is_not_counted_as_work_of_the_job() -> None:
    history = History()
    before = ended(checking(due(1), since=NOW - HOUR), Outcome(end=End.INTERRUPTED))
    passed = ended(checking(before, since=NOW - HOUR), PASSED)
    at_work = checking(passed, since=NOW - 2 * HOUR)
    history.learn(ended(at_work, Outcome(end=End.SUCCEEDED)))
    assert history.expected_s(at_work) == 2 * HOUR


def test_the_forecast_counts_it_and_tells_when_the_job_itself_starts() -> None:
    found = facts(job(1), due(2), gpus=1, expected_s={"1": HOUR, "2": 2 * HOUR})
    seen = forecast(found, Windows()).jobs
    assert seen["1"].start_at == NOW + found.policy.preflight_s
    assert seen["2"].start_at == seen["1"].end_at
    assert seen["2"].end_at == (seen["1"].end_at or 0.0) + 2 * HOUR
    at_it = facts(checking(due(2)), gpus=1, expected_s={"2": 60.0})
    later = forecast(at_it, Windows(), lasts=lambda job, slot: 2 * HOUR).jobs["2"]
    assert (later.start_at, later.end_at) == (NOW + 60.0, NOW + 60.0 + 2 * HOUR)


@pytest.mark.parametrize("kind", WishKind)
def test_the_forecast_knows_that_it_was_asked_to_stop(kind: WishKind) -> None:
    asked = checking(due(1)).asked(Wish(kind=kind, reason="by hand", asked_at=NOW))
    found = forecast(facts(asked, gpus=1, expected_s={"1": 60.0}), Windows(), lasts=lambda job, slot: HOUR).jobs["1"]
    if kind is WishKind.CANCEL:
        assert found.end_at == NOW
    else:  # it comes again, and then the job
        assert found.end_at == NOW + Policy().preflight_s + HOUR


def test_the_energy_of_the_whole_job_follows_from_what_it_drew() -> None:
    outcome = replace(PASSED, usage={"energy_j": 6_000.0, "peak_own_vram_bytes": 12 * GIB})
    learned = of_preflight(outcome, 30.0).learned
    assert learned["expected_j"] == 6_000.0 / 30.0 * 2 * HOUR
    assert learned["peak_vram_bytes"] == 12 * GIB


def test_it_is_told_in_a_sentence() -> None:
    passed = ended(checking(due(1)), PASSED)
    assert told(job(1)) == ""
    assert told(due(1)) == "It comes first, as soon as there is a place for it."
    assert told(checking(due(1))).startswith("It runs now")
    assert told(passed).startswith("It passed: 11 GiB of GPU memory at its peak, 2 s a step, about ")
    assert told(ended(checking(due(1)), failed(Cause.BAD_INPUT))) == "It failed; the job itself has not run."
    assert told(job(2, after=("checked:1",))) == "That of job 1, which is like this one, counts for it, too."


def test_its_hours_are_a_setting(settings: Settings) -> None:
    assert policy(settings).preflight_any_time
    assert not policy(settings.model_copy(update={"preflight_window": "night"})).preflight_any_time
