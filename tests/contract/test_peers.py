"""Between rigs of one queue: who joins, who may ask for what, and how an upload comes from one rig to another."""

import hashlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from live_api import COMMAND, LiveApi, address_of, start_api
from starlette.testclient import TestClient
from until import until

from api.app import create_app
from api.elsewhere import target_of
from daemon import inputs, peers
from daemon.here import Here
from daemon.inputs import InputAway
from daemon.rig import cpu_slots
from daemon.settings import Settings
from daemon.store import Store
from jobs.model import RECORD_VERSION, Cause, End, Job, Outcome
from jobs.rundir import run_dir
from jobs.spec import parse

NOW = 1_795_000_000.0
KEY = b"a key"
LOG = "/api/v1/jobs/7/log?tail=2"
ROWS = os.urandom(3_000_000)
DIGEST = hashlib.sha256(ROWS).hexdigest()


# -- signatures -------------------------------------------------------------------------------------------------------------


def shows(
    method: str, target: str, *, to: str = "b", now: float = NOW, key: bytes = KEY, asked_at: float = NOW
) -> bool:
    header = peers.sign(KEY, to="b", method="GET", target=LOG, now=asked_at)["Authorization"]
    return peers.is_signed(key, header, to=to, method=method, target=target, now=now)


def test_a_signature_opens_one_address_of_one_rig_for_a_minute() -> None:
    assert shows("GET", LOG)
    assert not shows("GET", LOG, to="c")
    assert not shows("DELETE", LOG)
    assert not shows("GET", "/api/v1/jobs/8/log?tail=2")
    assert not shows("GET", LOG, key=b"another queue's")
    assert not shows("GET", LOG, now=NOW + peers.SIGNED_FOR_S + 1)
    assert not shows("GET", LOG, asked_at=NOW + 10_000)  # signed for the far future


@pytest.mark.parametrize(
    "asked",
    [
        ("POST", "/api/v1/jobs"),
        ("POST", "/api/v1/jobs?dry_run=false"),
        ("POST", "/api/v1/jobs/7/cancel"),
        ("PUT", f"/api/v1/inputs/{'0' * 64}"),
        ("GET", "/api/v1/rig"),
        ("GET", "/"),
        ("GET", "/api/v1/jobs/7/files/../../../rig"),
        ("POST", "/api/v1/login-codes"),
    ],
)
def test_a_signature_opens_only_what_rigs_need_of_each_other(asked: tuple[str, str]) -> None:
    method, target = asked
    header = peers.sign(KEY, to="b", method=method, target=target, now=NOW)["Authorization"]
    signed = peers.is_signed(KEY, header, to="b", method=method, target=target, now=NOW)
    assert not signed or target.startswith("/api/v1/jobs/7/files/")  # there the files' own walk refuses (api.files)


def test_a_target_is_what_was_sent_not_what_it_means() -> None:
    scope = {"path": "/a b", "raw_path": b"/a%20b", "query_string": b"x=%2F"}
    assert target_of(scope) == "/a%20b?x=%2F"


def test_a_rig_of_the_queue_reads_and_does_nothing_else(shared: Settings, store: Store) -> None:
    app = create_app(shared, store)
    with TestClient(app, base_url="http://localhost") as client:

        def ask(method: str, target: str) -> int:
            headers = peers.sign(peers.key_of(store), to="a", method=method, target=target, now=time.time())
            return client.request(method, target, headers=headers, json={} if method == "POST" else None).status_code

        assert ask("GET", f"/api/v1/inputs/{DIGEST}") == 404
        assert ask("POST", "/api/v1/jobs?dry_run=true") == 422
        assert ask("POST", "/api/v1/jobs") == 401
        assert ask("GET", "/api/v1/rig") == 401


# -- joining ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(settings: Settings, redis_address: str) -> Settings:
    """Settings of rig a on a queue that others may share."""
    return settings.model_copy(update={"rig": "a", "redis_url": f"unix://{redis_address}"})


@pytest.fixture
def other_home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="on-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def lives(store: Store, rig: str, **facts: object) -> None:
    store.describe_rig(rig, {"slots": [slot.to_json() for slot in cpu_slots(2)]})
    store.beat(rig, {"at": NOW, "records": RECORD_VERSION, **facts})


def test_a_rig_joins_again_after_a_crash_though_its_last_beat_still_stands(shared: Settings, store: Store) -> None:
    peers.join(store, shared)
    lives(store, "a", identity=peers.identity(shared))
    peers.join(store, shared)


def test_a_name_that_another_machine_uses_is_refused(shared: Settings, store: Store) -> None:
    lives(store, "a", identity="another")
    with pytest.raises(peers.CannotJoin, match="is rig a in this queue now"):
        peers.join(store, shared)


