"""A night read from a real queue: by the end of jobs, whatever else the store holds."""

from collections.abc import Callable
from datetime import date
from typing import Any

from live_api import NOW
from starlette.testclient import TestClient

from daemon.facts import Ledger
from daemon.night import read_last, read_named, read_since
from daemon.settings import Settings
from daemon.store import Store
from jobs.model import Cause, End, Job, Outcome, State
from jobs.rundir import RunDir

Submit, Bring = Callable[..., str], Callable[[str, State], Job]


def test_the_last_night_is_read_from_the_queue(
    settings: Settings, store: Store, client: TestClient, submit: Submit, brought: Bring
) -> None:
    brought(submit(), State.SUCCEEDED)
    brought(submit(), State.FAILED)
    submit()
    found = read_last(store, Ledger(store), settings, NOW + 100)
    assert (found.counts.done, found.counts.failed, found.counts.queued) == (1, 1, 1)
    assert found.needs_you[0].line == "It cannot be." and found.needs_you[0].hint == "Do otherwise."
    assert [lane.title for lane in found.lanes] == ["CPU slot 0", "CPU slot 1"]


def test_only_jobs_that_ended_in_the_night_are_fetched(
    settings: Settings, store: Store, client: TestClient, submit: Submit, brought: Bring
) -> None:
    brought(submit(), State.SUCCEEDED)
    ledger = Ledger(store)
    ledger.refresh()
    fetched: list[str] = []
    fetch = store._fetch
    store._fetch = lambda ids: (fetched.extend(ids), fetch(ids))[1]  # type: ignore[method-assign]
    found = read_since(store, ledger, settings, NOW + 100_000, NOW + 90_000)
    assert found.counts.done == 0 and fetched == []


def test_the_decisive_line_of_a_command_comes_from_its_log(
    settings: Settings, store: Store, client: TestClient, submit: Submit, folder_of: Callable[[str], RunDir]
) -> None:
    job_id = submit()
    folder_of(job_id).log.write_text("step 1\nValueError: no column 'text'\nbye\n")
    offered = store.offer(job_id, rig="rig", slots=("cpu:0",), epoch=store.new_epoch("rig"), now=NOW)
    store.claim(job_id, fence=offered.fence, owner="test", now=NOW, lease_s=60)
    outcome = Outcome(end=End.FAILED, cause=Cause.USER_ERROR, message="It exited with status 1 and left no result.")
    store.finish(job_id, fence=offered.fence, outcome=outcome, now=NOW + 5)
    found = read_last(store, Ledger(store), settings, NOW + 100)
    assert found.needs_you[0].line == "ValueError: no column 'text'"


def test_a_rig_that_starts_anew_tells_the_same_night(
    settings: Settings, store: Store, client: TestClient, submit: Submit, brought: Bring
) -> None:
    for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
        brought(submit(), state)
    long_running, fresh = Ledger(store), Ledger(store)
    long_running.refresh()
    told: list[Any] = [
        read_named(store, each, settings, NOW + 1e6, date(2026, 11, 18)) for each in (long_running, fresh)
    ]
    assert told[0] == told[1] and told[0].over
    assert (told[0].counts.done, told[0].counts.failed, told[0].counts.cancelled) == (1, 1, 1)
