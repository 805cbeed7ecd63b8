"""Whose process is on the GPU, told from real processes."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from until import until

from daemon.owner import MIB, Kind, Process, look_up, strangers
from daemon.process_tree import children
from daemon.samples import GpuProcess

MARK = "OVERNIGHT_MARK=/somewhere:rig"
NOBODY = 2**22 + 1  # above the kernel's largest pid


def kind_of(pid: int, *, daemon: int = NOBODY) -> Kind:
    return look_up([GpuProcess(pid, 300 * MIB, "C")], mark=MARK, daemon=daemon)[0].kind


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["tail", "-f", "/dev/null"])
    yield process
    process.kill()
    process.wait()


def test_whoever_carries_the_mark_is_ours_even_in_another_session_without_its_parent() -> None:
    forks = (
        "import os, sys, time; os.fork() and sys.exit(); os.setsid(); print(os.getpid(), flush=True); time.sleep(60)"
    )
    name, value = MARK.split("=")
    process = subprocess.Popen(
        [sys.executable, "-c", forks], env={**os.environ, name: value}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.wait()
    try:
        assert kind_of(pid) is Kind.OWN
    finally:
        os.kill(pid, 9)
        process.stdout.close()


def test_what_descends_from_the_daemon_is_ours() -> None:
    process = subprocess.Popen(["sh", "-c", "tail -f /dev/null & wait"])
    try:
        below = until(lambda: children(process.pid))[0]
        assert kind_of(below, daemon=process.pid) is Kind.OWN
        assert kind_of(below) is Kind.OTHER
    finally:
        os.kill(below, 9)
        process.wait()


def test_somebody_else_is_somebody_else_and_who_is_gone_cannot_be_seen(sleeper: subprocess.Popen[bytes]) -> None:
    assert kind_of(sleeper.pid) is Kind.OTHER
    assert kind_of(1) is not Kind.OWN, "another user's environment cannot be read"
    assert kind_of(NOBODY) is Kind.UNSEEN


def test_a_name_with_blanks_and_brackets_is_read_whole(tmp_path: object) -> None:
    script = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'a) (b 1 2'); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    found = look_up([GpuProcess(process.pid, None, "G")], mark=MARK, daemon=NOBODY)[0]
    process.communicate()
    assert (found.name, found.kind) == ("a) (b 1 2", Kind.OTHER)


def process(kind: Kind, mib: int | None, *, computes: bool = True) -> Process:
    return Process(1, "blender", kind, None if mib is None else mib * MIB, computes)


def test_only_who_uses_the_gpu_for_work_or_play_counts() -> None:
    assert strangers([process(Kind.OTHER, 255)], idle=True) == ()
    assert strangers([process(Kind.OTHER, 256)], idle=True)
    assert strangers([process(Kind.OTHER, 511, computes=False)], idle=True) == ()
    assert strangers([process(Kind.OTHER, 512, computes=False)], idle=True)
    assert strangers([process(Kind.DESKTOP, 900), process(Kind.OWN, 9000)], idle=True) == ()
    assert strangers([process(Kind.OTHER, None)], idle=True) and not strangers(
        [process(Kind.OTHER, None, computes=False)], idle=True
    )


def test_who_cannot_be_seen_may_be_the_job_itself_while_one_runs() -> None:
    unseen = [process(Kind.UNSEEN, 9000)]
    assert strangers(unseen, idle=True) and not strangers(unseen, idle=False)


def test_a_stranger_is_named_with_its_memory() -> None:
    assert str(process(Kind.OTHER, 3174)) == "blender (pid 1, 3.1 GiB)"
