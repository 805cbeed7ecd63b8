"""A job that fits no GPU is refused before it is stored, with what would fit; and what a job would need is told without storing it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from live_api import COMMAND, NOW
from model_folders import LLAMA_3_8B, LLAMA_32_1B, write_header, write_model
from starlette.testclient import TestClient

from api import routes_estimate
from daemon import admission, fit, known_files
from daemon.rig import Slot
from daemon.settings import Settings
from daemon.store import Store
from jobs.model import End, Job, Outcome, State
from jobs.rundir import run_dir
from jobs.spec import dump, parse

JOBS, ESTIMATE, FIT = "/api/v1/jobs", "/api/v1/estimate", "/api/v1/fit"
GIB = 2**30
DIGEST = "a" * 64
Rigs = Callable[..., None]


def card(index: int, memory_gib: float) -> Slot:
    return Slot(id=f"GPU-{index}", name=f"NVIDIA {memory_gib:g}", index=index, memory_bytes=round(memory_gib * GIB))


@pytest.fixture
def rigs(app: FastAPI, store: Store) -> Rigs:
    """Rigs with GPUs of so many GiB: `rigs(one=(8, 24), two=(12,))`."""

    def describe(**memories: tuple[float, ...]) -> None:
        for name, sizes in memories.items():
            slots = [card(index, size).to_json() for index, size in enumerate(sizes)]
            store.describe_rig(name, {"slots": slots})

    return describe


@pytest.fixture
def models(settings: Settings) -> Path:
    """A rig with two models of known size and a file of long rows."""
    write_model(settings.models / "llama-8b", LLAMA_3_8B)
    write_model(settings.models / "llama-1b", LLAMA_32_1B)
    upload(settings, [{"prompt": "q " * 8_000, "completion": "a"}] * 100)
    return settings.models


def upload(settings: Settings, rows: list[Mapping[str, Any]], digest: str = DIGEST) -> str:
    settings.inputs.mkdir(parents=True, exist_ok=True)
    (settings.inputs / digest).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"sha256:{digest}"


def tune(**changes: Any) -> dict[str, Any]:
    return {"kind": "finetune", "model": "llama-8b", "data": f"sha256:{DIGEST}", **changes}


def refused(client: TestClient, document: Mapping[str, Any]) -> dict[str, str]:
    answer = client.post(JOBS, json=document)
    assert answer.status_code == 422, answer.text
    return {error["field"]: error["message"] for error in answer.json()["errors"]}


# -- refused at submission ------------------------------------------------------------------------------------------------


def test_a_job_that_fits_no_gpu_is_refused_with_what_it_needs_what_there_is_and_what_would_fit(
    client: TestClient, store: Store, rigs: Rigs, models: Path
) -> None:
    rigs(rig=(8, 24))
    message = refused(client, tune())["per_device_train_batch_size"]

    assert message.startswith("needs about 48.1 GiB and the largest GPU has 24 GiB")
    assert "gradient_checkpointing = true" in message
    assert sum(store.counts().values()) == 0
    assert client.post(JOBS, json=tune(gradient_checkpointing=True)).status_code == 201


def test_what_is_named_is_accepted(client: TestClient, rigs: Rigs, models: Path) -> None:
    rigs(rig=(24,))
    document = tune(max_length=2048, per_device_train_batch_size=8)
    changes = client.post(ESTIMATE, json=document).json()["would_fit"]

    assert changes
    for change in changes:
        assert client.post(JOBS, json={**document, **change["fields"]}).status_code == 201


def test_a_model_that_is_too_large_for_itself_is_told_as_such(client: TestClient, rigs: Rigs, models: Path) -> None:
    rigs(rig=(5,))
    message = refused(client, tune())["model"]

    assert "No smaller batch would help; its weights alone take 15 GiB" in message
    assert "vram_gib" in message


def test_the_gpus_of_every_rig_count(client: TestClient, rigs: Rigs, models: Path) -> None:
    rigs(rig=(8,), other=(12, 80))

    assert client.post(JOBS, json=tune()).status_code == 201


def test_a_declared_need_outweighs_the_estimate(client: TestClient, store: Store, rigs: Rigs, models: Path) -> None:
    rigs(rig=(24,))

    assert client.post(JOBS, json=tune(vram_gib=20)).status_code == 201
    assert store.get("1").vram_bytes == 20 * GIB
    assert refused(client, tune(vram_gib=30)) == {"vram_gib": "asks for 30 GiB and the largest GPU has 24 GiB"}
    assert "0.5 GiB of it stay free" in refused(client, tune(vram_gib=23.8))["vram_gib"]


def test_a_command_fits_as_it_declares(client: TestClient, rigs: Rigs) -> None:
    rigs(rig=(24, 8))

    assert client.post(JOBS, json={**COMMAND, "gpus": 2}).status_code == 201
    assert client.post(JOBS, json={**COMMAND, "gpus": 2, "vram_gib": 7}).status_code == 201
    both = refused(client, {**COMMAND, "gpus": 2, "vram_gib": 20})
    assert both == {"vram_gib": "asks for 20 GiB on each GPU, the largest GPUs have 8 GiB"}


def test_how_several_gpus_share_a_training_is_told_kept_and_carried_out(
    client: TestClient, store: Store, rigs: Rigs, models: Path
) -> None:
    rigs(rig=(16, 16))
    document = tune(gpus=2, effective_batch_size=8, max_length=2048, gradient_checkpointing=True)
    view = client.post(ESTIMATE, json=document).json()
    assert view["fits"] and view["parallel"]["way"] == "fsdp"
    assert "one GPU cannot hold the whole model" in view["parallel"]["why"]

    job = client.post(JOBS, json=document).json()
    assert (job["parallel"], job["vram_bytes"]) == (view["parallel"], view["vram_bytes"])
    assert job["spec"]["parallel"] == "auto"
    kept = store.get(job["id"])
    assert fit.settled(kept.effective_spec, kept.parallel, {}, 80 * GIB)["parallel"] == "fsdp"
    page = client.get(f"/jobs/{job['id']}").text
    assert "on 2 GPUs by fsdp (one GPU cannot hold the whole model" in page

    changed = client.patch(f"{JOBS}/{job['id']}", json={"method": "qlora"}).json()
    assert changed["parallel"] == {"way": "ddp", "why": "one GPU holds the whole model"}
    alone = client.patch(f"{JOBS}/{job['id']}", json={"gpus": 1, "gradient_accumulation_steps": 8}).json()
    assert alone["parallel"] is None


def test_what_nobody_knew_at_submission_is_chosen_where_it_starts(models: Path) -> None:
    spec = {"kind": "finetune", "gpus": 2, "parallel": "auto", "model": "llama-8b"}
    document = dump(parse(tune(gpus=2, gradient_checkpointing=True)))
    paths = {"model": str(models / "llama-8b")}
    ways = {gib: fit.settled(document, {}, paths, gib * GIB)["parallel"] for gib in (0, 16, 80)}
    assert ways == {0: "ddp", 16: "fsdp", 80: "ddp"}
    assert fit.settled({**document, "parallel": "device_map"}, {}, paths, 80 * GIB)["parallel"] == "device_map"
    assert fit.settled({**spec, "gpus": 1}, {}, {}, 80 * GIB)["parallel"] == "auto"


def test_a_cpu_slot_takes_any_job(client: TestClient, models: Path) -> None:
    assert client.post(JOBS, json=tune(vram_gib=900)).status_code == 201
    assert client.post(JOBS, json=tune(per_device_train_batch_size=64)).status_code == 201


def test_generations_are_refused_by_their_batch(
    client: TestClient, settings: Settings, rigs: Rigs, models: Path
) -> None:
    rigs(rig=(24,))
    data = upload(settings, [{"prompt": "q " * 2_000}] * 100, "b" * 64)
    document = {"kind": "generate", "model": "llama-8b", "data": data, "batch_size": 64, "max_new_tokens": 2048}

    assert "batch_size = " in refused(client, document)["batch_size"]


def test_the_record_keeps_what_was_learned(client: TestClient, store: Store, rigs: Rigs, models: Path) -> None:
    rigs(rig=(24,))
    client.post(JOBS, json=tune(gradient_checkpointing=True, num_train_epochs=2))
    job = store.get("1")

    assert {name: job.estimate[name] for name in ("rows", "steps")} == {"rows": 100, "steps": 14}
    assert 19 * GIB < (job.vram_bytes or 0) < 24 * GIB
    shown = client.get(f"{JOBS}/1").json()
    assert (shown["vram_bytes"], shown["estimate"]["steps"]) == (job.vram_bytes, 14)


def test_a_change_renews_what_is_known_and_is_refused_when_it_no_longer_fits(
    client: TestClient, store: Store, rigs: Rigs, models: Path
) -> None:
    rigs(rig=(24,))
    client.post(JOBS, json=tune(gradient_checkpointing=True))
    before = store.get("1")

    answer = client.patch(f"{JOBS}/1", json={"gradient_checkpointing": False})
    assert [error["field"] for error in answer.json()["errors"]] == ["per_device_train_batch_size"]
    assert store.get("1") == before
    client.patch(f"{JOBS}/1", json={"per_device_train_batch_size": 1})
    assert (store.get("1").vram_bytes or 0) < (before.vram_bytes or 0)
    assert store.get("1").estimate["steps"] == 25


def test_a_model_whose_size_nobody_knows_is_accepted(client: TestClient, store: Store, settings: Settings, rigs: Rigs, models: Path) -> None:  # fmt: skip
    rigs(rig=(8,))
    (settings.models / "llama-8b" / "model.safetensors").write_bytes(b"")

    assert client.post(JOBS, json=tune()).status_code == 201
    assert client.post(JOBS, json=tune(model="org/name")).status_code == 201
    assert store.get("1").vram_bytes is None
    assert store.get("1").estimate["rows"] == 100


def test_a_model_of_the_hub_is_known_once_it_was_fetched(
    client: TestClient, rigs: Rigs, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--name"
    write_model(repository / "snapshots" / "c0ffee", LLAMA_3_8B)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    rigs(rig=(5,))

    assert set(refused(client, tune(model="org/name"))) == {"model"}
    assert set(refused(client, tune(model="org/name@c0ffee"))) == {"model"}
    assert client.post(JOBS, json=tune(model="org/other")).status_code == 201
    assert known_files.hub_folder("org/name@..", {"HF_HUB_CACHE": str(tmp_path)}) is None


def test_an_adapter_that_is_trained_further_counts_by_its_own_size(
    client: TestClient, settings: Settings, rigs: Rigs, models: Path
) -> None:
    adapter = settings.models / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    write_header(adapter / "adapter_model.safetensors", {"x.lora_A.weight": [1000, 1000]})
    parts = client.post(ESTIMATE, json=tune(adapter=str(adapter))).json()["parts"]

    assert parts["adapter"] == 4_000_000


def test_files_are_read_once_for_a_whole_sweep(
    client: TestClient, models: Path, rigs: Rigs, monkeypatch: pytest.MonkeyPatch
) -> None:
    rigs(rig=(80,))
    client.post(JOBS, json=tune())
    before = (known_files._rows.cache_info().misses, known_files._model.cache_info().misses)
    sweep = {"learning_rate": [n * 1e-6 for n in range(1, 201)]}

    answer = client.post(f"{JOBS}/batch", json={"base": tune(), "sweep": sweep})

    assert answer.status_code == 201
    assert (known_files._rows.cache_info().misses, known_files._model.cache_info().misses) == before


# -- learned ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ran(client: TestClient, store: Store, rigs: Rigs) -> Callable[..., None]:
    """Somebody ran this document on a large GPU, and this is what it used."""

    def run(document: Mapping[str, Any], took_s: float = 60.0, **usage: float) -> None:
        rigs(rig=(200,))
        job_id = client.post(JOBS, json=document).json()["id"]
        offered = store.offer(job_id, rig="rig", slots=("GPU-0",), epoch=store.new_epoch("rig"), now=NOW)
        store.claim(job_id, fence=offered.fence, owner="test", now=NOW, lease_s=60)
        outcome = Outcome(end=End.SUCCEEDED, usage=usage)
        store.finish(job_id, fence=offered.fence, outcome=outcome, now=NOW + took_s)

    return run


def test_what_earlier_runs_needed_outweighs_the_estimate_but_not_a_declaration(
    client: TestClient, store: Store, rigs: Rigs, models: Path, ran: Callable[..., None]
) -> None:
    ran(tune(), peak_vram_bytes=23 * GIB)
    ran(tune(gradient_checkpointing=True), peak_vram_bytes=24 * GIB)
    rigs(rig=(24,))

    again = client.post(JOBS, json=tune(learning_rate=1e-5))  # the estimate says 48
    assert again.status_code == 201
    assert store.get(again.json()["id"]).vram_bytes == 23 * GIB
    message = refused(client, tune(gradient_checkpointing=True))["per_device_train_batch_size"]
    assert message.startswith("needed 24 GiB in earlier runs")
    assert client.post(JOBS, json=tune(gradient_checkpointing=True, vram_gib=20)).status_code == 201


def test_a_need_above_the_estimate_scales_what_would_fit(
    client: TestClient, rigs: Rigs, models: Path, ran: Callable[..., None]
) -> None:
    ran(tune(gradient_checkpointing=True), peak_vram_bytes=100 * GIB)
    rigs(rig=(24,))

    assert client.post(ESTIMATE, json=tune(gradient_checkpointing=True)).json()["would_fit"] == []


# -- room for checkpoints -----------------------------------------------------------------------------------------------------


def test_checkpoints_that_have_no_room_are_refused(settings: Settings, client: TestClient, models: Path) -> None:
    huge = tune(lora={"r": 1024})
    assert client.post(ESTIMATE, json=huge).json()["disk_bytes"] > 100e9
    full = settings.model_copy(update={"disk_floor_bytes": 1})
    wrong = admission.disk_refusal(10**18, full)

    assert wrong is not None
    assert "its checkpoints and results need up to 1000000000.0 GB, and the rig's disk has room for" in wrong.message
    assert admission.disk_refusal(1, full) is None
    assert admission.disk_refusal(None, full) is None


def test_while_the_queue_is_held_for_a_full_disk_jobs_are_accepted(settings: Settings) -> None:
    held = settings.model_copy(update={"disk_floor_bytes": 10**18})

    assert admission.disk_refusal(10**9, held) is None


# -- estimates ----------------------------------------------------------------------------------------------------------------


def test_an_estimate_says_what_where_and_why_not(client: TestClient, store: Store, rigs: Rigs, models: Path) -> None:
    rigs(rig=(8, 24), other=(80,))
    before = store.last_event_id()
    view = client.post(ESTIMATE, json=tune()).json()

    assert view["fits"] is True
    assert view["source"] == "estimated"
    assert view["vram_bytes"] == sum(view["parts"].values())
    assert view["parts"]["weights"] == 16_060_522_496
    assert [(gpu["rig"], gpu["fits"]) for gpu in view["gpus"]] == [("other", True), ("rig", False), ("rig", False)]
    assert (view["rows"], view["steps"], view["message"]) == (100, 7, None)
    assert view["time_s"] is None and "no job like it" in view["unknown"]["time_s"]
    assert view["energy_j"] is None and view["unknown"]["energy_j"]
    assert store.last_event_id() == before


def test_an_estimate_of_what_does_not_fit_is_an_answer_and_no_refusal(
    client: TestClient, rigs: Rigs, models: Path
) -> None:
    rigs(rig=(24,))
    answer = client.post(ESTIMATE, json=tune())

    assert answer.status_code == 200
    view = answer.json()
    assert view["fits"] is False
    assert view["message"] == refused(client, tune())["per_device_train_batch_size"]
    [change] = view["would_fit"]
    assert change["fields"] == {"gradient_checkpointing": True}
    assert change["vram_bytes"] < 24 * GIB
    assert change["changes_meaning"] is False


def test_a_document_that_is_wrong_is_refused_as_at_submission(client: TestClient, models: Path) -> None:
    for document, field in ((tune(max_lenght=5), "max_lenght"), (tune(model="nope"), "model"), ([], "")):
        answer = client.post(ESTIMATE, json=document)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


def test_data_need_not_be_uploaded_to_know(client: TestClient, rigs: Rigs, models: Path) -> None:
    rigs(rig=(24,))
    document = tune(data="sha256:" + "9" * 64)
    unknown = client.post(ESTIMATE, json=document).json()
    known = client.post(ESTIMATE, json=document, params={"rows": 40, "text_bytes": 4_000, "longest_bytes": 120}).json()

    assert (unknown["rows"], unknown["fits"]) == (None, False)  # nobody knows how long its rows are
    assert (known["rows"], known["steps"], known["fits"]) == (40, 3, True)
    assert client.post(ESTIMATE, json=document, params={"rows": 0}).status_code == 422


def test_what_nobody_knows_is_said(client: TestClient, rigs: Rigs, models: Path) -> None:
    rigs(rig=(24,))
    command = client.post(ESTIMATE, json=COMMAND).json()
    hub = client.post(ESTIMATE, json=tune(model="org/name")).json()

    assert (command["vram_bytes"], command["fits"]) == (None, None)
    assert "set vram_gib" in command["unknown"]["vram_bytes"]
    assert "still on the hub" in hub["unknown"]["vram_bytes"]
    assert [gpu["fits"] for gpu in hub["gpus"]] == [None]


def test_time_and_energy_are_told_from_earlier_runs(client: TestClient, models: Path, ran: Callable[..., None]) -> None:
    ran(tune(num_train_epochs=2), took_s=3600.0, energy_j=720_000.0)
    view = client.post(ESTIMATE, json=tune(num_train_epochs=4)).json()

    assert view["time_s"] == pytest.approx(7200, rel=0.05)  # twice the steps
    assert view["energy_j"] == pytest.approx(200 * view["time_s"])
    assert view["unknown"] == {}


def test_a_job_that_is_too_large_for_the_machine_is_warned_about_on_a_cpu_slot(
    client: TestClient, models: Path
) -> None:
    view = client.post(ESTIMATE, json=tune(per_device_train_batch_size=4096)).json()

    assert view["fits"] is True
    [warning] = view["warnings"]
    assert "On a CPU slot it needs about" in warning


# -- where there is more than one way to be wrong ---------------------------------------------------------------------------


def test_the_best_rig_decides_for_a_gang() -> None:
    assert fit.largest([[8, 24, 24], [80]], 1) == 80
    assert fit.largest([[8, 24, 24], [80]], 2) == 24
    assert fit.largest([[8, 24, 24], [80]], 3) == 8
    assert fit.largest([[8, 24, 24], [80]], 4) is None
    assert fit.largest([[8], [0, 0]], 1) is None  # a CPU slot takes any
    assert fit.largest([], 1) is None


# -- answers are no training data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.SUCCEEDED])
def test_answers_of_a_generation_are_refused_as_training_data(
    client: TestClient, settings: Settings, models: Path, brought: Callable[..., Job], state: State
) -> None:
    data = upload(settings, [{"prompt": "hello"}], "b" * 64)
    client.post(JOBS, json={"kind": "generate", "model": "llama-1b", "data": data})
    if state is not State.QUEUED:
        brought("1", state)
    answers = run_dir(settings.runs, "1").generations
    answers.parent.mkdir(parents=True, exist_ok=True)
    answers.write_text('{"prompt": "hello", "text": "hi"}\n')

    assert "job 1 writes its answers as `text`" in refused(client, tune(data="job:1"))["data"]
    assert "job 1 writes its answers" in refused(client, tune(eval_data="job:1"))["eval_data"]
    again = {"kind": "generate", "model": "llama-1b", "data": "job:1"}
    assert client.post(JOBS, json=again).status_code == 201  # prompts are prompts


# -- what fits, without a job -----------------------------------------------------------------------------------------------


def test_what_fits_the_largest_gpu_is_told_of_a_model_of_the_rig_and_of_the_usual_ones(
    client: TestClient, rigs: Rigs, models: Path
) -> None:
    rigs(rig=(8, 24))
    found = client.get(FIT, params={"model": "llama-8b"}).json()
    rows = {method["method"]: {at["length"]: at["rows"] for at in method["batches"]} for method in found["models"][0]["methods"]}  # fmt: skip

    assert (found["memory_bytes"], rows["qlora"][2048], rows["full"]) == (24 * GIB, 12, {})
    smaller = client.get(FIT, params={"model": "llama-8b", "vram_gib": 12}).json()
    assert [m["fits"] for m in smaller["models"][0]["methods"] if m["method"] == "lora"] == [False]
    assert [model["name"] for model in client.get(FIT).json()["models"]][::8] == ["Qwen2.5-0.5B", "Llama-3.3-70B"]


def test_what_fits_is_refused_where_nobody_can_know(client: TestClient, rigs: Rigs, models: Path) -> None:
    def wrong(**params: Any) -> list[tuple[str, str]]:
        answer = client.get(FIT, params=params)
        assert answer.status_code == 422, answer.text
        return [(error["field"], error["message"]) for error in answer.json()["errors"]]

    assert wrong() == [("vram_gib", "this queue has no GPU: say how much memory one would have (--vram 24)")]
    assert wrong(model="org/unheard-of", vram_gib=24) == [("model", "its model is still on the hub")]
    assert wrong(model="nope", vram_gib=24)[0][1].startswith("'nope' is not a model of this rig")
    assert wrong(model="/etc", vram_gib=24)[0][1].startswith("is outside the folders")
    assert client.get(FIT, params={"model": "/a\0b", "vram_gib": 24}).status_code == 422
    known = client.get(FIT, params={"model": "Qwen/Qwen2.5-7B-Instruct", "vram_gib": 24}).json()
    assert known["models"][0]["parameters"] == 7_615_616_512


def test_an_estimate_says_what_there_would_be_room_for(client: TestClient, rigs: Rigs, models: Path) -> None:
    rigs(rig=(24,))
    made = client.post(ESTIMATE, json=tune(gradient_checkpointing=True)).json()["capacity"]
    other = client.post(ESTIMATE, json=tune(gradient_checkpointing=True), params={"vram_gib": 12}).json()

    assert {at["length"]: at["rows"] for at in made["batches"]}[2048] == 5
    assert (other["fits"], other["capacity"]["longest"]) == (False, 0)
    assert "the largest GPU has 12 GiB" in other["message"]
    assert client.post(ESTIMATE, json=COMMAND).json()["capacity"] is None


def test_a_job_of_a_usual_model_that_is_still_on_the_hub_is_estimated(client: TestClient, rigs: Rigs, models: Path) -> None:  # fmt: skip
    rigs(rig=(24,))
    made = client.post(ESTIMATE, json=tune(model="Qwen/Qwen2.5-14B-Instruct", gradient_checkpointing=True)).json()
    assert (made["fits"], made["source"]) == (False, "estimated")
    assert {"method": "qlora"}.items() <= made["would_fit"][0]["fields"].items()


def test_a_dry_run_counts_more_than_what_is_estimated(
    client: TestClient, rigs: Rigs, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rigs(rig=(24,))
    monkeypatch.setattr(routes_estimate, "dry_parts", lambda spec, paths, data: {"weights": 15 * GIB, "activations": GIB})  # fmt: skip
    made = client.post(ESTIMATE, json=tune(), params={"dry_run": "true"}).json()
    assert (made["source"], made["vram_bytes"], made["fits"]) == ("dry run", 16 * GIB, True)
    assert client.post(ESTIMATE, json=tune()).json()["source"] == "estimated"
    small = client.post(ESTIMATE, json=tune(), params={"dry_run": "true", "vram_gib": 12}).json()
    assert small["message"].startswith("needs 16 GiB by a dry run and the largest GPU has 12 GiB")


def test_what_has_no_dry_run_says_why(client: TestClient, models: Path) -> None:
    def wrong(document: Mapping[str, Any]) -> str:
        answer = client.post(ESTIMATE, json=document, params={"dry_run": "true"})
        assert answer.status_code == 422, answer.text
        return str(answer.json()["errors"][0]["message"])

    assert wrong(COMMAND) == "only a fine-tune's step can be run dry"
    assert wrong(tune(model="org/unheard-of")) == "there is no dry run: its model is still on the hub"
