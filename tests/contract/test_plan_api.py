"""The night ahead over HTTP: real records, a real ledger with its history, the planner's own forecast."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from fastapi import FastAPI
from live_api import COMMAND, NOW
from starlette.testclient import TestClient

from api.app import create_app
from daemon.facts import Ledger
from daemon.rig import cpu_slots
from daemon.settings import Settings
from daemon.store import Store
from jobs.model import End, Job, Outcome, State

TRAIN = {"kind": "command", "argv": ["python", "train.py"]}


@pytest.fixture
def app(settings: Settings, store: Store) -> FastAPI:
    """Two CPU slots, a window, and a clock that stands at 11:06 UTC."""
    store.describe_rig("rig", {"slots": [slot.to_json() for slot in cpu_slots(2)]})
    store.beat("rig", {"at": NOW})
    return create_app(settings.model_copy(update={"window": "10:00-14:00"}), store, now=lambda: NOW)


@pytest.fixture
def took(client: TestClient, store: Store) -> Callable[..., None]:
    """A job like `document` has run for so long."""

    def run(seconds: float, **document: Any) -> None:
        job_id = client.post("/api/v1/jobs", json={**TRAIN, **document}).json()["id"]
        offered = store.offer(job_id, rig="rig", slots=("cpu:0",), epoch=store.new_epoch("rig"), now=NOW - 9_000)
        store.claim(job_id, fence=offered.fence, owner="test", now=NOW - 9_000, lease_s=60)
        store.finish(job_id, fence=offered.fence, outcome=Outcome(end=End.SUCCEEDED), now=NOW - 9_000 + seconds)

    return run


def at(text: str | None) -> float | None:
    """Seconds from now."""
    return None if text is None else datetime.fromisoformat(text).timestamp() - NOW


def test_the_forecast_tells_for_each_job_when_and_where(client: TestClient, took: Callable[..., None]) -> None:
    took(600.0)
    ids = [client.post("/api/v1/jobs", json=TRAIN).json()["id"] for _ in range(3)]

    found = client.get("/api/v1/plan").json()

    jobs = {job["id"]: job for job in found["jobs"]}
    assert list(jobs) == ids
    assert [(at(jobs[name]["start_at"]), at(jobs[name]["end_at"])) for name in ids] == [(0, 600), (0, 600), (600, 1200)]
    assert [jobs[name]["basis"] for name in ids] == ["history"] * 3
    assert [[run["job"] for run in lane["runs"]] for lane in found["lanes"]] == [[ids[0], ids[2]], [ids[1]]]
    assert jobs[ids[2]]["waiting_because"].startswith("2 jobs ahead")
    assert found["late"] == [] and found["give_way"] is None
    assert found["window_ends_at"] == "2026-11-18T14:00:00Z"


def test_what_will_not_be_done_in_time_is_named_with_what_would_have_to_give(
    client: TestClient, took: Callable[..., None]
) -> None:
    took(9_000.0)
    ids = [client.post("/api/v1/jobs", json=TRAIN).json()["id"] for _ in range(3)]

    found = client.get("/api/v1/plan").json()
    by_noon = client.get("/api/v1/plan", params={"by": "2026-11-18T12:00:00Z"}).json()

    assert found["late"] == ids[2:]
    assert found["give_way"] == {"job": ids[2], "hold": [ids[1]], "end_at": found["jobs"][0]["end_at"]}
    assert by_noon["late"] == ids and by_noon["deadline"] == "2026-11-18T12:00:00Z"
    assert by_noon["give_way"]["hold"] == []


def test_a_what_if_is_answered_and_nothing_is_stored(
    client: TestClient, took: Callable[..., None], store: Store
) -> None:
    took(600.0)
    client.post("/api/v1/jobs", json={**TRAIN, "gpus": 2})
    before = store.counts()

    one = client.post("/api/v1/plan", json=TRAIN)
    many = client.post("/api/v1/plan", json={"jobs": [TRAIN, {**TRAIN, "priority": "high"}]})

    assert (one.status_code, one.json()["what_if"]) == (200, ["3"])
    assert at(one.json()["jobs"][1]["start_at"]) is not None
    assert many.json()["what_if"] == ["3", "4"] and many.json()["jobs"][0]["id"] == "4"
    assert store.counts() == before


def test_a_what_if_that_is_no_job_is_refused_field_by_field(client: TestClient) -> None:
    answer = client.post("/api/v1/plan", json={"kind": "command", "argvs": ["x"]})
    assert answer.status_code == 422
    assert {error["field"] for error in answer.json()["errors"]} == {"argv", "argvs"}
    assert client.post("/api/v1/plan", json=[1]).status_code == 422


def test_one_jobs_times_are_a_small_question(client: TestClient, submit: Callable[..., str]) -> None:
    job_id = submit()
    planned = client.get(f"/api/v1/jobs/{job_id}/plan").json()
    assert (at(planned["start_at"]), planned["basis"], planned["sure"]) == (0, "unknown", False)
    assert client.get("/api/v1/jobs/999/plan").status_code == 404


def test_of_a_job_that_has_ended_nothing_is_expected(
    client: TestClient, submit: Callable[..., str], brought: Callable[[str, State], Job]
) -> None:
    job_id = submit()
    brought(job_id, State.SUCCEEDED)
    assert client.get(f"/api/v1/jobs/{job_id}/plan").status_code == 409


def test_a_deadline_in_the_past_or_without_a_zone_is_refused(client: TestClient) -> None:
    for by in ("2020-01-01T00:00:00Z", "2026-11-18T12:00:00", "noon", "9999-12-31T23:59:59Z"):
        assert client.get("/api/v1/plan", params={"by": by}).status_code == 422, by


def test_a_long_queue_is_told_in_part_but_counted_in_whole(client: TestClient) -> None:
    client.post("/api/v1/jobs/batch", json={"jobs": [COMMAND] * 30})
    found = client.get("/api/v1/plan", params={"limit": 5}).json()
    assert (len(found["jobs"]), found["more"]) == (5, 25)


def test_the_ledger_learns_from_what_ended_before_it_began_and_from_what_ends_now(
    client: TestClient, took: Callable[..., None], store: Store, settings: Settings
) -> None:
    took(100.0)
    ledger = Ledger(store)
    waiting = client.post("/api/v1/jobs", json=TRAIN).json()["id"]
    assert ledger.facts(NOW, settings).expected_s == {waiting: 100.0}
    took(300.0)
    assert ledger.facts(NOW, settings).expected_s == {waiting: 200.0}
    ledger.forget()
    assert ledger.facts(NOW, settings).expected_s == {waiting: 200.0}
