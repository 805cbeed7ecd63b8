"""The owner's own use comes first, and backlog gives way: a real rig, the fake driver, real processes."""

import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from until import until

from daemon.explain import explain
from daemon.facts import Ledger
from daemon.supervisor import MARK, SLOT_MARK, mark, slot_mark
from jobs.model import End, State

GIB = 2**30


@pytest.fixture
def game() -> Iterator[subprocess.Popen[bytes]]:
    """Somebody's own process, which no daemon has started."""
    process = subprocess.Popen(["tail", "-f", "/dev/null"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def why(rig: Any, job: str) -> str:
    return explain(Ledger(rig.store).facts(time.time(), rig.settings), rig.job(job)) or ""


@pytest.mark.slow  # the sampler lists processes every five seconds
def test_a_job_leaves_the_gpu_that_its_owner_uses_and_nothing_starts_there_until_a_quiet_time(
    make_rig: Any, fake_nvml: Any, game: subprocess.Popen[bytes]
) -> None:
    fake = fake_nvml(["3090", "3090"])
    quiet = {"foreign_use": "yield", "foreign_after_s": 0.0, "foreign_quiet_s": 1.0}
    rig = make_rig(slots="auto", environment=fake.env(), **quiet)
    first = rig.count(10_000, 0.05)
    rig.until_printed(first, "start 0")
    card = rig.job(first).slots[0]
    index = next(i for i in range(2) if fake.uuid(i) == card)
    fake.processes(index, [(game.pid, 3 * GIB, "C")])
    moved = until(
        lambda: (j := rig.job(first)).state is State.RUNNING and j.slots != (card,) and j,
        within_s=30,
        evidence=rig.evidence,
    )
    assert [run.end for run in moved.attempts] == [End.INTERRUPTED, None] and moved.attempt == 1
    second = rig.count(1, 0.01)
    until(lambda: "in use by tail" in why(rig, second), evidence=rig.evidence)
    assert rig.job(second).state is State.QUEUED
    fake.processes(index, [])
    assert rig.until_ended(second).attempts[0].slots == (card,)


@pytest.mark.slow  # the sampler lists processes every five seconds
def test_on_hold_a_running_job_stays_and_no_other_starts_beside_the_owner(
    make_rig: Any, fake_nvml: Any, game: subprocess.Popen[bytes]
) -> None:
    fake = fake_nvml(["3090"])
    rig = make_rig(slots="auto", environment=fake.env(), foreign_after_s=0.0, foreign_quiet_s=1.0)
    running = rig.count(100, 0.1)
    rig.until_printed(running, "start 0")
    fake.processes(0, [(game.pid, 3 * GIB, "C")])
    waiting = rig.count(1, 0.01)
    until(lambda: "in use by tail" in why(rig, waiting), evidence=rig.evidence)
    assert rig.until_ended(running).attempt == 1 and len(rig.job(running).attempts) == 1
    assert rig.job(waiting).state is State.QUEUED


def test_memory_that_an_ended_job_leaves_holds_the_next_one_until_it_is_free(make_rig: Any, fake_nvml: Any) -> None:
    fake = fake_nvml(["3090"])
    rig = make_rig(slots="auto", environment=fake.env())
    until(lambda: (rig.settings.home / "gpu-now.json").exists(), evidence=rig.evidence)
    first = rig.count(20, 0.05)
    rig.until_printed(first, "start 0")
    fake.gpu[0].memory_used = 20 * GIB
    second = rig.count(1, 0.01)
    rig.until_ended(first)
    until(lambda: "last job's memory" in why(rig, second), evidence=rig.evidence)
    fake.gpu[0].memory_used = 0
    assert rig.until_ended(second).state is State.SUCCEEDED


@pytest.mark.slow  # the sampler lists processes every five seconds
def test_a_process_that_a_job_left_behind_on_a_gpu_is_ended(make_rig: Any, fake_nvml: Any) -> None:
    fake = fake_nvml(["3090"])
    rig = make_rig(slots="auto", environment=fake.env())
    rig.until_ended(rig.count(1, 0.01))  # the worker, which sweeps its slot when it starts, has done so
    own = {MARK: mark(rig.settings), SLOT_MARK: slot_mark(rig.settings, fake.uuid(0))}
    with subprocess.Popen(["tail", "-f", "/dev/null"], env={**os.environ, **own}, start_new_session=True) as left:
        try:
            fake.processes(0, [(left.pid, 3 * GIB, "C")])
            until(lambda: left.poll() is not None, within_s=40, evidence=rig.evidence)
        finally:
            left.kill()
    until(lambda: "left behind on a GPU" in rig.evidence(), evidence=rig.evidence)
    assert rig.worker(fake.uuid(0)), "its worker lives"


def test_backlog_gives_way_and_goes_on_afterwards(make_rig: Any) -> None:
    rig = make_rig(slots="cpu:1", min_run_s=0.0)
    backlog = rig.count(40, 0.1, priority="backlog")
    rig.until_printed(backlog, "start 0")
    normal = rig.count(1, 0.01)
    assert rig.until_ended(normal).state is State.SUCCEEDED
    assert rig.job(backlog).state is not State.SUCCEEDED
    ended = rig.until_ended(backlog)
    assert [run.end for run in ended.attempts] == [End.INTERRUPTED, End.SUCCEEDED] and ended.attempt == 1
    assert f"gives way to job {normal}" in ended.attempts[0].message


def test_a_hot_gpu_loses_its_job_and_gets_it_back_when_it_is_cool(make_rig: Any, fake_nvml: Any) -> None:
    fake = fake_nvml(["3090"])
    heat = {"hold_above_c": 75.0, "stop_above_c": 88.0, "stop_after_s": 1.0}
    rig = make_rig(slots="auto", environment=fake.env(), **heat)
    job = rig.count(160, 0.05)
    rig.until_printed(job, "start 0")
    fake.gpu[0].temp = 93
    until(lambda: rig.job(job).state is State.QUEUED, evidence=rig.evidence)
    fake.gpu[0].temp = 80
    until(lambda: "hot (80 °C); jobs start there below 75 °C" in why(rig, job), evidence=rig.evidence)
    fake.gpu[0].temp = 60
    ended = rig.until_ended(job)
    assert [run.end for run in ended.attempts] == [End.INTERRUPTED, End.SUCCEEDED]
