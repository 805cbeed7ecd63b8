"""Recipes of other tools over HTTP and from the command line: accepted, and what was read as what is told."""

from typing import Any

import pytest
from live_api import COMMAND
from starlette.testclient import TestClient

from daemon import admission
from daemon.places import Places
from daemon.settings import Settings
from daemon.store import Store, new_job
from jobs.model import Job
from jobs.rundir import run_dir
from jobs.spec import parse

JOBS = "/api/v1/jobs"
DIGEST = "a" * 64


@pytest.fixture
def data(settings: Settings) -> str:
    """A file of rows on the rig, and a model."""
    model = settings.models / "m"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_text("")
    settings.inputs.mkdir(parents=True, exist_ok=True)
    (settings.inputs / DIGEST).write_text('{"prompt": "a", "completion": "b"}\n' * 8)
    return f"sha256:{DIGEST}"


def test_a_recipe_is_stored_in_our_names_and_the_answer_says_what_was_changed(
    client: TestClient, store: Store, data: str
) -> None:
    recipe = {
        "base_model": "m",
        "datasets": [{"path": data, "type": "alpaca"}],
        "micro_batch_size": 2,
        "adapter": "lora",
    }
    trial = client.post(JOBS, json=recipe, params={"dry_run": "true"}).json()
    answer = client.post(JOBS, json=recipe)

    assert answer.status_code == 201, answer.text
    assert "micro_batch_size -> per_device_train_batch_size" in answer.json()["notes"]
    assert trial["notes"] == answer.json()["notes"]
    assert store.get("1").spec["per_device_train_batch_size"] == 2
    assert client.get(f"{JOBS}/1").json()["notes"] == []


def test_a_batch_and_a_sweep_tell_it_once_for_all(client: TestClient, data: str) -> None:
    recipe = {"kind": "finetune", "model": "m", "data": data, "lora_rank": 8}
    batch = client.post(f"{JOBS}/batch", json={"jobs": [recipe, recipe, COMMAND]}).json()
    sweep = client.post(f"{JOBS}/batch", json={"base": recipe, "sweep": {"learning_rate": [1e-4, 2e-4]}}).json()

    assert batch["notes"] == sweep["notes"] == ["lora_rank -> lora.r"]
    assert client.get(f"{JOBS}/{sweep['jobs'][0]['id']}").json()["spec"]["lora"]["r"] == 8


def test_names_that_contradict_each_other_are_refused_where_they_stand(client: TestClient, data: str) -> None:
    recipe = {"kind": "finetune", "model": "m", "data": data, "num_epochs": 2, "num_train_epochs": 3}
    alone = client.post(JOBS, json=recipe)
    among = client.post(f"{JOBS}/batch", json={"jobs": [COMMAND, recipe]})

    assert alone.status_code == among.status_code == 422
    assert [error["field"] for error in alone.json()["errors"]] == ["num_epochs"]
    assert [error["field"] for error in among.json()["errors"]] == ["jobs.1.num_epochs"]


def test_an_unknown_name_is_still_an_error_with_a_suggestion(client: TestClient, data: str) -> None:
    answer = client.post(JOBS, json={"kind": "finetune", "model": "m", "data": data, "packin": True})
    assert answer.status_code == 422
    assert "did you mean 'packing'?" in answer.json()["errors"][0]["message"]


def test_a_rig_without_bitsandbytes_says_so_before_the_night(
    client: TestClient, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission.importlib.util, "find_spec", lambda name: None)
    document: dict[str, Any] = {"kind": "finetune", "model": "m", "data": data}
    for fields in ({"method": "qlora"}, {"optim": "adamw_8bit"}):
        answer = client.post(JOBS, json=document | fields)
        assert answer.status_code == 422
        [error] = answer.json()["errors"]
        assert error["field"] == next(iter(fields)) and "overnight[qlora]" in error["message"]


def test_all_weights_are_named_as_a_model_and_an_adapter_on_them_knows_it(settings: Settings, data: str) -> None:
    """Job 1 learns all weights of m, job 2 an adapter on the result of 1, job 3 goes on from 2."""
    jobs: dict[str, Job] = {}
    for job_id, model, fields in (("1", "m", {"method": "full"}), ("2", "job:1", {}), ("3", "job:2", {})):
        spec = parse({"kind": "finetune", "model": model, "data": data, **fields})
        jobs[job_id] = new_job(spec, int(job_id), now=0.0)
    places = Places(settings, settings.runs, jobs.get)
    folders = [run_dir(settings.runs, job_id) for job_id in ("1", "2")]

    assert places.model("job:1") == {"model": str(folders[0].model)}
    assert places.model("job:2") == {"model": str(folders[0].model), "adapter": str(folders[1].adapter)}
    assert places.base_model("job:3") == "m"
    with pytest.raises(ValueError, match="name it as the model"):
        places.adapter("job:1")
