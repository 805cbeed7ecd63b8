"""Jobs that wait for others: cancelled with a reason when that is in vain, and back when the other one is tried again."""

from collections.abc import Callable
from typing import Any

import pytest
from live_api import COMMAND, NOW
from starlette.testclient import TestClient

from daemon.facts import Ledger
from daemon.plan import Cancel, plan
from daemon.settings import Settings
from daemon.store import Store
from jobs.model import Cause, End, InvalidTransition, Job, Outcome, State, Wish, WishKind
from jobs.spec import parse

JOBS = "/api/v1/jobs"
BROKEN = Outcome(end=End.FAILED, cause=Cause.BAD_INPUT, message="It cannot be.")
Planned = Callable[[], list[str]]


@pytest.fixture
def planned(store: Store, settings: Settings) -> Planned:
    """Lets the planner cancel what can never start, until nothing is left to cancel; the ids."""
    ledger = Ledger(store)

    def look() -> list[str]:
        gone: list[str] = []
        while found := [d for d in plan(ledger.facts(NOW, settings)) if isinstance(d, Cancel)]:
            for decision in found:
                store.abandon(decision.job, decision.because_of, decision.reason, now=NOW)
            gone += [decision.job for decision in found]
        return gone

    return look


def add(store: Store, *after: str) -> str:
    return store.submit([parse({**COMMAND, "after": list(after)})], now=NOW)[0][0].id


def fail(store: Store, job_id: str) -> None:
    offered = store.offer(job_id, rig="rig", slots=("cpu:0",), epoch=store.new_epoch("rig"), now=NOW)
    store.claim(job_id, fence=offered.fence, owner="test", now=NOW, lease_s=60)
    store.finish(job_id, fence=offered.fence, outcome=BROKEN, now=NOW)


def states(store: Store, *ids: str) -> list[State]:
    return [store.get(job_id).state for job_id in ids]


def test_a_failed_parent_cancels_what_waits_for_it_however_far_away(store: Store, planned: Planned) -> None:
    parent = add(store)
    child, anyway, instead = add(store, parent), add(store, f"ended:{parent}"), add(store, f"failed:{parent}")
    grandchild = add(store, child)
    fail(store, parent)
    assert planned() == [child, grandchild]
    assert states(store, anyway, instead) == [State.QUEUED, State.QUEUED]
    job = store.get(grandchild)
    assert job.outcome is not None and job.outcome.message == f"job {child}, which it waits for, was cancelled"
    assert (store.get(child).because_of, job.because_of) == (parent, child)


def test_retrying_the_parent_brings_them_back_where_they_stood(store: Store, planned: Planned) -> None:
    parent = add(store)
    child, other = add(store, parent), add(store)
    grandchild = add(store, child)
    before = {job_id: store.get(job_id) for job_id in (child, grandchild)}
    fail(store, parent)
    planned()
    store.retry(parent)
    assert {job_id: store.get(job_id) for job_id in (child, grandchild)} == before
    assert store.get(parent).rank > store.get(other).rank
    assert planned() == []
    assert store.counts()["cancelled"] == 0


def test_a_retry_is_one_transaction_with_everything_that_it_brings_back(store: Store, planned: Planned) -> None:
    parent = add(store)
    for _ in range(30):
        add(store, parent)
    fail(store, parent)
    planned()

    def count() -> int:
        return int(store.redis.info("commandstats")["cmdstat_exec"]["calls"])

    before = count()
    store.retry(parent)
    assert count() - before == 1
    assert store.counts()["queued"] == 31


def test_what_its_owner_cancelled_stays_cancelled(store: Store, planned: Planned) -> None:
    parent = add(store)
    child = add(store, parent)
    store.wish(child, Wish(kind=WishKind.CANCEL, reason="by hand", asked_at=NOW))
    fail(store, parent)
    planned()
    store.retry(parent)
    assert states(store, parent, child) == [State.QUEUED, State.CANCELLED]


def test_a_child_of_two_failed_parents_waits_for_the_second_one_in_vain(store: Store, planned: Planned) -> None:
    one, two = add(store), add(store)
    child = add(store, one, two)
    fail(store, one)
    fail(store, two)
    planned()
    store.retry(one)
    assert planned() == [child] and store.get(child).because_of == two
    store.retry(two)
    assert planned() == [] and states(store, child) == [State.QUEUED]


def test_a_decision_that_comes_after_the_retry_cancels_nothing(store: Store) -> None:
    parent = add(store)
    child = add(store, parent)
    fail(store, parent)
    store.retry(parent)
    store.abandon(child, parent, "too late", now=NOW)
    assert states(store, child) == [State.QUEUED]


def test_a_child_cannot_be_retried_before_its_parent_and_is_told_so(store: Store, planned: Planned) -> None:
    parent = add(store)
    child = add(store, parent)
    fail(store, parent)
    planned()
    with pytest.raises(InvalidTransition, match=f"retry job {parent}, and this one comes back with it"):
        store.retry(child)
    store.delete(parent)
    with pytest.raises(InvalidTransition, match="has been deleted: submit it anew"):
        store.retry(child)


