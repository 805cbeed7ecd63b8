"""What is learned from jobs that ended, and what it says of the next one."""

from dataclasses import replace
from typing import Any

import pytest

from daemon.history import Expectations, History
from jobs.model import Cause, End, Job, Outcome, Progress

START = 1_000_000.0
CARD = {"GPU-0": "RTX 3090", "GPU-1": "RTX 4090"}.get
FINETUNE = {
    "kind": "finetune",
    "model": "qwen",
    "method": "lora",
    "data": "sha256:1",
    "per_device_train_batch_size": 4,
    "max_length": 1024,
    "max_steps": None,
    "num_train_epochs": 1.0,
}


def job(
    number: int, *, kind: str = "command", estimate: dict[str, float] | None = None, sweep: str = "", **spec: Any
) -> Job:
    document = {**(FINETUNE if kind == "finetune" else {"kind": "command", "argv": ["python", "train.py"]}), **spec}
    return Job(id=str(number), kind=kind, name="", spec=document, created_at=0.0, rank=number, estimate=estimate or {}, sweep=sweep)  # fmt: skip


def started(job: Job, *, at: float = START, slot: str = "GPU-0") -> Job:
    fence = job.fence + 1
    return job.offered(rig="rig", slots=(slot,), now=at).claimed(fence=fence, owner="me", now=at)


def ended(
    job: Job, took_s: float, *, end: End = End.SUCCEEDED, slot: str = "GPU-0", total: int = 0, peak: int = 0, energy_j: float = 0.0
) -> Job:  # fmt: skip
    run = started(job, slot=slot)
    if total:
        run = run.progressed(fence=run.fence, progress=Progress(step=total, total=total))
    cause = Cause.LOST if end is End.FAILED else None
    usage = {"peak_vram_bytes": peak, "energy_j": energy_j}
    outcome = Outcome(end=end, cause=cause, usage={name: value for name, value in usage.items() if value})
    return run.ended(fence=run.fence, outcome=outcome, now=START + took_s)


def history(*jobs: Job) -> History:
    known = History()
    for each in jobs:
        known.learn(each, lambda slot: CARD(slot, ""))
    return known


def test_nothing_is_known_before_something_has_run() -> None:
    assert history().expected_s(job(1), "RTX 3090") is None
    assert history().peak_vram_bytes(job(1)) is None


def test_the_same_document_takes_what_it_took_in_the_median() -> None:
    known = history(*(ended(job(n), took) for n, took in enumerate((100.0, 120.0, 500.0))))
    assert known.expected_s(job(9, seed=7, name="again"), "RTX 3090") == 120.0
    found = known.expected(job(9), "RTX 3090")
    assert found is not None and (found.p90_s, found.runs) == (500.0, 3)


def test_the_card_that_it_runs_on_counts_before_other_cards_do() -> None:
    known = history(ended(job(1), 100.0, slot="GPU-0"), ended(job(2), 40.0, slot="GPU-1"))
    assert known.expected_s(job(9), "RTX 3090") == 100.0
    assert known.expected_s(job(9), "RTX 4090") == 40.0
    assert known.expected_s(job(9), "H100") == 70.0


def test_other_arguments_of_the_same_program_are_better_than_nothing() -> None:
    known = history(ended(job(1, argv=["python", "train.py", "--lr", "1"]), 100.0))
    assert known.expected_s(job(9, argv=["python", "train.py", "--lr", "2"]), "") == 100.0
    assert known.expected_s(job(9, argv=["python", "other.py"]), "") is None
    assert known.expected_s(job(9, argv=["sh", "-c", "sleep 9"]), "") is None


def test_a_shell_is_not_a_program_that_two_scripts_share() -> None:
    known = history(ended(job(1, argv=["sh", "-c", "sleep 100"]), 100.0))
    assert known.expected_s(job(9, argv=["sh", "-c", "make all"]), "") is None


def test_a_sweeps_points_tell_of_each_other() -> None:
    known = history(ended(job(1, argv=["a"], sweep="1"), 100.0))
    assert known.expected_s(job(2, argv=["b"], sweep="1"), "") == 100.0
    assert known.expected_s(job(3, argv=["b"], sweep="3"), "") is None


def test_twice_the_steps_take_twice_the_time() -> None:
    known = history(ended(job(1, kind="finetune"), 100.0, total=50))
    assert known.expected_s(job(2, kind="finetune", data="sha256:2", estimate={"steps": 100}), "") == pytest.approx(
        200.0
    )


def test_the_time_before_the_first_step_is_told_from_runs_of_different_lengths() -> None:
    runs = [ended(job(n, kind="finetune"), 20.0 + 2.0 * n, total=n) for n in (10, 100)]
    assert history(*runs).expected_s(job(3, kind="finetune", max_steps=1000), "") == pytest.approx(2020.0)


def test_a_run_that_failed_or_was_cancelled_says_nothing_of_how_long_one_takes() -> None:
    failed = ended(replace(job(1), max_attempts=1), 3.0, end=End.FAILED)
    assert history(failed, ended(job(2), 5.0, end=End.CANCELLED)).expected_s(job(9), "") is None