def test_names_whose_mailboxes_would_be_the_same_are_refused(shared: Settings, store: Store) -> None:
    lives(store, "gpu.1")
    with pytest.raises(peers.CannotJoin, match="too much alike"):
        peers.join(store, shared.model_copy(update={"rig": "gpu-1"}))


def test_a_rig_of_another_record_version_is_refused_while_it_lives(shared: Settings, store: Store) -> None:
    lives(store, "b", records=RECORD_VERSION - 1)
    with pytest.raises(peers.CannotJoin, match=r"Rig b runs another version.*update it"):
        peers.join(store, shared)
    store.describe_rig("b", {"slots": [], "stopped_at": NOW})
    peers.join(store, shared)


def test_runs_of_one_queue_are_never_taken_for_those_of_another(shared: Settings, store: Store) -> None:
    peers.join(store, shared)
    run_dir(shared.runs, "1").create()
    store.redis.flushall()  # the queue was lost: the rig brings its name along
    peers.join(store, shared)
    store.set_queue_fact("id", "another")
    with pytest.raises(peers.CannotJoin, match="runs of another queue"):
        peers.join(store, shared)


# -- which jobs a rig takes ---------------------------------------------------------------------------------------------------


def waiting(**document: object) -> Job:
    return Job(id="5", kind="command", name="x", spec={**COMMAND, "env": {}, **document}, created_at=0.0, rank=0.0)


def ran_on(job: Job, rig: str, outcome: Outcome) -> Job:
    offered = job.offered(rig=rig, slots=("cpu:0",), now=NOW)
    claimed = offered.claimed(fence=offered.fence, owner="x", now=NOW)
    return claimed.ended(fence=offered.fence, outcome=outcome, now=NOW)


LOST = Outcome(end=End.FAILED, cause=Cause.LOST)
SAVED = Outcome(end=End.INTERRUPTED)
FAULT = Outcome(end=End.FAILED, cause=Cause.GPU_FAULT)


def reason(store: Store, settings: Settings, job: Job) -> str | None:
    return Here(store).look([job], [], settings, NOW).not_here.get("5")


def test_a_job_goes_on_where_it_began_until_that_rig_is_away_for_too_long(shared: Settings, store: Store) -> None:
    lives(store, "b")
    begun = ran_on(waiting(), "b", SAVED)
    assert reason(store, shared, begun) == "its checkpoints are on rig b: it goes on there"
    checked = ran_on(replace(waiting(), preflight_due=True), "b", Outcome(end=End.CHECKED))
    assert reason(store, shared, checked) is None, "a preflight leaves nothing behind"
    checked_here = ran_on(replace(begun, preflight_due=True), shared.rig, Outcome(end=End.CHECKED))
    assert reason(store, shared, checked_here) == "its checkpoints are on rig b: it goes on there"
    silent = shared.model_copy(update={"lease_s": 0.001})
    until(lambda: "starts anew on another rig after 900 s" in str(reason(store, silent, begun)))
    vanished = silent.model_copy(update={"rig_away_s": 0.001})
    assert reason(store, vanished, begun) is None
    assert reason(store, shared.model_copy(update={"shared_runs": True}), begun) is None
    assert reason(store, shared, ran_on(waiting(), "b", FAULT)) is None  # a broken card is no place to go back to
    store.describe_rig("b", {"slots": [], "stopped_at": NOW})
    assert "which was stopped" in str(reason(store, vanished, begun))
    store.forget_rig("b")
    assert reason(store, shared, begun) is None


def test_what_a_rig_lacks_it_leaves_to_the_others(shared: Settings, store: Store) -> None:
    lives(store, "b")
    like_another = replace(waiting(argv=["no-such-program"]), after=("checked:4",))
    looked = Here(store).look([like_another], {"4"}, shared, NOW)
    assert "not a command on the rig's PATH" in looked.not_here["5"], "what it names is there before job 4 has ended"
    assert reason(store, shared, waiting()) is None
    assert reason(store, shared, waiting(rig="b")) == "is for rig b only"
    assert "not a command on the rig's PATH" in str(reason(store, shared, waiting(argv=["no-such-program"])))
    model = waiting(kind="finetune", model="tiny", data=f"sha256:{DIGEST}")
    assert "is not a model of this rig" in str(reason(store, shared, model))
    store.add_inputs("b", [DIGEST])
    known = waiting(kind="generate", model="org/name", data=f"sha256:{DIGEST}")
    assert reason(store, shared, known) is None  # it would be fetched from rig b
    store.drop_input("b", DIGEST)
    assert "is not uploaded" in str(reason(store, shared, known))


