"""What a preflight costs, and how near what it foretells comes to what the job then takes."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from figures import Figures
from rig import ROOT, BenchFailed
from warm import DATA, MODELS

from jobs import demo_model
from jobs.run import Order
from jobs.rundir import RunDir, read_json
from jobs.spec import dump, parse

STEPS = 60
DOCUMENT = {
    "kind": "finetune", "model": "m", "data": "d", "max_steps": STEPS, "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2, "max_length": 128, "eval_fraction": 0.2, "eval_steps": 20,
}  # fmt: skip


def checking(*, quick: bool) -> Iterator[Figures]:
    """The preflight of a fine-tune, then the fine-tune: seconds of each, foretold against taken, memory of both."""
    model = demo_model.prepare(MODELS, layers=2)
    took, share = Figures("s"), Figures("of what the job took")
    with tempfile.TemporaryDirectory(prefix="on-") as folder:
        for number in range(1 if quick else 4):
            run = RunDir(Path(folder) / str(number))
            run.create()
            check_s, check_bytes = _attempt(run, model, preflight=True)
            foretold_s = (read_json(run.preflight) or {})["measured"]["expected_s"]
            job_s, job_bytes = _attempt(run, model, preflight=False)
            took.add("preflight", check_s)
            took.add("foretold of the job", foretold_s)
            took.add("the job", job_s)
            share.add("time foretold", foretold_s / job_s)
            share.add("peak memory of the preflight", check_bytes / job_bytes)
    yield took
    yield share


def _attempt(run: RunDir, model: Path, *, preflight: bool) -> tuple[float, int]:
    """How long it took, imports included, and its peak of main memory."""
    paths = {"model": str(model), "data": str(DATA)}
    order = Order(
        job_id="1", attempt=1, fence=1, resume=False, spec=dump(parse(DOCUMENT)), paths=paths, preflight=preflight
    )
    order.write(run)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}  # fmt: skip
    began = time.monotonic()
    with run.log.open("ab") as log:
        child = subprocess.Popen([sys.executable, "-m", "jobs", str(run.path)], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # fmt: skip
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise BenchFailed(run.log.read_text()[-500:])
    return time.monotonic() - began, usage.ru_maxrss * 1024  # Linux counts it in KiB: getrusage(2)
