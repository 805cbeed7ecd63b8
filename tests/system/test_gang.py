"""Fine-tuning by two processes that meet over loopback: it learns what one process learns, and they live and die together."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from attempts import at_step, curve, ended, finish, log, run_folder, start
from until import until

from daemon.process_tree import children
from jobs import checkpoints
from jobs.model import State
from jobs.rundir import RunDir, read_json, read_json_lines

STEPS = 8
DROPS = {"r": 4, "lora_dropout": 0.05}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows"
    rows = [{"prompt": f"Bolt {n}:", "completion": f" shelf {n % 7}" + " and on" * (n % 3)} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def document(**fields: Any) -> dict[str, Any]:
    """Four rows in each step, however many processes share them; an epoch ends in the middle of the steps."""
    return {
        "kind": "finetune", "model": "small", "data": "rows", "eval_fraction": 0.2, "max_steps": STEPS, "max_length": 32,
        "effective_batch_size": 4, "save_steps": 3, "lora": DROPS, "gpus": 2, **fields,
    }  # fmt: skip


def attempt(path: Path, model: Path, data: Path, number: int = 1, **fields: Any) -> RunDir:
    """The folder with its orders for this attempt; a later one resumes."""
    return run_folder(path, document(**fields), {"model": model, "data": data}, resume=number > 1, attempt=number)


def result(folder: RunDir) -> dict[str, Any]:
    return read_json(folder.result) or {}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, small_model: Path, data: Path) -> RunDir:
    folder = attempt(tmp_path_factory.mktemp("undisturbed"), small_model, data)
    assert finish(folder) == 0, log(folder)
    return folder


def test_two_processes_learn_what_one_learns(tmp_path: Path, small_model: Path, data: Path) -> None:
    """The second one of both has its rows cut in other micro-batches, too."""
    same = {"lora": {"r": 4}, "max_steps": 5, "save_steps": 5}
    alone = attempt(tmp_path / "one", small_model, data, gpus=1, per_device_train_batch_size=2, **same)
    both = attempt(tmp_path / "two", small_model, data, **same)
    for folder in (alone, both):
        assert finish(folder) == 0, log(folder)
    for name in ("loss", "learning_rate", "epoch", "num_tokens"):
        one, two = ([line[name] for line in curve(folder)] for folder in (alone, both))
        assert two == pytest.approx(one, abs=1e-4), name
    evaluated = [[line["eval_loss"] for line in read_json_lines(each.metrics) if "eval_loss" in line] for each in (alone, both)]  # fmt: skip
    assert len(evaluated[0]) == 1 and evaluated[1] == pytest.approx(evaluated[0], abs=1e-3)


def test_one_of_them_writes(
    undisturbed: RunDir,
) -> None:
    assert [line["step"] for line in curve(undisturbed)] == list(range(1, STEPS + 1))
    assert "rank 1" not in log(undisturbed) and log(undisturbed).count("Step 8/8") == 1
    assert "on 2 x cpu by ddp in float32: 8 optimizer step(s)" in log(undisturbed)
    assert sorted(path.name for path in undisturbed.output.iterdir()) == ["adapter", "tensorboard"]
    assert len(list((undisturbed.output / "tensorboard").iterdir())) == 1
    assert not undisturbed.rank_results.exists()


def test_a_stop_ends_both_at_one_step_and_the_resume_is_bit_for_bit(
    tmp_path: Path, small_model: Path, data: Path, undisturbed: RunDir
) -> None:
    folder = attempt(tmp_path, small_model, data)
    process = start(folder)
    at_step(folder, process, 4)
    ranks = [psutil.Process(pid) for pid in children(process.pid or 0)]
    heard = {each.laddr.ip for rank in ranks for each in rank.net_connections("tcp") if each.status == "LISTEN"}
    process.terminate()
    assert ended(process) == 75, log(folder)
    assert len(ranks) == 2 and heard == {"127.0.0.1"}
    assert result(folder)["end"] == "interrupted"
    newest = checkpoints.sealed(folder.checkpoints)[-1]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in newest.iterdir()}
    assert curve(folder)[-1]["step"] == checkpoints.step_of(newest)
    assert finish(attempt(tmp_path, small_model, data, 2)) == 0, log(folder)
    assert result(folder)["metrics"]["resumed_from_step"] == checkpoints.step_of(newest) < STEPS
    assert same_result(folder, undisturbed)


def test_a_rank_that_is_killed_takes_the_other_along_and_the_job_goes_on_by_itself(
    make_rig: Any, home: Path, small_model: Path, data: Path, undisturbed: RunDir
) -> None:
    """Here the processes are exec'd: the rig has nothing preloaded."""
    shutil.copytree(small_model, home / "models" / "small")
    rig = make_rig(allowed_paths=str(data.parent))
    job = rig.submit(**document(data=str(data)))
    folder = rig.folder(job)

    def is_at_4() -> bool:
        assert not rig.job(job).state.final, rig.job(job).outcome
        return bool((read_json(folder.progress) or {}).get("step", 0) >= 4)

    until(is_at_4, within_s=240, evidence=rig.evidence)
    leader = rig.child("cpu:0")
    ranks = until(lambda: children(leader), evidence=rig.evidence)
    assert len(ranks) == 2 and set(ranks) <= set(rig.processes())
    os.kill(ranks[1], signal.SIGKILL)
    ended_job = rig.until_ended(job, within_s=240)
    assert ended_job.state is State.SUCCEEDED, rig.evidence()
    first, _ = ended_job.attempts
    assert (first.cause, first.slots) == ("signal", ("cpu:0", "cpu:1"))
    assert first.message == "Rank 1 of 2 was killed by SIGKILL, which Overnight did not send."
    assert not {leader, *ranks} & set(rig.processes())
    assert ended_job.outcome and ended_job.outcome.metrics["resumed_from_step"] == 3
    assert same_result(folder, undisturbed)


