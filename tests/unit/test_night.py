"""One night from its records: what the morning says, and in which colour."""

from dataclasses import replace
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

from daemon.idle import Reason
from daemon.night.build import night
from daemon.night.failures import groups, repaired
from daemon.night.foretold import Promise
from daemon.night.lanes import MOST_BLOCKS
from daemon.night.model import Colour, Heartbeat, Night
from daemon.night.records import Records
from daemon.night.span import Span
from daemon.quarantine import Quarantine
from daemon.rig import Slot
from jobs.model import Attempt, Cause, End, Job, Outcome, State
from jobs.sweep import Goal, Sweep

HOUR = 3600.0
UTC = ZoneInfo("UTC")
SINCE = 1_795_300_000.0
UNTIL = SINCE + 10 * HOUR
A, B = Slot("GPU-a", "card", 0), Slot("GPU-b", "card", 1)
SPAN = Span(date(2026, 11, 21), SINCE, UNTIL, False, "window")


def job(number: int, start: float | None = None, end: float | None = None, *, slot: str = "GPU-a", cause: Cause | None = None, message: str = "", metrics: dict[str, Any] | None = None, **fields: Any) -> Job:  # fmt: skip
    """A job that ran so, in hours of the night: it succeeded, or failed when it has a cause."""
    how = End.FAILED if cause else End.SUCCEEDED
    at = None if end is None else SINCE + end * HOUR
    runs = () if start is None else (Attempt(number=1, fence=1, rig="rig", slots=(slot,), started_at=SINCE + start * HOUR, ended_at=at, end=how if at else None, cause=cause, message=message),)  # fmt: skip
    state = State(how.value) if at else State.RUNNING if runs else State.QUEUED
    outcome = Outcome(end=how, cause=cause, message=message, metrics=metrics or {}) if at else None
    known = {"kind": "command", "name": f"job {number}", "spec": {}, "created_at": SINCE, "rank": number, "attempts": runs, "state": state, "finished_at": at, "outcome": outcome}  # fmt: skip
    return Job(id=str(number), **{**known, **fields})


def told(*jobs: Job, **fields: Any) -> Records:
    queued = sum(one.state is State.QUEUED for one in jobs)
    usual = {"now": UNTIL, "rig": "rig", "zone": UTC, "span": SPAN, "slots": (A, B), "jobs": jobs, "queued": queued}
    return Records(**{**usual, **fields})


def whole(number: int, slot: str = "GPU-a", **fields: Any) -> Job:
    return job(number, 0, 10, slot=slot, **fields)


def test_a_night_in_which_all_went_well_is_green_and_says_so() -> None:
    found = night(told(whole(1), whole(2, "GPU-b", metrics={"eval_loss": 1.108})))
    assert found.verdict.colour is Colour.GREEN
    assert found.verdict.sentence == "All 2 done. Best eval_loss 1.108. The queue is empty."
    assert (found.counts.done, found.counts.failed, found.need_you) == (2, 0, 0)
    assert [lane.busy_ratio for lane in found.lanes] == [1.0, 1.0]


def test_a_job_that_was_only_checked_has_not_run() -> None:
    checked, at_it = job(1, 0, 0.1), job(2, 9)
    passed = replace(checked.attempts[0], preflight=True, end=End.CHECKED)
    waits = replace(checked, attempts=(passed,), state=State.QUEUED, outcome=None, finished_at=None)
    at_it = replace(at_it, attempts=(replace(at_it.attempts[0], preflight=True),))
    found = night(told(waits, at_it))
    assert [ran.job for ran in found.ran] == ["2"]
    assert [block.name for block in found.lanes[0].blocks] == ["preflight of job 1", "preflight of job 2"]


def test_a_failure_needs_somebody_and_is_red() -> None:
    found = night(told(whole(1), whole(2, "GPU-b", cause=Cause.BAD_INPUT, message="row 7 is no JSON\nmore")))
    assert found.verdict.colour is Colour.RED
    assert found.verdict.sentence.startswith("1 of 2 failed, 1 needs you.")
    (group,) = found.needs_you
    assert (group.line, group.line_of, group.action) == ("row 7 is no JSON", "2", None)


