"""Preflights over HTTP and in the queue: who has one, whose counts for whom, and what an edit or a retry does to it."""

import json
from typing import Any

import pytest
from fastapi import FastAPI
from live_api import NOW
from model_folders import LLAMA_3_8B, LLAMA_32_1B, write_model
from starlette.testclient import TestClient

from daemon.facts import Ledger
from daemon.plan import Cancel, Offer, plan
from daemon.rig import Slot
from daemon.settings import Settings
from daemon.settle import settle
from daemon.store import Store
from jobs.model import Cause, End, Job, Outcome, State
from jobs.rundir import run_dir, write_json
from workers.execute import prepare

JOBS, ESTIMATE = "/api/v1/jobs", "/api/v1/estimate"
DIGEST = "b" * 64
HOUR = 3_600.0
PASSED = Outcome(end=End.CHECKED, learned={"expected_s": 2 * HOUR, "step_s": 2.0, "peak_vram_bytes": 11.0 * 2**30})
FAILED = Outcome(end=End.FAILED, cause=Cause.BAD_INPUT, message="In its preflight: line 97.")


@pytest.fixture(autouse=True)
def _rig(app: FastAPI, settings: Settings, store: Store) -> None:
    """A rig with two large GPUs, two models, and rows."""
    write_model(settings.models / "llama-8b", LLAMA_3_8B)
    write_model(settings.models / "llama-1b", LLAMA_32_1B)
    settings.inputs.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": "q " * 500, "completion": "a " * 200} for _ in range(20_000)]
    (settings.inputs / DIGEST).write_text("".join(json.dumps(row) + "\n" for row in rows))
    slots = [Slot("GPU-0", "NVIDIA 80", 0, 80 * 2**30).to_json(), Slot("GPU-1", "NVIDIA 80", 1, 80 * 2**30).to_json()]
    store.describe_rig(settings.rig, {"slots": slots})


def tune(model: str = "llama-8b", **fields: Any) -> dict[str, Any]:
    return {"kind": "finetune", "model": model, "data": f"sha256:{DIGEST}", **fields}


