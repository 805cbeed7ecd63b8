"""Every way of fine-tuning, killed and resumed: nothing may show that anything happened. On a model of a few million weights."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from attempts import curve, ended, finish, log, run_folder, start

from jobs import checkpoints
from jobs.model_facts import read_adapter
from jobs.rundir import RunDir, read_json, read_json_lines

STEPS = 4
ROWS = 16


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows for each objective."""
    rows: dict[str, list[dict[str, Any]]] = {"sft": [], "dpo": [], "kto": []}
    for n in range(ROWS):
        asked, good, bad = f"Bolt {n}:", f" shelf {n % 7}", " no idea"  # short: a step takes 0.1 s
        rows["sft"].append({"prompt": asked, "completion": good})
        rows["dpo"].append({"prompt": asked, "chosen": good, "rejected": bad})
        rows["kto"].append({"prompt": asked, "completion": good if n % 2 else bad, "label": bool(n % 2)})
    folder = tmp_path_factory.mktemp("rows")
    for name, lines in rows.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {name: folder / name for name in rows}


def attempt(
    path: Path,
    model: Path,
    files: dict[str, Path],
    fields: dict[str, Any],
    number: int = 1,
    adapter: Path | None = None,
) -> RunDir:
    document = {
        "kind": "finetune", "model": "small", "data": "rows", "max_steps": STEPS, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "max_length": 64, "save_steps": 2, "learning_rate": 1e-3,
    } | fields  # fmt: skip
    places = {"model": model, "data": files[document.get("objective", "sft")]} | (
        {"adapter": adapter} if adapter else {}
    )
    return run_folder(path, document, places, resume=number > 1, attempt=number)


def result(folder: RunDir) -> dict[str, Any]:
    return read_json(folder.result) or {}


def weights_of(folder: RunDir) -> bytes:
    place = folder.model if folder.model.exists() else folder.adapter
    return next(place.glob("*.safetensors")).read_bytes()


DROPS = {"r": 4, "lora_dropout": 0.05}
EVERYTHING = {
    "lora": {**DROPS, "use_dora": True, "use_rslora": True, "modules_to_save": ["embed_tokens"]},
    "neftune_noise_alpha": 5.0,
    "gradient_checkpointing": True,
    "optim": "adamw_8bit",
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "warmup_steps": 2,
    "eval_fraction": 0.25,
    "eval_steps": 2,
}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"method": "full"}, id="full"),
        pytest.param({"method": "qlora", "lora": DROPS}, id="qlora"),
        pytest.param({"objective": "dpo", "lora": DROPS}, id="dpo"),
        pytest.param({"objective": "kto", "lora": DROPS}, id="kto"),
        pytest.param(EVERYTHING, id="dora, noise, eight bits, evaluations"),
    ],
)
def test_a_kill_and_a_resume_leave_no_trace(
    tmp_path: Path, small_model: Path, files: dict[str, Path], fields: dict[str, Any]
) -> None:
    undisturbed = attempt(tmp_path / "undisturbed", small_model, files, fields)
    assert finish(undisturbed) == 0, log(undisturbed)
    folder = attempt(tmp_path / "killed", small_model, files, fields)
    assert ended(start(folder, dies_at=3)) == -signal.SIGKILL
    assert finish(attempt(tmp_path / "killed", small_model, files, fields, 2)) == 0, log(folder)

    assert result(folder)["metrics"]["resumed_from_step"] == 2
    assert curve(folder) == curve(undisturbed)
    assert weights_of(folder) == weights_of(undisturbed)
    losses = [line["loss"] for line in curve(folder)]
    assert len(losses) == STEPS and losses[-1] < losses[0]