def test_amber_beats_green_when_a_heartbeat_is_stale_although_every_job_passed() -> None:
    for name in ("daemon", "Redis", "worker of GPU 0", "sampler"):
        beats = (Heartbeat(name=name, age_s=60.0, limit_s=6.0), Heartbeat(name="other", age_s=1.0, limit_s=6.0))
        found = night(told(whole(1), whole(2, "GPU-b"), heartbeats=beats))
        assert found.verdict.colour is Colour.AMBER and name in found.verdict.sentence


def test_a_full_disk_is_amber_and_red_when_it_stops_the_queue() -> None:
    well = (whole(1), whole(2, "GPU-b"))
    assert night(told(*well, disk_free_bytes=9, disk_bytes=100)).verdict.colour is Colour.AMBER
    assert night(told(*well, disk_free_bytes=10, disk_bytes=100)).verdict.colour is Colour.GREEN
    assert night(told(*well, hold="the disk is full")).verdict.colour is Colour.RED


def test_a_gpu_that_stood_idle_while_a_job_could_run_is_amber() -> None:
    waiting = job(3)
    found = night(told(whole(1), job(2, 0, 9.9, slot="GPU-b"), waiting))
    assert found.verdict.colour is Colour.GREEN  # six minutes
    found = night(told(whole(1), job(2, 0, 9.5, slot="GPU-b"), waiting))
    assert found.verdict.colour is Colour.AMBER and "GPU 1 stood idle" in found.verdict.sentence
    assert [one.reason for one in found.lanes[1].idle] == [Reason.KEPT_BACK]


def test_a_job_that_does_not_fit_on_a_gpu_is_no_work_for_it() -> None:
    small, large = Slot("GPU-a", "card", 0, 24 << 30), Slot("GPU-b", "card", 1, 80 << 30)
    big = job(3, vram_bytes=60 << 30)
    found = night(told(whole(2, "GPU-b"), big, slots=(small, large)))
    assert found.verdict.colour is Colour.GREEN and [one.reason for one in found.lanes[0].idle] == [Reason.WAITING]


def test_a_gpu_out_of_service_is_red() -> None:
    held = Quarantine("GPU-b", SINCE, "the GPU has fallen off the bus", "XID 79")
    found = night(told(whole(1), quarantined=[held], out={"GPU-b": [(SINCE, UNTIL)]}))
    assert found.verdict.colour is Colour.RED and found.troubles[0].slot == "GPU-b"


