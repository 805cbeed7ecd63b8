"""From what went wrong to its cause, and from what an attempt left behind to its outcome."""

import errno
import itertools
import math
from typing import Any

import pytest

from jobs import weights
from jobs.causes import classify, gpu_out_of_memory
from jobs.model import Cause, End
from jobs.outcome import Exit, StoppedFor, judge


class OutOfMemoryError(RuntimeError):
    """Named as torch's own; torch itself is not loaded here."""


def test_an_error_whose_causes_lead_back_to_itself_is_classified() -> None:
    first, second = ConnectionError("refused"), OSError("no such model here")
    first.__cause__, second.__cause__ = second, first
    assert classify(second, {}).cause is Cause.FETCH


def test_a_full_disk_is_recognised_even_without_its_number() -> None:
    assert classify(OSError(errno.ENOSPC, "No space left on device"), {}).cause is Cause.DISK_FULL
    # what the Rust tokenizers raise
    assert classify(Exception("No space left on device (os error 28)"), {}).cause is Cause.DISK_FULL


def test_the_cause_is_found_behind_other_errors() -> None:
    try:
        try:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        except OutOfMemoryError as inner:
            raise RuntimeError("the step failed") from inner
    except RuntimeError as error:
        assert classify(error, {"batch_size": 8}).cause is Cause.OOM_GPU


def test_a_lost_connection_is_tried_again() -> None:
    assert classify(ConnectionResetError("reset by peer"), {}).cause is Cause.FETCH


def test_any_other_error_is_the_jobs_own_and_is_quoted() -> None:
    failure = classify(KeyError("answer"), {})
    assert (failure.cause, failure.message) == (Cause.USER_ERROR, "KeyError: 'answer'")


def test_too_little_memory_on_the_gpu_halves_the_batch_and_keeps_the_effective_one() -> None:
    failure = gpu_out_of_memory({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4})
    assert failure.next_fields == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}


