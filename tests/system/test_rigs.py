"""Two machines, one queue: each rig has its own home, daemon, workers and API; they share a real Redis and nothing else."""

import hashlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from until import until
from wire import Wire

from daemon import redis_server
from daemon.process_tree import kill_marked
from daemon.settings import Settings
from daemon.store import Store, connect
from daemon.supervisor import MARK, mark
from jobs.model import Cause, End, State

COUNTER = Path(__file__).parent.parent / "counter.py"
MakeRigs = Callable[..., Any]


@pytest.fixture
def shared_redis() -> Iterator[Path]:
    """The socket of a real server that belongs to no rig."""
    path = Path(tempfile.mkdtemp(prefix="on-"))
    server = redis_server.start(Settings(home=path))
    yield server.socket
    server.stop()
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def rig_of(make_rig: Any, shared_redis: Path) -> Iterator[MakeRigs]:
    """Makes a rig of the shared queue with a home of its own, by name."""
    homes = []

    def make(name: str, *, start: bool = True, **settings: Any) -> Any:
        home = settings.pop("home", None) or Path(tempfile.mkdtemp(prefix="on-"))
        homes.append(home)
        # short leases, so that a rig that vanishes is missed within seconds
        short = {"lease_s": 3.0, "renew_s": 0.3, "rig_away_s": 3.5, "redis_url": f"unix://{shared_redis}"}
        rig = make_rig(start=False, **{**short, "home": home, "rig": name, **settings})
        rig.store = Store(connect(f"unix://{shared_redis}"))
        if start:
            rig.start()
            until(lambda: api_of(rig), within_s=30, evidence=rig.evidence)
        return rig

    yield make
    for home in homes:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def two_rigs(rig_of: MakeRigs) -> tuple[Any, Any]:
    """Rig a and rig b, both up and known to each other."""
    a, b = rig_of("a"), rig_of("b")
    return a, b


def api_of(rig: Any) -> str | None:
    """Where the rig says that its API is."""
    beat = rig.store.last_beat(rig.settings.rig)
    return (beat or {}).get("url") or None


def client_of(rig: Any) -> httpx.Client:
    token = (rig.settings.home / "token").read_text().strip()
    url = str(until(lambda: api_of(rig), within_s=30, evidence=rig.evidence))
    return httpx.Client(base_url=f"{url}/api/v1", headers={"Authorization": f"Bearer {token}"}, trust_env=False)


def rig_that_ran(rig: Any, job_id: str) -> str:
    return str(rig.job(job_id).attempts[-1].rig)


def destroy(rig: Any) -> None:
    """All at once, as a power cut would."""
    rig.daemon.kill()
    rig.daemon.wait()
    kill_marked(MARK, mark(rig.settings))


def both(a: Any, b: Any) -> Callable[[], str]:
    return lambda: f"=== a\n{a.evidence()}\n=== b\n{b.evidence()}"


def test_jobs_spread_over_both_rigs_and_each_runs_once(two_rigs: tuple[Any, Any]) -> None:
    a, b = two_rigs
    ids = [a.count(8) for _ in range(10)]
    jobs = [a.until_ended(job_id, within_s=60) for job_id in ids]
    assert {job.state for job in jobs} == {State.SUCCEEDED}, both(a, b)()
    assert [len(job.attempts) for job in jobs] == [1] * 10
    assert {job.attempts[0].rig for job in jobs} == {"a", "b"}
    assert sum((rig.folder(job_id).log.exists()) for rig in (a, b) for job_id in ids) == 10


def test_a_gang_never_spans_rigs(two_rigs: tuple[Any, Any]) -> None:
    a, b = two_rigs
    gangs = [a.count(4, gpus=2) for _ in range(3)]
    too_large = a.count(4, gpus=3)
    for gang in (a.until_ended(job_id, within_s=60) for job_id in gangs):
        assert gang.state is State.SUCCEEDED, both(a, b)()
        assert sorted(gang.attempts[0].slots) == ["cpu:0", "cpu:1"]
    assert a.job(too_large).state is State.QUEUED
    with client_of(a) as client:
        assert "needs 3 GPUs" in client.get(f"/jobs/{too_large}").json()["waiting_because"]
        refused = client.post("/jobs", json={"kind": "command", "argv": ["true"], "gpus": 3})
    assert refused.status_code == 422


