"""Jobs handed to a real Slurm: its single-node server, started for these tests alone. docs/other-engines.md."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from until import until

ROOT = Path(__file__).parents[2]
ADAPTER = ROOT / "deploy" / "slurm" / "overnight-sbatch"
COUNTER = ROOT / "tests" / "counter.py"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "scancel")

pytestmark = pytest.mark.skipif(
    any(shutil.which(name) is None for name in PROGRAMS) or os.geteuid() != 0,
    reason="needs root and a single-node Slurm: apt-get install slurmctld slurmd slurm-client",
)


class Slurm:
    """One controller and one node with two GPUs, which are really /dev/zero and /dev/null."""

    def __init__(self, home: Path):
        self.home = home
        self.environment = {**os.environ, "SLURM_CONF": str(home / "slurm.conf"), "OVERNIGHT_PYTHON": sys.executable}
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        host, ports = socket.gethostname().split(".")[0], free_ports(2)
        for name in ("state", "spool"):
            (self.home / name).mkdir()
        settings = {
            "ClusterName": "one",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": ports[0],
            "SlurmdPort": ports[1],
            "AuthType": "auth/none",
            "CredType": "cred/none",
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "StateSaveLocation": self.home / "state",
            "SlurmdSpoolDir": self.home / "spool",
            "SlurmctldPidFile": self.home / "slurmctld.pid",
            "SlurmdPidFile": self.home / "slurmd.pid",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SelectType": "select/cons_tres",
            "GresTypes": "gpu",
            "MpiDefault": "none",
            "ReturnToService": 2,
            "KillWait": 5,
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=1",
        }
        node = f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory=500 Gres=gpu:2 State=UNKNOWN"
        lines = [*(f"{key}={value}" for key, value in settings.items()), node]
        lines.append("PartitionName=night Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
        (self.home / "slurm.conf").write_text("\n".join(lines) + "\n")
        (self.home / "gres.conf").write_text(f"NodeName={host} Name=gpu File=/dev/zero,/dev/null\n")
        self._run("slurmctld")
        until(lambda: self.call("scontrol", "ping").returncode == 0, within_s=20, evidence=self.evidence)
        self._run("slurmd")
        until(lambda: "idle" in self.call("sinfo", "-h", "-o", "%T").stdout, within_s=20, evidence=self.evidence)

    def end(self) -> None:
        self.call("scancel", "--full", "--signal=KILL", "--user=root")
        self.call("scancel", "--user=root")
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def call(self, *argv: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*map(str, argv)], env=self.environment, capture_output=True, text=True, cwd=cwd)

    def adapter(self, *argv: object) -> str:
        """Its answer; it must succeed."""
        done = self.call(ADAPTER, *argv)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def job(self, folder: Path, *argv: object, **fields: Any) -> None:
        """A command as a run folder, submitted."""
        document = self.home / f"{folder.name}.json"
        document.write_text(json.dumps({"kind": "command", "argv": [*map(str, argv)], **fields}))
        self.adapter("new", document, folder)
        self.adapter("submit", folder, "--", "--cpus-per-task=1")

    def state(self, folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.adapter("state", folder))
        return found

    def until(self, folder: Path, state: str) -> dict[str, Any]:
        until(lambda: self.state(folder)["state"] == state, within_s=40, evidence=lambda: self.evidence(folder))
        return self.state(folder)

    def evidence(self, folder: Path | None = None) -> str:
        paths = [*self.home.glob("*.log"), *(folder.glob("*.txt") if folder else ())]
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-1500:]}" for path in paths)

    def _run(self, program: str) -> None:
        with (self.home / f"{program}.log").open("wb") as output:
            argv = [program, "-D", "-f", str(self.home / "slurm.conf")]
            self._processes.append(subprocess.Popen(argv, env=self.environment, stdout=output, stderr=output))


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    home = Path(tempfile.mkdtemp(prefix="on-slurm-"))
    server = Slurm(home)
    try:
        server.start()
        yield server
    finally:
        server.end()
        shutil.rmtree(home, ignore_errors=True)


def test_a_job_gets_its_gpus_from_slurm_and_reports_back(slurm: Slurm) -> None:
    folder = slurm.home / "runs" / "7"
    slurm.job(folder, "sh", "-c", "echo gpus $CUDA_VISIBLE_DEVICES; echo out > $OVERNIGHT_OUTPUT_DIR/file", gpus=2)
    assert slurm.call(ADAPTER, "wait", folder).returncode == 0
    found = slurm.state(folder)
    assert (found["state"], found["attempt"]) == ("succeeded", 1)
    assert "gpus 0,1" in (folder / "log.txt").read_text()
    assert (folder / "output" / "file").read_text() == "out\n"


def test_a_job_that_is_asked_to_stop_saves_is_requeued_and_resumes(slurm: Slurm) -> None:
    folder = slurm.home / "runs" / "8"
    slurm.job(folder, sys.executable, COUNTER, 30, 0.1)
    until(lambda: (folder / "log.txt").exists() and "start 0" in (folder / "log.txt").read_text(), within_s=30)
    slurm_job = slurm.state(folder)["slurm"]["job"]
    slurm.call(
        "scancel", "--batch", "--signal=TERM", slurm_job
    )  # as --signal=B:TERM@60 does before the end of the time
    slurm.until(folder, "queued")
    until(lambda: slurm.state(folder)["slurm"]["state"] == "PENDING", within_s=20)
    slurm.call("scontrol", "update", f"JobId={slurm_job}", "StartTime=now")  # Slurm would wait two minutes
    found = slurm.until(folder, "succeeded")
    assert (found["attempt"], found["attempts"]) == (1, 2)  # an interruption is not counted
    log = (folder / "log.txt").read_text()
    assert log.count("start ") == 2 and "resume 1" in log and log.count("end 30") == 1


def test_a_failure_is_told_with_its_cause_and_its_exit_status(slurm: Slurm) -> None:
    folder = slurm.home / "runs" / "9"
    slurm.job(folder, "sh", "-c", "echo no such luck; exit 3")
    assert slurm.call(ADAPTER, "wait", folder).returncode == 1
    outcome = slurm.state(folder)["outcome"]
    assert outcome["cause"] == "user_error" and "no such luck" in outcome["message"]


def test_a_cancelled_job_stays_cancelled(slurm: Slurm) -> None:
    folder = slurm.home / "runs" / "10"
    slurm.job(folder, sys.executable, COUNTER, 600, 0.1)
    until(lambda: (folder / "log.txt").exists() and "start 0" in (folder / "log.txt").read_text(), within_s=30)
    slurm.adapter("cancel", folder)
    assert slurm.until(folder, "cancelled")["state"] == "cancelled"
    assert "saved" in (folder / "log.txt").read_text()
    until(lambda: slurm.call("squeue", "-h").stdout.strip() == "", within_s=20)


def test_what_a_rig_alone_knows_is_refused_in_words(slurm: Slurm) -> None:
    document = slurm.home / "bad.json"
    document.write_text(json.dumps({"kind": "generate", "model": "job:3", "data": "nowhere.jsonl"}))
    refused = slurm.call(ADAPTER, "new", document, slurm.home / "runs" / "11")
    assert refused.returncode == 2 and "is known to a rig only" in refused.stderr