def test_the_same_record_counts_once_however_often_it_is_told() -> None:
    once = ended(job(1), 100.0)
    known = history(once, once, ended(job(2), 300.0))
    assert known.expected_s(job(9), "") == 200.0


def test_an_interrupted_and_resumed_training_took_both_its_runs() -> None:
    back = ended(job(1, kind="finetune"), 60.0, end=End.INTERRUPTED, total=6)
    known = history(ended(back, 40.0, total=10))
    assert known.expected_s(job(9, kind="finetune"), "") == pytest.approx(100.0)


def test_what_an_interrupted_training_has_done_it_need_not_do_again() -> None:
    known = history(ended(job(1, kind="finetune"), 100.0, total=10))
    run = started(job(2, kind="finetune"))
    run = run.progressed(fence=run.fence, progress=Progress(step=4, total=10))
    back = run.ended(fence=run.fence, outcome=Outcome(end=End.INTERRUPTED), now=START + 40)
    assert known.expected_s(back, "") == pytest.approx(60.0)


def test_a_running_job_is_asked_first() -> None:
    known = history(ended(job(1), 100.0))
    run = started(job(2))
    assert known.rest_s(run, START + 30, "") == 70.0
    told = run.progressed(fence=run.fence, progress=Progress(step=1, total=2, eta_s=12.0))
    assert known.rest_s(told, START + 30, "") == 12.0
    assert history().rest_s(run, START + 30, "") is None


def test_a_job_that_overruns_gets_a_rest_that_grows_and_is_never_negative() -> None:
    known, run = history(ended(job(1), 100.0)), started(job(2))
    rests = [known.rest_s(run, START + elapsed, "") or 0.0 for elapsed in (99.0, 200.0, 1000.0)]
    assert rests == [pytest.approx(4.45), pytest.approx(60.0), pytest.approx(500.0)]


def test_memory_is_learned_from_the_same_shape_and_from_nothing_else() -> None:
    known = history(
        ended(job(1, kind="finetune"), 9.0, peak=10), ended(job(2, kind="finetune", data="sha256:2"), 9.0, peak=12)
    )
    assert known.peak_vram_bytes(job(3, kind="finetune")) == 10
    assert known.peak_vram_bytes(job(3, kind="finetune", data="sha256:3")) == 12
    assert known.peak_vram_bytes(job(3, kind="finetune", max_length=4096)) is None
    assert history(ended(job(1), 9.0, peak=10)).peak_vram_bytes(job(2, argv=["python", "train.py", "-x"])) is None


def test_energy_is_told_at_the_power_of_earlier_runs() -> None:
    known = history(ended(job(1), 10.0, energy_j=1_000.0), ended(job(2), 20.0, energy_j=2_000.0), ended(job(3), 900.0))

    assert known.expected_j(job(4), "A") == pytest.approx(100.0 * 20.0)
    assert history(ended(job(1), 10.0)).expected_j(job(2)) is None  # it was not measured


def test_a_job_like_no_other_is_guessed_from_its_kind() -> None:
    known = history(ended(job(1), 100.0), ended(job(2, argv=["b"]), 200.0))
    assert known.guess_s("command") == 150.0
    assert known.guess_s("generate") is None


def test_of_a_running_job_like_no_other_the_planner_is_told_what_its_kind_takes() -> None:
    known = history(ended(job(1), 100.0), ended(job(2, argv=["b"]), 200.0))
    seen = Expectations(known).at(START + 30, {"3": started(job(3, argv=["x"])), "4": job(4, argv=["x"])}, {})
    assert dict(seen) == {"3": 120.0}


def test_the_planner_sees_seconds_by_job_for_the_slowest_card_it_could_get() -> None:
    known = history(ended(job(1), 100.0, slot="GPU-0"), ended(job(2), 40.0, slot="GPU-1"))
    jobs = {"3": job(3), "4": job(4, argv=["x"]), "5": started(job(5), slot="GPU-1")}
    seen = Expectations(known).at(START + 10, jobs, {"GPU-0": "RTX 3090", "GPU-1": "RTX 4090"})
    assert dict(seen) == {"3": 100.0, "5": 30.0}  # of a waiting job like no other, nothing
    known.learn(ended(job(6, argv=["x"]), 7.0))
    assert dict(seen.at(START + 20, jobs, {"GPU-0": "RTX 3090"})) == {"3": 100.0, "4": 7.0, "5": 50.0}


def test_what_a_benchmark_filled_is_not_what_it_needs() -> None:
    fields = {"kind": "benchmark", "model": "m", "batch_sizes": [1, 8]}
    known = history(ended(job(1, **fields), 9.0, peak=10))
    assert known.peak_vram_bytes(job(2, **fields)) is None
    assert known.expected_s(job(2, **fields)) == 9.0
    assert known.expected_s(job(2, **fields | {"batch_sizes": [1, 8, 64]})) == 9.0, "the same model, at least"
