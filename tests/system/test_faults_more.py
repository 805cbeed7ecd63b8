"""More that may go wrong at 3 a.m.: Redis away or hung, the API killed in a submission, frozen processes, a lost queue."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from rq import Queue
from rq.serializers import JSONSerializer
from until import until

from daemon import process_tree, redis_server, telemetry
from daemon.settings import Settings
from daemon.store import ENTRYPOINT, connect, mailbox
from jobs.model import Cause, State

STEPS = 25
PROGRAM = Path(__file__).parent.parent / "drill" / "program.py"
SHORT_LEASE = {"lease_s": 3.0, "renew_s": 0.5}
#: A server that does not start while the outage lasts.
SERVER = """#!/bin/sh
[ "$1" = --version ] && exec {server} --version
[ -e {outage} ] && exit 1
exec {server} "$@"
"""


class Outage:
    """Takes a rig's Redis away, for as long as the test wants."""

    def __init__(self, folder: Path):
        self._file, self.server = folder / "outage", folder / "server"
        self.server.write_text(SERVER.format(server=redis_server.binary(Settings(home=folder)), outage=self._file))
        self.server.chmod(0o755)

    def begin(self, rig: Any) -> None:
        pid = rig.redis_pid()
        self._file.touch()
        os.kill(pid, signal.SIGKILL)
        until(lambda: not process_tree.is_alive(pid))

    def end(self) -> None:
        self._file.unlink(missing_ok=True)


@pytest.fixture
def outage(tmp_path: Path) -> Iterator[Outage]:
    made = Outage(tmp_path)
    yield made
    made.end()


def pid_of(rig: Any, module: str) -> int:
    """The daemon's child that runs this module."""
    mine = set(process_tree.children(rig.daemon.pid))
    return until(
        lambda: next((pid for pid, line in rig.processes().items() if f"-m {module}" in line and pid in mine), 0),
        evidence=rig.evidence,
    )


@contextmanager
def http(rig: Any) -> Iterator[httpx.Client]:
    """The rig's user, when the API answers."""
    with httpx.Client(trust_env=False, timeout=20) as client:

        def answers() -> bool:
            address = until(lambda: _read(rig.settings.home / "api.json"), within_s=30, evidence=rig.evidence)
            client.base_url = httpx.URL(address["url"])
            with suppress(httpx.TransportError, FileNotFoundError):
                client.headers["Authorization"] = f"Bearer {rig.settings.token_file.read_text().strip()}"
                return client.get("/readyz").status_code == 200
            return False

        until(answers, within_s=30, evidence=rig.evidence)
        yield client


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def starts(rig: Any, job_id: str) -> int:
    return int(rig.log(job_id).count("start "))


def started(rig: Any, job_id: str) -> str:
    rig.until_printed(job_id, "start ")
    slot: str = rig.until(job_id, State.RUNNING).slots[0]
    return slot


# -- helpers of the rig -------------------------------------------------------------------------------------------------


def test_a_killed_api_comes_back_and_no_job_notices(rig: Any) -> None:
    job_id = rig.count(STEPS)
    started(rig, job_id)
    before = pid_of(rig, "api")
    os.kill(before, signal.SIGKILL)
    with http(rig) as client:
        until(lambda: pid_of(rig, "api") != before, evidence=rig.evidence)
        assert client.get(f"/api/v1/jobs/{job_id}").status_code == 200
    assert rig.until_ended(job_id).state is State.SUCCEEDED
    assert starts(rig, job_id) == 1


def test_a_killed_sampler_comes_back_and_no_job_notices(rig: Any) -> None:
    job_id = rig.count(STEPS)
    started(rig, job_id)
    before = pid_of(rig, "daemon.sampler")
    os.kill(before, signal.SIGKILL)
    until(lambda: telemetry.latest(rig.settings.home, now=0.0).pid not in (None, before), evidence=rig.evidence)
    assert rig.until_ended(job_id).state is State.SUCCEEDED
    assert starts(rig, job_id) == 1


