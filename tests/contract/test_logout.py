"""Logging out ends this browser's session, whoever has a copy of its cookie, and nobody else's."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.app import create_app
from api.auth import COOKIE, Ended
from daemon.settings import Settings
from daemon.store import Store

OURS = {"Origin": "http://localhost", "Accept": "text/html"}


def browser(app: FastAPI, cookie: str = "") -> TestClient:
    client = TestClient(app, base_url="http://localhost", follow_redirects=False)
    if cookie:
        client.cookies.set(COOKIE, cookie)
    return client


def log_in(app: FastAPI, token: str) -> tuple[TestClient, str]:
    client = browser(app)
    assert client.post("/login", json={"token": token}).status_code == 200
    return client, client.cookies[COOKIE]


def test_s13_a_copy_of_the_cookie_opens_nothing_afterwards(
    app: FastAPI, token: str, settings: Settings, store: Store
) -> None:
    (here, cookie), (other, _) = log_in(app, token), log_in(app, token)
    copied = browser(app, cookie)
    assert copied.get("/api/v1/jobs").status_code == 200
    answer = here.post("/logout", headers=OURS)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert COOKIE not in here.cookies and "HttpOnly" in answer.headers["set-cookie"]
    assert copied.get("/api/v1/jobs").status_code == 401
    assert other.get("/api/v1/jobs").status_code == 200, "another browser's session goes on"
    restarted = create_app(settings, store)
    assert browser(restarted, cookie).get("/api/v1/jobs").status_code == 401, "a restart does not bring it back"
    assert log_in(restarted, token)[0].get("/api/v1/jobs").status_code == 200


def test_only_our_own_page_logs_out(app: FastAPI, token: str) -> None:
    here, _ = log_in(app, token)
    assert here.post("/logout", headers={"Origin": "http://evil.example"}).status_code == 403
    assert here.post("/logout").status_code == 403
    assert here.get("/logout").status_code == 405
    assert here.get("/api/v1/jobs").status_code == 200


def test_s4_what_is_remembered_of_it_opens_nothing(app: FastAPI, token: str, settings: Settings) -> None:
    here, cookie = log_in(app, token)
    here.post("/logout", headers=OURS)
    kept = (settings.home / "logged-out.json").read_text()
    assert cookie not in kept and cookie.rpartition(".")[2] not in kept, "the signature is not among it"


def test_many_log_out_at_once_and_none_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ended = Ended(tmp_path / "logged-out.json", lambda: 0.0)
    names = [f"nonce-{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: ended.add(name, 99), names))
    assert all(name in ended for name in names) and not caplog.messages
    again = Ended(tmp_path / "logged-out.json", lambda: 0.0)
    assert all(name in again for name in names)
