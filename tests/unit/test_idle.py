"""Why slots stood idle in a night, told from the records alone."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from daemon.idle import CHANGE_S, Idle, Night, Reason, idle, outages, seconds_by_reason
from daemon.telemetry import GpuEvent
from jobs.model import Attempt, End, Job, State

A, B = "GPU-a", "GPU-b"
HOUR = 3600.0


def job(number: int, *runs: tuple[float, float | None, str], created: float = 0.0, **fields: Any) -> Job:
    attempts = tuple(
        Attempt(number=n, fence=n, rig="rig", slots=tuple(slots.split("+")), started_at=start, ended_at=end)
        for n, (start, end, slots) in enumerate(runs, 1)
    )
    end = runs[-1][1] if runs else None
    state = State.SUCCEEDED if end is not None else State.RUNNING if runs else State.QUEUED
    facts = {"state": state, "finished_at": end, **fields}
    return Job(id=str(number), kind="command", name="j", spec={}, created_at=created, rank=number, attempts=attempts, **facts)  # fmt: skip


def night(*jobs: Job, slots: Sequence[str] = (A,), end: float = 8 * HOUR, **fields: Any) -> Night:
    return Night(0.0, end, slots, jobs, **fields)


def told(found: list[Idle]) -> list[tuple[float, float, Reason]]:
    return [(one.start / HOUR, one.end / HOUR, one.reason) for one in found]


def test_an_empty_queue_is_the_reason_for_nothing() -> None:
    found = idle(night(job(1, (HOUR, 3 * HOUR, A))))
    # from its submission on it could have started, and an hour is no change of jobs
    assert told(found) == [(0, 1, Reason.KEPT_BACK), (3, 8, Reason.NOTHING)]


def test_the_seconds_between_two_jobs_are_a_change() -> None:
    found = idle(night(job(1, (0, HOUR, A)), job(2, (HOUR + 5, 8 * HOUR, A))))
    assert [(one.seconds, one.reason) for one in found] == [(5, Reason.CHANGING)]
    assert CHANGE_S >= 5


def test_a_slot_kept_for_a_gang_says_so() -> None:
    gang = job(2, (2 * HOUR, 8 * HOUR, f"{A}+{B}"), gpus=2)
    found = idle(night(job(1, (0, 2 * HOUR, A)), gang, slots=(A, B)))
    assert told(found) == [(0, 2, Reason.GANG)] and found[0].slot == B


def test_jobs_that_wait_for_others_or_for_their_time_are_no_work_yet() -> None:
    later = job(1, (3 * HOUR, 4 * HOUR, A), not_before=3 * HOUR)
    child = job(2, (4 * HOUR, 8 * HOUR, B), after=("1",))
    found = idle(night(later, child, slots=(A, B)))
    assert told(found)[0] == (0, 3, Reason.WAITING)
    assert told(found)[-1] == (0, 4, Reason.WAITING)


def test_one_that_waits_for_the_preflight_of_another_is_work_when_that_has_passed() -> None:
    leader = job(1, (0, HOUR, A), (HOUR, 8 * HOUR, A))
    first, rest = leader.attempts
    leader = replace(leader, attempts=(replace(first, preflight=True, end=End.CHECKED), rest))
    found = idle(night(leader, job(2, (4 * HOUR, 8 * HOUR, B), after=("checked:1",)), slots=(A, B)))
    assert told(found) == [(0, 1, Reason.WAITING), (1, 4, Reason.KEPT_BACK)]


def test_outside_the_window_only_a_job_for_any_time_could_start() -> None:
    opened = [(2 * HOUR, 6 * HOUR)]
    found = idle(night(job(1, (2 * HOUR, 6 * HOUR, A)), open=opened))
    assert told(found) == [(0, 2, Reason.CLOSED), (6, 8, Reason.CLOSED)]
    found = idle(night(job(1, (HOUR, 2 * HOUR, A), window="any"), open=opened))
    assert told(found)[0] == (0, 1, Reason.KEPT_BACK)


def test_a_gpu_that_is_out_or_paused_has_that_as_its_reason() -> None:
    waiting = job(1)
    out, paused = {A: [(HOUR, 2 * HOUR)]}, {A: [(1.5 * HOUR, 3 * HOUR)]}
    found = idle(night(waiting, end=3 * HOUR, out=out, paused=paused))
    assert told(found) == [(0, 1, Reason.KEPT_BACK), (1, 2, Reason.OUT), (2, 3, Reason.PAUSED)]


def test_a_held_job_keeps_no_slot_from_being_without_work() -> None:
    assert told(idle(night(replace(job(1), held=True), end=HOUR))) == [(0, 1, Reason.WAITING)]


def test_outages_are_read_from_the_samplers_events() -> None:
    def event(at: float, kind: str, slot: str | None = A) -> GpuEvent:
        return GpuEvent(at, slot, "nvml", kind, None, "")

    told = [event(1, "lost"), event(2, "stale"), event(5, "recovered"), event(6, "driver", None), event(8, "lost", B)]
    assert outages(told, until=10) == {A: [(1, 5)], B: [(8, 10)]}


RUNS = st.lists(st.tuples(st.floats(0, 30_000), st.floats(1, 5_000)), max_size=6)


@given(runs=RUNS, created=st.lists(st.floats(0, 30_000), max_size=4), start=st.floats(0, 10_000))
def test_busy_and_idle_fill_the_night_without_a_gap(
    runs: list[tuple[float, float]], created: list[float], start: float
) -> None:
    jobs = [job(n, (at, at + lasts, A), created=0.0) for n, (at, lasts) in enumerate(runs, 1)]
    jobs += [job(n, created=at) for n, at in enumerate(created, 100)]
    end = start + 20_000
    found = idle(Night(start, end, [A], jobs))
    busy_s = sum(1 for second in range(int(start), int(end)) if any(a <= second + 0.5 < a + lasts for a, lasts in runs))
    assert abs(sum(one.seconds for one in found) + busy_s - 20_000) <= 2 * len(runs) + 1
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert sum(seconds_by_reason(found).values()) - sum(one.seconds for one in found) < 1e-6
