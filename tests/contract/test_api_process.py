"""`python -m api` as a process: where it listens, what it keeps secret, and how it ends."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from live_api import COMMAND, NOW, LiveApi, address_of, start_api
from until import until

from api.client import Client, parse_events
from daemon import redis_server
from daemon.process_tree import is_alive
from daemon.settings import Settings
from daemon.store import Store, connect
from jobs.rundir import run_dir
from jobs.spec import parse
from workers.execute import prepare

LISTEN = "0A"


@pytest.fixture
def queue(settings: Settings) -> Iterator[Store]:
    """The home's own Redis."""
    server = redis_server.start(settings)
    yield Store(connect(str(server.socket)))
    server.stop()


@pytest.fixture
def api(settings: Settings, queue: Store) -> Iterator[LiveApi]:
    """A process of this test's own."""
    log = settings.home / "api.log"
    process = start_api(settings.home, log)
    address = address_of(settings.home, process, log)
    token = (settings.home / "token").read_text().strip()
    yield LiveApi(settings, queue, process, address["url"], token, log)
    if process.poll() is None:
        process.kill()
        process.wait()


def listening(pid: int) -> set[str]:
    """Addresses on which a process accepts TCP connections, as /proc writes them (hexadecimal)."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
        except FileNotFoundError:
            continue
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    ]
    return {row[1].partition(":")[0] for row in rows if row[3] == LISTEN and row[9] in inodes}


# -- where it listens -----------------------------------------------------------------------------------------------------


def test_s1_it_listens_on_loopback_alone_unless_told(live: LiveApi) -> None:
    assert listening(live.process.pid) == {"0100007F"}  # 127.0.0.1
    assert httpx.get(f"{live.url}/healthz", trust_env=False).status_code == 200


def test_s2_it_refuses_to_be_reachable_before_there_is_a_token(settings: Settings, queue: Store) -> None:
    log = settings.home / "api.log"

    process = start_api(settings.home, log, OVERNIGHT_HOST="0.0.0.0")

    assert process.wait(30) == 2
    assert "0.0.0.0 can be reached by others, and this rig has no token yet" in log.read_text()
    assert not settings.token_file.exists()
    assert not (settings.home / "api.json").exists()


def test_s2_with_a_token_it_may_be_reachable(settings: Settings, queue: Store) -> None:
    settings.token_file.write_text("t" * 43)
    settings.token_file.chmod(0o600)
    log = settings.home / "api.log"
    process = start_api(settings.home, log, OVERNIGHT_HOST="0.0.0.0")
    try:
        address = address_of(settings.home, process, log)
        assert listening(process.pid) == {"00000000"}
        assert address["url"].startswith("http://127.0.0.1:")
        assert httpx.get(f"{address['url']}/api/v1/jobs", trust_env=False).status_code == 401
    finally:
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.parametrize(("token", "mode", "words"), [("short", 0o600, "too short"), ("t" * 43, 0o644, "chmod 600")])
def test_s4_a_weak_or_readable_token_is_refused(
    settings: Settings, queue: Store, token: str, mode: int, words: str
) -> None:
    settings.token_file.write_text(token)
    settings.token_file.chmod(mode)
    log = settings.home / "api.log"

    assert start_api(settings.home, log).wait(30) == 2
    assert words in log.read_text()


def test_a_port_in_use_is_one_clear_sentence(settings: Settings, queue: Store) -> None:
    log = settings.home / "api.log"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = start_api(settings.home, log, OVERNIGHT_PORT=str(port))
        assert process.wait(30) == 69
    assert f"Cannot listen on 127.0.0.1 port {port} (Address already in use)" in log.read_text()
    assert "Traceback" not in log.read_text()


# -- what it keeps secret -------------------------------------------------------------------------------------------------


def test_s4_the_token_is_in_its_file_and_nowhere_else(api: LiveApi) -> None:
    assert api.settings.token_file.stat().st_mode & 0o777 == 0o600
    assert len(base64.urlsafe_b64decode(api.token + "=")) >= 32  # 256 bits
    with Client(api.url, api.token) as client:
        client.submit(COMMAND)
        link = client.login_url()
    with httpx.Client(base_url=api.url, trust_env=False) as browser:
        browser.get("/api/v1/jobs", params={"token": api.token})
        browser.get(f"/{api.token}")
        browser.post("/login", json={"token": api.token + "x"})
        assert browser.post("/login", json={"code": link.partition("code=")[2]}).status_code == 200
        browser.post("/login", content=api.token, headers={"Content-Type": "application/json"})
    with socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2]))) as broken:
        broken.sendall(f"NONSENSE {api.token}\r\n\r\n".encode())
        broken.recv(100)
    api.process.terminate()
    api.process.wait(10)

    places = [
        path for path in api.settings.home.rglob("*") if path.is_file() and api.token.encode() in path.read_bytes()
    ]
    assert places == [api.settings.token_file]
    assert link.partition("code=")[2].encode() not in api.log.read_bytes()
    assert api.token.encode() not in b"".join(api.store.redis.dump(key) or b"" for key in api.store.redis.scan_iter())


def test_s34_a_secret_is_stored_and_shown_by_name_only(api: LiveApi) -> None:
    canary = "hf_CANARY0123456789"
    api.settings.secrets_file.write_text(f'HF_TOKEN = "{canary}"\n')
    api.settings.secrets_file.chmod(0o600)
    answers = []
    with api.client() as client:
        answers.append(client.post("/api/v1/jobs", json={**COMMAND, "secrets": ["HF_TOKEN"]}))
        answers.append(client.post("/api/v1/jobs", json={**COMMAND, "secrets": ["OTHER"]}))
        offered = api.store.offer("1", rig="rig", slots=("cpu:0",), epoch=api.store.new_epoch("rig"), now=1)
        job = api.store.claim("1", fence=offered.fence, owner="test", now=1, lease_s=60)
        prepare(run_dir(api.settings.runs, "1"), job, api.settings, api.store)  # what a worker leaves in the folder
        paths = (
            "jobs",
            "jobs/1",
            "jobs/1/log",
            "jobs/1/files/spec.json",
            "jobs/1/archive",
            "rig",
            "gpus",
            "openapi.json",
        )
        answers += [client.get(f"/api/v1/{path}") for path in paths]
        answers += [client.get(page) for page in ("/", "/jobs/1")]

    assert answers[0].json()["spec"]["secrets"] == ["HF_TOKEN"]
    assert [answer.status_code for answer in answers[2:]] == [200] * (len(paths) + 2)
    assert not [answer.url for answer in answers if canary in answer.text]
    places = [path for path in api.settings.home.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]
    assert places == [api.settings.secrets_file]
    assert canary.encode() not in b"".join(api.store.redis.dump(key) or b"" for key in api.store.redis.scan_iter())


def test_s25_the_queue_is_behind_a_folder_of_its_own_and_no_port(live: LiveApi) -> None:
    server = int(live.store.redis.info("server")["process_id"])

    assert listening(server) == set()
    assert live.settings.redis_folder.stat().st_mode & 0o777 == 0o700
    assert live.store.redis.config_get("port")["port"] == "0"


# -- what it takes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("announced", [True, False])
def test_s26_who_sends_200_mb_hears_why_it_is_refused(live: LiveApi, announced: bool) -> None:
    def body() -> Iterator[bytes]:
        yield from (b" " * 1_000_000 for _ in range(200))

    headers = {"Content-Type": "application/json"} | ({"Content-Length": "200000000"} if announced else {})
    with live.client() as client:
        answer = client.post("/api/v1/jobs", content=body(), headers=headers)

    assert answer.status_code == 413
    assert answer.json()["type"] == "urn:overnight:too-large"


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Content-Length: 10", b"x" * 2_000_000),  # a lie: what follows is no request
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
        (b"Content-Length: 5\r\nContent-Length: 6", b"xxxxx"),
        (b"Content-Length: -1", b""),
        (b"Transfer-Encoding: chunked", b"zz\r\n"),
    ],
)
def test_s26_a_body_that_lies_about_its_length_is_refused(live: LiveApi, head: bytes, body: bytes) -> None:
    with socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2])), timeout=10) as caller:
        start = (
            b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
        )
        caller.sendall(start + f"Authorization: Bearer {live.token}\r\n".encode() + head + b"\r\n\r\n" + body)
        status = int(caller.recv(1000).split()[1])

    assert 400 <= status < 500
    assert sum(live.store.counts().values()) == 0


# -- how it ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_open_streams_do_not_keep_it_from_ending(api: LiveApi, sig: signal.Signals) -> None:
    with Client(api.url, api.token) as client:
        job_id = client.submit(COMMAND)["id"]
        events = client.events(job_id)
        next(events)
        with api.client().stream("GET", "/api/v1/events") as all_events:
            next(all_events.iter_lines())
            api.process.send_signal(sig)

            assert list(events) == []  # ended in order, not torn off
            assert api.process.wait(10) == 0
    assert not (api.settings.home / "api.json").exists()
    assert "Traceback" not in api.log.read_text()


def test_a_stream_goes_on_where_it_was_when_the_process_was_killed(api: LiveApi) -> None:
    with Client(api.url, api.token) as client:
        client.submit(COMMAND)
        since = api.store.last_event_id()
        first = client.submit(COMMAND)["id"]
    with api.client().stream("GET", "/api/v1/events", params={"since": since}) as answer:
        seen = next(event for event in parse_events(answer.iter_bytes()) if event.type == "state")
        api.process.kill()
        api.process.wait()
    [second], _ = api.store.submit([parse(COMMAND)], now=NOW)  # the queue goes on without it
    process = start_api(api.settings.home, api.log)
    try:
        api.url = str(address_of(api.settings.home, process, api.log)["url"])
        with api.client().stream("GET", "/api/v1/events", headers={"Last-Event-ID": seen.id}) as answer:
            again = next(event for event in parse_events(answer.iter_bytes()) if event.type == "state")
    finally:
        process.kill()
        process.wait()
    assert (seen.data["job"], again.data["job"]) == (first, second.id)


def test_it_tells_where_it_listens(live: LiveApi) -> None:
    address = json.loads((live.settings.home / "api.json").read_text())

    port = int(live.url.rpartition(":")[2])
    assert address == {"host": "127.0.0.1", "port": port, "pid": live.process.pid, "url": live.url}


def test_it_dies_with_its_parent(settings: Settings, queue: Store) -> None:
    start = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-m', 'api'], env={**os.environ, 'OVERNIGHT_PARENT_PID': str(os.getpid())})\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    environment = {**os.environ, "OVERNIGHT_HOME": str(settings.home), "OVERNIGHT_PORT": "0"}
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        until((settings.home / "api.json").exists, within_s=30)
        parent.kill()

    until(lambda: not is_alive(pid))