# -- process trees ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["program", "rank"])
def test_a_rank_in_a_session_of_its_own_never_meets_its_successor(rig: Any, tmp_path: Path, victim: str) -> None:
    ledger = tmp_path / "ledger"
    argv = [sys.executable, str(PROGRAM), str(ledger), str(STEPS), "0.05", "--rank"]
    job_id = rig.submit(kind="command", argv=argv, gpus=2, retries=3)
    slot = started(rig, job_id)
    program = until(lambda: next(iter(process_tree.children(rig.child(slot))), 0))
    rank = until(lambda: next(iter(process_tree.children(program)), 0))
    os.kill({"program": program, "rank": rank}[victim], signal.SIGKILL)
    assert rig.until_ended(job_id).state is State.SUCCEEDED, rig.evidence()
    words = [line.split()[2] for line in ledger.read_text().splitlines()]
    assert (words.count("start"), words.count("end"), words.count("OVERLAP")) == (2, 1, 0)
    assert not process_tree.is_alive(rank)


def test_a_second_entry_for_a_running_job_in_another_mailbox_ends_nothing(rig: Any) -> None:
    job_id = rig.count(STEPS)
    slot = started(rig, job_id)
    other = next(s for s in ("cpu:0", "cpu:1") if s != slot)
    queue = Queue(mailbox("rig", other), connection=rig.store.redis, serializer=JSONSerializer)
    queue.enqueue(ENTRYPOINT, job_id, rig.job(job_id).fence, job_id="doubled")
    until(lambda: not queue.job_ids, evidence=rig.evidence)
    assert rig.until_ended(job_id).state is State.SUCCEEDED
    assert starts(rig, job_id) == 1 and "OVERLAP" not in rig.log(job_id)


#: A horse with its child, its program and a rank in a session of its own, killed from the top; then the sweep.
SWEEP = """
import os, signal, sys, time
from daemon import process_tree
from jobs.process import die_with_parent

def fork(then, dies_with_parent=True):
    parent, pid = os.getpid(), os.fork()
    if pid:
        return pid
    if dies_with_parent:
        die_with_parent(signal.SIGKILL, parent)
    then()
    os._exit(0)

def rank():
    os.setsid()
    signal.alarm(60)  # whatever the test finds, it does not stay
    os.write(told, b"%d\\n" % os.getpid())
    signal.pause()

def program():
    fork(rank, dies_with_parent=False)
    signal.pause()

def child():
    fork(program)
    signal.pause()

def horse():
    os.closerange(1, 3)
    fork(child)
    signal.pause()

process_tree.become_subreaper()
heard, told = os.pipe()
left = 0
for _ in range(int(sys.argv[1])):
    pid = fork(horse)
    last = int(os.read(heard, 100))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    process_tree.kill_tree()
    left += process_tree.is_alive(last)
print(left)
"""


