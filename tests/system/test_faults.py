"""Kill anything in the middle of a job: it resumes, ends once, never runs twice at a time, and leaves no process."""

import os
import signal
from typing import Any

import pytest
from until import until

from daemon import process_tree
from jobs.model import Cause, End, State

STEPS = 40


def ended_once(rig: Any, job_id: str, *, starts: int | None = None) -> None:
    job = rig.until_ended(job_id)
    log = rig.log(job_id)
    assert job.state is State.SUCCEEDED, rig.evidence()
    assert log.count(f"end {STEPS}") == 1 and "OVERLAP" not in log
    assert starts is None or log.count("start ") == starts
    assert all(run.end is not None for run in job.attempts)
    until(lambda: not [line for line in rig.processes().values() if "counter.py" in line], evidence=rig.processes)


def running_on(rig: Any, job_id: str) -> str:
    rig.until_printed(job_id, "start ")
    slot: str = rig.until(job_id, State.RUNNING).slots[0]
    return slot


@pytest.mark.parametrize("victim", ["worker", "horse", "child"])
def test_a_killed_process_of_an_attempt_gives_its_job_back(rig: Any, victim: str) -> None:
    job_id = rig.count(STEPS)
    slot = running_on(rig, job_id)
    os.kill(getattr(rig, victim)(slot), signal.SIGKILL)
    ended_once(rig, job_id, starts=2)
    job = rig.job(job_id)
    assert [run.cause for run in job.attempts] == [Cause.SIGNAL if victim == "child" else Cause.LOST, None]
    assert job.attempt == 2
    assert "start 0" in rig.log(job_id) and "resume 1" in rig.log(job_id)


def test_a_killed_redis_comes_back_and_the_job_never_notices(rig: Any) -> None:
    job_id = rig.count(STEPS)
    running_on(rig, job_id)
    os.kill(rig.redis_pid(), signal.SIGKILL)
    ended_once(rig, job_id, starts=1)


def test_a_killed_daemon_takes_its_jobs_along_and_the_next_one_resumes_them(rig: Any) -> None:
    job_id = rig.count(STEPS)
    running_on(rig, job_id)
    rig.daemon.kill()
    rig.daemon.wait()
    rig.start()
    ended_once(rig, job_id, starts=2)


def test_without_its_daemon_nothing_goes_on(rig: Any) -> None:
    job_id = rig.count(10_000)
    running_on(rig, job_id)
    rig.daemon.kill()
    until(lambda: not rig.processes(), evidence=rig.processes)


def test_after_a_kill_of_everything_at_once_every_job_is_there_and_ends(rig: Any) -> None:
    first, second, waiting = rig.count(STEPS), rig.count(STEPS), rig.count(STEPS)
    running_on(rig, first)
    running_on(rig, second)
    for pid in [rig.daemon.pid, rig.redis_pid(), *rig.processes()]:
        process_tree.send(pid, signal.SIGKILL)
    rig.daemon.wait()
    rig.start()
    for job_id in (first, second, waiting):
        ended_once(rig, job_id)


def test_a_gang_survives_the_death_of_a_worker_that_does_not_lead_it(rig: Any) -> None:
    job_id = rig.count(STEPS, gpus=2)
    lead = running_on(rig, job_id)
    other = next(slot for slot in rig.job(job_id).slots if slot != lead)
    os.kill(rig.worker(other), signal.SIGKILL)
    ended_once(rig, job_id, starts=1)


def test_stopping_the_rig_saves_its_jobs_and_does_not_count_the_attempt(rig: Any) -> None:
    job_id = rig.count(STEPS)
    running_on(rig, job_id)
    assert rig.stop() == 0
    assert not rig.processes()
    assert "saved" in rig.log(job_id)
    rig.start()
    ended_once(rig, job_id, starts=2)
    job = rig.job(job_id)
    assert (job.attempt, [run.end for run in job.attempts]) == (1, [End.INTERRUPTED, End.SUCCEEDED])


def test_a_second_daemon_on_the_same_folder_is_refused(rig: Any) -> None:
    first = rig.daemon
    rig.start()
    assert rig.daemon.wait(30) == 75
    rig.daemon = first
    assert "runs already" in (rig.settings.home / "daemon.log").read_text()


def test_a_job_that_ignores_sigterm_is_killed_after_the_grace(make_rig: Any) -> None:
    rig = make_rig(grace_s=0.5)
    job_id = rig.count(10_000, 0.05, "--stubborn")
    running_on(rig, job_id)
    rig.cancel(job_id)
    assert rig.until_ended(job_id).state is State.CANCELLED
    until(lambda: not [line for line in rig.processes().values() if "counter.py" in line])


def test_a_job_over_its_time_limit_fails_and_its_slot_goes_on(rig: Any) -> None:
    slow = rig.count(10_000, 0.05, max_runtime_s=0.5, gpus=2)
    after = rig.count(1, 0.01, gpus=2)
    job = rig.until_ended(slow)
    assert job.outcome.cause is Cause.TIMEOUT and "max_runtime_s" in job.outcome.message
    assert rig.until_ended(after).state is State.SUCCEEDED


def test_what_a_job_left_running_is_swept_before_its_slot_is_free(rig: Any) -> None:
    script = "setsid sh -c 'exec -a leftover env -i sleep 300' & setsid sleep 301 & echo up; exit 0"
    job_id = rig.submit(kind="command", argv=["bash", "-c", script])
    assert rig.until_ended(job_id).state is State.SUCCEEDED
    # the first one has no mark any more: only the process tree tells that it is ours
    lines = {
        line for pid in process_tree.descendants(rig.daemon.pid) for line in [_command_line(pid)] if "sleep" in line
    }
    assert lines == set()


def _command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode()
    except OSError:
        return ""
