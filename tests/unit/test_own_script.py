"""Somebody's own script, as a real process: its folder comes along, it tells how it goes, and goes on where it was killed."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attempts import exit_code, log, run_folder, start_cold

from jobs import interpreter, snapshot
from jobs.rundir import RunDir, read_json, read_json_lines

TRAINING = """
import json, os, signal
import overnight

state = {"loss": 8.0}
overnight.stop_requested()
first = overnight.load(lambda folder: state.update(json.loads((folder / "state.json").read_text())))
print("from", first)
for step in range(first + 1, 9):
    state["loss"] /= 2
    overnight.log(step, 8, loss=state["loss"], broken=float("nan"))
    overnight.save(step, lambda folder: (folder / "state.json").write_text(json.dumps(state)))
    if step == int(os.environ.get("DIE_AT", 0)) and not overnight.resume:
        os.kill(os.getpid(), signal.SIGKILL)
    if step == int(os.environ.get("STOP_AT", 0)) and not overnight.resume:
        os.kill(os.getppid(), signal.SIGTERM)
        while not overnight.stop_requested():
            pass
    if overnight.stop_requested():
        overnight.interrupted()
"""


def job(path: Path, script: str, *, resume: bool = False, attempt: int = 1, argv: tuple[str, ...] = ("python", "train.py"), **fields: Any) -> RunDir:  # fmt: skip
    laptop = path / "laptop"
    laptop.mkdir(exist_ok=True)
    (laptop / "train.py").write_text(script)
    archive = path / "archive"
    with archive.open("wb") as file:
        snapshot.pack(laptop, snapshot.listing(laptop).names, file)
    document = {"kind": "command", "argv": list(argv), "workdir": "sha256:" + "0" * 64, "python": "rig", **fields}
    return run_folder(path / "run", document, {"workdir": archive}, resume=resume, attempt=attempt)


def losses(folder: RunDir) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_json_lines(folder.metrics)]


def test_its_folder_comes_along_and_it_tells_how_it_goes(tmp_path: Path) -> None:
    folder = job(tmp_path, TRAINING)
    assert exit_code(start_cold(folder)) == 0, log(folder)
    assert losses(folder) == [(step, 8.0 / 2**step) for step in range(1, 9)]
    told = read_json(folder.progress) or {}
    assert (told["fence"], told["step"], told["total"]) == (1, 8, 8)
    assert (read_json(folder.result) or {})["metrics"] == {"loss": 8.0 / 2**8, "exit_code": 0}
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-000007", "step-000008"]


def test_killed_in_the_middle_it_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    folder = job(tmp_path, TRAINING, env={"DIE_AT": "5"})
    assert exit_code(start_cold(folder)) != 0
    assert (read_json(folder.result) or {})["cause"] == "signal"
    again = job(tmp_path, TRAINING, env={"DIE_AT": "5"}, resume=True, attempt=2)
    assert exit_code(start_cold(again)) == 0
    assert "from 5" in log(folder)
    assert losses(folder) == [(step, 8.0 / 2**step) for step in range(1, 9)]


def test_asked_to_stop_it_saves_and_says_so(tmp_path: Path) -> None:
    folder = job(tmp_path, TRAINING, env={"STOP_AT": "3"})
    assert exit_code(start_cold(folder)) == 75, log(folder)
    assert (read_json(folder.result) or {})["end"] == "interrupted"
    assert [step for step, _ in losses(folder)] == [1, 2, 3]


def test_a_checkpoint_that_was_not_finished_does_not_count(tmp_path: Path) -> None:
    script = "import overnight\novernight.save(1, lambda f: (f / 'a').write_text('1'))\n"
    script += "(overnight.checkpoint_dir() / '.step-000002.tmp').mkdir()\nprint('newest', overnight.latest().name)\n"
    folder = job(tmp_path, script)
    assert exit_code(start_cold(folder)) == 0
    assert "newest step-000001" in log(folder)


@pytest.mark.slow
def test_transformers_own_trainer_saves_when_it_is_asked_to_stop_and_goes_on(tmp_path: Path) -> None:
    script = """
import os, signal, torch, overnight
from transformers import Trainer, TrainingArguments, TrainerCallback

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(1, 1)
    def forward(self, x, labels):
        return {"loss": ((self.line(x) - labels) ** 2).mean()}

class Once(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3 and not overnight.resume:
            os.kill(os.getppid(), signal.SIGTERM)
            while not overnight.stop_requested():
                pass

rows = [{"x": torch.tensor([float(n)]), "labels": torch.tensor([2.0 * n])} for n in range(8)]
args = TrainingArguments(str(overnight.checkpoint_dir()), max_steps=8, logging_steps=1, save_strategy="no", report_to="none",
                         per_device_train_batch_size=2, learning_rate=1e-3, use_cpu=True)
trainer = Trainer(Model(), args, train_dataset=rows, callbacks=[overnight.TrainerCallback(), Once()])
trainer.train(resume_from_checkpoint=overnight.last_trainer_checkpoint())
print("all of it")
"""
    folder = job(tmp_path, script)
    assert exit_code(start_cold(folder)) == 75, log(folder)
    assert (folder.checkpoints / "checkpoint-4").is_dir() and "all of it" not in log(folder)
    assert exit_code(start_cold(job(tmp_path, script, resume=True, attempt=2))) == 0, log(folder)
    assert "all of it" in log(folder)
    steps = [line["step"] for line in read_json_lines(folder.metrics) if "loss" in line]
    assert steps == list(range(1, 9))


def test_a_helper_outside_of_a_job_keeps_things_below_the_folder(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(interpreter.__file__).parent / 'helper')!r})\n" + TRAINING
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OVERNIGHT_")}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment, capture_output=True)
    lines = (tmp_path / "overnight-run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))


def test_python_is_uvs_where_the_folder_has_a_lock_file(tmp_path: Path) -> None:
    (tmp_path / "uv.lock").touch()
    assert interpreter.chosen(["python", "a.py"], "auto", tmp_path) == ["uv", "run", "--frozen", "python", "a.py"]
    assert interpreter.chosen(["python", "a.py"], "rig", tmp_path) == [sys.executable, "a.py"]
    assert interpreter.chosen(["make", "all"], "auto", tmp_path) == ["make", "all"]


def test_python_is_the_folders_own_where_it_has_one(tmp_path: Path) -> None:
    own = tmp_path / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    own.chmod(own.stat().st_mode | stat.S_IXUSR)
    assert interpreter.chosen(["python3", "a.py"], "auto", tmp_path) == [str(own), "a.py"]


def test_an_archive_that_went_bad_is_told(tmp_path: Path) -> None:
    folder = job(tmp_path, "print('never')\n")
    (tmp_path / "archive").write_bytes(b"\0" * 100)
    assert exit_code(start_cold(folder)) == 1
    result = read_json(folder.result) or {}
    assert result["cause"] == "bad_input" and "The working folder is no snapshot" in result["message"]
