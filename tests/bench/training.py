"""Our fine-tune beside TRL's own trainer with the same settings: whether the curve is the same, and how fast each one is."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import Figures
from rig import ROOT, BenchFailed
from warm import DATA, MODELS, SCRIPT

from jobs import demo_model
from jobs.run import Order
from jobs.rundir import RunDir, read_json_lines
from jobs.spec import dump, parse

STEPS = 12
#: What both do: every token is learnt, for that is what TRL does with chats.
PARAMETERS = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_length": 128,
    "assistant_only_loss": False,
}
RUN_S = 600.0
Curve = Sequence[Mapping[str, Any]]


def training(*, quick: bool) -> Iterator[Figures]:
    """The same LoRA fine-tune as a job and as a plain TRL script, in turns: difference of the losses, tokens/s."""
    model = demo_model.prepare(MODELS, layers=2)
    speed, difference = Figures("tokens/s"), Figures("of the loss")
    with tempfile.TemporaryDirectory(prefix="on-") as folder:
        for number in range(1 if quick else 6):
            places = [Path(folder) / f"{name}-{number}" for name in ("job", "script")]
            if number % 2:  # neither is always the first
                plain, ours = _script(model, places[1]), _job(model, places[0])
            else:
                ours, plain = _job(model, places[0]), _script(model, places[1])
            if [line["step"] for line in ours] != [line["step"] for line in plain]:
                raise BenchFailed("one of the two took other steps")
            speed.add("job", _tokens_per_s(ours))
            speed.add("plain TRL", _tokens_per_s(plain))
            speed.add("job / plain TRL", _tokens_per_s(ours) / _tokens_per_s(plain))
            gaps = [abs(mine["loss"] - theirs["loss"]) for mine, theirs in zip(ours, plain, strict=True)]
            difference.add("largest difference at a step", max(gaps))
            difference.add("loss at the first step", plain[0]["loss"])
            difference.add("loss at the last step", plain[-1]["loss"])
    yield speed
    yield difference


def _tokens_per_s(curve: Curve) -> float:
    """Without the first step, which warms up."""
    first, last = curve[0], curve[-1]
    return float((last["num_tokens"] - first["num_tokens"]) / (last["time"] - first["time"]))


def _job(model: Path, path: Path) -> Curve:
    folder = RunDir(path)
    folder.create()
    document = {"kind": "finetune", "model": "m", "data": "d", "warmup_ratio": 0.0, "save_steps": STEPS, **PARAMETERS}
    paths = {"model": str(model), "data": str(DATA)}
    Order(job_id="1", attempt=1, fence=1, resume=False, spec=dump(parse(document)), paths=paths).write(folder)
    _run([sys.executable, "-m", "jobs", path], path)
    return list(read_json_lines(folder.metrics))


def _script(model: Path, path: Path) -> Curve:
    path.mkdir()
    _run([sys.executable, SCRIPT, model, DATA, path, json.dumps(PARAMETERS)], path)
    return list(json.loads((path / "curve.json").read_text()))


def _run(argv: Sequence[object], folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}  # fmt: skip
    with (folder / "errors.txt").open("wb") as errors:
        done = subprocess.run(
            [str(word) for word in argv], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            timeout=RUN_S, check=False,
        )  # fmt: skip
    if done.returncode:
        raise BenchFailed((folder / "errors.txt").read_text()[-500:])
