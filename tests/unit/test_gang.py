"""How a gang's end is judged, with real processes that only pretend to train: whose fault it was, who is told, who is ended."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from daemon.process_tree import children
from jobs import gang, process
from jobs.ranks import ALONE
from jobs.run import Interrupted, JobError, Order, Run
from jobs.rundir import RunDir

#: What a rank does, as text of a program; `say` leaves its result.
BEGIN = """
import json, os, pathlib, signal, sys, time
rank = int(os.environ["RANK"])
folder = pathlib.Path.cwd() / ".ranks"
def say(**facts):
    usual = {"message": "", "hint": "", "next_fields": {}, "learned": {}}
    (folder / f"{rank}.json").write_text(json.dumps(usual | facts))
def wait_for(*names):
    deadline = time.monotonic() + 20
    while not all((folder / name).exists() for name in names):
        time.sleep(0.005)
        if time.monotonic() > deadline:
            sys.exit(f"{names} never came")
"""
SUCCEEDS = 'say(end="succeeded", metrics={"loss": 1.5})'
WAITS = "signal.pause()"

Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """A run whose ranks run these programs."""
    usual, before = signal.getsignal(signal.SIGUSR1), children(os.getpid())

    def make(*programs: str) -> Run:
        def execute(_: object, environment: Mapping[str, str], folder: Path, output: int, *keep: Any) -> int:
            program = BEGIN + programs[int(environment["RANK"])]
            return real(["-c", program], environment, folder, output)

        real = process.execute
        monkeypatch.setattr(process, "execute", execute)
        monkeypatch.setattr(process, "fork", execute)
        folder = RunDir(tmp_path)
        folder.create()
        spec = {"kind": "finetune", "gpus": len(programs), "parallel": "ddp"}
        return Run(folder, Order(job_id="1", attempt=1, fence=1, resume=False, spec=spec))

    yield make
    signal.signal(signal.SIGUSR1, usual)
    assert children(os.getpid()) == before, "a rank was left"


def failure(run: Run) -> JobError:
    with pytest.raises(JobError) as found:
        gang.run(run)
    return found.value


def test_the_first_ranks_metrics_are_the_attempts(start: Start) -> None:
    assert gang.run(start(SUCCEEDS, SUCCEEDS)) == {"loss": 1.5}


def test_a_rank_that_does_not_leave_is_ended_when_the_first_one_is_done(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gang, "PARTING_S", 0.0)
    assert gang.run(start(SUCCEEDS, WAITS)) == {"loss": 1.5}


def test_what_happens_to_the_others_when_the_first_one_is_done_changes_nothing(start: Start) -> None:
    assert gang.run(start(SUCCEEDS, 'wait_for("0.json"); time.sleep(0.1); os.abort()')) == {"loss": 1.5}


def test_the_rank_that_began_it_gives_the_cause_and_not_the_one_that_lost_it(start: Start) -> None:
    runs_out = 'say(end="failed", cause="oom_gpu", message="It ran out.", next_fields={"per_device_train_batch_size": 2}); sys.exit(1)'  # fmt: skip
    loses_it = 'wait_for("1.json"); say(end="failed", cause="user_error", message="Connection closed by peer"); sys.exit(1)'  # fmt: skip
    found = failure(start(loses_it, runs_out))
    assert (found.cause, found.message) == ("oom_gpu", "Rank 1: It ran out.")
    assert found.next_fields == {"per_device_train_batch_size": 2}


def test_what_all_of_them_say_is_said_once(start: Start) -> None:
    strays = 'say(end="failed", cause="nan", message="It went astray."); wait_for("0.json", "1.json"); sys.exit(1)'
    found = failure(start(strays, strays))
    assert (found.cause, found.message) == ("nan", "It went astray.")


def test_one_that_was_killed_is_told_before_one_that_lost_it(start: Start) -> None:
    loses_it = 'say(end="failed", cause="user_error", message="Connection closed by peer"); wait_for("gone"); sys.exit(1)'  # fmt: skip
    dies = '(folder / "gone").touch(); os.kill(os.getpid(), signal.SIGSEGV)'
    found = failure(start(loses_it, dies))
    assert found.cause == "signal"
    assert found.message == "Rank 1 of 2 was killed by SIGSEGV, which Overnight did not send."


def test_the_others_are_ended_at_once(start: Start) -> None:
    found = failure(start(WAITS, WAITS, "os.kill(os.getpid(), signal.SIGKILL)"))
    assert (found.cause, found.message) == ("signal", "Rank 2 of 3 was killed by SIGKILL, which Overnight did not send.")  # fmt: skip


def test_one_that_leaves_no_word_is_told_by_its_status(start: Start) -> None:
    assert failure(start(WAITS, "sys.exit(7)")).message == "Rank 1 exited with status 7 and left no result."


def test_a_stop_reaches_every_rank(start: Start) -> None:
    """Also one that cannot listen yet, and dies of it."""
    saves = f'signal.signal(signal.SIGTERM, lambda *_: (say(end="interrupted"), sys.exit(75))); {WAITS}'
    for programs in ((saves, saves), (WAITS, WAITS)):
        run = start(*programs)
        run.stop_requested = True
        with pytest.raises(Interrupted):
            gang.run(run)


def test_when_it_hangs_every_rank_is_asked_for_its_stacks(start: Start) -> None:
    """The first one ends when the other has heard it, too."""
    shows = 'say(end="succeeded", metrics={"shown": 1}), sys.exit(0)'
    first = f"""
def hear(*_):
    wait_for("1.json")
    {shows}
signal.signal(signal.SIGUSR1, hear)
wait_for("ready")
os.kill(os.getppid(), signal.SIGUSR1)
{WAITS}
"""
    second = f'signal.signal(signal.SIGUSR1, lambda *_: ({shows})); (folder / "ready").touch(); {WAITS}'
    assert gang.run(start(first, second)) == {"shown": 1}


def test_what_the_others_print_has_their_number(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    gang.run(start(f'print("step 1"); {SUCCEEDS}', f'print("a\\nb", file=sys.stderr); print("torn", end=""); {SUCCEEDS}'))  # fmt: skip
    said = capfd.readouterr().out.splitlines()
    assert sorted(said) == ["[rank 1] a", "[rank 1] b", "[rank 1] torn", "step 1"]


def test_each_rank_sees_one_gpu_and_stays_on_this_machine() -> None:
    base = {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b", "OMP_NUM_THREADS": "6", "OVERNIGHT_MARK": "m"}
    first, second = (gang.rank_environment(base, number, 2, 4000, 9) for number in range(2))
    assert (first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == ("GPU-a", "GPU-b")
    assert (second["RANK"], second["WORLD_SIZE"], second["LOCAL_RANK"], second["MASTER_PORT"]) == ("1", "2", "0", "4000")  # fmt: skip
    assert second["GLOO_SOCKET_IFNAME"] == second["NCCL_SOCKET_IFNAME"] == "lo"
    assert (second["MASTER_ADDR"], second["OMP_NUM_THREADS"], second["OVERNIGHT_MARK"]) == ("127.0.0.1", "3", "m")
    on_cpu = gang.rank_environment({"CUDA_VISIBLE_DEVICES": ""}, 1, 2, 4000, 9)
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == ""


def test_alone_nothing_is_asked_of_others() -> None:
    assert ALONE.decide(lambda: "here") == "here"
    assert (ALONE.any(True), ALONE.any(False), ALONE.least(7)) == (True, False, 7)
    ALONE.meet()
    assert "torch.distributed" not in sys.modules or ALONE.is_first
