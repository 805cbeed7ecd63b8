"""The folder and the process, as any engine starts them: no rig, no queue, no Slurm."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from until import until

from daemon.reindex import jobs_on_disk
from jobs.model import State

ROOT = Path(__file__).parents[2]
ADAPTER = ROOT / "deploy" / "slurm" / "overnight-sbatch"
COUNTER = ROOT / "tests" / "counter.py"
ENVIRONMENT = {**os.environ, "OVERNIGHT_PYTHON": sys.executable}


def adapter(*argv: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(ADAPTER), *map(str, argv)], env=ENVIRONMENT, capture_output=True, text=True)


def run_folder(tmp_path: Path, *argv: object, **fields: Any) -> Path:
    document, folder = tmp_path / "job.json", tmp_path / "runs" / "7"
    document.write_text(json.dumps({"kind": "command", "argv": [*map(str, argv)], **fields}))
    made = adapter("new", document, folder)
    assert made.returncode == 0, made.stderr
    return folder


def test_an_attempt_that_is_stopped_ends_with_75_and_the_next_one_goes_on(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, sys.executable, COUNTER, 20, 0.1)
    process = subprocess.Popen([str(ADAPTER), "run", str(folder)], env=ENVIRONMENT)
    until(lambda: (folder / "log.txt").exists() and "start 0" in (folder / "log.txt").read_text(), within_s=30)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert adapter("run", folder).returncode == 0
    log = (folder / "log.txt").read_text()
    assert "saved" in log and "resume 1" in log and log.count("end 20") == 1
    [job] = jobs_on_disk(tmp_path / "runs", now=1.0)  # a rig's reindex reads the same record
    assert (job.state, job.attempt, len(job.attempts)) == (State.SUCCEEDED, 1, 2)


def test_an_attempt_that_died_with_its_machine_is_judged_by_the_next_one(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, sys.executable, COUNTER, 20, 0.1)
    process = subprocess.Popen([str(ADAPTER), "run", str(folder)], env=ENVIRONMENT, start_new_session=True)
    until(lambda: (folder / "log.txt").exists() and "start 0" in (folder / "log.txt").read_text(), within_s=30)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert adapter("run", folder).returncode == 0
    state = json.loads((folder / "state.json").read_text())
    assert [run["cause"] for run in state["attempts"]] == ["lost", None] and state["attempt"] == 2


def test_a_limit_of_time_is_a_failure_and_ends_it(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, sys.executable, COUNTER, 600, 0.1, max_runtime_s=0.5)
    assert adapter("run", folder).returncode == 1
    assert json.loads((folder / "state.json").read_text())["outcome"]["cause"] == "timeout"
    assert adapter("run", folder).returncode == 1  # what has ended is not begun again
