"""The process of one attempt: `python -m jobs RUN_FOLDER`, forked from this one when it is preloaded, exec'd otherwise."""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from resource import struct_rusage

import jobs.command  # noqa: F401 - a forked command must not wait for its import
from jobs.__main__ import main as run_folder
from jobs.process import execute, fork
from jobs.rundir import RunDir


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code or its signal, and the most memory it had."""

    exit_code: int | None
    signal: int | None
    peak_rss_bytes: int


class Child:
    """A running attempt."""

    def __init__(self, pid: int):
        self.pid = pid
        self.handle = os.pidfd_open(pid)  # readable when it ends

    def terminate(self) -> None:
        """Ask it to save and stop. Only itself: it knows what to tell its own children."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it now."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Ended:
        """Collect it when it has ended."""
        _, status, usage = os.wait4(self.pid, 0)
        os.close(self.handle)
        return _ended(os.waitstatus_to_exitcode(status), usage)


def start(folder: RunDir, environment: Mapping[str, str], *, warm: bool) -> Child:
    """Start the attempt that the folder describes; its output goes to log.txt."""
    log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if warm:
            return Child(fork(lambda: run_folder(folder.path), environment, folder.path, log))
        return Child(execute(["-m", "jobs", str(folder.path)], environment, folder.path, log))
    finally:
        os.close(log)


def _ended(code: int, usage: struct_rusage) -> Ended:
    peak = usage.ru_maxrss * 1024  # Linux counts it in KiB: getrusage(2)
    return Ended(code, None, peak) if code >= 0 else Ended(None, -code, peak)


def environment_of(
    base: Mapping[str, str],
    *,
    job_id: str,
    slots: tuple[str, ...],
    index: int,
    folder: Path,
    threads: int,
    secrets: Mapping[str, str],
    visible: Sequence[str] | None = None,
) -> dict[str, str]:
    """The child's environment: the worker's without anything of the rig's own, the pin, the job, and its secrets (S35).

    `visible`: its GPUs as CUDA is told of them, where that is not by their UUIDs.
    """
    kept = {k: v for k, v in base.items() if not k.startswith(("OVERNIGHT_", "RQ_")) or k.startswith("OVERNIGHT_MARK")}
    gpus = [slot for slot in slots if not slot.startswith("cpu:")]
    return {
        **kept,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(gpus if visible is None else visible),
        "OVERNIGHT_JOB_ID": job_id,
        "OVERNIGHT_GPU_UUID": ",".join(gpus),
        "OVERNIGHT_GPU_INDEX": str(index),
        "OVERNIGHT_RUN_DIR": str(folder),
        "OVERNIGHT_CPU_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **secrets,
    }
