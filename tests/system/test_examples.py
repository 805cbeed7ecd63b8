"""The examples that the project ships: valid, and the fine-tune teaches what it promises."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from attempts import curve, finish, log, run_folder

from jobs import demo_model
from jobs.data import check_prompts, check_training
from jobs.expansion import expand
from jobs.metrics import last_values
from jobs.pipeline import linked, numbered
from jobs.rundir import RunDir, read_json_lines
from jobs.spec import parse
from jobs.stages import expand_stages

EXAMPLES = Path(__file__).parents[2] / "deploy/examples"


def document(name: str) -> dict[str, Any]:
    return tomllib.loads((EXAMPLES / f"{name}.toml").read_text())


@pytest.mark.parametrize("kind", ["finetune", "generate", "evaluate", "export", "benchmark", "command"])
def test_every_document_is_valid(kind: str) -> None:
    spec = parse(document(kind))
    assert (spec.kind, spec.window) == (kind, "any")


def test_the_pipeline_is_valid_and_its_jobs_wait_for_each_other() -> None:
    batch = [numbered(parse(one), 7) for one in linked(document("pipeline")["jobs"])]
    assert [spec.dependencies for spec in batch] == [(), ("7",), ("ended:7", "8")]


@pytest.mark.parametrize(("name", "count"), [("sweep", 6), ("sweep-command", 8)])
def test_every_job_of_the_sweeps_is_valid(name: str, count: int) -> None:
    body = document(name)
    found = expand(body["base"], body["sweep"], read_csv=str)
    assert len([parse(one) for one in found.documents]) == count


def test_the_study_is_valid_and_its_rows_are_not_those_that_are_learnt() -> None:
    body = document("study")
    found = expand_stages(body["jobs"], body["sweep"], read_csv=str)
    specs = [numbered(parse(one), 1) for one in found.documents]
    assert [spec.kind for spec in specs] == ["evaluate", *["finetune", "evaluate"] * 6]
    learnt, held = ((EXAMPLES / name).read_text().splitlines() for name in ("causes.jsonl", "causes-held-out.jsonl"))
    assert (len(learnt), len(held)) == (96, 32)
    assert not set(learnt) & set(held)


def test_the_program_of_the_sweep_tells_its_numbers(tmp_path: Path) -> None:
    body = document("sweep-command")
    found = expand(body["base"], body["sweep"], read_csv=str)
    folder = run_folder(tmp_path, found.documents[0], {})
    assert finish(folder) == 0, log(folder)
    point = found.points[0]
    expected = (point["env.RATE"] - 0.3) ** 2 + point["env.LAYERS"] / 100 + 1 / 10
    assert last_values(folder.metrics)["eval_loss"] == pytest.approx(expected)


def test_their_rows_are_valid() -> None:
    assert check_training(EXAMPLES / document("finetune")["data"]).rows >= 120
    assert check_prompts(EXAMPLES / document("generate")["data"]).rows == 20


def test_the_command_tells_what_the_rig_is_made_of(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, document("command"), {})
    assert finish(folder) == 0, log(folder)
    facts = json.loads((folder.output / "rig.json").read_text())
    assert f"cpu_threads: {facts['cpu_threads']}" in log(folder)


@pytest.mark.slow
def test_the_small_model_learns_the_keepers_style(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    try:
        model = demo_model.prepare(pytestconfig.cache.mkdir("models"))
    except demo_model.DemoModelMissing as error:
        pytest.skip(str(error))
    tuned = run_folder(
        tmp_path / "1", document("finetune"), {"model": model, "data": EXAMPLES / document("finetune")["data"]}
    )
    assert finish(tuned, within_s=900) == 0, log(tuned)
    losses = [line["loss"] for line in curve(tuned)]
    assert sum(losses[-8:]) < 0.7 * sum(losses[:2]) / 2 * 8  # each step sees four other rows
    asked = ask(tmp_path / "2", model, adapter=tuned.adapter)
    assert sum(answer["text"].startswith("Night log:") for answer in asked) >= 15
    plain = ask(tmp_path / "3", model)
    assert not any(answer["text"].startswith("Night log:") for answer in plain)


def ask(path: Path, model: Path, *, adapter: Path | None = None) -> list[dict[str, Any]]:
    spec = {**document("generate"), "adapter": adapter and str(adapter)}
    places = {"model": model, "data": EXAMPLES / spec["data"], **({"adapter": adapter} if adapter else {})}
    folder: RunDir = run_folder(path, spec, places)
    assert finish(folder, within_s=300) == 0, log(folder)
    return list(read_json_lines(folder.generations))
