"""Idle time over HTTP: from the records of a real queue."""

from collections.abc import Callable

from live_api import NOW
from starlette.testclient import TestClient

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