def test_a_full_fine_tune_of_preferences_leaves_a_model_that_can_be_tuned_further(
    tmp_path: Path, small_model: Path, files: dict[str, Path]
) -> None:
    fields = {"method": "full", "objective": "dpo", "max_steps": 2, "pure_bf16": True}
    folder = attempt(tmp_path / "first", small_model, files, fields)
    assert finish(folder) == 0, log(folder)
    names = {path.name for path in folder.model.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert sorted(path.name for path in folder.output.iterdir()) == ["model", "tensorboard"]
    assert 'library_name: "transformers"' in (folder.model / "README.md").read_text()

    then = attempt(tmp_path / "then", folder.model, files, {"max_steps": 2, "lora": {"r": 4}})
    assert finish(then) == 0, log(then)
    assert read_adapter(then.adapter) > 0


def test_an_adapter_learns_preferences_beside_what_it_began_with(
    tmp_path: Path, small_model: Path, files: dict[str, Path]
) -> None:
    first = attempt(tmp_path / "first", small_model, files, {"lora": {"r": 4}, "max_steps": 3})
    assert finish(first) == 0, log(first)
    fields = {"objective": "dpo", "max_steps": 4, "warmup_ratio": 0.0}
    undisturbed = attempt(tmp_path / "undisturbed", small_model, files, fields, adapter=first.adapter)
    assert finish(undisturbed) == 0, log(undisturbed)
    # it is compared with the adapter that it began with: at first nothing is different
    assert curve(undisturbed)[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert {"rewards/margins", "rewards/accuracies"} <= set(curve(undisturbed)[0])
    assert not (undisturbed.adapter / "ref").exists()

    folder = attempt(tmp_path / "killed", small_model, files, fields, adapter=first.adapter)
    assert ended(start(folder, dies_at=3)) == -signal.SIGKILL
    assert finish(attempt(tmp_path / "killed", small_model, files, fields, 2, adapter=first.adapter)) == 0, log(folder)
    assert curve(folder) == curve(undisturbed)
    assert weights_of(folder) == weights_of(undisturbed)


def test_the_best_evaluation_is_the_result_and_ends_a_training_that_gets_no_better(
    tmp_path: Path, small_model: Path, files: dict[str, Path]
) -> None:
    """A learning rate that soon overshoots; then the same with its last evaluations lost, as after a kill."""
    fields = {"eval_fraction": 0.25, "eval_steps": 1, "early_stopping_patience": 2, "learning_rate": 0.5, "max_steps": 30,
              "lora": DROPS, "lr_scheduler_type": "constant", "max_grad_norm": 0}  # fmt: skip
    folder = attempt(tmp_path, small_model, files, fields)
    assert finish(folder) == 0, log(folder)
    told = result(folder)["metrics"]
    evaluations = {line["step"]: line["eval_loss"] for line in read_json_lines(folder.metrics) if "eval_loss" in line}
    assert told["best_step"] == min(evaluations, key=lambda step: evaluations[step])
    assert told["best_metric"] == evaluations[told["best_step"]]
    assert told["steps"] == told["best_step"] + 2 < 30
    kept = {checkpoints.step_of(path): path for path in checkpoints.sealed(folder.checkpoints)}
    assert weights_of(folder) == (kept[told["best_step"]] / "adapter_model.safetensors").read_bytes()

    before, weights = curve(folder), weights_of(folder)
    checkpoints.discard_after(folder.checkpoints, told["best_step"])
    shutil.rmtree(folder.output)
    assert finish(attempt(tmp_path, small_model, files, fields, 2)) == 0, log(folder)
    assert curve(folder) == before and weights_of(folder) == weights
    assert result(folder)["metrics"]["best_step"] == told["best_step"]


def test_rows_of_one_step_are_cut_as_they_fit_and_halved_where_they_did_not(
    tmp_path: Path, small_model: Path, files: dict[str, Path]
) -> None:
    document = {"kind": "finetune", "model": "small", "data": "rows", "max_steps": 3, "effective_batch_size": 8}
    document |= {"max_length": 64, "learning_rate": 1e-3, "lora": {"r": 4}}
    places = {"model": small_model, "data": files["sft"]}
    whole, folder = (run_folder(tmp_path / name, document, places) for name in ("whole", "starved"))
    assert finish(whole) == 0, log(whole)
    assert "4 row(s) at once, 2 times for each step of 8." in log(whole)

    assert ended(start(folder, starves_above=2)) == 1
    told = result(folder)
    assert told["cause"] == "oom_gpu" and "per_device_train_batch_size = 4" in told["message"], log(folder)
    halved = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "effective_batch_size": None}
    assert told["next_fields"] == halved
    again = run_folder(folder.path, document | halved, places, resume=True, attempt=2)
    assert ended(start(again, starves_above=2)) == 0, log(folder)
    losses, expected = ([line["loss"] for line in curve(each)] for each in (folder, whole))
    assert losses == pytest.approx(expected, abs=1e-4)


def test_packed_rows_do_not_see_each_other(tmp_path: Path, small_model: Path, files: dict[str, Path]) -> None:
    """All sixteen rows in one step, each for itself or all in one long row: the loss is the same."""
    fields = {"max_steps": 1, "max_length": 512, "lora": {"r": 4}, "warmup_ratio": 0.0}
    apart = attempt(tmp_path / "apart", small_model, files, {**fields, "per_device_train_batch_size": ROWS, "gradient_accumulation_steps": 1})  # fmt: skip
    packed = attempt(tmp_path / "packed", small_model, files, {**fields, "packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1})  # fmt: skip
    assert finish(apart) == finish(packed) == 0, log(packed)
    assert curve(packed)[0]["loss"] == pytest.approx(curve(apart)[0]["loss"], abs=2e-4)


def test_an_evaluation_that_lacks_the_metric_says_which_there_are(
    tmp_path: Path, small_model: Path, files: dict[str, Path]
) -> None:
    fields = {
        "eval_fraction": 0.25,
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "max_steps": 1,
    }
    folder = attempt(tmp_path, small_model, files, fields)
    assert finish(folder) == 1
    told = result(folder)
    assert told["cause"] == "bad_input" and "eval_accuracy" in told["message"]
    assert "eval_loss" in told["hint"] and "eval_mean_token_accuracy" in told["hint"]
