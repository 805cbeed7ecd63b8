"""The owner's hand on the queue over HTTP: move, edit, hold, release, cancel, preempt, pause; one who is late is told so."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from live_api import COMMAND, NOW
from starlette.testclient import TestClient

from daemon.store import Store
from jobs.model import Cause, End, Job, Outcome, State

JOBS = "/api/v1/jobs"
Submit = Callable[..., str]
Bring = Callable[[str, State], Job]


def queue(client: TestClient, **filters: Any) -> list[str]:
    """Ids as they will start."""
    return [job["id"] for job in client.get(JOBS, params={"order": "queue", **filters}).json()["jobs"]]


def offered(store: Store, job_id: str, slot: str = "cpu:0") -> Job:
    return store.offer(job_id, rig="rig", slots=(slot,), epoch=store.new_epoch("rig"), now=NOW)


# -- where it stands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "expected"),
    [("first", "3124"), ("last", "1243"), ("before:1", "3124"), ("after:4", "1243"), ("before:4", "1234"), ("after:1", "1324")],
)  # fmt: skip
def test_a_job_moves_to_a_place_among_its_priority(
    client: TestClient, submit: Submit, position: str, expected: str
) -> None:
    for _ in range(4):
        submit()
    answer = client.patch(f"{JOBS}/3", json={"position": position})
    assert answer.status_code == 200
    assert "".join(queue(client)) == expected
    assert answer.json()["position"] == expected.index("3") + 1


def test_several_jobs_move_together_and_keep_the_order_in_which_they_are_named(
    client: TestClient, submit: Submit
) -> None:
    for _ in range(5):
        submit()
    answer = client.post(f"{JOBS}/move", json={"jobs": ["5", "3"], "position": "before:1"})
    assert (answer.status_code, [job["id"] for job in answer.json()["jobs"]]) == (200, ["5", "3"])
    assert queue(client) == ["5", "3", "1", "2", "4"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"jobs": ["1", "9"], "position": "first"}, 404, "no job 9"),
        ({"jobs": ["1"], "position": "before:9"}, 404, "no job 9"),
        ({"jobs": ["2", "3"], "position": "before:1"}, 409, "job 3 has priority high and job 1 normal"),
        ({"jobs": ["2", "4"], "position": "first"}, 409, "job 4 is running, and only a waiting job"),
        ({"jobs": ["2", "5"], "position": "first"}, 409, "job 5 is about to start"),
        ({"jobs": ["2"], "position": "after:4"}, 409, "job 4 is running; only a waiting job has a place"),
        ({"jobs": ["2"], "position": "after:2"}, 409, "cannot stand after itself"),
        ({"jobs": ["2"], "position": "top"}, 422, "before:ID"),
        ({"jobs": ["2", "2"], "position": "first"}, 422, "twice"),
        ({"jobs": [2], "position": "first"}, 422, "as texts"),
        ({"jobs": [], "position": "first"}, 422, "list of 1 to"),
        ({"jobs": ["2"]}, 422, '"position": "before:139"'),
        ([], 422, '"position": "before:139"'),
    ],
)
def test_a_move_that_is_refused_says_why_and_moves_nobody(
    client: TestClient, store: Store, submit: Submit, brought: Bring, body: Any, status: int, words: str
) -> None:
    for priority in ("normal", "normal", "high", "normal", "normal"):
        submit(priority=priority)
    brought("4", State.RUNNING)
    offered(store, "5", "cpu:1")
    told = store.last_event_id()
    answer = client.post(f"{JOBS}/move", json=body)
    assert (answer.status_code, store.last_event_id()) == (status, told)
    assert words in answer.json()["detail"]


def test_a_new_priority_and_a_place_in_it_come_in_one_change(client: TestClient, submit: Submit) -> None:
    for priority in ("high", "high", "normal"):
        submit(priority=priority)
    assert client.patch(f"{JOBS}/3", json={"priority": "high", "position": "after:1"}).status_code == 200
    assert queue(client) == ["1", "3", "2"]
    refused = client.patch(f"{JOBS}/3", json={"priority": "backlog", "position": "after:1"})
    assert refused.status_code == 409 and queue(client) == ["1", "3", "2"]


def test_the_queue_is_listed_as_it_starts_with_places_and_reasons_page_by_page(
    client: TestClient, store: Store, submit: Submit
) -> None:
    for number in range(6):
        submit(priority=("backlog", "normal", "high")[number % 3], tags=["even"] if number % 2 else [])
    client.patch(f"{JOBS}/5", json={"held": True})
    offered(store, "2")
    page = client.get(JOBS, params={"order": "queue", "state": "queued", "limit": 4}).json()
    assert [(job["position"], job["id"]) for job in page["jobs"]] == [(1, "2"), (2, "3"), (3, "6"), (4, "5")]
    assert page["jobs"][0]["waiting_because"] == "starting on CPU slot 0"
    assert page["jobs"][3]["waiting_because"] == "held until it is released"
    assert all(job["waiting_because"] for job in page["jobs"])
    rest = client.get(JOBS, params={"order": "queue", "limit": 4, "cursor": page["next"]}).json()
    assert ([job["id"] for job in rest["jobs"]], rest["next"]) == (["1", "4"], None)
    assert queue(client, tag="even") == ["2", "6", "4"]
    assert client.get(JOBS, params={"order": "queue", "state": "failed"}).status_code == 422
    assert client.get(f"{JOBS}/4").json()["position"] == 6


# -- what it is -------------------------------------------------------------------------------------------------------------


def test_null_puts_a_field_back_to_its_default_and_objects_are_merged(
    client: TestClient, store: Store, submit: Submit
) -> None:
    submit(
        not_before="2030-01-01T00:00:00Z", max_runtime_s=60, env={"A": "1", "B": "2"}, priority="backlog", vram_gib=3
    )
    changes = {"not_before": None, "max_runtime_s": None, "env": {"A": None, "C": "3"}, "priority": None, "vram_gib": 4}
    answer = client.patch(f"{JOBS}/1", json=changes)
    assert answer.status_code == 200, answer.text
    job = store.get("1")
    assert job.spec["env"] == {"B": "2", "C": "3"}
    assert (job.not_before, job.max_runtime_s, job.priority, job.vram_bytes) == (None, None, "normal", 4 << 30)
    assert client.patch(f"{JOBS}/1", json={"argv": None}).json()["errors"][0]["field"] == "argv"


def test_a_change_outweighs_what_an_earlier_attempt_had_taught(
    client: TestClient, store: Store, submit: Submit
) -> None:
    submit()
    fence = store.claim("1", fence=offered(store, "1").fence, owner="w", now=NOW, lease_s=60).fence
    taught = {"max_runtime_s": 5.0, "retries": 2}
    oom = Outcome(end=End.FAILED, cause=Cause.OOM_GPU, next_fields=taught)
    store.finish("1", fence=fence, outcome=oom, now=NOW)
    assert client.patch(f"{JOBS}/1", json={"max_runtime_s": 50}).status_code == 200
    assert store.get("1").next_fields == {"retries": 2}
    assert store.get("1").effective_spec["max_runtime_s"] == 50


def test_holding_releasing_and_moving_again_change_nothing(client: TestClient, store: Store, submit: Submit) -> None:
    submit()
    submit()
    for changes in ({"held": True}, {"held": False}, {"position": "last"}, {"priority": "high"}, {"name": "same"}):
        assert client.patch(f"{JOBS}/1", json=changes).status_code == 200
        told = store.last_event_id()
        assert client.patch(f"{JOBS}/1", json=changes).status_code == 200
        assert store.last_event_id() == told, changes


def test_what_is_about_to_start_runs_or_has_ended_is_not_changed_and_the_way_out_is_named(
    client: TestClient, store: Store, submit: Submit, brought: Bring
) -> None:
    for _ in range(4):
        submit()
    offered(store, "1")
    told = store.last_event_id()
    for changes in ({"held": True}, {"position": "last"}, {"name": "x"}, {"argv": ["false"]}):
        answer = client.patch(f"{JOBS}/1", json=changes)
        assert answer.status_code == 409
        assert answer.json()["detail"] == "job 1 is about to start and can no longer be changed; it can be cancelled."
    assert store.last_event_id() == told
    brought("3", State.RUNNING)
    assert "overnight preempt 3" in client.patch(f"{JOBS}/3", json={"held": True}).json()["detail"]
    client.post(f"{JOBS}/4/cancel")
    assert "overnight retry 4" in client.patch(f"{JOBS}/4", json={"held": True}).json()["detail"]


def test_an_editor_who_is_late_is_told_so(client: TestClient, store: Store, submit: Submit) -> None:
    submit()
    seen = client.get(f"{JOBS}/1").json()["revision"]
    mine = client.patch(f"{JOBS}/1", json={"name": "mine"}, headers={"If-Match": seen})
    assert mine.status_code == 200
    late = client.patch(f"{JOBS}/1", json={"name": "yours"}, headers={"If-Match": seen})
    assert (late.status_code, late.json()["type"]) == (412, "urn:overnight:changed-meanwhile")
    assert store.get("1").name == "mine"
    again = client.patch(f"{JOBS}/1", json={"name": "yours"}, headers={"If-Match": mine.json()["revision"]})
    assert again.status_code == 200
    assert client.patch(f"{JOBS}/1", json={"name": "x"}, headers={"If-Match": "*"}).status_code == 422
    moved = client.patch(f"{JOBS}/1", json={"position": "first"}).json()
    assert moved["revision"] == again.json()["revision"], "a move is no edit"


def test_two_editors_at_once_both_get_what_they_asked_for(client: TestClient, store: Store, submit: Submit) -> None:
    submit()
    changes: list[dict[str, Any]] = [
        {"name": "new"}, {"tags": ["x"]}, {"env": {"A": "1"}}, {"env": {"B": "2"}}, {"priority": "high"}, {"held": True},
    ]  # fmt: skip
    answers: list[int] = []

    def change(body: dict[str, Any]) -> None:
        answers.append(client.patch(f"{JOBS}/1", json=body).status_code)

    editors = [threading.Thread(target=change, args=(body,)) for body in changes]
    for editor in editors:
        editor.start()
    for editor in editors:
        editor.join()
    assert answers == [200] * len(changes)
    job = store.get("1")
    assert (job.name, job.tags, job.priority, job.held) == ("new", ("x",), "high", True)
    assert job.spec["env"] == {"A": "1", "B": "2"}


def test_a_retry_may_change_the_job_first(client: TestClient, store: Store, submit: Submit, brought: Bring) -> None:
    submit(priority="backlog")
    submit(priority="high")
    brought("1", State.FAILED)
    assert client.post(f"{JOBS}/1/retry", json={"argv": ["no-such-program-anywhere"]}).status_code == 422
    assert client.post(f"{JOBS}/1/retry", json={"position": "first"}).status_code == 422
    assert store.get("1").state is State.FAILED
    changes = {"argv": ["false"], "priority": "high", "held": True}
    for _ in range(2):  # its reply may have been lost
        answer = client.post(f"{JOBS}/1/retry", json=changes)
        assert (answer.status_code, answer.json()["spec"]["argv"], answer.json()["held"]) == (202, ["false"], True)
    assert queue(client) == ["2", "1"]
    late = client.post(f"{JOBS}/1/retry", json={"argv": ["true"]})
    assert (late.status_code, "is queued again already" in late.json()["detail"]) == (409, True)


# -- what becomes of it -----------------------------------------------------------------------------------------------------


def test_a_wish_may_name_the_state_that_it_is_meant_for(client: TestClient, submit: Submit, brought: Bring) -> None:
    submit()
    submit()
    brought("1", State.RUNNING)
    for verb in ("cancel", "preempt"):
        answer = client.post(f"{JOBS}/1/{verb}", json={"only_if": "queued"})
        assert (answer.status_code, answer.json()["detail"]) == (
            409,
            "job 1 is running by now, not queued; it was left alone.",
        )
    assert client.get(f"{JOBS}/1").json()["wish"] is None
    assert client.post(f"{JOBS}/2/cancel", json={"only_if": "queued"}).json()["state"] == "cancelled"
    for body in ({"only_if": "asleep"}, {"only_if": ["queued"]}, {"reason": 1}, {"other": 1}):
        assert client.post(f"{JOBS}/1/cancel", json=body).status_code == 422


def test_a_pause_may_ask_what_runs_to_give_way(
    client: TestClient, store: Store, submit: Submit, brought: Bring
) -> None:
    submit()
    submit()
    brought("2", State.RUNNING)
    brought("1", State.RUNNING)
    assert client.post("/api/v1/gpus/cpu:0/pause").status_code == 200
    assert store.get("2").wish is None
    answer = client.post("/api/v1/gpus/cpu:0/pause", json={"now": True})
    assert (answer.status_code, answer.json()["paused"]) == (200, True)
    assert store.get("2").wish.kind == "preempt" and store.get("1").wish is None
    assert client.post("/api/v1/rig/pause", json={"now": True}).json()["paused"] is True
    assert store.get("1").wish.kind == "preempt"
    for path in ("gpus/cpu:0/pause", "rig/pause"):
        for body in ({"now": "yes"}, {"then": 1}, []):
            assert client.post(f"/api/v1/{path}", json=body).status_code == 422
    assert client.post("/api/v1/gpus/GPU-9/pause", json={"now": True}).status_code == 404


def test_the_schema_describes_places(client: TestClient) -> None:
    schemas = client.get("/api/v1/openapi.json").json()["components"]["schemas"]
    assert schemas["MoveDocument"]["required"] == ["jobs", "position"]
    assert COMMAND and schemas["JobChanges"]["properties"]["position"]["pattern"]