def test_an_upload_to_one_rig_is_fetched_by_the_other_and_its_results_are_read_at_the_first(
    two_rigs: tuple[Any, Any], tiny_model: Path
) -> None:
    a, b = two_rigs
    rows = b'{"prompt": "One, two,"}\n' * 3
    digest = hashlib.sha256(rows).hexdigest()
    document = {"kind": "generate", "model": "tiny", "data": f"sha256:{digest}", "max_new_tokens": 4}
    with client_of(a) as client:
        assert client.put(f"/inputs/{digest}", content=rows).status_code == 201
        refused = client.post("/jobs", json=document)
        assert refused.status_code == 422 and "is not a model of this rig" in refused.text  # nor of the other one
        shutil.copytree(tiny_model, b.settings.models / "tiny")
        answer = client.post("/jobs", json=document)
        assert answer.status_code == 201, answer.text
        job_id = answer.json()["id"]
        job = a.until_ended(job_id, within_s=120)
        assert (job.state, rig_that_ran(a, job_id)) == (State.SUCCEEDED, "b"), both(a, b)()
        assert (b.settings.inputs / digest).read_bytes() == rows
        assert not list(b.settings.inputs.glob(".*"))
        found = {file["path"] for file in client.get(f"/jobs/{job_id}/files").json()["files"]}
        assert "output/generations.jsonl" in found
        part = client.get(f"/jobs/{job_id}/files/output/generations.jsonl", headers={"Range": "bytes=0-4"})
        assert (part.status_code, len(part.content)) == (206, 5)


def test_the_log_and_the_events_of_a_job_on_another_rig_are_read_here(two_rigs: tuple[Any, Any]) -> None:
    a, b = two_rigs
    job_id = a.count(6, rig="b")
    a.until_ended(job_id)
    with client_of(a) as client:
        log = client.get(f"/jobs/{job_id}/log")
        assert log.status_code == 200 and "end 6" in log.text
        assert client.get(f"/jobs/{job_id}/log?tail=1").text == "end 6\n"
        archive = client.get(f"/jobs/{job_id}/archive")
        assert b"end 6" in archive.content and archive.headers["content-type"] == "application/x-tar"
        page = client.get(f"{str(client.base_url).removesuffix('/api/v1/')}/jobs/{job_id}").text
        assert "end 6" in page and "from rig b" in page and "of rig b" in page
        with client.stream("GET", f"/jobs/{job_id}/events") as events:
            seen = ""
            for text in events.iter_text():
                seen += text
                if "succeeded" in seen:
                    break
        assert "end 6" in seen
        assert client.delete(f"/jobs/{job_id}").status_code == 204
    assert not b.folder(job_id).path.exists()


def test_only_signed_calls_pass_between_rigs(two_rigs: tuple[Any, Any]) -> None:
    a, b = two_rigs
    job_id = a.count(2, rig="b")
    a.until_ended(job_id)
    token_of_a = (a.settings.home / "token").read_text().strip()
    url = f"{api_of(b)}/api/v1/jobs/{job_id}/log"
    assert httpx.get(url, trust_env=False).status_code == 401
    assert httpx.get(url, headers={"Authorization": f"Bearer {token_of_a}"}, trust_env=False).status_code == 401
    forged = {"Authorization": f"Overnight-Rig 99999999999 {'0' * 64}"}
    assert httpx.get(url, headers=forged, trust_env=False).status_code == 401


def test_a_rig_that_vanishes_gives_its_job_back_and_it_ends_once_on_the_other(two_rigs: tuple[Any, Any]) -> None:
    a, b = two_rigs
    job_id = b.count(40)
    a.store.pause("a")
    b.until_printed(job_id, "start ")
    destroy(b)
    a.store.resume("a")
    job = a.until_ended(job_id, within_s=40)
    assert job.state is State.SUCCEEDED, both(a, b)()
    assert [(run.rig, run.end, run.cause) for run in job.attempts] == [
        ("b", End.FAILED, Cause.LOST),
        ("a", End.SUCCEEDED, None),
    ]
    assert a.log(job_id).count("end 40") == 1 and "end" not in b.log(job_id)
    assert a.store.occupant("b", "cpu:0") is None and a.store.occupant("b", "cpu:1") is None
    with client_of(a) as client:
        listed = client.get("/rigs").json()["rigs"]
        states = {rig["name"]: rig["state"] for rig in listed}
        assert states == {"a": "alive", "b": "away"}


