"""Run folders for tests, and real processes that carry them out: forked from one that has imported torch, as on a rig."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from until import until

from jobs.__main__ import main
from jobs.run import Order, Run
from jobs.rundir import RunDir, read_json, read_json_lines
from jobs.spec import dump, parse

ROOT = Path(__file__).parent.parent


def run_folder(
    path: Path,
    document: Mapping[str, Any],
    paths: Mapping[str, object],
    *,
    resume: bool = False,
    attempt: int = 1,
    preflight: bool = False,
) -> RunDir:
    """A run folder with the orders for one attempt; the attempt's number is its fence, too."""
    folder = RunDir(path)
    folder.create()
    spec = dump(parse(document))
    places = {name: str(place) for name, place in paths.items()}
    order = Order(
        job_id="1", attempt=attempt, fence=attempt, resume=resume, spec=spec, paths=places, preflight=preflight
    )
    order.write(folder)
    return folder


#: What the processes find, and this one does not keep. Threads that wait for each other on a busy machine are slower than one.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),  # for the server's own imports
}


def start(
    folder: RunDir,
    *,
    free_bytes: int | None = None,
    dies_at: int | None = None,
    starves_above: int | None = None,
    as_gpus: bool = False,
) -> ForkServerProcess:
    """Start the attempt in a process of its own; its output goes to log.txt.

    `free_bytes`: what it is told of its disk. `dies_at`: it is killed as soon as it has written this step's metrics.
    `starves_above`: more rows at once than this are out of a GPU's memory. `as_gpus`: accelerate takes its processes for
    GPUs: on CPUs it would not split a model.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jobs.finetune", "jobs.generate", "jobs.evaluate"])
    process = context.Process(
        target=_attempt, args=(str(folder.path), free_bytes, dies_at, starves_above, as_gpus), daemon=True
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        process.start()  # the first one starts the server, which keeps this environment
    return process


def _attempt(path: str, free_bytes: int | None, dies_at: int | None, starves_above: int | None, as_gpus: bool) -> None:
    folder = RunDir(Path(path))
    if as_gpus:
        _pretend_gpus()
    if starves_above is not None:
        _starve_above(starves_above)
    if dies_at is not None:
        _die_at(dies_at)
    if free_bytes is not None:
        shutil.disk_usage = lambda _: SimpleNamespace(free=free_bytes)  # type: ignore[assignment,misc]
    log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.exit(main(folder.path))


def _die_at(last: int) -> None:
    write = Run.metrics

    def metrics(run: Run, step: int, **values: float | None) -> None:
        write(run, step, **values)
        if step >= last and run.ranks.is_first:
            os.kill(os.getpid(), signal.SIGKILL)

    Run.metrics = metrics  # type: ignore[method-assign]


def _starve_above(rows: int) -> None:
    """There is no GPU whose memory could run out: what torch would raise then is raised here."""
    import torch

    from jobs.trainers import Sealed

    def training_step(trainer: Any, model: Any, inputs: Mapping[str, Any], *rest: Any) -> Any:
        if len(inputs["input_ids"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super(Sealed, trainer).training_step(model, inputs, *rest)

    Sealed.training_step = training_step


def _pretend_gpus() -> None:
    from accelerate.state import DistributedType, PartialState

    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"


def finish(folder: RunDir, *, within_s: float = 120.0) -> int | None:
    """Run the attempt to its end. Returns its exit status."""
    return ended(start(folder), within_s=within_s)


def ended(process: ForkServerProcess, *, within_s: float = 120.0) -> int | None:
    """Wait for the end of an attempt; negative: the signal that killed it."""
    process.join(within_s)
    assert process.exitcode is not None, f"still running after {within_s} s"
    return process.exitcode


def at_step(folder: RunDir, process: ForkServerProcess, step: int) -> None:
    """Return when the attempt has told that it is at this step."""
    until(
        lambda: (read_json(folder.progress) or {}).get("step", 0) >= step or process.exitcode is not None,
        within_s=120,
        evidence=lambda: log(folder),
    )
    assert process.exitcode is None, log(folder)


def log(folder: RunDir) -> str:
    """What the attempts in this folder printed."""
    return folder.log.read_text() if folder.log.exists() else ""


def curve(folder: RunDir) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that have a loss, without their times."""
    lines = [line for line in read_json_lines(folder.metrics) if "loss" in line]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def start_cold(folder: RunDir, **environment: str) -> subprocess.Popen[bytes]:
    """The attempt as a worker starts a command: its output in log.txt, a process group of its own."""
    with folder.log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def exit_code(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
