"""Pipelines and sweeps on a whole rig, with real processes; and as somebody at a terminal sees them."""

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from until import until

from api.cli import overnight, submit
from jobs.model import End, State
from jobs.rundir import read_json

#: Tells a loss at each step; LOSS is how bad it is, and it ends by itself only after all STEPS.
PROGRAM = """
import json, os, pathlib, sys, time
loss, steps, go = float(os.environ["LOSS"]), int(os.environ["STEPS"]), pathlib.Path(sys.argv[1])
with open(os.environ["OVERNIGHT_METRICS_FILE"], "a") as file:
    for step in range(1, steps + 1):
        file.write(json.dumps({"step": step, "eval_loss": loss + 1 / step}) + "\\n")
        file.flush()
        while step >= 2 and not go.exists():
            time.sleep(0.02)
"""


class Terminal:
    """Somebody who has the rig's token."""

    def __init__(self, rig: Any):
        home = rig.settings.home
        address = until(lambda: read_json(home / "api.json"), within_s=30.0, evidence=rig.evidence)
        assert address is not None
        self.environment = {
            "OVERNIGHT_URL": address["url"],
            "OVERNIGHT_TOKEN": (home / "token").read_text().strip(),
            "OVERNIGHT_HOME": str(home / "nobody"),
            "XDG_CONFIG_HOME": str(home / "config"),
        }

    def submit(self, *args: object) -> Result:
        return CliRunner(env=self.environment).invoke(submit, [str(arg) for arg in args])

    def overnight(self, *args: object) -> Result:
        return CliRunner(env=self.environment).invoke(overnight, [str(arg) for arg in args])


@pytest.fixture
def three(make_rig: Any) -> Any:
    """A rig with three slots: three jobs of a sweep run beside each other."""
    return make_rig(slots="cpu:3")


def test_the_worst_of_a_sweep_stop_early_and_the_table_says_who_is_best(three: Any, tmp_path: Path) -> None:
    terminal = Terminal(three)
    go, sweep = tmp_path / "go", tmp_path / "sweep.json"
    base = {"kind": "command", "name": "s", "window": "any", "argv": [sys.executable, "-c", PROGRAM, str(go)], "env": {"STEPS": "4"}}  # fmt: skip
    halving = {"first_step": 2, "factor": 3}
    sweep.write_text(json.dumps({"base": base, "sweep": {"env.LOSS": [3, 1, 2], "halving": halving}}))

    sent = terminal.submit(sweep)
    assert sent.exit_code == 0, sent.output
    assert "Sweep 1: 3 jobs, 1 to 3." in sent.output and "overnight sweep 1" in sent.output

    for worse in ("1", "3"):
        job = three.until(worse, State.CANCELLED)
        assert job.outcome is not None and job.attempts[-1].end is End.CANCELLED
    assert job.outcome.message == "Stopped early: eval_loss 2.5 at step 2 is not among the best third of 3."
    go.touch()
    best = three.until("2", State.SUCCEEDED)
    assert best.outcome is not None and best.outcome.metrics["eval_loss"] == 1.25

    shown = terminal.overnight("sweep", "1").stdout.splitlines()
    assert shown[0].split() == ["JOB", "STATE", "EVAL_LOSS", "env.LOSS"]
    assert shown[1].split() == ["2", "succeeded", "1.25", "1"]
    assert shown[2].split() == ["3", "stopped", "early", "2.5", "2"]
    assert "Best: job 2, eval_loss 1.25, env.LOSS = 1" in shown
    assert terminal.overnight("sweep", "1", "--csv").stdout.splitlines()[:2] == [
        "job,state,env.LOSS,eval_loss",
        "2,succeeded,1,1.25",
    ]
    assert json.loads(terminal.overnight("sweep", "1", "--json").stdout)["best"] == {"job": "2", "value": 1.25}
    assert terminal.overnight("sweep").stdout.splitlines()[1].split()[:4] == ["1", "3", "grid", "env.LOSS"]


def test_a_failed_parent_takes_its_pipeline_along_and_its_retry_brings_it_back(rig: Any, tmp_path: Path) -> None:
    terminal = Terminal(rig)
    good, pipeline = tmp_path / "good", tmp_path / "pipeline.toml"
    pipeline.write_text(
        f"""
        [[jobs]]
        kind = "command"
        window = "any"
        argv = ["true"]
        after = ["middle"]
        [[jobs]]
        id = "middle"
        kind = "command"
        window = "any"
        argv = ["true"]
        after = ["first"]
        [[jobs]]
        id = "first"
        kind = "command"
        window = "any"
        argv = ["test", "-e", "{good}"]
        """
    )
    sent = terminal.submit(pipeline, "--wait")
    assert sent.exit_code == 1, sent.output
    assert [rig.job(n).state for n in "123"] == [State.CANCELLED, State.CANCELLED, State.FAILED]
    assert rig.job("1").because_of == "2" and rig.job("2").because_of == "3"
    refused = terminal.overnight("retry", "1")
    assert refused.exit_code == 2 and "this one comes back with it" in refused.output

    good.touch()
    assert terminal.overnight("retry", "3").exit_code == 0
    for number in "321":
        rig.until(number, State.SUCCEEDED)
    ends = [rig.job(number).finished_at or 0.0 for number in "321"]
    assert ends == sorted(ends)


