"""Trackers that a rig is set up for are told by a real training, offline, and an attempt that resumes goes on with the same run."""

import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attempts import exit_code, log, run_folder, start_cold

from jobs import trackers
from jobs.ranks import ALONE, Ranks
from jobs.run import Order, Run
from jobs.rundir import RunDir, read_json
from jobs.spec import dump, parse

DOCUMENT = {
    "kind": "finetune", "model": "tiny", "data": "rows", "name": "bolts", "max_steps": 2, "save_steps": 1,
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "lora": {"r": 2},
}  # fmt: skip
INSTALLED = [name for name in ("wandb", "trackio", "mlflow") if importlib.util.find_spec(name)]


def attempt(path: Path, model: Path, number: int, **fields: Any) -> RunDir:
    rows = path.with_name("rows")
    rows.write_text(json.dumps({"prompt": "Bolt?", "completion": "Shelf."}) + "\n")
    places = {"model": model, "data": rows}
    folder = run_folder(path, {**DOCUMENT, **fields}, places, resume=number > 1, attempt=number)
    order = read_json(folder.spec) or {}
    order["rig"] = {"trackers": ["wandb", "trackio", "mlflow"]}
    folder.spec.write_text(json.dumps(order))
    return folder


def environment(folder: RunDir) -> dict[str, str]:
    return {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder.path}/mlflow.db",
        "OMP_NUM_THREADS": "1",
    }


class Trainer:
    """What of a trainer is touched."""

    def __init__(self) -> None:
        self.args = SimpleNamespace(run_name=None, project=None)
        self.callbacks: list[Any] = []

    def add_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)


def joined(folder: Path, names: list[str], ranks: Ranks = ALONE) -> Trainer:
    spec = dump(parse(DOCUMENT))
    order = Order(job_id="7", attempt=1, fence=1, resume=False, spec=spec, rig={"trackers": names} if names else {})
    trainer = Trainer()
    trackers.join(trainer, Run(RunDir(folder), order, ranks))
    return trainer


def test_nobody_is_told_unless_the_rig_is_set_up_for_it(tmp_path: Path) -> None:
    before = dict(os.environ)
    assert joined(tmp_path, []).callbacks == []
    assert joined(tmp_path, ["wandb"], Ranks(number=1, count=2)).args.run_name is None  # the first of several tells
    assert dict(os.environ) == before and not list(tmp_path.iterdir())


def test_a_tracker_that_is_not_installed_is_told_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    trainer = joined(tmp_path, ["wandb", "mlflow"])
    assert trainer.callbacks == [] and trainer.args.run_name == "bolts (job 7)"
    out = capsys.readouterr().out
    assert "Tracker wandb is not told: its package is not installed on the rig (pip install wandb)." in out
    assert os.environ["WANDB_PROJECT"] == "mine"


@pytest.mark.skipif(len(INSTALLED) < 3, reason="needs wandb, trackio and mlflow")
def test_all_of_them_are_told_and_a_resume_goes_on_with_the_same_runs(tmp_path: Path, tiny_model: Path) -> None:
    folder = attempt(tmp_path / "1", tiny_model, 1)
    assert exit_code(start_cold(folder, **environment(folder))) == 0, log(folder)
    first = read_json(folder.trackers) or {}
    assert first.keys() == {"wandb", "mlflow"} and first["wandb"].startswith("job-1-")
    again = attempt(tmp_path / "1", tiny_model, 2, max_steps=3)
    assert exit_code(start_cold(again, **environment(folder))) == 0, log(folder)
    assert read_json(folder.trackers) == first
    assert log(folder).count("is told.") == 6 and "told no more" not in log(folder), log(folder)

    import mlflow

    client = mlflow.MlflowClient(environment(folder)["MLFLOW_TRACKING_URI"])
    [experiment] = [found for found in client.search_experiments() if found.name == "overnight"]
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name) == (first["mlflow"], "bolts (job 1)")
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3]

    offline = list((folder.output / "wandb").glob("offline-run-*"))
    assert len(offline) == 2 and all(path.name.endswith(first["wandb"]) for path in offline)
    assert list((folder.output / "trackio").rglob("*.db"))


def test_a_tracker_that_breaks_is_dropped_and_the_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def __init__(self) -> None:
            self.told: list[str] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.told.append("begin")

        def on_log(self, *_: Any, **__: Any) -> None:
            self.told.append("log")
            raise ConnectionError("no route to host\nand much more")

    callback = Broken()
    run = Run(RunDir(tmp_path), Order(job_id="1", attempt=1, fence=1, resume=False, spec={}))
    guest = trackers._guest("wandb", callback, run)
    guest.on_train_begin(None, None, None)
    for _ in range(3):
        guest.on_log(None, None, None, logs={})
    assert callback.told == ["begin", "log"]
    assert capsys.readouterr().out == "Tracker wandb is told no more: no route to host\n"


def test_what_a_tracker_says_at_its_end_is_told_without_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def on_log(self, *_: Any, **__: Any) -> None:
            raise ConnectionError("https://ada:hunter22@tracker/api with key 0123456789abcdef failed")

    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    run = Run(RunDir(tmp_path), Order(job_id="1", attempt=1, fence=1, resume=False, spec={}))
    trackers._guest("mlflow", Broken(), run).on_log(None, None, None, logs={})
    assert capsys.readouterr().out == "Tracker mlflow is told no more: https://…@tracker/api with key … failed\n"