def submitted(client: TestClient, document: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(JOBS, json=document)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def run(store: Store, settings: Settings, job_id: str, outcome: Outcome) -> Job:
    """Its next run, to this end."""
    offered = store.offer(job_id, rig=settings.rig, slots=("GPU-0",), epoch=store.new_epoch(settings.rig), now=NOW)
    store.claim(job_id, fence=offered.fence, owner="test", now=NOW, lease_s=60)
    return store.finish(job_id, fence=offered.fence, outcome=outcome, now=NOW + 60)


def decisions(store: Store, settings: Settings) -> list[Any]:
    return plan(Ledger(store).facts(NOW, settings))


def test_a_long_fine_tune_has_one_unless_it_says_otherwise_and_a_short_one_has_none(client: TestClient) -> None:
    assert submitted(client, tune())["preflight"]["due"]
    assert submitted(client, tune(preflight=False))["preflight"] is None
    assert submitted(client, tune("llama-1b", max_steps=20))["preflight"] is None
    assert submitted(client, tune("llama-1b", max_steps=20, preflight=True))["preflight"]["due"]


def test_before_it_is_submitted_one_is_told(client: TestClient) -> None:
    assert client.post(f"{JOBS}?dry_run=true", json=tune()).json()["preflight"]
    assert client.post(ESTIMATE, json=tune()).json()["preflight"]
    assert not client.post(ESTIMATE, json=tune(preflight=False)).json()["preflight"]


def test_a_command_has_none(client: TestClient) -> None:
    answer = client.post(JOBS, json={"kind": "command", "argv": ["true"], "preflight": True})
    assert answer.status_code == 422


def test_what_it_measured_is_in_the_record_and_expected_of_the_job(
    client: TestClient, store: Store, settings: Settings
) -> None:
    job_id = submitted(client, tune())["id"]
    run(store, settings, job_id, PASSED)
    told = client.get(f"{JOBS}/{job_id}").json()
    assert (told["state"], told["preflight"]["due"], told["preflight"]["measured"]["step_s"]) == ("queued", False, 2.0)
    assert told["vram_bytes"] == 11 * 2**30
    page = client.get(f"/jobs/{job_id}").text
    assert "<b>Preflight.</b> It passed: 11 GiB of GPU memory at its peak" in page and "preflight passed" in page
    assert Ledger(store).facts(NOW, settings).expected_s[job_id] == 2 * HOUR
    assert client.post(ESTIMATE, json=tune()).json()["time_s"] == 2 * HOUR


def sweep(client: TestClient, **axes: Any) -> list[str]:
    answer = client.post(f"{JOBS}/batch", json={"base": tune(), "sweep": axes})
    assert answer.status_code == 201, answer.text
    return [job["id"] for job in answer.json()["jobs"]]


def test_of_a_sweep_each_shape_is_checked_once_and_the_others_start_when_it_has_passed(
    client: TestClient, store: Store, settings: Settings
) -> None:
    first, other, large, *_ = sweep(client, **{"lora.r": [8, 16], "learning_rate": [1e-4, 2e-4]})
    assert [d.job for d in decisions(store, settings) if isinstance(d, Offer)] == [first, large]
    words = client.get(f"{JOBS}/{other}").json()
    assert words["waiting_because"] == f"waits for the preflight of job {first}, which counts for this one, too"
    run(store, settings, first, PASSED)
    assert other in Ledger(store).facts(NOW, settings).position


def test_one_that_fails_cancels_those_like_it_and_tried_again_brings_them_back(
    client: TestClient, store: Store, settings: Settings
) -> None:
    first, *others = sweep(client, learning_rate=[1e-4, 2e-4, 3e-4])
    assert run(store, settings, first, FAILED).failed_preflight
    gone = [d for d in decisions(store, settings) if isinstance(d, Cancel)]
    for found in gone:
        store.abandon(found.job, found.because_of, found.reason, now=NOW)
    assert [store.get(each).state for each in others] == [State.CANCELLED] * 2
    assert client.post(f"{JOBS}/{first}/retry", json={}).status_code == 202
    assert [store.get(each).state for each in others] == [State.QUEUED] * 2
    assert store.get(first).preflight_due
    run(store, settings, first, PASSED)
    run(store, settings, first, FAILED)  # the job itself: that is nothing to the others
    assert not [d for d in decisions(store, settings) if isinstance(d, Cancel)]


def test_an_edit_of_the_work_asks_for_another_one_and_an_edit_of_the_rest_does_not(
    client: TestClient, store: Store, settings: Settings
) -> None:
    job_id = submitted(client, tune())["id"]
    run(store, settings, job_id, PASSED)
    client.patch(f"{JOBS}/{job_id}", json={"name": "mine", "notify": "end"})
    assert not store.get(job_id).preflight_due and store.get(job_id).measured
    client.patch(f"{JOBS}/{job_id}", json={"max_length": 2048})
    assert store.get(job_id).preflight_due and not store.get(job_id).measured
    client.patch(f"{JOBS}/{job_id}", json={"preflight": False})
    assert not store.get(job_id).preflight_due


def test_one_that_waits_for_anothers_stays_so_until_its_own_work_changes(client: TestClient, store: Store) -> None:
    first, other = sweep(client, learning_rate=[1e-4, 2e-4])
    shown = client.get(f"{JOBS}/{other}").json()["after"]
    assert client.patch(f"{JOBS}/{other}", json={"notify": "end", "after": shown}).status_code == 200
    assert store.get(other).after == (f"checked:{first}",)
    client.patch(f"{JOBS}/{other}", json={"lora": {"r": 64}})
    assert store.get(other).after == () and store.get(other).preflight_due


def test_one_whose_work_is_changed_is_no_matter_to_those_that_it_was_like(
    client: TestClient, store: Store, settings: Settings
) -> None:
    """Else one bad edit would cancel the sweep."""
    first, other, _ = sweep(client, learning_rate=[1e-4, 2e-4, 3e-4])
    client.patch(f"{JOBS}/{first}", json={"lora": {"r": 64}})
    assert store.get(first).preflight_due
    assert other in Ledger(store).facts(NOW, settings).position
    run(store, settings, first, FAILED)
    assert other in Ledger(store).facts(NOW, settings).position
    assert not [d for d in decisions(store, settings) if isinstance(d, Cancel)]
    assert store.abandon(other, first, "it failed", now=NOW).state is State.QUEUED


def test_one_that_has_passed_is_waited_for_no_more_whatever_it_is_made_into(
    client: TestClient, store: Store, settings: Settings
) -> None:
    first, other = sweep(client, learning_rate=[1e-4, 2e-4])
    run(store, settings, first, PASSED)
    client.patch(f"{JOBS}/{first}", json={"learning_rate": 10.0})
    assert store.get(first).preflight_due
    assert other in Ledger(store).facts(NOW, settings).position


def test_one_that_stays_like_the_others_still_counts_for_them(
    client: TestClient, store: Store, settings: Settings
) -> None:
    first, other = sweep(client, learning_rate=[1e-4, 2e-4])
    client.patch(f"{JOBS}/{first}", json={"learning_rate": 3e-4})
    assert other not in Ledger(store).facts(NOW, settings).position
    run(store, settings, first, FAILED)
    assert [d.job for d in decisions(store, settings) if isinstance(d, Cancel)] == [other]


def test_one_that_has_ended_can_be_deleted_while_others_like_it_wait_for_a_slot(
    client: TestClient, store: Store, settings: Settings
) -> None:
    first, _ = sweep(client, learning_rate=[1e-4, 2e-4])
    run(store, settings, first, PASSED)
    run(store, settings, first, FAILED)
    assert client.delete(f"{JOBS}/{first}").status_code == 204


def test_while_it_runs_every_page_says_that_it_is_one(client: TestClient, store: Store, settings: Settings) -> None:
    job_id = submitted(client, tune())["id"]
    offered = store.offer(job_id, rig=settings.rig, slots=("GPU-0",), epoch=store.new_epoch(settings.rig), now=NOW)
    store.claim(job_id, fence=offered.fence, owner="test", now=NOW, lease_s=60)
    assert "Its preflight runs on GPU 0" in client.get(f"/jobs/{job_id}").text
    assert "preflight" in client.get("/jobs").text
    assert client.get(f"{JOBS}/{job_id}").json()["attempts"][-1]["preflight"]


def test_nothing_of_a_preflight_that_was_cut_off_is_there_when_the_next_run_begins(
    client: TestClient, store: Store, settings: Settings
) -> None:
    """Its own rig takes it away as it ends it; one that was away, or `overnight reindex`, does not."""
    job_id = submitted(client, tune())["id"]
    folder = run_dir(settings.runs, job_id)
    folder.aside.create()
    (folder.scratch / "metrics.jsonl").write_text("{}")
    offered = store.offer(job_id, rig=settings.rig, slots=("GPU-0",), epoch=store.new_epoch(settings.rig), now=NOW)
    job = store.claim(job_id, fence=offered.fence, owner="test", now=NOW, lease_s=60)
    assert prepare(folder, job, settings, store).preflight
    assert not folder.scratch.exists()


def passed(store: Store, settings: Settings, job_id: str, peak_bytes: float) -> Job:
    """Its preflight has left its result, and is ended by the worker."""
    offered = store.offer(job_id, rig=settings.rig, slots=("GPU-0",), epoch=store.new_epoch(settings.rig), now=NOW)
    store.claim(job_id, fence=offered.fence, owner="test", now=NOW, lease_s=60)
    learned = {**PASSED.learned, "peak_vram_bytes": peak_bytes}
    folder = run_dir(settings.runs, job_id)
    folder.create()
    write_json(folder.result, {"fence": offered.fence, "end": "checked", "learned": learned})
    write_json(folder.exit, {"fence": offered.fence, "exit_code": 0})
    settle(store, settings, job_id, offered.fence, slot="GPU-0", now=NOW + 60)
    return store.get(job_id)


def test_one_that_filled_its_card_to_the_brim_may_run_there_again(
    client: TestClient, store: Store, settings: Settings
) -> None:
    """torch keeps what it once had: a peak near the card's size is no need of more than the card has."""
    job_id = submitted(client, tune())["id"]
    assert passed(store, settings, job_id, 79.9 * 2**30).vram_bytes == 79.5 * 2**30
    assert job_id in [decision.job for decision in decisions(store, settings) if isinstance(decision, Offer)]
    assert client.post(JOBS, json=tune()).status_code == 201


def test_the_memory_of_a_generation_that_takes_what_there_is_is_no_need(
    client: TestClient, store: Store, settings: Settings
) -> None:
    job_id = submitted(client, {"kind": "generate", "model": "llama-1b", "data": f"sha256:{DIGEST}", "preflight": True})["id"]  # fmt: skip
    before = store.get(job_id).vram_bytes
    assert passed(store, settings, job_id, 70.0 * 2**30).vram_bytes == before