def test_a_micro_batch_that_was_found_is_not_looked_for_again() -> None:
    found = {"effective_batch_size": 16, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    changes = gpu_out_of_memory(found).next_fields
    assert changes == {"effective_batch_size": None, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}


def test_kto_is_halved_down_to_two_rows() -> None:
    spec = {"objective": "kto", "per_device_train_batch_size": 6, "gradient_accumulation_steps": 1}
    changes = gpu_out_of_memory(spec).next_fields
    assert changes["per_device_train_batch_size"] == 3
    spec |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    assert gpu_out_of_memory(spec).next_fields == {}
    assert "two rows at a time" in gpu_out_of_memory(spec).message


def test_the_effective_batch_is_kept_for_every_size_down_to_one() -> None:
    for batch, accumulation in itertools.product(range(1, 33), (1, 2, 3, 4, 5, 8, 16)):
        spec: dict[str, Any] = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        while changes := gpu_out_of_memory(spec).next_fields:
            assert changes["per_device_train_batch_size"] <= spec["per_device_train_batch_size"] / 2
            spec |= changes
            assert math.prod(spec.values()) == batch * accumulation
        assert spec["per_device_train_batch_size"] == 1
        assert "one row at a time" in gpu_out_of_memory(spec).message


# -- outcomes -----------------------------------------------------------------------------------------------------------

DONE = {"fence": 7, "attempt": 1, "end": "succeeded", "metrics": {"rows": 3}}
SAVED = {"fence": 7, "attempt": 1, "end": "interrupted"}
OOM = {"fence": 7, "attempt": 1, "end": "failed", "cause": "oom_gpu", "message": "m", "next_fields": {"batch_size": 2}}


def test_a_result_of_this_fence_is_the_outcome() -> None:
    outcome = judge(fence=7, result=DONE, exit=Exit(fence=7, exit_code=0))
    assert (outcome.end, dict(outcome.metrics)) == (End.SUCCEEDED, {"rows": 3})


def test_what_another_attempt_left_does_not_count() -> None:
    outcome = judge(fence=8, result=DONE, exit=Exit(fence=7, exit_code=0))
    assert (outcome.end, outcome.cause) == (End.FAILED, Cause.LOST)


def test_a_job_that_finished_before_the_stop_reached_it_has_succeeded() -> None:
    stopped = Exit(fence=7, exit_code=0, stopped_for=StoppedFor.CANCEL, reason="asked")
    assert judge(fence=7, result=DONE, exit=stopped).end is End.SUCCEEDED


@pytest.mark.parametrize(
    ("why", "end", "cause"),
    [
        (StoppedFor.CANCEL, End.CANCELLED, None),
        (StoppedFor.PREEMPT, End.INTERRUPTED, None),
        (StoppedFor.NOT_OURS, End.INTERRUPTED, None),
        (StoppedFor.TIMEOUT, End.FAILED, Cause.TIMEOUT),
        (StoppedFor.HANG, End.FAILED, Cause.HANG),
    ],
)
@pytest.mark.parametrize("result", [None, SAVED])
def test_why_the_keeper_stopped_it_decides(
    why: StoppedFor, end: End, cause: Cause | None, result: dict[str, Any] | None
) -> None:
    outcome = judge(fence=7, result=result, exit=Exit(fence=7, signal=9, stopped_for=why, reason="because"))
    assert (outcome.end, outcome.cause, outcome.message) == (end, cause, "because")


def test_saved_and_stopped_by_itself_is_an_interruption() -> None:
    assert judge(fence=7, result=SAVED, exit=Exit(fence=7, exit_code=75)).end is End.INTERRUPTED


def test_a_failure_carries_the_changes_for_the_next_attempt() -> None:
    outcome = judge(fence=7, result=OOM, exit=Exit(fence=7, exit_code=1))
    assert (outcome.cause, dict(outcome.next_fields)) == (Cause.OOM_GPU, {"batch_size": 2})


@pytest.mark.parametrize(
    ("exit", "cause", "words"),
    [
        (None, Cause.LOST, "died without a word"),
        (Exit(fence=7, signal=9), Cause.SIGNAL, "SIGKILL"),
        (Exit(fence=7, signal=11), Cause.SIGNAL, "SIGSEGV"),
        (Exit(fence=7, signal=9, oom_killed=True, peak_rss_bytes=3 * 2**30), Cause.OOM_HOST, "3.0 GiB"),
        (Exit(fence=7, exit_code=4), Cause.USER_ERROR, "status 4"),
    ],
)
def test_without_a_result_the_end_of_the_process_tells(exit: Exit | None, cause: Cause, words: str) -> None:
    outcome = judge(fence=7, result=None, exit=exit)
    assert (outcome.end, outcome.cause) == (End.FAILED, cause)
    assert words in outcome.message


def test_an_exit_record_reads_back_what_was_written() -> None:
    left = Exit(fence=7, signal=9, stopped_for=StoppedFor.TIMEOUT, reason="late")
    assert Exit.from_json({**vars(left), "stopped_for": "timeout"}) == left


def test_a_disk_that_fills_while_a_model_is_fetched_is_not_called_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    full = OSError("cannot load the model")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert weights._unusable(full, "The model", local=False) is None  # it speaks for itself...
    assert classify(full, {}).cause is Cause.DISK_FULL  # ... as this
    assert weights._unusable(OSError("no such file"), "The model", local=True) is not None


@pytest.mark.parametrize(
    "forged",
    [
        {"end": "won"}, {"end": None}, {"end": "failed"}, {"end": "failed", "cause": "envy"}, {"end": "succeeded", "metrics": [1]},
        {"end": "succeeded", "metrics": {"loss": math.nan}}, {"end": "checked", "learned": {"peak_vram_bytes": "much"}}, {"end": ["failed"]},
        {"end": "failed", "cause": "oom_gpu", "message": 5}, {},
    ],
)  # fmt: skip
def test_what_is_no_result_counts_as_none(forged: dict[str, Any]) -> None:
    outcome = judge(fence=7, result={"fence": 7, **forged}, exit=Exit(fence=7, signal=9))
    assert (outcome.end, outcome.cause) == (End.FAILED, Cause.SIGNAL)


def test_halves_of_characters_do_not_reach_the_queue() -> None:
    left = {"fence": 7, "end": "failed", "cause": "user_error", "message": "no file \udcff", "hint": ""}
    assert judge(fence=7, result=left, exit=None).message == "no file ?"
