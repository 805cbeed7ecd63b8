"""The last resort of a rig that is cut off: real processes, short leases."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from until import until

from jobs.rundir import RunDir
from workers.fence import SelfFence


@pytest.fixture
def child() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["sleep", "60"])


def fence_of(child: "subprocess.Popen[bytes]", folder: Path, lease_s: float) -> tuple[SelfFence, int]:
    pidfd = os.pidfd_open(child.pid)
    return SelfFence(pidfd, 3, RunDir(folder), lease_s), pidfd


def test_a_lease_that_is_not_renewed_ends_the_child(child: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    fence, pidfd = fence_of(child, tmp_path, lease_s=0.3)
    assert child.wait(5) == -9
    fence.stop()
    assert fence.fired
    os.close(pidfd)


def test_renewals_and_an_end_in_time_leave_it_alone(child: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    fence, pidfd = fence_of(child, tmp_path, lease_s=0.6)
    ends = time.monotonic() + 1.2
    until(lambda: fence.renewed(time.monotonic()) or time.monotonic() > ends)
    assert child.poll() is None and not fence.fired
    fence.stop()
    child.kill()
    child.wait()
    os.close(pidfd)


def test_a_keeper_that_is_stuck_itself_is_ended_with_its_word_left(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:  # a horse that hangs in a call to a Redis that does not answer
        child = subprocess.Popen(["sleep", "60"])
        fence_of(child, tmp_path, lease_s=0.3)
        signal.pause()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == 9
    told = json.loads((tmp_path / "exit.json").read_text())
    assert (told["fence"], told["stopped_for"]) == (3, "not_ours")