def test_failures_are_grouped_by_cause_and_sweep_with_the_line_that_most_of_them_say() -> None:
    fields = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    ooms = [whole(n, cause=Cause.OOM_GPU, message="ran out", spec=fields, sweep="1") for n in (1, 2, 3)]
    other = whole(4, cause=Cause.GPU_FAULT, message="XID 79")
    sweeps = {"1": Sweep(id="1", last="3", created_at=0, name="ranks", method="grid", axes=(), base={})}
    first, second = groups(told(*ooms, other, sweeps=sweeps))
    assert (first.cause, first.jobs, first.sweep_name, first.line) == (Cause.OOM_GPU, ("1", "2", "3"), "ranks", "ran out")  # fmt: skip
    assert first.action is not None and first.action.label == "Retry all 3 with half the batch"
    assert first.action.changes["2"] == {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    assert second.action is not None and (second.action.label, second.action.changes) == ("Retry it", {})


def test_nothing_is_proposed_where_a_batch_cannot_be_halved() -> None:
    (group,) = groups(told(whole(1, cause=Cause.OOM_GPU, message="m", spec={"per_device_train_batch_size": 1})))
    assert group.action is None


def test_jobs_that_were_cancelled_because_of_a_failure_stand_with_it() -> None:
    child = job(2, state=State.CANCELLED, finished_at=UNTIL - 1, because_of="1")
    grandchild = job(3, state=State.CANCELLED, finished_at=UNTIL - 1, because_of="2")
    (group,) = groups(told(whole(1, cause=Cause.USER_ERROR), child, grandchild))
    assert group.waited == ("2", "3")


def test_a_failure_that_a_retry_mended_needs_nobody() -> None:
    first = Attempt(number=1, fence=1, rig="rig", slots=("GPU-a",), started_at=SINCE, ended_at=SINCE + HOUR, end=End.FAILED, cause=Cause.OOM_GPU)  # fmt: skip
    mended = whole(1, spec={"batch_size": 8}, next_fields={"batch_size": 4})
    mended = replace(mended, attempts=(first, replace(mended.attempts[0], started_at=SINCE + HOUR)))
    records = told(mended, whole(2, "GPU-b"))
    assert groups(records) == ()
    (one,) = repaired(records)
    assert (one.job, one.cause, one.changed, one.done) == ("1", Cause.OOM_GPU, "batch_size 8 → 4", True)
    assert night(records).verdict.colour is Colour.GREEN


def test_jobs_count_by_their_end_and_not_by_their_beginning() -> None:
    before = job(1, -5, 2)
    after = replace(job(2, 5, 12), finished_at=UNTIL + 2 * HOUR)
    long_ago = job(3, -5, -1)
    found = night(told(before, after, long_ago))
    assert (found.counts.done, found.counts.running) == (1, 1)
    assert found.lanes[0].blocks[0].start == SINCE and {b.job for b in found.lanes[0].blocks} == {"1", "2"}


def sweep(**facts: Any) -> Sweep:
    return Sweep(**{"id": "1", "last": "9", "created_at": 0, "name": "s", "method": "grid", "axes": ("r",), "base": {"r": 8}, **facts})  # fmt: skip


def result(number: int, value: float, metric: str = "eval_loss", **fields: Any) -> Job:
    return whole(number, metrics={metric: value}, **fields)


def test_the_best_result_is_held_against_the_sweeps_base() -> None:
    points = [result(1, 1.5, sweep="1", point={"r": 4}), result(2, 1.342, sweep="1", point={"r": 8}), result(3, 1.108, sweep="1", point={"r": 32})]  # fmt: skip
    best = night(told(*points, sweeps={"1": sweep()})).best
    assert best is not None and best.baseline is not None
    assert (best.job, best.baseline.job, best.baseline.why) == ("3", "2", "the sweep's base")
    assert best.better and best.change is not None and round(best.change, 3) == -0.174


def test_a_sweep_without_its_base_is_held_against_its_first_job() -> None:
    best = night(told(result(1, 1.5, sweep="1", point={"r": 4}), result(2, 1.2, sweep="1", point={"r": 16}), sweeps={"1": sweep()})).best  # fmt: skip
    assert best is not None and best.baseline is not None and best.baseline.why == "the sweep's first"


def test_a_job_tagged_baseline_of_an_earlier_night_comes_before_the_sweeps_base() -> None:
    tagged = replace(result(1, 2.0, tags=("baseline",)), finished_at=SINCE - HOUR)
    best = night(told(result(5, 1.0, sweep="4", point={"r": 4}), baselines=[tagged])).best
    assert best is not None and best.baseline is not None
    assert (best.baseline.job, best.baseline.why, best.change) == ("1", "tagged baseline", -0.5)


def test_an_adapters_evaluation_is_held_against_that_of_its_model_alone() -> None:
    bare = result(1, 0.40, "accuracy", kind="evaluate", spec={"model": "m", "data": "d"})
    tuned = result(2, 0.55, "accuracy", kind="evaluate", spec={"model": "m", "data": "d", "adapter": "job:9"})
    best = night(told(bare, tuned)).best
    assert best is not None and best.baseline is not None
    assert (best.job, best.baseline.why, best.better) == ("2", "the model without the adapter", True)


def test_more_tokens_per_second_are_better_and_more_loss_is_worse() -> None:
    slow, fast = result(1, 10.0, "tokens_per_s", tags=("baseline",)), result(2, 20.0, "tokens_per_s")
    best = night(told(slow, fast)).best
    assert best is not None and best.better and best.change == 1.0
    base, worse = result(1, 1.0, tags=("baseline",)), result(2, 1.5)
    best = night(told(base, worse)).best
    assert best is not None and best.job == "1"  # the baseline itself is the best, and has none


def test_a_sweeps_own_goal_says_what_is_better() -> None:
    goal = sweep(goal=Goal(maximize="reward"))
    best = night(told(*(result(n, n / 10, "reward", sweep="1") for n in (1, 2, 3)), sweeps={"1": goal})).best
    assert best is not None and (best.job, best.lower_is_better) == ("3", False)


def test_gpu_hours_leave_out_the_time_outside_the_window_and_name_the_rest() -> None:
    opened = [(SINCE, SINCE + 8 * HOUR)]
    found = night(told(job(1, 0, 6), job(2, 0, 8, slot="GPU-b"), open=opened))
    assert found.hours.available_s == 16 * HOUR and found.hours.used_s == 14 * HOUR
    assert found.hours.idle_s == {Reason.NOTHING: 2 * HOUR}


def test_the_forecast_of_the_evening_is_held_against_what_came() -> None:
    promise = Promise(at=SINCE, ends={"1": SINCE + HOUR, "2": SINCE + 2 * HOUR, "3": SINCE + 20 * HOUR})
    found = night(told(job(1, 0, 1.5), job(2, 2, 3, cause=Cause.HANG), job(3), job(4, 3, 4), promise=promise)).foretold
    assert found is not None
    assert (found.promised, found.kept, found.missed, found.unforeseen) == (2, 1, ("2",), 1)
    assert found.median_late_s == HOUR / 2


def test_an_empty_night_is_green_and_says_that_nothing_ran() -> None:
    found = night(told())
    assert found.empty and found.verdict.colour is Colour.GREEN
    assert found.verdict.sentence == "Nothing ran. The queue is empty."


def test_a_night_with_everything_failed_says_how_many() -> None:
    jobs = [job(n, n / 10, n / 10 + 0.1, cause=Cause.NAN, message="diverged", spec={"learning_rate": 1.0}) for n in range(1, 21)]  # fmt: skip
    found = night(told(*jobs))
    assert found.verdict.sentence.startswith("20 of 20 failed, 20 need you.")
    assert found.best is None and found.needs_you[0].action is not None
    assert found.needs_you[0].action.label == "Retry all 20 with half the learning rate"


def test_a_lane_of_thousands_of_short_jobs_stays_small_and_counts_them_all() -> None:
    jobs = [job(n, n / 500, (n + 0.9) / 500, cause=Cause.HANG if n == 2500 else None) for n in range(1, 5000)]
    (lane, _) = night(told(*jobs)).lanes
    assert len(lane.blocks) < MOST_BLOCKS and sum(block.jobs for block in lane.blocks) == 4999
    assert [block.state for block in lane.blocks] == ["succeeded", "failed", "succeeded"]


def test_a_night_is_read_back_as_it_was_written() -> None:
    found = night(told(whole(1, metrics={"eval_loss": 1.5}), whole(2, "GPU-b", cause=Cause.LOST), job(3)))
    assert Night.from_json(found.to_json()) == found
    assert found.to_json()["since"] == "2026-11-21T22:26:40Z"


def test_the_best_evaluation_of_a_pipelines_sweep_is_held_against_the_model_without_the_adapter() -> None:
    on = {"measured_on": {"definition": 1, "data_sha256": "d", "rows": 32, "asked_rows": 32, "max_new_tokens": 8}}
    fields = {"kind": "evaluate", "sweep": "1"}
    asked = {"model": "m", "data": "held"}
    made = [
        job(1, 0, 1, spec=asked, metrics={"accuracy": 0.0, **on}, **fields),
        job(2, 0, 2, sweep="1", kind="finetune", spec={"model": "m"}, point={"train.r": 8}, metrics={"train_loss": 0.1}),
        job(3, 2, 3, spec={**asked, "adapter": "job:2"}, point={"train.r": 8}, metrics={"accuracy": 0.75, **on}, **fields),
    ]  # fmt: skip
    sweep = Sweep(id="1", last="3", created_at=SINCE, name="s", method="grid", axes=("train.r",), base={"train": {"r": 8}}, stages=("train", "test"), once=1, goal=Goal(maximize="accuracy"))  # fmt: skip
    best = night(told(*made, sweeps={"1": sweep})).best
    assert best is not None and best.baseline is not None
    assert (best.job, best.value, best.baseline.job, best.better) == ("3", 0.75, "1", True)
    assert best.baseline.why == "the model without the adapter"


def test_a_job_of_a_sweep_is_told_by_the_sweeps_goal() -> None:
    both = {"eval_loss": 0.3, "accuracy": 0.75}
    jobs = [job(1, 0, 1, sweep="1", metrics=both), job(2, 1, 2, metrics=both)]
    sweep = Sweep(id="1", last="1", created_at=SINCE, name="s", method="grid", axes=(), base={}, goal=Goal(maximize="accuracy"))  # fmt: skip
    made = {ran.job: (ran.metric, ran.value) for ran in night(told(*jobs, sweeps={"1": sweep})).ran}
    assert made == {"1": ("accuracy", 0.75), "2": ("eval_loss", 0.3)}
