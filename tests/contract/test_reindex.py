"""After the queue's own files are lost or damaged, run folders bring the records back."""

import json
import os
import shutil
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from daemon import redis_server
from daemon.reindex import jobs_on_disk, reindex
from daemon.settings import Settings
from daemon.settle import settle
from daemon.store import Store, connect
from jobs.model import Cause, End, Job, Outcome, State
from jobs.outcome import Exit
from jobs.rundir import run_dir, write_json
from jobs.spec import parse

TRUE = parse({"kind": "command", "argv": ["true"]})


def leave(settings: Settings, job: Job) -> None:
    folder = run_dir(settings.runs, job.id)
    folder.create()
    write_json(folder.state, job.to_json())


def claimed(store: Store, job_id: str) -> Job:
    job = store.offer(job_id, rig="rig", slots=(f"s{job_id}",), epoch=store.new_epoch("rig"), now=2.0)
    return store.claim(job_id, fence=job.fence, owner="me", now=3.0, lease_s=30.0)


def test_every_job_with_a_folder_comes_back_and_ids_go_on(store: Store, settings: Settings) -> None:
    store.submit([TRUE] * 4, now=1.0)
    done = claimed(store, "1")
    leave(settings, store.finish("1", fence=done.fence, outcome=Outcome(end=End.SUCCEEDED), now=4.0))
    leave(settings, claimed(store, "2"))  # its attempt was running: nothing tells how it ended
    third = claimed(store, "3")
    leave(settings, third)  # its attempt had ended well, but nobody had heard of it yet
    folder = run_dir(settings.runs, "3")
    write_json(folder.result, {"fence": third.fence, "end": "succeeded", "metrics": {"loss": 1.0}})
    write_json(folder.exit, asdict(Exit(fence=third.fence, exit_code=0)))
    store.redis.flushall()
    assert reindex(store, settings, now=9.0) == 3
    assert [store.get(number).state for number in "123"] == [State.SUCCEEDED, State.QUEUED, State.SUCCEEDED]
    assert store.get("2").attempts[-1].cause is Cause.LOST
    assert store.get("3").outcome.metrics == {"loss": 1.0}  # type: ignore[union-attr]
    assert store.submit([TRUE], now=10.0)[0][0].id == "4"
    assert reindex(store, settings, now=11.0) == 0


class DiesWhenItHasTold(Store):
    """A worker that is killed right after the queue has heard of the end."""

    def finish(self, *arguments: Any, **facts: Any) -> Job:
        super().finish(*arguments, **facts)
        raise SystemExit


def test_an_end_is_in_the_run_folder_before_anybody_is_told(store: Store, settings: Settings) -> None:
    store.submit([TRUE], now=1.0)
    job = claimed(store, "1")
    folder = run_dir(settings.runs, "1")
    folder.create()
    write_json(folder.result, {"fence": job.fence, "end": "succeeded", "metrics": {}})
    with pytest.raises(SystemExit):
        settle(DiesWhenItHasTold(store.redis), settings, "1", job.fence, slot="s1", now=4.0)
    assert store.get("1").state is State.SUCCEEDED
    assert [found.state for found in jobs_on_disk(settings.runs, now=5.0)] == [State.SUCCEEDED]


def test_a_folder_that_tells_nothing_is_passed_over(settings: Settings) -> None:
    (settings.runs / "7").mkdir(parents=True)
    (settings.runs / "8").mkdir()
    (settings.runs / "8" / "state.json").write_text(json.dumps({"id": "8"}))
    (settings.runs / "notes").mkdir()
    assert list(jobs_on_disk(settings.runs, now=1.0)) == []


def test_a_damaged_queue_is_cut_with_a_copy_kept(settings: Settings) -> None:
    server = redis_server.start(settings)
    store = Store(connect(str(server.socket)))
    store.submit([TRUE] * 3, now=1.0)
    for _ in range(20):
        store.submit([TRUE], now=1.0)
    os.kill(server.pid, signal.SIGKILL)
    server.collect()
    path = next(Path(settings.redis_folder).rglob("*.incr.aof"))
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4 : len(content) * 3 // 4 + 400] = b"\0" * 400
    path.write_bytes(content)
    again = redis_server.start(settings)
    try:
        kept = Store(connect(str(again.socket))).counts()["queued"]
        assert 3 <= kept < 23
        assert next((settings.redis_folder / "damaged-1").glob("*.incr.aof")).read_bytes() == bytes(content)
        assert redis_server.was_repaired(settings) and not redis_server.was_repaired(settings)
    finally:
        again.stop()
        shutil.rmtree(settings.home, ignore_errors=True)