def test_a_condition_that_was_changed_later_counts(store: Store, planned: Planned) -> None:
    one, two = add(store), add(store)
    child = add(store, one)
    store.change(child, lambda job: job.edited(after=(two,)))
    fail(store, two)
    assert planned() == [child]
    store.retry(two)
    assert states(store, child) == [State.QUEUED]


def test_a_deleted_job_leaves_nothing_about_its_family(store: Store, planned: Planned) -> None:
    parent = add(store)
    child = add(store, parent)
    fail(store, parent)
    planned()
    store.delete(child)
    store.delete(parent)
    assert list(store.redis.scan_iter("overnight:children:*")) == []


# -- over HTTP ---------------------------------------------------------------------------------------------------------------


def test_every_condition_can_be_submitted_and_a_retry_revives(
    client: TestClient, store: Store, planned: Planned, submit: Callable[..., str]
) -> None:
    parent = submit()
    child = submit(after=[parent])
    submit(after=[f"ended:{parent}", f"failed:{parent}"])
    fail(store, parent)
    planned()
    seen = client.get(f"{JOBS}/{child}").json()
    assert (seen["state"], seen["because_of"]) == ("cancelled", parent)
    assert client.post(f"{JOBS}/{child}/retry").status_code == 409

    assert client.post(f"{JOBS}/{parent}/retry").status_code == 202

    seen = client.get(f"{JOBS}/{child}").json()
    assert (seen["state"], seen["because_of"]) == ("queued", None)
    assert client.post(f"{JOBS}/{parent}/retry").status_code == 202  # again: nothing changes
    assert client.get(f"{JOBS}/{child}").json()["waiting_because"] == f"waits for job {parent}, which is queued"


def pipeline(**changes: Any) -> dict[str, Any]:
    first = {**COMMAND, "id": "prepare"}
    return {"jobs": [{**COMMAND, "after": ["failed:last", "ended:prepare"]}, first, {**COMMAND, "id": "last", "after": ["prepare"]} | changes]}  # fmt: skip


def test_jobs_of_a_batch_name_each_other_and_get_numbers_together(
    client: TestClient, submit: Callable[..., str]
) -> None:
    submit()
    answer = client.post(f"{JOBS}/batch", json=pipeline())
    assert answer.status_code == 201, answer.text
    after = {job["id"]: client.get(f"{JOBS}/{job['id']}").json()["after"] for job in answer.json()["jobs"]}
    assert after == {"2": ["failed:4", "ended:3"], "3": [], "4": ["3"]}
    assert client.get(f"{JOBS}/2").json()["spec"]["after"] == ["failed:4", "ended:3"]


def test_a_batch_with_a_wrong_name_is_refused_as_a_whole(client: TestClient, store: Store) -> None:
    for changes, field, words in (
        ({"after": ["prepaer"]}, "jobs.2.after", "did you mean 'prepare'?"),
        ({"after": ["prepare", "last"]}, "jobs.2.after", "waits for itself: last → last"),
        ({"id": "prepare"}, "jobs.0.after", "no job of this batch has the id 'last'"),
        ({"after": ["99"]}, "jobs.2.after", "there is no job 99"),
    ):
        answer = client.post(f"{JOBS}/batch", json=pipeline(**changes))
        assert answer.status_code == 422
        assert field in [error["field"] for error in answer.json()["errors"]]
        assert words in answer.json()["detail"]
    assert sum(store.counts().values()) == 0


def test_a_result_can_be_named_only_where_it_will_be(client: TestClient, settings: Settings, store: Store) -> None:
    model = settings.models / "small"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").touch()
    rows = settings.home / "inputs" / ("0" * 64)
    rows.parent.mkdir(exist_ok=True)
    rows.write_text('{"prompt": "Is it night?", "completion": "Yes."}\n')
    data = f"sha256:{'0' * 64}"
    train = {"kind": "finetune", "id": "train", "model": "small", "data": data}
    ask = {"kind": "generate", "id": "ask", "model": "job:train", "data": data}
    again = {"kind": "finetune", "model": "job:train", "data": data, "after": ["ask"]}

    wrong = client.post(f"{JOBS}/batch", json={"jobs": [train, ask, {**again, "model": "job:ask"}]})
    assert wrong.status_code == 422
    assert "this needs the result of a finetune or export job" in wrong.json()["detail"]

    answer = client.post(f"{JOBS}/batch", json={"jobs": [again, ask, train]})
    assert answer.status_code == 201, answer.text
    jobs: dict[str, Job] = store.get_many(["1", "2", "3"])
    assert {job.id: job.after for job in jobs.values()} == {"1": ("2", "3"), "2": ("3",), "3": ()}
    assert jobs["1"].spec["model"] == "job:3"


def test_a_trial_of_a_pipeline_says_why_each_job_would_wait(client: TestClient, store: Store) -> None:
    answer = client.post(f"{JOBS}/batch", json=pipeline(), params={"dry_run": "true"})
    assert answer.status_code == 200, answer.text
    assert [job["would_wait_because"] for job in answer.json()["jobs"]][2] == "waits for job 2, which is queued"
    assert sum(store.counts().values()) == 0


def test_a_single_job_has_no_local_id(client: TestClient) -> None:
    answer = client.post(JOBS, json={**COMMAND, "id": "train"})
    assert answer.status_code == 422 and "id: is not a field" in answer.json()["detail"]
