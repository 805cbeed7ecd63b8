"""A small night on a whole rig: a fine-tune, a generation that uses its adapter, both started warm."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from until import until

from jobs.model import State
from jobs.rundir import read_json_lines

ROWS = [{"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"It is {n}."}]} for n in range(24)]  # fmt: skip
PROMPTS = [{"id": f"p{n}", "prompt": f"Say {n}"} for n in range(6)]


@pytest.fixture
def studio(make_rig: Any, tiny_model: Path, home: Path) -> Any:
    """A rig whose workers preload, with a model and data in its folders."""
    (home / "models").mkdir()
    shutil.copytree(tiny_model, home / "models" / "tiny")
    (home / "data").mkdir()
    for name, rows in (("rows.jsonl", ROWS), ("prompts.jsonl", PROMPTS)):
        (home / "data" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    rig = make_rig(slots="cpu:1", warm_start=True, allowed_paths=str(home / "data"))
    log = rig.settings.logs / "worker-cpu-0.log"
    until(lambda: log.exists() and "warm start is ready" in log.read_text(), within_s=120, evidence=rig.evidence)
    return rig


def finetune(rig: Any, **fields: Any) -> str:
    data = str(rig.settings.home / "data" / "rows.jsonl")
    small = {"max_steps": 12, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_length": 64}
    job: str = rig.submit(kind="finetune", model="tiny", data=data, save_steps=4, **small, **fields)
    return job


def test_a_fine_tune_and_a_generation_with_its_adapter_start_warm_and_survive_a_kill(studio: Any) -> None:
    rig = studio
    tuned = finetune(rig)
    asked = rig.submit(
        kind="generate",
        model="tiny",
        adapter=f"job:{tuned}",
        data=str(rig.settings.home / "data" / "prompts.jsonl"),
        max_new_tokens=4,
    )
    until(lambda: list(rig.folder(tuned).checkpoints.glob("step-*")), within_s=60, evidence=rig.evidence)
    child = rig.child("cpu:0")
    command = Path(f"/proc/{child}/cmdline").read_bytes()
    assert b"workers" in command and b"jobs" not in command  # forked from the preloaded worker, not exec'd
    os.kill(child, signal.SIGKILL)
    job = rig.until_ended(tuned, within_s=120)
    assert job.state is State.SUCCEEDED, rig.evidence()
    assert len(job.attempts) == 2 and "Going on from step" in rig.log(tuned)
    assert [line["step"] for line in read_json_lines(rig.folder(tuned).metrics) if "loss" in line] == list(range(1, 13))
    assert (rig.folder(tuned).adapter / "adapter_model.safetensors").exists()
    answers = rig.until_ended(asked, within_s=120)
    assert answers.state is State.SUCCEEDED, rig.evidence()
    rows = list(read_json_lines(rig.folder(asked).generations))
    assert [row["id"] for row in rows] == [row["id"] for row in PROMPTS]


def test_a_preempted_fine_tune_saves_and_goes_on_without_using_up_an_attempt(studio: Any) -> None:
    rig = studio
    job_id = finetune(rig)
    until(lambda: rig.folder(job_id).metrics.exists(), within_s=60, evidence=rig.evidence)
    rig.preempt(job_id)
    job = rig.until_ended(job_id, within_s=120)
    assert job.state is State.SUCCEEDED, rig.evidence()
    assert job.attempt == 1 and len(job.attempts) == 2