def test_a_table_of_points_is_a_sweep_with_a_base_and_what_is_left_can_be_cancelled(rig: Any, tmp_path: Path) -> None:
    terminal = Terminal(rig)
    rig.store.pause("rig")
    points, base = tmp_path / "points.csv", tmp_path / "base.toml"
    points.write_text("env.A,priority\n1,high\n2,\n")
    base.write_text('kind = "command"\nargv = ["true"]\nname = "t"\n')

    alone = terminal.submit(points)
    assert alone.exit_code == 2 and "--base FILE" in alone.output
    trial = terminal.submit(points, "--base", base, "--dry-run")
    assert trial.exit_code == 0 and "points.csv" in trial.output, trial.output
    sent = terminal.submit(points, "--base", base, "--tag", "x", "--json")
    assert sent.exit_code == 0, sent.output
    assert json.loads(sent.stdout)["sweep"] == "1"
    assert [(j.spec["env"], j.priority, j.tags) for j in rig.store.get_many(["1", "2"]).values()] == [
        ({"A": "1"}, "high", ("x",)),
        ({"A": "2"}, "normal", ("x",)),
    ]
    assert "2 jobs asked to stop" in terminal.overnight("sweep", "1", "--cancel").output
    assert [rig.job(n).state for n in "12"] == [State.CANCELLED] * 2


def test_so_many_jobs_of_a_sweep_run_at_once_as_it_allows(rig: Any, tmp_path: Path) -> None:
    terminal = Terminal(rig)
    go, body = tmp_path / "go", tmp_path / "sweep.json"
    base = {"kind": "command", "window": "any", "argv": [sys.executable, "-c", PROGRAM, str(go)], "env": {"LOSS": "1"}}
    body.write_text(json.dumps({"base": base, "sweep": {"env.STEPS": [3, 4, 5], "max_concurrent": 1}}))
    assert terminal.submit(body).exit_code == 0
    rig.until("1", State.RUNNING)
    assert "its sweep runs 1 at a time" in terminal.overnight("ls").output
    go.touch()
    jobs = [rig.until(number, State.SUCCEEDED) for number in "123"]
    runs = [run for job in jobs for run in job.attempts]
    assert all(before.ended_at <= after.started_at for before, after in itertools.pairwise(runs))


def test_a_misspelt_field_of_a_sweep_is_told_before_anything_is_sent(rig: Any, tmp_path: Path) -> None:
    body = tmp_path / "sweep.toml"
    body.write_text('[base]\nkind = "command"\nargv = ["true"]\n[sweep]\npriorty = ["high"]\n')
    refused = Terminal(rig).submit(body)
    assert refused.exit_code == 2
    assert refused.stderr == "sweep.priorty: is not a field of a command document; did you mean 'priority'?\n"
    assert rig.store.counts()["queued"] == 0


@pytest.mark.slow
def test_a_fine_tune_that_learns_too_slowly_is_stopped_by_its_eval_loss(
    make_rig: Any, tiny_model: Path, home: Path
) -> None:
    (home / "models").mkdir()
    shutil.copytree(tiny_model, home / "models" / "tiny")
    rows = home / "data" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text("".join(json.dumps({"prompt": f"Say {n}", "completion": f"It is {n}."}) + "\n" for n in range(24)))
    rig = make_rig(slots="cpu:2", allowed_paths=str(rows.parent))
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_length": 64, "max_steps": 100}
    base = {"kind": "finetune", "model": "tiny", "data": str(rows), "eval_data": str(rows), "eval_steps": 5, "window": "any"}  # fmt: skip
    body = tmp_file(home / "sweep.json", {"base": {**base, **small}, "sweep": {"learning_rate": [1e-9, 5e-3], "halving": {"first_step": 5, "factor": 2}}})  # fmt: skip
    sent = Terminal(rig).submit(body)
    assert sent.exit_code == 0, sent.output
    slow = rig.until_ended("1", within_s=150)
    assert slow.state is State.CANCELLED and slow.outcome.message.startswith("Stopped early: eval_loss"), rig.evidence()
    good = rig.until_ended("2", within_s=150)
    assert good.state is State.SUCCEEDED, rig.evidence()
    table = json.loads(Terminal(rig).overnight("sweep", "1", "--json").stdout)
    assert table["best"]["job"] == "2" and table["counts"]["stopped_early"] == 1


def tmp_file(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path
