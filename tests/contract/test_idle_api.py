"""Idle time over HTTP: from the records of a real queue."""

import time
from collections.abc import Callable

from live_api import NOW
from starlette.testclient import TestClient

from daemon.store import Store
from jobs.model import Job, State


def test_idle_time_has_its_reasons(
    client: TestClient, submit: Callable[..., str], brought: Callable[[str, State], Job]
) -> None:
    brought(submit(), State.SUCCEEDED)  # on cpu:1 from NOW + 1 to NOW + 10
    found = client.get("/api/v1/telemetry/idle", params={"start": NOW, "end": NOW + 100}).json()
    assert sorted(found["slots"]) == ["cpu:0", "cpu:1"]
    assert sum(one["seconds"] for one in found["slots"]["cpu:0"]) == 100
    assert sum(one["seconds"] for one in found["slots"]["cpu:1"]) == 91
    assert sum(found["idle_s"].values()) == 191
    assert client.get("/api/v1/telemetry/idle?start=5&end=4").status_code == 422


def test_a_pause_by_hand_that_has_ended_is_the_reason_for_its_time(client: TestClient, store: Store) -> None:
    before = time.time() - 100
    client.post("/api/v1/gpus/cpu:0/pause", json={})
    client.post("/api/v1/gpus/cpu:0/resume")
    (slot, since, until), *_ = store.pauses("rig")
    client.post("/api/v1/rig/pause", json={})
    found = client.get("/api/v1/telemetry/idle", params={"start": before, "end": time.time() + 100}).json()
    told = {name: [(one["reason"], one["seconds"]) for one in stretches] for name, stretches in found["slots"].items()}
    assert slot == "cpu:0" and until is not None
    assert [reason for reason, _ in told["cpu:0"]] == ["no job", "paused", "no job", "paused"]
    assert abs(told["cpu:0"][1][1] - (until - since)) < 0.01
    assert [reason for reason, _ in told["cpu:1"]] == ["no job", "paused"]