def test_a_child_waits_for_the_rig_that_has_its_parents_result(shared: Settings, store: Store) -> None:
    lives(store, "b")
    [first, child], _ = store.submit(
        [
            parse({"kind": "generate", "model": "org/name", "data": f"sha256:{DIGEST}"}),
            parse({"kind": "generate", "model": "org/name", "data": "job:1"}),
        ],
        now=NOW,
    )
    epoch = store.new_epoch("b")
    offered = store.offer(first.id, rig="b", slots=("cpu:0",), epoch=epoch, now=NOW)
    store.claim(first.id, fence=offered.fence, owner="x", now=NOW, lease_s=60)
    store.finish(first.id, fence=offered.fence, outcome=Outcome(end=End.SUCCEEDED), now=NOW)
    here = Here(store).look([child], [], shared, NOW).not_here
    assert "its result is not on this rig" in here[child.id]
    generations = run_dir(shared.runs, first.id).generations
    generations.parent.mkdir(parents=True)
    generations.touch()
    assert Here(store).look([child], [], shared, NOW).not_here == {}


# -- uploads ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def other(other_home: Path, redis_address: str, store: Store, tmp_path: Path) -> Iterator[LiveApi]:
    """Rig b: a real API with an upload, on the same queue."""
    log = tmp_path / "api.log"
    process = start_api(other_home, log, OVERNIGHT_RIG="b", OVERNIGHT_REDIS_URL=f"unix://{redis_address}")
    address = address_of(other_home, process, log)
    (other_home / "inputs").mkdir(exist_ok=True)
    (other_home / "inputs" / DIGEST).write_bytes(ROWS)
    settings = Settings(home=other_home, rig="b")
    yield LiveApi(settings, store, process, address["url"], "", log)
    process.terminate()
    process.wait(20)


@contextmanager
def cut_after(url: str, size_bytes: int, times: int) -> Iterator[str]:
    """A line to `url` on which the first connections break after so many bytes of an answer."""
    host, port = url.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    left = [times]

    def serve() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            with near, socket.create_connection((host, int(port))) as far:
                far.sendall(near.recv(65_536))
                passed, limit = 0, size_bytes if left[0] > 0 else 10**12
                left[0] -= 1
                while passed < limit and (part := far.recv(min(65_536, limit - passed))):
                    near.sendall(part)
                    passed += len(part)

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def brought(store: Store, settings: Settings, tell: Callable[[int, int], None] = lambda done, total: None) -> bytes:
    inputs.bring(store, settings, DIGEST, tell=tell)
    return (settings.inputs / DIGEST).read_bytes()


def test_a_transfer_that_breaks_goes_on_where_it_stopped(shared: Settings, store: Store, other: LiveApi) -> None:
    told: list[int] = []
    with cut_after(other.url, 1_000_000, times=2) as url:
        lives(store, "b", url=url)
        assert brought(store, shared, lambda done, total: told.append(done)) == ROWS
    assert told == sorted(told)  # never begun anew
    assert [path.name for path in shared.inputs.iterdir()] == [DIGEST]
    assert store.rigs_with_input(DIGEST, ["a"]) == ["a"]


def test_a_damaged_copy_is_not_taken(shared: Settings, store: Store, other: LiveApi) -> None:
    (other.settings.inputs / DIGEST).write_bytes(ROWS[:-1] + b"!")
    lives(store, "b", url=other.url)
    with pytest.raises(InputAway, match=r"b \(its copy is damaged\)"):
        brought(store, shared)
    assert not (shared.inputs / DIGEST).exists()
    (other.settings.inputs / DIGEST).write_bytes(ROWS)
    assert brought(store, shared) == ROWS


def test_two_slots_that_need_the_same_file_fetch_it_once(shared: Settings, store: Store, other: LiveApi) -> None:
    lives(store, "b", url=other.url)
    fetched: list[int] = []
    threads = [
        threading.Thread(target=lambda: brought(store, shared, lambda done, total: fetched.append(total)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (shared.inputs / DIGEST).read_bytes() == ROWS
    assert sum(1 for total in fetched if total) <= 1 + len(ROWS) // inputs.CHUNK_BYTES + 1


def test_without_a_rig_that_has_it_the_message_says_who_was_asked(
    shared: Settings, store: Store, other: LiveApi
) -> None:
    with pytest.raises(InputAway, match="nobody, no rig is up"):
        brought(store, shared)
    (other.settings.inputs / DIGEST).unlink()
    store.add_inputs("b", [DIGEST])
    lives(store, "b", url=other.url)
    with pytest.raises(InputAway, match=r"b \(has it no longer\)"):
        brought(store, shared)
    assert store.rigs_with_input(DIGEST, ["b"]) == []