def test_a_sweep_finds_what_is_handed_on_while_it_looks() -> None:
    done = subprocess.run([sys.executable, "-c", SWEEP, "200"], capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n", done.stderr


# -- frozen -------------------------------------------------------------------------------------------------------------


def test_a_program_that_floods_its_log_does_not_fill_the_disk(make_rig: Any) -> None:
    rig = make_rig(max_log_bytes=20_000)
    job = rig.submit(kind="command", argv=["sh", "-c", "yes 'a line of many' | head -c 3000000; echo the end"])
    assert rig.until_ended(job).state is State.SUCCEEDED
    assert "Overnight left out" in rig.log(job) and rig.log(job).endswith("the end\n")
    assert len(rig.log(job)) < 20_000


def test_a_frozen_horse_is_ended_after_its_lease_and_its_job_goes_on(make_rig: Any) -> None:
    rig = make_rig(**SHORT_LEASE)
    job_id = rig.count(400)
    slot = started(rig, job_id)
    os.kill(rig.horse(slot), signal.SIGSTOP)
    until(lambda: starts(rig, job_id) == 2, within_s=40, evidence=rig.evidence)
    assert rig.job(job_id).attempts[0].cause is Cause.LOST
    assert "OVERLAP" not in rig.log(job_id)


def test_the_end_of_a_job_below_a_frozen_worker_is_told_by_the_daemon(make_rig: Any) -> None:
    rig = make_rig(**SHORT_LEASE)
    job_id = rig.count(STEPS)
    os.kill(rig.worker(started(rig, job_id)), signal.SIGSTOP)
    assert rig.until_ended(job_id, within_s=40).state is State.SUCCEEDED
    assert starts(rig, job_id) == 1


def test_a_worker_that_takes_no_offer_is_replaced(make_rig: Any) -> None:
    rig = make_rig(slots="cpu:1", offer_timeout_s=1.0)
    os.kill(rig.worker("cpu:0"), signal.SIGSTOP)
    assert rig.until_ended(rig.count(2, 0.01), within_s=30).state is State.SUCCEEDED


# -- Redis ----------------------------------------------------------------------------------------------------------------


def test_a_job_that_ends_while_redis_is_away_is_told_from_its_run_folder(make_rig: Any, outage: Outage) -> None:
    rig = make_rig(redis_server=outage.server)
    job_id = rig.count(STEPS)
    started(rig, job_id)
    outage.begin(rig)
    until(rig.folder(job_id).exit.exists, within_s=30, evidence=rig.evidence)
    outage.end()
    assert rig.until_ended(job_id).state is State.SUCCEEDED
    assert starts(rig, job_id) == 1


def test_an_outage_longer_than_the_lease_disturbs_no_job(make_rig: Any, outage: Outage) -> None:
    rig = make_rig(redis_server=outage.server, **SHORT_LEASE)
    job_id = rig.count(150)
    started(rig, job_id)
    count = rig.folder(job_id).checkpoints / "count"
    until(count.exists)
    outage.begin(rig)
    first = int(count.read_text())
    until(lambda: int(count.read_text()) > first + 100, within_s=60)  # 5 s at least
    outage.end()
    assert rig.until_ended(job_id, within_s=60).state is State.SUCCEEDED
    assert starts(rig, job_id) == 1


def test_without_redis_a_submission_is_refused_whole_and_may_be_repeated(make_rig: Any, outage: Outage) -> None:
    rig = make_rig(redis_server=outage.server)
    with http(rig) as client:
        body = {"jobs": [{"kind": "command", "argv": ["true"], "name": f"job {n}"} for n in range(3)]}
        again = {"Idempotency-Key": "the-same"}
        outage.begin(rig)
        answer = client.post("/api/v1/jobs/batch", json=body, headers=again)
        assert answer.status_code == 503
        assert answer.headers["content-type"].startswith("application/problem+json")
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["type"] == "urn:overnight:unavailable"
        outage.end()
        until(lambda: client.get("/api/v1/jobs").status_code == 200, within_s=30, evidence=rig.evidence)
        assert client.get("/api/v1/jobs").json()["jobs"] == []
        assert client.post("/api/v1/jobs/batch", json=body, headers=again).status_code == 201
        assert client.post("/api/v1/jobs/batch", json=body, headers=again).status_code == 200
        assert len(client.get("/api/v1/jobs").json()["jobs"]) == 3


def test_a_submission_cut_by_the_apis_death_is_repeated_with_its_key_and_makes_one_job(rig: Any) -> None:
    keys = [f"key-{n}" for n in range(2)]
    for key in keys:
        body = {"kind": "command", "argv": ["true"], "name": key}
        with http(rig) as client:
            post = threading.Thread(target=_post, args=(client, body, key))
            post.start()
            os.kill(pid_of(rig, "api"), signal.SIGKILL)
            post.join()
        with http(rig) as client:
            assert _post(client, body, key) in (200, 201)
    with http(rig) as client:
        names = [job["name"] for job in client.get("/api/v1/jobs").json()["jobs"]]
    assert sorted(names) == keys


def _post(client: httpx.Client, body: dict[str, Any], key: str) -> int | None:
    try:
        return client.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": key}).status_code
    except httpx.TransportError:
        return None


def test_a_hung_redis_is_killed_before_another_one_is_started(settings: Settings) -> None:
    first = redis_server.start(settings)
    connect(str(first.socket)).set("kept", "yes")
    os.kill(first.pid, signal.SIGSTOP)
    second = redis_server.start(settings)
    try:
        assert not process_tree.is_alive(first.pid)
        assert connect(str(second.socket)).get("kept") == b"yes"
    finally:
        second.stop()


def test_a_redis_that_hangs_before_it_takes_commands_is_killed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_server, "SILENT_S", 1.0)
    server, hangs = tmp_path / "server", tmp_path / "hangs"
    server.write_text(
        f"""#!/bin/sh
[ "$1" != --version ] && [ -e {hangs} ] && echo $$ > {hangs} && kill -STOP $$
exec {redis_server.binary(settings)} "$@"
"""
    )
    server.chmod(0o755)
    hangs.touch()
    mine = settings.model_copy(update={"redis_server": server})
    with pytest.raises(redis_server.RedisUnavailable, match="hung while it started"):
        redis_server.start(mine)
    assert not process_tree.is_alive(int(hangs.read_text()))
    hangs.unlink()
    redis_server.start(mine).stop()