def same_result(folder: RunDir, other: RunDir) -> bool:
    adapters = [(each.adapter / "adapter_model.safetensors").read_bytes() for each in (folder, other)]
    return curve(folder) == curve(other) and adapters[0] == adapters[1]


def test_a_model_that_is_split_learns_the_same_and_its_resume_is_bit_for_bit(
    tmp_path: Path, small_model: Path, data: Path
) -> None:
    """FSDP2 over gloo. All weights learn, an evaluation comes between the steps, activations are computed again."""
    fields = {"method": "full", "gradient_checkpointing": True, "max_steps": 3, "save_steps": 2, "eval_steps": 2}
    whole, split, killed = (tmp_path / name for name in ("whole", "split", "killed"))
    folder = attempt(whole, small_model, data, gpus=1, lora={}, **fields)
    assert finish(folder) == 0, log(folder)
    folder = attempt(split, small_model, data, parallel="fsdp", lora={}, **fields)
    assert ended(start(folder, as_gpus=True)) == 0, log(folder)
    folder = attempt(killed, small_model, data, parallel="fsdp", lora={}, **fields)
    assert ended(start(folder, as_gpus=True, dies_at=3)) == 1, log(folder)
    assert result(folder)["message"] == "Rank 0 of 2 was killed by SIGKILL, which Overnight did not send."
    folder = attempt(killed, small_model, data, 2, parallel="fsdp", lora={}, **fields)
    assert ended(start(folder, as_gpus=True)) == 0, log(folder)

    assert curve(RunDir(killed)) == curve(RunDir(split))
    losses = [[line["loss"] for line in curve(RunDir(path))] for path in (whole, split)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    weights = [(RunDir(path).model / "model.safetensors") for path in (whole, split, killed)]
    assert weights[1].read_bytes() == weights[2].read_bytes()
    assert weights[1].stat().st_size == weights[0].stat().st_size


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_preflight_is_taken_by_both_and_told_by_one(tmp_path: Path, tiny_model: Path, data: Path, way: str) -> None:
    folder = run_folder(tmp_path, document(parallel=way, lora={}), {"model": tiny_model, "data": data}, preflight=True)
    assert ended(start(folder, as_gpus=way == "fsdp")) == 0, log(folder)
    assert f"by {way} in float32" in log(folder)
    told = result(folder)
    assert (told["end"], told["learned"]["steps"]) == ("checked", STEPS)
    assert told["learned"]["expected_s"] > 0 and "goes aside" in log(folder)
    assert not curve(folder) and not list(folder.output.iterdir()) and not folder.rank_results.exists()
