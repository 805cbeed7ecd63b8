"""The API as its callers see it: the application with a token and without, jobs in every state, and a real `python -m api`."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from live_api import COMMAND, NOW, LiveApi, address_of, start_api
from starlette.testclient import TestClient

from api.app import create_app
from daemon import redis_server
from daemon.rig import cpu_slots
from daemon.settings import Settings
from daemon.store import Store, connect
from jobs.model import Cause, End, Job, Outcome, State
from jobs.rundir import RunDir, run_dir


@pytest.fixture
def app(settings: Settings, store: Store) -> FastAPI:
    """The application on a rig with two CPU slots whose daemon has just spoken."""
    store.describe_rig("rig", {"slots": [slot.to_json() for slot in cpu_slots(2)]})
    store.beat("rig", {"at": NOW})
    return create_app(settings, store)


@pytest.fixture
def token(app: FastAPI, settings: Settings) -> str:
    return settings.token_file.read_text().strip()


@pytest.fixture
def client(app: FastAPI, token: str) -> Iterator[TestClient]:
    """The owner."""
    with TestClient(app, base_url="http://localhost", headers={"Authorization": f"Bearer {token}"}) as client:
        yield client


@pytest.fixture
def stranger(app: FastAPI) -> TestClient:
    """Somebody without the token. Failures of the server are answers here, not exceptions of the test."""
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


@pytest.fixture
def submit(client: TestClient) -> Callable[..., str]:
    """Submits a command with changes; its id."""

    def submit(**changes: Any) -> str:
        answer = client.post("/api/v1/jobs", json={**COMMAND, **changes})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    return submit


@pytest.fixture
def brought(store: Store) -> Callable[[str, State], Job]:
    """Brings a waiting job into a state, by the steps that a planner and a worker take."""

    def bring(job_id: str, state: State) -> Job:
        slot, epoch = f"cpu:{int(job_id) % 2}", store.new_epoch("rig")
        offered = store.offer(job_id, rig="rig", slots=(slot,), epoch=epoch, now=NOW)
        job = store.claim(job_id, fence=offered.fence, owner="test", now=NOW + 1, lease_s=60)
        if state is State.RUNNING:
            return job
        outcome = {
            State.SUCCEEDED: Outcome(end=End.SUCCEEDED, metrics={"loss": 0.5}, usage={"gpu_s": 9.0, "energy_j": 100.0}),
            State.FAILED: Outcome(end=End.FAILED, cause=Cause.BAD_INPUT, message="It cannot be.", hint="Do otherwise."),
            State.CANCELLED: Outcome(end=End.CANCELLED, message="Enough."),
        }[state]
        return store.finish(job_id, fence=offered.fence, outcome=outcome, now=NOW + 10)

    return bring


@pytest.fixture
def folder_of(settings: Settings) -> Callable[[str], RunDir]:
    """Makes a job's run folder."""

    def make(job_id: str) -> RunDir:
        folder = run_dir(settings.runs, job_id)
        folder.create()
        return folder

    return make


@pytest.fixture(scope="module")
def live() -> Iterator[LiveApi]:
    """One process for a whole module: starting one takes about a second."""
    home = Path(tempfile.mkdtemp(prefix="on-"))
    settings = Settings(home=home, rig="rig", port=0, slots="cpu:2", timezone="UTC")
    server, log = redis_server.start(settings), home / "api.log"
    process = start_api(home, log)
    try:
        address = address_of(home, process, log)
        store = Store(connect(str(server.socket)))
        store.describe_rig("rig", {"slots": [slot.to_json() for slot in cpu_slots(2)]})
        yield LiveApi(settings, store, process, address["url"], (home / "token").read_text().strip(), log)
    finally:
        process.terminate()
        process.wait(10)
        server.stop()
        shutil.rmtree(home, ignore_errors=True)
