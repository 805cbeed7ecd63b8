"""Submitting: repeats with a key, trial runs, batches and sweeps. All or none, once, and nothing left of what was refused."""

from typing import Any

import pytest
from live_api import COMMAND
from starlette.testclient import TestClient

from daemon.settings import Settings
from daemon.store import Store

JOBS = "/api/v1/jobs"


# -- repeats and trials ---------------------------------------------------------------------------------------------------


def test_a_repeated_call_with_its_key_makes_no_second_job(client: TestClient, store: Store) -> None:
    key = {"Idempotency-Key": "k1"}
    first = client.post(JOBS, json=COMMAND, headers=key)
    again = client.post(JOBS, json=dict(reversed(COMMAND.items())), headers=key)

    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    assert store.counts()["queued"] == 1


def test_a_key_with_another_document_is_refused(client: TestClient, store: Store) -> None:
    client.post(JOBS, json=COMMAND, headers={"Idempotency-Key": "k1"})

    answer = client.post(JOBS, json={**COMMAND, "gpus": 2}, headers={"Idempotency-Key": "k1"})

    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:overnight:repeated-differently"
    assert store.counts()["queued"] == 1


def test_a_repeat_is_answered_although_the_program_has_gone_since(client: TestClient, settings: Settings) -> None:
    program = settings.home / "once"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    document = {**COMMAND, "argv": [str(program)]}
    first = client.post(JOBS, json=document, headers={"Idempotency-Key": "k"})
    program.unlink()

    assert client.post(JOBS, json=document, headers={"Idempotency-Key": "k"}).json()["id"] == first.json()["id"]
    assert client.post(JOBS, json=document).status_code == 422


def test_a_trial_run_checks_everything_and_stores_nothing(client: TestClient, store: Store) -> None:
    before = store.last_event_id()

    good = client.post(JOBS, json=COMMAND, params={"dry_run": "true"})
    bad = client.post(JOBS, json={**COMMAND, "gpus": 3}, params={"dry_run": "true"})

    assert good.status_code == 200
    assert good.json()["job"]["max_attempts"] == 3  # every field filled in
    assert good.json()["would_wait_because"] == "starts at the next look"
    assert bad.status_code == 422
    assert store.last_event_id() == before


# -- batches --------------------------------------------------------------------------------------------------------------


def test_a_batch_keeps_its_order(client: TestClient) -> None:
    answer = client.post(f"{JOBS}/batch", json={"jobs": [{**COMMAND, "name": name} for name in "abc"]})

    assert answer.status_code == 201
    assert [(job["id"], job["name"]) for job in answer.json()["jobs"]] == [("1", "a"), ("2", "b"), ("3", "c")]


def test_one_wrong_job_refuses_the_whole_batch_by_its_number(client: TestClient, store: Store) -> None:
    answer = client.post(f"{JOBS}/batch", json={"jobs": [COMMAND, {**COMMAND, "gpus": -1}, COMMAND]})

    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["jobs.1.gpus"]
    assert sum(store.counts().values()) == 0


def test_a_sweep_makes_one_job_for_each_combination(client: TestClient) -> None:
    sweep = {"priority": ["high", "backlog"], "max_runtime_s": [60, 120]}
    answer = client.post(f"{JOBS}/batch", json={"base": {**COMMAND, "name": "s"}, "sweep": sweep})

    jobs = [client.get(f"{JOBS}/{job['id']}").json() for job in answer.json()["jobs"]]
    combinations = [(job["priority"], job["spec"]["max_runtime_s"]) for job in jobs]
    assert combinations == [("high", 60), ("high", 120), ("backlog", 60), ("backlog", 120)]
    assert jobs[3]["name"] == "s priority=backlog max_runtime_s=120"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"jobs": []}, "at least one job"),
        ({"jobs": [COMMAND] * 10_001}, "one batch takes 10000"),
        ({"base": COMMAND, "sweep": {"gpus": []}}, "at least one value"),
        ({"base": COMMAND, "sweep": {"a": list(range(101)), "b": list(range(100))}}, "makes 10100 jobs"),
        ({"base": COMMAND, "sweep": {"gpus": [1], "argv.x": [1]}}, "not an object in the base"),
        ({"job": COMMAND}, 'a batch has "jobs"'),
        ([COMMAND], "a batch is"),
    ],
)
def test_a_wrong_batch_is_refused_in_words(client: TestClient, store: Store, body: Any, words: str) -> None:
    answer = client.post(f"{JOBS}/batch", json=body)

    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert sum(store.counts().values()) == 0


def test_thousands_of_jobs_fit_into_one_batch(client: TestClient, store: Store) -> None:
    answer = client.post(f"{JOBS}/batch", json={"jobs": [COMMAND] * 3_000})

    assert answer.status_code == 201
    assert store.counts()["queued"] == 3_000