def test_a_server_that_is_still_loading_is_waited_for(settings: Settings) -> None:
    first = redis_server.start(settings)
    first.stop()
    [file] = (settings.redis_folder / "appendonlydir").glob("*.incr.aof")
    with file.open("wb") as aof:
        aof.writelines(b"*3\r\n$3\r\nSET\r\n$7\r\n%07d\r\n$1\r\n1\r\n" % n for n in range(400_000))
    second = redis_server.start(settings)
    try:
        assert connect(str(second.socket)).dbsize() == 400_000
    finally:
        second.stop()


def test_damage_in_the_second_of_two_files_is_cut_there(settings: Settings) -> None:
    first = redis_server.start(settings)
    connect(str(first.socket)).set("kept", "yes")
    first.stop()
    folder = settings.redis_folder / "appendonlydir"
    [manifest] = folder.glob("*.manifest")
    # as a kill in the middle of a rewrite leaves it
    (folder / "appendonly.aof.2.incr.aof").write_bytes(b"*3\r\n$3\r\nSET\r\n$zz\r\n" + bytes(16))
    manifest.write_text(manifest.read_text() + "file appendonly.aof.2.incr.aof seq 2 type i\n")
    second = redis_server.start(settings)
    try:
        assert connect(str(second.socket)).get("kept") == b"yes"
        assert redis_server.was_repaired(settings)
        assert (settings.redis_folder / "damaged-1" / "appendonly.aof.2.incr.aof").exists()
    finally:
        second.stop()


# -- the queue is gone ------------------------------------------------------------------------------------------------------


def test_after_the_loss_of_the_whole_queue_run_folders_bring_it_back(rig: Any) -> None:
    done, long = rig.count(1, 0.01), rig.count(STEPS)
    assert rig.until_ended(done).state is State.SUCCEEDED
    started(rig, long)
    assert rig.stop() == 0
    shutil.rmtree(rig.settings.redis_folder)
    argv = [sys.executable, "-m", "daemon.reindex", "--home", str(rig.settings.home)]
    told = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **rig.environment}, timeout=60)
    assert told.stdout.startswith("2 job(s) put back"), told.stderr
    rig.start()
    assert rig.until_ended(long).state is State.SUCCEEDED
    assert rig.job(done).state is State.SUCCEEDED and rig.log(done).count("start ") == 1
    assert rig.log(long).count("start ") == 2 and "resume 1" in rig.log(long)
    assert int(rig.count(1, 0.01)) > int(long)
