"""Redis away for as long as one likes, while one job runs on, one ends, and somebody tries to submit another one."""

import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from ledger import Ledgers
from rig import PROGRAM, Rig, until

from daemon import process_tree

STEP_S = 0.5
AFTER_S = 60.0


def outage(seconds: float, say: Callable[[str], None]) -> list[str]:
    """What was broken by it; empty when nothing was."""
    with tempfile.TemporaryDirectory(prefix="on-") as name:
        beside = Path(name)
        (beside / "ledgers").mkdir()
        home = beside / "h"
        home.mkdir()
        rig = Rig(home, beside, slots="cpu:2", warm_start=False)
        try:
            rig.start()
            rig.wait_ready()
            return _watch(rig, Ledgers(beside / "ledgers"), seconds, say)
        finally:
            rig.end()


def _watch(rig: Rig, ledgers: Ledgers, seconds: float, say: Callable[[str], None]) -> list[str]:
    steps = {"runs on": int((seconds + 10) / STEP_S), "ends meanwhile": max(2, int(seconds / 2 / STEP_S))}
    for job, count in steps.items():
        argv = [sys.executable, str(PROGRAM), str(ledgers.path(job)), str(count), str(STEP_S)]
        rig.user.submit({"kind": "command", "name": job, "argv": argv})
    rig.user.send()
    until(lambda: all(ledgers.starts(job) for job in steps), within_s=30, what="both jobs start")
    rig.outage.touch()
    for pid in rig.redis_pids():
        process_tree.send(pid, signal.SIGKILL)
    began = time.time()
    say(f"Redis is gone for {seconds:g} s; two jobs run")
    broken = _no_half_submission(rig)
    until(lambda: time.time() - began >= seconds, within_s=seconds + 5, what="the outage ends", poll_s=0.2)
    if not ledgers.moved("runs on", after=time.time() - 5 * STEP_S):
        broken.append("the job that should run on stands still")
    rig.outage.unlink()
    back = time.time()
    until(rig.user.answered, within_s=AFTER_S, what="the queue answers again")
    say(f"it answers again {time.time() - back:.2f} s after it was allowed back")
    rig.user.submit({"kind": "command", "name": "later", "argv": ["true"]})
    rig.user.send()
    until(lambda: {job["state"] for job in rig.user.jobs()} == {"succeeded"}, within_s=AFTER_S, what="every job ends")
    jobs = rig.user.jobs()
    say(f"every job has succeeded {time.time() - back:.2f} s after that")
    broken += [f"{job} started {n} times" for job in steps if (n := len(ledgers.starts(job))) != 1]
    broken += [f"{job['name']} took {len(job['attempts'])} attempts" for job in jobs if len(job["attempts"]) != 1]
    if len(jobs) != len(steps) + 1:
        broken.append(f"there are {len(jobs)} jobs, not {len(steps) + 1}")
    return broken


def _no_half_submission(rig: Rig) -> list[str]:
    """A submission while Redis is away is told to come again, and when."""
    key = {"Authorization": f"Bearer {rig.settings.token_file.read_text().strip()}"}
    answer = httpx.post(
        f"{rig.user.url}/api/v1/jobs",
        json={"kind": "command", "argv": ["true"]},
        headers=key,
        timeout=30,
        trust_env=False,
    )
    if answer.status_code == 503 and answer.headers.get("retry-after", "").isdigit():
        return []
    return [f"a submission got {answer.status_code} and Retry-After {answer.headers.get('retry-after')!r}"]
