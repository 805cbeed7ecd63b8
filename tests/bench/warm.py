"""How soon a fine-tune computes: a preloaded worker, a cold one, and a plain script that does the same with TRL."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from figures import Figures
from rig import ROOT, Rig, rig, until

from jobs import demo_model

DATA = ROOT / "deploy" / "examples" / "instructions.jsonl"
SCRIPT = Path(__file__).with_name("plain_sft.py")
#: Converted once per checkout, as the tests do.
MODELS = ROOT / ".pytest_cache" / "d" / "models"
#: What both do.
PARAMETERS = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_length": 128,
    "assistant_only_loss": False,
}
RUN_S = 240.0


def warm(*, quick: bool) -> Iterator[Figures]:
    """Submission -> the recipe's first line (everything is imported), and -> the end of the first training step."""
    model = demo_model.prepare(MODELS, layers=2)
    figures = Figures("s")
    with ExitStack() as stack:
        cold = stack.enter_context(rig(slots="cpu:2", allowed_paths=str(DATA.parent)))
        preloaded = stack.enter_context(rig(slots="cpu:2", allowed_paths=str(DATA.parent), warm_start=True))
        for each in (cold, preloaded):
            shutil.copytree(model, each.settings.models / model.name)
        preloaded.wait_preloaded()
        _script(model, preloaded.settings.home / "before")  # the disk's cache is warm for all three
        for number in range(1 if quick else 4):
            lines = {
                "plain script": _script(model, preloaded.settings.home / f"script-{number}"),
                "not preloaded": _job(cold, model.name),
                "preloaded": _job(preloaded, model.name),
            }
            for name, (first_line, first_step) in lines.items():
                figures.add(f"{name}: first line", first_line)
                figures.add(f"{name}: first step", first_step)
    yield figures


def _job(rig: Rig, model: str) -> tuple[float, float]:
    began = time.time()
    job_id = rig.submit(kind="finetune", model=model, data=str(DATA), **PARAMETERS)
    rig.wait_succeeded(job_id, within_s=RUN_S)
    folder = rig.folder(job_id)
    first_step = json.loads(folder.metrics.read_text().splitlines()[0])
    # environment.json is the first thing that the recipe writes, and it is written once
    return folder.environment.stat().st_mtime - began, first_step["time"] - began


def _script(model: Path, folder: Path) -> tuple[float, float]:
    folder.mkdir()
    marks = folder / "marks.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    began = time.time()
    process = subprocess.Popen(
        [sys.executable, SCRIPT, model, DATA, folder, json.dumps(PARAMETERS)], env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(folder / "errors.txt").open("wb"),
    )  # fmt: skip
    try:
        until(lambda: process.poll() is not None, within_s=RUN_S, what="the end of the plain script")
    finally:
        process.kill()
        process.wait()
    until(marks.exists, within_s=1, what=f"the script's times; it said {(folder / 'errors.txt').read_text()[-500:]}")
    first_line, first_step = json.loads(marks.read_text())
    return first_line - began, first_step - began
