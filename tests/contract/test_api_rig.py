"""The rig over HTTP: slots, window, health, login, the schema; and what happens while Redis is away."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from live_api import COMMAND
from starlette.testclient import TestClient

from api.__main__ import PATIENCE
from api.app import create_app
from api.auth import COOKIE, hash_of_token, login_code
from daemon import redis_server
from daemon.rig import Slot
from daemon.samples import now_path, publish
from daemon.settings import Settings
from daemon.store import Store, connect
from jobs.model import Job, State


def test_slots_show_what_they_do_and_their_latest_sample(
    client: TestClient, settings: Settings, submit: Callable[..., str], brought: Callable[[str, State], Job]
) -> None:
    reading = {"name": "CPU slot 1", "index": 1, "utilization_ratio": 0.5, "processes": [], "throttle_reasons": []}
    publish(
        now_path(settings.home), {"at": 0, "source": "psutil", "problem": None, "slots": {"cpu:1": reading}, "pid": 1}
    )
    brought(submit(), State.RUNNING)

    idle, busy = client.get("/api/v1/gpus").json()["gpus"]

    assert (idle["id"], idle["state"], idle["job"], idle["sample"]) == ("cpu:0", "idle", None, None)
    assert (busy["id"], busy["state"], busy["job"]) == ("cpu:1", "busy", "1")
    assert busy["sample"]["utilization_ratio"] == 0.5
    assert busy["sample_age_s"] > 5


def test_a_slot_and_the_rig_can_be_paused_and_resumed(client: TestClient, store: Store) -> None:
    assert client.post("/api/v1/gpus/cpu:0/pause").json()["state"] == "paused"
    assert client.post("/api/v1/rig/pause").json()["paused"] is True
    assert store.paused() == {"rig", "rig:cpu:0"}
    assert client.post("/api/v1/gpus/cpu:0/resume").json()["paused"] is False
    assert client.post("/api/v1/rig/resume").json()["paused"] is False
    assert store.paused() == frozenset()


def test_another_rigs_slot_is_paused_there(client: TestClient, store: Store) -> None:
    store.describe_rig("attic", {"slots": [Slot("GPU-1", "RTX", 0, 1 << 30).to_json()]})

    client.post("/api/v1/gpus/GPU-1/pause")

    assert store.paused() == {"attic:GPU-1"}


def test_an_unknown_slot_is_not_found(client: TestClient) -> None:
    assert client.post("/api/v1/gpus/GPU-7/pause").status_code == 404


def test_the_rig_tells_its_window_versions_and_health_but_no_password(settings: Settings, store: Store) -> None:
    told = {
        "redis_url": "redis://me:hunter2@host:1/0",
        "tracker_variables": {"MLFLOW_TRACKING_URI": "https://me:hunter2@host/"},
    }
    settings = settings.model_copy(update={"window": "22:00-08:00", **told})
    app = create_app(settings, store, now=lambda: 1_795_000_000.0)  # 2026-11-18, 11:06 UTC
    headers = {"Authorization": f"Bearer {settings.token_file.read_text().strip()}"}

    answer = TestClient(app, base_url="http://localhost", headers=headers).get("/api/v1/rig")

    facts = answer.json()
    assert facts["window"]["open"] is False
    assert facts["window"]["opens_at"] == "2026-11-18T22:00:00Z"
    assert facts["health"]["redis"] is True
    assert facts["versions"]["fastapi"]
    assert facts["settings"]["redis_url"] == "redis://…@host:1/0"
    assert facts["settings"]["tracker_variables"] == {"MLFLOW_TRACKING_URI": "https://…@host/"}
    assert "hunter2" not in answer.text


def test_health_needs_no_token_and_says_little(stranger: TestClient, store: Store) -> None:
    assert stranger.get("/healthz").json() == {"status": "alive"}
    assert stranger.get("/readyz").json() == {"status": "ready"}
    store.redis.flushall()
    assert stranger.get("/readyz").status_code == 503


def test_the_schema_names_every_route_once_and_every_document(client: TestClient) -> None:
    schema = client.get("/api/v1/openapi.json").json()

    assert schema["openapi"].startswith("3.1")
    ids = [operation["operationId"] for path in schema["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids)) > 20
    assert all("_" not in name for name in ids)  # by hand, not FastAPI's own
    assert {"JobDocument", "BatchDocument", "FinetuneSpec", "JobView", "Problem"} <= set(
        schema["components"]["schemas"]
    )
    known = schema["components"]["schemas"]
    assert all(ref.rpartition("/")[2] in known for ref in _references(schema))


def test_everything_answers_503_while_redis_is_away_and_nothing_is_half_stored() -> None:
    home = Path(tempfile.mkdtemp(prefix="on-"))
    settings = Settings(home=home, rig="rig", port=0, timezone="UTC")
    server = redis_server.start(settings)
    try:
        store = Store(connect(str(server.socket)))
        store.redis.set_retry(PATIENCE)
        app = create_app(settings, store)
        headers = {"Authorization": f"Bearer {settings.token_file.read_text().strip()}"}
        with TestClient(app, base_url="http://localhost", headers=headers) as client:
            client.post("/api/v1/jobs", json=COMMAND)
            server.stop()
            for method, path in (("POST", "/api/v1/jobs"), ("GET", "/api/v1/jobs"), ("GET", "/api/v1/gpus")):
                answer = client.request(method, path, json=COMMAND)
                assert answer.status_code == 503
                assert answer.json()["type"] == "urn:overnight:unavailable"
                assert int(answer.headers["Retry-After"]) > 0
            assert client.get("/readyz").status_code == 503
            server = redis_server.start(settings)
            assert [job["id"] for job in client.get("/api/v1/jobs").json()["jobs"]] == ["1"]
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


# -- login --------------------------------------------------------------------------------------------------------------


def test_s7_a_code_opens_one_session_once(client: TestClient, stranger: TestClient) -> None:
    answer = client.post("/api/v1/login-codes").json()
    assert answer["url"] == f"http://localhost/login#code={answer['code']}"  # a fragment: no log, no Referer has it

    first = stranger.post("/login", json={"code": answer["code"], "next": "/jobs/3"})

    assert (first.status_code, first.json()) == (200, {"next": "/jobs/3"})
    cookie = first.headers["set-cookie"]
    assert all(flag in cookie for flag in ("HttpOnly", "SameSite=lax", "Path=/", "Max-Age=2592000"))
    assert stranger.get("/api/v1/jobs").status_code == 200  # by the cookie alone
    stranger.cookies.clear()
    assert stranger.post("/login", json={"code": answer["code"]}).status_code == 401


def test_whoever_can_read_the_token_can_make_a_code(stranger: TestClient, token: str, app: FastAPI) -> None:
    now = app.state.context.now()

    assert stranger.post("/login", json={"code": login_code(hash_of_token(token), now - 601)}).status_code == 401
    assert stranger.post("/login", json={"code": login_code(hash_of_token("x" * 43), now)}).status_code == 401
    assert stranger.post("/login", json={"code": login_code(hash_of_token(token), now)}).status_code == 200


def test_the_token_can_be_typed_where_scripts_are_off(stranger: TestClient, token: str) -> None:
    answer = stranger.post("/login", data={"token": token, "next": "//evil.example"}, follow_redirects=False)

    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert stranger.get("/api/v1/jobs").status_code == 200


def test_a_wrong_token_where_scripts_are_off_is_answered_with_the_form_again(stranger: TestClient, token: str) -> None:
    form = {"token": "<b>wrong</b>", "next": "/jobs/3"}
    answer = stranger.post("/login", data=form, follow_redirects=False)

    assert answer.status_code == 401
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert 'role="alert">This code or token opens nothing.' in answer.text
    assert 'name="next" value="/jobs/3"' in answer.text
    assert "wrong</b>" not in answer.text
    assert COOKIE not in answer.cookies
    for _ in range(10):
        answer = stranger.post("/login", data={**form, "next": "//evil.example"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "60")
    assert "Too many wrong logins" in answer.text and 'value="/"' in answer.text
    assert stranger.post("/login", data={"token": token}, follow_redirects=False).status_code == 303


@pytest.mark.parametrize("forged", ["", "1.2.3", "9" * 12 + "." + "a" * 22 + "." + "0" * 64, "\x00", "é"])
def test_a_forged_session_opens_nothing(stranger: TestClient, forged: str) -> None:
    headers = {"Cookie": f"other=1; {COOKIE}={forged}".encode()}

    assert stranger.get("/api/v1/jobs", headers=headers).status_code == 401  # type: ignore[arg-type]


def test_s6_wrong_logins_are_slowed_down_but_never_the_right_one(stranger: TestClient, token: str) -> None:
    answers = [stranger.post("/login", json={"token": f"wrong {n}"}).status_code for n in range(50)]

    assert answers == [401] * 10 + [429] * 40
    assert stranger.post("/login", json={"token": token}).status_code == 200


def test_a_person_without_a_session_is_led_to_the_login(stranger: TestClient) -> None:
    answer = stranger.get("/jobs/5", headers={"Accept": "text/html"}, follow_redirects=False)

    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/jobs/5")


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [ref for item in value.values() for ref in _references(item)]
    return [ref for item in value for ref in _references(item)] if isinstance(value, list) else []
