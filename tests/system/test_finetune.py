"""Fine-tuning on real weights, in real processes that are killed: after a resume nothing may show that anything happened."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attempts import ROOT, at_step, curve, ended, finish, log, run_folder, start

from jobs import checkpoints
from jobs.rundir import RunDir, read_json, read_json_lines

STEPS = 11


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows"
    rows = [{"prompt": f"Bolt {n}:", "completion": f" shelf {n % 7}"} for n in range(16)]  # short: a step takes 0.1 s
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def document(**fields: Any) -> dict[str, Any]:
    """Small steps, dropout on, two ends of an epoch in the middle."""
    return {
        "kind": "finetune",
        "model": "tiny",
        "data": "rows",
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_length": 32,
        "save_steps": 3,
        "lora": {"r": 4, "lora_dropout": 0.05},
        **fields,
    }


def attempt(path: Path, model: Path, data: Path, number: int = 1, **fields: Any) -> RunDir:
    """The folder with its orders for this attempt; a later one resumes."""
    places = {"model": model, "data": data}
    return run_folder(path, document(**fields), places, resume=number > 1, attempt=number)


def result(folder: RunDir) -> dict[str, Any]:
    return read_json(folder.result) or {}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, data: Path) -> RunDir:
    """A run from beginning to end, to compare with."""
    folder = attempt(tmp_path_factory.mktemp("undisturbed"), tiny_model, data)
    assert finish(folder) == 0, log(folder)
    return folder


def test_a_run_leaves_an_adapter_with_tokenizer_and_card(undisturbed: RunDir, tiny_model: Path) -> None:
    names = {path.name for path in undisturbed.adapter.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= names
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in undisturbed.adapter.iterdir())
    card = (undisturbed.adapter / "README.md").read_text()
    assert f'base_model: "{tiny_model.name}"' in card
    assert "| learning_rate | 0.0002 |" in card
    assert [path.name for path in sorted(undisturbed.output.iterdir())] == ["adapter", "tensorboard"]


def test_a_checkpoint_is_as_large_as_was_expected(undisturbed: RunDir) -> None:
    newest = checkpoints.sealed(undisturbed.checkpoints)[-1]
    learning = (newest / "adapter_model.safetensors").stat().st_size // 4
    expected, real = checkpoints.expected_bytes([(learning, 4)]), sum(p.stat().st_size for p in newest.iterdir())
    assert real <= expected <= real + 2 * checkpoints.OTHER_FILES_BYTES


def test_without_space_for_its_checkpoints_it_does_not_begin_and_says_how_much_it_needs(
    tmp_path: Path, tiny_model: Path, data: Path
) -> None:
    folder = attempt(tmp_path, tiny_model, data)
    assert ended(start(folder, free_bytes=1_000_000)) == 1
    told = result(folder)
    assert (told["end"], told["cause"]) == ("failed", "disk_full"), log(folder)
    assert told["learned"]["disk_bytes"] > 5_000_000 and "the disk has 0.0 GB" in told["message"]
    assert not curve(folder)


def test_its_metrics_tell_what_was_learnt_from(undisturbed: RunDir) -> None:
    metrics = result(undisturbed)["metrics"]
    assert (metrics["steps"], metrics["rows"], metrics["cut_rows"], metrics["dropped_rows"]) == (STEPS, 16, 0, 0)
    assert 0 < metrics["trained_tokens"] < metrics["tokens"]
    assert metrics["train_loss"] < metrics["first_loss"]
    assert metrics["resumed_from_step"] is None
    assert metrics["tokens_per_s"] > 0


def test_what_it_learns_from_can_be_looked_at(undisturbed: RunDir) -> None:
    preview = read_json(undisturbed.preview) or {}
    assert preview["trained_tokens"] == result(undisturbed)["metrics"]["trained_tokens"]
    assert [part["text"] for part in preview["examples"][0]["segments"]] == ["Bolt 0:", " shelf 0<|im_end|>"]
    assert (preview["source"], preview["format"], preview["rows"]) == ("prompt/completion", "JSONL", 16)


def test_each_step_is_in_the_curve_once(undisturbed: RunDir) -> None:
    lines = curve(undisturbed)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert {"epoch", "loss", "learning_rate", "grad_norm", "num_tokens"} <= set(lines[0])
    told = read_json(undisturbed.progress) or {}
    assert (told["step"], told["total"]) == (STEPS, STEPS)


def test_two_checkpoints_are_left_and_both_are_whole(undisturbed: RunDir) -> None:
    left = checkpoints.sealed(undisturbed.checkpoints)
    assert [checkpoints.step_of(path) for path in left] == [9, STEPS]
    assert [checkpoints.what_is_wrong(path) for path in left] == [None, None]
    names = {path.name for path in left[0].iterdir()}
    assert not names & {"training_args.bin", "tokenizer.json", "pytorch_model.bin"}


def test_the_environment_is_written_down(undisturbed: RunDir) -> None:
    facts = read_json(undisturbed.environment) or {}
    assert {"torch", "transformers", "peft", "trl"} <= set(facts["packages"])


def test_kill_at_any_step_and_resume_leaves_the_same_curve(
    tmp_path: Path, tiny_model: Path, data: Path, undisturbed: RunDir
) -> None:
    step = random.randint(2, STEPS - 4)
    folder = attempt(tmp_path, tiny_model, data)
    process = start(folder)
    at_step(folder, process, step)
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert finish(attempt(tmp_path, tiny_model, data, 2)) == 0, log(folder)
    assert curve(folder) == curve(undisturbed), f"killed at step {step}"
    same = (folder.adapter / "adapter_model.safetensors").read_bytes()
    assert same == (undisturbed.adapter / "adapter_model.safetensors").read_bytes()


def test_a_stop_saves_at_the_next_step_and_the_rest_is_the_same(
    tmp_path: Path, tiny_model: Path, data: Path, undisturbed: RunDir
) -> None:
    folder = attempt(tmp_path, tiny_model, data, save_steps=1000)
    process = start(folder)
    at_step(folder, process, 4)
    process.terminate()
    assert ended(process) == 75, log(folder)
    told = result(folder)
    assert (told["fence"], told["attempt"], told["end"]) == (1, 1, "interrupted")
    saved = checkpoints.newest_whole(folder.checkpoints)
    assert saved is not None
    assert 4 <= checkpoints.step_of(saved) < STEPS
    assert finish(attempt(tmp_path, tiny_model, data, 2, save_steps=1000)) == 0, log(folder)
    assert curve(folder) == curve(undisturbed)
    assert result(folder)["metrics"]["resumed_from_step"] == checkpoints.step_of(saved)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, tiny_model: Path, data: Path, undisturbed: RunDir
) -> None:
    folder = attempt(tmp_path, tiny_model, data)
    process = start(folder)
    at_step(folder, process, 7)
    process.kill()
    ended(process)
    newest = checkpoints.sealed(folder.checkpoints)[-1]
    weights = newest / "adapter_model.safetensors"
    size = weights.stat().st_size
    os.truncate(weights, size // 2)
    os.truncate(weights, size)  # zeros, as after a power cut
    assert finish(attempt(tmp_path, tiny_model, data, 2)) == 0, log(folder)
    assert f"{newest.name} is broken (adapter_model.safetensors has the wrong checksum)" in log(folder)
    assert curve(folder) == curve(undisturbed)


def test_a_smaller_micro_batch_goes_on_where_the_larger_one_ran_out_of_memory(
    tmp_path: Path, tiny_model: Path, data: Path
) -> None:
    plain = {"lora": {"r": 4}}  # dropout draws by micro-batch
    reference = attempt(tmp_path / "reference", tiny_model, data, **plain)
    assert finish(reference) == 0, log(reference)
    folder = attempt(tmp_path / "run", tiny_model, data, **plain)
    process = start(folder)
    at_step(folder, process, 6)
    process.terminate()
    ended(process)
    halved = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    assert finish(attempt(tmp_path / "run", tiny_model, data, 2, **plain, **halved)) == 0, log(folder)
    assert result(folder)["metrics"]["resumed_from_step"] >= 6
    losses, expected = [line["loss"] for line in curve(folder)], [line["loss"] for line in curve(reference)]
    assert losses == pytest.approx(expected, abs=1e-3)


def test_a_training_that_goes_astray_is_stopped_and_halved_once(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    wild = {"learning_rate": 1e6, "max_steps": 60, "lr_scheduler_type": "constant", "save_steps": 2}
    folder = attempt(tmp_path, tiny_model, data, **wild)
    assert finish(folder) == 1, log(folder)
    first = result(folder)
    assert (first["cause"], first["next_fields"]) == ("nan", {"learning_rate": 5e5})
    told = list(read_json_lines(folder.metrics))[-1]["step"]
    assert all(checkpoints.step_of(path) < told - 1 for path in checkpoints.sealed(folder.checkpoints))
    assert finish(attempt(tmp_path, tiny_model, data, 2, **{**wild, "learning_rate": 5e5})) == 1
    assert (result(folder)["cause"], result(folder)["next_fields"]) == ("nan", {})


def test_a_halved_learning_rate_is_not_undone_by_the_checkpoint(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    folder = attempt(tmp_path, tiny_model, data)
    process = start(folder)
    at_step(folder, process, 5)
    process.terminate()
    ended(process)
    before = curve(folder)[-1]
    assert finish(attempt(tmp_path, tiny_model, data, 2, learning_rate=1e-4)) == 0, log(folder)
    after = next(line for line in curve(folder) if line["step"] == before["step"] + 1)
    assert after["learning_rate"] < before["learning_rate"] * 0.6


def test_other_data_starts_over(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    folder = attempt(tmp_path, tiny_model, data, max_steps=3)
    assert finish(folder) == 0, log(folder)
    other = tmp_path / "other"
    other.write_text(data.read_text().replace("shelf", "rack"))
    assert finish(attempt(tmp_path, tiny_model, other, 2, max_steps=3)) == 0, log(folder)
    assert "Starting over: data_sha256 changed since the last attempt." in log(folder)
    assert [line["step"] for line in curve(folder)] == [1, 2, 3]


def test_the_output_is_made_again_when_only_that_was_missing(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    folder = attempt(tmp_path, tiny_model, data, max_steps=3)
    assert finish(folder) == 0, log(folder)
    weights = folder.adapter / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    assert finish(attempt(tmp_path, tiny_model, data, 2, max_steps=3)) == 0, log(folder)
    assert weights.read_bytes() == before


def test_eval_data_is_looked_at_on_the_way_and_at_the_end(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    spec = document(max_steps=4, eval_data="rows", eval_steps=2, packing=True, max_length=64, logging_steps=2)
    folder = run_folder(tmp_path, spec, {"model": tiny_model, "data": data, "eval_data": data})
    assert finish(folder) == 0, log(folder)
    lines = list(read_json_lines(folder.metrics))
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4]
    assert result(folder)["metrics"]["eval_loss"] == pytest.approx(lines[-1]["eval_loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("lines", "fields", "words"),
    [
        (['{"text": "x"}', '{"text": '], {}, "data: line 2: not valid JSON"),
        (['{"text": "long enough to be cut"}'], {"lora": {"target_modules": "no_such_module"}}, "do not fit the model"),
        (['{"prompt": "a a a a a a a a a", "completion": "b"}'], {"max_length": 8}, "there is no row to learn from"),
    ],
)
def test_what_cannot_be_trained_is_bad_input(
    tmp_path: Path, tiny_model: Path, lines: list[str], fields: dict[str, Any], words: str
) -> None:
    rows = tmp_path / "rows"
    rows.write_text("\n".join(lines))
    folder = attempt(tmp_path, tiny_model, rows, **fields)
    assert finish(folder) == 1
    assert result(folder)["cause"] == "bad_input"
    assert words in result(folder)["message"]


def test_a_folder_can_be_run_again_by_hand(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    folder = attempt(tmp_path, tiny_model, data, max_steps=2)
    assert finish(folder) == 0, log(folder)
    before = curve(folder)
    again = subprocess.run([sys.executable, "-m", "jobs", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert curve(folder) == before
    assert again.stderr == ""
