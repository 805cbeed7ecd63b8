"""A job's life: every state x every step, and what holds after any sequence of steps."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.model import (
    Cause,
    End,
    InvalidTransition,
    Job,
    Outcome,
    Priority,
    Progress,
    StaleFence,
    State,
    Wish,
    WishKind,
    rank_of,
)

QUEUED = Job(id="1", kind="command", name="one", spec={"argv": ["true"]}, created_at=0.0, rank=1.0)
OFFERED = QUEUED.offered(rig="rig", slots=("a", "b"), now=1.0)
RUNNING = OFFERED.claimed(fence=1, owner="me", now=2.0)


def outcome(end: End, cause: Cause | None = None, **facts: object) -> Outcome:
    return Outcome(end=end, cause=cause, **facts)  # type: ignore[arg-type]


SUCCEEDED = RUNNING.ended(fence=1, outcome=outcome(End.SUCCEEDED), now=3.0)
FAILED = RUNNING.ended(fence=1, outcome=outcome(End.FAILED, Cause.BAD_INPUT), now=3.0)
CANCELLED = RUNNING.ended(fence=1, outcome=outcome(End.CANCELLED), now=3.0)

STATES = {
    "queued": QUEUED,
    "offered": OFFERED,
    "running": RUNNING,
    "succeeded": SUCCEEDED,
    "failed": FAILED,
    "cancelled": CANCELLED,
}
CANCEL = Wish(kind=WishKind.CANCEL, reason="by hand", asked_at=5.0)
PREEMPT = Wish(kind=WishKind.PREEMPT, reason="window", asked_at=5.0)

Step = Callable[[Job], Job]
STEPS: dict[str, Step] = {
    "offered": lambda job: job.offered(rig="rig", slots=("c",), now=4.0),
    "withdrawn": lambda job: job.withdrawn(fence=job.fence),
    "claimed": lambda job: job.claimed(fence=job.fence, owner="other", now=4.0),
    "progressed": lambda job: job.progressed(fence=job.fence, progress=Progress(step=1, total=2)),
    "succeeded": lambda job: job.ended(fence=job.fence, outcome=outcome(End.SUCCEEDED), now=4.0),
    "failed": lambda job: job.ended(fence=job.fence, outcome=outcome(End.FAILED, Cause.USER_ERROR), now=4.0),
    "lost": lambda job: job.ended(fence=job.fence, outcome=outcome(End.FAILED, Cause.LOST), now=4.0),
    "checked": lambda job: job.ended(fence=job.fence, outcome=outcome(End.CHECKED), now=4.0),
    "interrupted": lambda job: job.ended(fence=job.fence, outcome=outcome(End.INTERRUPTED), now=4.0),
    "cancel wished": lambda job: job.asked(CANCEL),
    "preemption wished": lambda job: job.asked(PREEMPT),
    "edited": lambda job: job.edited(priority=Priority.HIGH),
    "moved": lambda job: job.moved(rank=0.5),
    "retried": lambda job: job.retried(rank=9.0),
}
Q, R, S, F, C = State.QUEUED, State.RUNNING, State.SUCCEEDED, State.FAILED, State.CANCELLED
REFUSED = None
#: What each step makes of each state; REFUSED: InvalidTransition, and nothing is changed.
TABLE: dict[str, dict[str, State | None]] = {
    #                    queued       offered     running     succeeded   failed      cancelled
    "offered":           dict(zip(STATES, (Q, REFUSED, REFUSED, REFUSED, REFUSED, REFUSED), strict=True)),
    "withdrawn":         dict(zip(STATES, (Q, Q, REFUSED, REFUSED, REFUSED, REFUSED), strict=True)),
    "claimed":           dict(zip(STATES, (REFUSED, R, REFUSED, REFUSED, REFUSED, REFUSED), strict=True)),
    "progressed":        dict(zip(STATES, (REFUSED, REFUSED, R, REFUSED, REFUSED, REFUSED), strict=True)),
    "succeeded":         dict(zip(STATES, (REFUSED, REFUSED, S, S, REFUSED, REFUSED), strict=True)),
    "failed":            dict(zip(STATES, (REFUSED, REFUSED, F, REFUSED, F, REFUSED), strict=True)),
    "lost":              dict(zip(STATES, (REFUSED, REFUSED, Q, REFUSED, F, REFUSED), strict=True)),
    "checked":           dict(zip(STATES, (REFUSED, REFUSED, Q, REFUSED, REFUSED, REFUSED), strict=True)),
    "interrupted":       dict(zip(STATES, (REFUSED, REFUSED, Q, REFUSED, REFUSED, REFUSED), strict=True)),
    "cancel wished":     dict(zip(STATES, (C, C, R, REFUSED, REFUSED, C), strict=True)),
    "preemption wished": dict(zip(STATES, (Q, Q, R, REFUSED, REFUSED, REFUSED), strict=True)),
    "edited":            dict(zip(STATES, (Q, Q, REFUSED, REFUSED, REFUSED, REFUSED), strict=True)),
    "moved":             dict(zip(STATES, (Q, Q, R, REFUSED, REFUSED, REFUSED), strict=True)),
    "retried":           dict(zip(STATES, (REFUSED, REFUSED, REFUSED, REFUSED, Q, Q), strict=True)),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("step", STEPS)
def test_every_state_times_every_step(state: str, step: str) -> None:
    before, expected = STATES[state], TABLE[step][state]
    if expected is REFUSED:
        with pytest.raises(InvalidTransition):
            STEPS[step](before)
    else:
        assert STEPS[step](before).state is expected


def test_a_write_with_an_old_fence_is_refused() -> None:
    again = RUNNING.ended(fence=1, outcome=outcome(End.FAILED, Cause.LOST), now=3.0).offered(
        rig="rig", slots=("c",), now=4.0
    )
    assert again.fence == 2
    for late in (
        lambda: again.claimed(fence=1, owner="me", now=5.0),
        lambda: again.withdrawn(fence=1),
        lambda: again.claimed(fence=2, owner="x", now=5.0).ended(fence=1, outcome=outcome(End.SUCCEEDED), now=6.0),
    ):
        with pytest.raises(StaleFence):
            late()


def test_a_repeated_claim_of_the_same_owner_is_the_same_claim() -> None:
    assert RUNNING.claimed(fence=1, owner="me", now=9.0) is RUNNING


def test_a_repeated_end_is_the_same_end() -> None:
    assert SUCCEEDED.ended(fence=1, outcome=outcome(End.SUCCEEDED), now=9.0) is SUCCEEDED
    back = RUNNING.ended(fence=1, outcome=outcome(End.INTERRUPTED), now=3.0)
    assert back.ended(fence=1, outcome=outcome(End.INTERRUPTED), now=9.0) is back


def test_an_interruption_does_not_count_as_an_attempt() -> None:
    job = QUEUED
    for turn in range(10):
        job = job.offered(rig="rig", slots=("a",), now=1.0).claimed(fence=turn + 1, owner="me", now=2.0)
        assert job.attempt == 1
        job = job.ended(fence=turn + 1, outcome=outcome(End.INTERRUPTED), now=3.0)
    assert (job.attempt, len(job.attempts), job.state) == (0, 10, State.QUEUED)


def test_a_lost_job_is_tried_until_its_attempts_are_used_up() -> None:
    job, states = QUEUED, []
    while job.state is State.QUEUED:
        job = job.offered(rig="rig", slots=("a",), now=1.0)
        job = job.claimed(fence=job.fence, owner="me", now=2.0)
        job = job.ended(fence=job.fence, outcome=outcome(End.FAILED, Cause.LOST), now=3.0)
        states.append(job.state)
    assert states == [Q, Q, F]
    assert job.outcome is not None and job.outcome.cause is Cause.LOST


@pytest.mark.parametrize("cause", [Cause.TIMEOUT, Cause.BAD_INPUT, Cause.USER_ERROR, Cause.OOM_HOST])
def test_a_cause_that_would_come_again_fails_at_once(cause: Cause) -> None:
    assert RUNNING.ended(fence=1, outcome=outcome(End.FAILED, cause), now=3.0).state is State.FAILED


@pytest.mark.parametrize("cause", [Cause.OOM_GPU, Cause.NAN])
def test_a_cause_that_a_change_mends_goes_on_with_the_change_and_fails_without_one(cause: Cause) -> None:
    changed = outcome(End.FAILED, cause, next_fields={"per_device_train_batch_size": 2})
    again = RUNNING.ended(fence=1, outcome=changed, now=3.0)
    assert again.state is State.QUEUED
    assert again.effective_spec["per_device_train_batch_size"] == 2
    assert RUNNING.ended(fence=1, outcome=outcome(End.FAILED, cause), now=3.0).state is State.FAILED


def test_a_user_error_is_retried_only_as_often_as_was_asked() -> None:
    asked = replace(RUNNING, spec={"argv": ["x"], "retries": 1})
    first = asked.ended(fence=1, outcome=outcome(End.FAILED, Cause.USER_ERROR), now=3.0)
    assert first.state is State.QUEUED
    second = first.offered(rig="rig", slots=("a",), now=4.0).claimed(fence=2, owner="me", now=5.0)
    assert second.ended(fence=2, outcome=outcome(End.FAILED, Cause.USER_ERROR), now=6.0).state is State.FAILED


def test_a_full_disk_never_fails_a_job_and_waits_before_it_tries_again() -> None:
    job = replace(RUNNING, max_attempts=1)
    back = job.ended(fence=1, outcome=outcome(End.FAILED, Cause.DISK_FULL), now=100.0)
    assert (back.state, back.attempt) == (State.QUEUED, 0)
    assert back.not_before is not None and back.not_before > 100.0


def test_the_space_that_an_attempt_lacked_is_known_until_the_next_one_starts() -> None:
    lacked = outcome(End.FAILED, Cause.DISK_FULL, learned={"disk_bytes": 5e9})
    back = replace(RUNNING, estimate={"steps": 7.0}).ended(fence=1, outcome=lacked, now=3.0)
    assert back.estimate == {"steps": 7.0, "disk_bytes": 5e9}
    again = back.offered(rig="rig", slots=("a",), now=4.0).claimed(fence=2, owner="me", now=5.0)
    assert again.estimate == {"steps": 7.0}  # what it has written since counts, too


def test_a_download_error_backs_off_longer_each_time() -> None:
    job, waits = QUEUED, []
    for _ in range(2):
        job = job.offered(rig="rig", slots=("a",), now=0.0)
        job = job.claimed(fence=job.fence, owner="me", now=0.0)
        job = job.ended(fence=job.fence, outcome=outcome(End.FAILED, Cause.FETCH), now=0.0)
        waits.append(job.not_before)
    assert waits == [30.0, 60.0]


def test_a_cancellation_outweighs_a_preemption_and_a_retry() -> None:
    wished = RUNNING.asked(PREEMPT).asked(CANCEL).asked(PREEMPT)
    assert wished.wish == CANCEL
    assert wished.ended(fence=1, outcome=outcome(End.INTERRUPTED), now=3.0).state is State.CANCELLED
    assert wished.ended(fence=1, outcome=outcome(End.FAILED, Cause.LOST), now=3.0).state is State.CANCELLED


def test_a_wish_is_gone_when_the_attempt_is_over() -> None:
    assert RUNNING.asked(PREEMPT).ended(fence=1, outcome=outcome(End.INTERRUPTED), now=3.0).wish is None


def test_a_job_occupies_its_slots_from_the_offer_to_the_end() -> None:
    assert [job.slots for job in STATES.values()] == [(), ("a", "b"), ("a", "b"), (), (), ()]


def test_an_attempt_has_a_cause_exactly_when_it_failed() -> None:
    for end, cause in ((End.FAILED, None), (End.SUCCEEDED, Cause.LOST)):
        with pytest.raises(ValueError):
            Outcome(end=end, cause=cause)


def test_a_priority_comes_before_every_rank_of_the_next() -> None:
    assert rank_of(Priority.HIGH, 10**9) < rank_of(Priority.NORMAL, 1) < rank_of(Priority.BACKLOG, 1)


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=40))
def test_any_sequence_of_steps_keeps_the_record_sound(names: list[str]) -> None:
    job = QUEUED
    for name in names:
        try:
            after = STEPS[name](job)
        except InvalidTransition:
            continue
        assert after.fence >= job.fence
        assert len(after.attempts) >= len(job.attempts)
        assert 0 <= after.attempt <= after.max_attempts
        assert (after.state is State.RUNNING) == bool(after.owner)
        assert after.state.final == (after.outcome is not None) == (after.finished_at is not None)
        assert after.state is State.RUNNING or after.wish is None
        assert after.state is State.QUEUED or after.offer is None
        assert [run.end is None for run in after.attempts[:-1]] == [False] * max(0, len(after.attempts) - 1)
        assert Job.from_json(json.loads(json.dumps(after.to_json()))) == after
        job = after