def test_a_job_that_began_on_a_rig_waits_for_it_while_it_lives(two_rigs: tuple[Any, Any]) -> None:
    a, b = two_rigs
    a.store.pause("a")
    job_id = a.count(30, window="any")
    b.until_printed(job_id, "start ")
    b.store.pause("b")
    a.preempt(job_id)
    b.until_printed(job_id, "saved ")
    a.until(job_id, State.QUEUED)
    a.store.resume("a")
    other = a.count(2)
    a.until_ended(other)
    assert rig_that_ran(a, other) == "a"  # only rig b is paused
    assert a.job(job_id).state is State.QUEUED
    with client_of(a) as client:
        assert "its checkpoints are on rig b" in client.get(f"/jobs/{job_id}").json()["waiting_because"]
    b.store.resume("b")
    job = a.until_ended(job_id)
    assert [run.rig for run in job.attempts] == ["b", "b"] and job.attempt == 1


def test_a_rig_that_is_cut_off_ends_its_job_before_another_one_starts_it(rig_of: MakeRigs, shared_redis: Path) -> None:
    wire = Wire(shared_redis)
    a, b = rig_of("a"), rig_of("b", redis_url=f"redis://127.0.0.1:{wire.port}")
    a.store.pause("a")
    argv = [sys.executable, "-c", "import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(60)"]
    job_id = a.submit(kind="command", argv=argv, max_runtime_s=60)
    b.until_printed(job_id, "pid ")
    pid = int(b.log(job_id).split()[1])
    wire.cut()
    a.store.resume("a")
    a.until_printed(job_id, "pid ", within_s=30)
    assert not Path(f"/proc/{pid}").exists(), "both ran at once"
    wire.mend()
    until(lambda: a.store.last_beat("b"), within_s=20, evidence=both(a, b))
    assert a.job(job_id).rig == "a"
    after = a.count(2, rig="b")
    assert a.until_ended(after).state is State.SUCCEEDED, both(a, b)()
    assert a.job(job_id).rig == "a" and len(a.job(job_id).attempts) == 2
    a.cancel(job_id)
    a.until_ended(job_id)
    wire.end()


def test_what_may_not_join_says_why(rig_of: MakeRigs) -> None:
    a = rig_of("a")
    twin = rig_of("a", start=False)
    twin.start()
    assert twin.daemon.wait(30) != 0
    assert "is rig a in this queue now" in (twin.settings.home / "daemon.log").read_text()

    a.store.set_queue_fact("records", "99")
    newer = rig_of("c", start=False)
    newer.start()
    assert newer.daemon.wait(30) != 0
    assert "Update Overnight on this machine" in (newer.settings.home / "daemon.log").read_text()
    a.store.set_queue_fact("records", "2")

    other = rig_of("d", start=False)
    (other.settings.runs / "7").mkdir(parents=True)
    (other.settings.home / "queue-id").write_text("another\n")
    other.start()
    assert other.daemon.wait(30) != 0
    assert "holds runs of another queue" in (other.settings.home / "daemon.log").read_text()
    assert a.daemon.poll() is None


def test_a_rig_that_was_stopped_keeps_what_began_there_until_it_is_forgotten(two_rigs: tuple[Any, Any]) -> None:
    a, b = two_rigs
    a.store.pause("a")
    job_id = b.count(20)
    b.until_printed(job_id, "start ")
    os.kill(b.daemon.pid, signal.SIGTERM)
    assert b.daemon.wait(30) == 0
    a.store.resume("a")
    after = a.count(2)
    a.until_ended(after)
    with client_of(a) as client:
        # longer than rig_away_s: stopped is not vanished
        until(lambda: a.store.silences()["b"] > a.settings.rig_away_s + 1, within_s=10)
        assert "rig b, which was stopped" in client.get(f"/jobs/{job_id}").json()["waiting_because"]
        away = client.get(f"/jobs/{job_id}/log")
        assert away.status_code == 502 and "rig b, which is away" in away.json()["detail"]
        assert client.delete("/rigs/b").status_code == 204
    job = a.until_ended(job_id)
    assert (job.state, [run.rig for run in job.attempts]) == (State.SUCCEEDED, ["b", "a"]), both(a, b)()
