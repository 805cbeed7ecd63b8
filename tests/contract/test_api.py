"""Jobs over HTTP: what a caller sends, what comes back, and what stands in the queue afterwards."""

from collections.abc import Callable
from typing import Any

import pytest
from live_api import COMMAND
from starlette.testclient import TestClient

from daemon.store import Store, Wanted
from jobs.model import Job, State

JOBS = "/api/v1/jobs"
Submit = Callable[..., str]
Bring = Callable[[str, State], Job]


def test_a_submitted_job_is_answered_in_full_and_found_where_its_location_says(client: TestClient) -> None:
    answer = client.post(JOBS, json={**COMMAND, "name": "first", "tags": ["a"], "priority": "high"})

    assert answer.status_code == 201
    assert answer.headers["Location"] == f"{JOBS}/1"
    job = client.get(answer.headers["Location"]).json()
    assert job == answer.json()
    expected = {"id": "1", "kind": "command", "name": "first", "tags": ["a"], "state": "queued", "priority": "high"}
    assert expected.items() <= job.items()
    assert job["spec"]["argv"] == ["true"]
    assert job["created_at"].endswith("Z")
    assert job["waiting_because"] == "starts at the next look"


def test_an_ended_job_says_how_it_ended_and_what_it_used(client: TestClient, submit: Submit, brought: Bring) -> None:
    brought(submit(), State.SUCCEEDED)

    job = client.get(f"{JOBS}/1").json()

    assert job["state"] == "succeeded"
    assert job["waiting_because"] is None
    used = {name: value for name, value in job["usage"].items() if value is not None}
    assert used == {"gpu_s": 9.0, "energy_j": 100.0}
    assert job["metrics"] == {"loss": 0.5}
    assert job["outcome"] == {"end": "succeeded", "cause": None, "message": "", "hint": ""}
    [run] = job["attempts"]
    assert (run["number"], run["slots"], run["end"]) == (1, ["cpu:1"], "succeeded")


def test_usage_is_summed_over_attempts(client: TestClient, store: Store, submit: Submit, brought: Bring) -> None:
    brought(submit(), State.FAILED)
    client.post(f"{JOBS}/1/retry")
    brought("1", State.SUCCEEDED)

    assert client.get(f"{JOBS}/1").json()["usage"]["gpu_s"] == 9.0
    assert len(client.get(f"{JOBS}/1").json()["attempts"]) == 2


def test_jobs_are_listed_newest_first_in_pages(client: TestClient, submit: Submit) -> None:
    ids = [submit() for _ in range(5)]

    page = client.get(JOBS, params={"limit": 2}).json()
    seen = [job["id"] for job in page["jobs"]]
    while page["next"]:
        page = client.get(JOBS, params={"limit": 2, "cursor": page["next"]}).json()
        seen += [job["id"] for job in page["jobs"]]

    assert seen == ids[::-1]


def test_the_list_is_filtered_by_state_kind_tag_and_words(client: TestClient, submit: Submit, brought: Bring) -> None:
    submit(name="bake bread", tags=["kitchen"])
    brought(submit(name="wash up"), State.FAILED)

    def found(**filters: str) -> list[str]:
        return [job["id"] for job in client.get(JOBS, params=filters).json()["jobs"]]

    assert found(state="failed") == ["2"]
    assert found(tag="kitchen") == ["1"]
    assert found(q="BREAD") == ["1"]
    assert found(kind="finetune") == []
    assert client.get(JOBS, params={"state": "asleep"}).status_code == 422


@pytest.mark.parametrize("job_id", ["99", "0", "abc", "٣", "-1", "1" * 30])
def test_an_unknown_id_is_not_found_whatever_it_looks_like(client: TestClient, job_id: str) -> None:
    for call in (client.get, client.delete):
        answer = call(f"{JOBS}/{job_id}")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:overnight:unknown-job"


# -- wrong documents ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "field", "words"),
    [
        ({"kind": "comand", "argv": ["true"]}, "kind", "did you mean 'command'"),
        ({"argv": ["true"]}, "kind", "is missing"),
        ({**COMMAND, "prioritty": "high"}, "prioritty", "did you mean 'priority'"),
        ({**COMMAND, "max_runtime_s": -1}, "max_runtime_s", "greater than 0"),
        ({**COMMAND, "gpus": 0}, "gpus", "greater than or equal to 1"),
        ({**COMMAND, "gpus": 3}, "gpus", "this rig has 2 GPUs, the job asks for 3"),
        ({**COMMAND, "argv": ["no-such-program-anywhere"]}, "argv", "is not a command on the rig's PATH"),
        ({**COMMAND, "after": ["77"]}, "after", "there is no job 77"),
        ({**COMMAND, "secrets": ["HF_TOKEN"]}, "secrets", "the rig has no secret HF_TOKEN"),
        ({"kind": "finetune", "model": "nope", "data": "/etc/passwd"}, "model", "is not a model of this rig"),
        ({"kind": "finetune", "model": "nope", "data": "/etc/passwd"}, "data", "is outside the folders"),
        ([], "", "is an object"),
        ("command", "", "is an object"),
    ],
)
def test_a_wrong_document_names_the_field_and_the_fix_and_leaves_nothing_behind(
    client: TestClient, store: Store, document: Any, field: str, words: str
) -> None:
    before = (store.counts(), store.last_event_id())

    answer = client.post(JOBS, json=document)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    told = {error["field"]: error["message"] for error in answer.json()["errors"]}
    assert words in told[field]
    assert (store.counts(), store.last_event_id()) == before
    assert client.post(JOBS, json=COMMAND).json()["id"] == "1"  # not even a number was used up


def test_every_wrong_field_is_told_at_once(client: TestClient) -> None:
    answer = client.post(JOBS, json={"kind": "generate", "model": "nope", "data": "here.jsonl", "gpus": 5})

    assert {error["field"] for error in answer.json()["errors"]} == {"model", "data", "gpus"}


# -- changing and stopping ------------------------------------------------------------------------------------------------


def test_a_waiting_job_can_be_changed_and_held(client: TestClient, store: Store, submit: Submit) -> None:
    submit()
    changes = {"priority": "backlog", "held": True, "window": "any", "name": "later", "tags": ["x"], "argv": ["false"]}

    answer = client.patch(f"{JOBS}/1", json=changes)

    assert answer.status_code == 200
    job = answer.json()
    assert {key: job[key] for key in ("priority", "held", "window", "name", "tags")} == {
        key: changes[key] for key in ("priority", "held", "window", "name", "tags")
    }
    assert job["spec"]["argv"] == ["false"]
    assert job["waiting_because"] == "held until it is released"
    assert store.page(Wanted(tag="x")).jobs[0].id == "1"


def test_a_change_is_checked_like_a_submission(client: TestClient, store: Store, submit: Submit) -> None:
    submit()
    for changes, field in (
        ({"gpus": 9}, "gpus"),
        ({"kind": "generate"}, "kind"),
        ({"held": "yes"}, "held"),
        ({"position": "top"}, "position"),
        ({"colour": "red"}, "colour"),
        ({}, ""),
    ):
        answer = client.patch(f"{JOBS}/1", json=changes)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert store.get("1").spec["gpus"] == 1


def test_two_jobs_cannot_be_made_to_wait_for_each_other(client: TestClient, submit: Submit) -> None:
    submit()
    submit(after=["1"])
    submit(after=["2"])

    answer = client.patch(f"{JOBS}/1", json={"after": ["3"]})

    assert answer.status_code == 422
    assert "wait for itself" in answer.json()["detail"]


def test_a_job_moves_to_the_front_of_its_priority(client: TestClient, store: Store, submit: Submit) -> None:
    for priority in ("normal", "normal", "high"):
        submit(priority=priority)

    client.patch(f"{JOBS}/2", json={"position": "first"})

    assert [job.id for job in sorted(store.unfinished().values(), key=lambda job: job.rank)] == ["3", "2", "1"]


def test_a_change_of_priority_keeps_first_come_first_served(client: TestClient, store: Store, submit: Submit) -> None:
    for priority in ("backlog", "normal", "normal"):
        submit(priority=priority)

    client.patch(f"{JOBS}/1", json={"priority": "normal"})

    assert [job.id for job in sorted(store.unfinished().values(), key=lambda job: job.rank)] == ["1", "2", "3"]


def test_what_runs_can_no_longer_be_changed(client: TestClient, submit: Submit, brought: Bring) -> None:
    brought(submit(), State.RUNNING)

    assert client.patch(f"{JOBS}/1", json={"priority": "high"}).status_code == 409


def test_a_waiting_job_is_cancelled_at_once_and_may_be_cancelled_again(client: TestClient, submit: Submit) -> None:
    submit()

    for _ in range(2):
        answer = client.post(f"{JOBS}/1/cancel", json={"reason": "wrong data"})
        assert answer.status_code == 202
        assert (answer.json()["state"], answer.json()["outcome"]["message"]) == ("cancelled", "wrong data")


def test_a_running_job_is_asked_to_stop(client: TestClient, submit: Submit, brought: Bring) -> None:
    brought(submit(), State.RUNNING)

    assert client.post(f"{JOBS}/1/preempt").json()["wish"]["kind"] == "preempt"
    assert client.post(f"{JOBS}/1/cancel").json()["wish"]["kind"] == "cancel"
    assert client.post(f"{JOBS}/1/cancel").json()["state"] == "running"


def test_a_retry_queues_an_ended_job_again_and_is_harmless_twice(
    client: TestClient, submit: Submit, brought: Bring
) -> None:
    brought(submit(), State.FAILED)

    for _ in range(2):
        answer = client.post(f"{JOBS}/1/retry")
        assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    brought("1", State.SUCCEEDED)
    assert client.post(f"{JOBS}/1/retry").status_code == 409
    assert client.post(f"{JOBS}/1/cancel").status_code == 409


def test_deleting_removes_the_record_and_the_run_folder(
    client: TestClient, submit: Submit, brought: Bring, folder_of: Any
) -> None:
    brought(submit(), State.SUCCEEDED)
    folder = folder_of("1")
    (folder.output / "link").symlink_to("/etc")

    assert client.delete(f"{JOBS}/1").status_code == 204
    assert client.get(f"{JOBS}/1").status_code == 404
    assert not folder.path.exists()


def test_a_folder_that_a_crash_left_is_removed_by_deleting_again(client: TestClient, folder_of: Any) -> None:
    folder = folder_of("7")

    assert client.delete(f"{JOBS}/7").status_code == 204
    assert not folder.path.exists()


def test_what_runs_or_is_needed_is_not_deleted(
    client: TestClient, submit: Submit, brought: Bring, folder_of: Any
) -> None:
    submit()
    submit(after=["1"])
    folder = folder_of("1")

    assert client.delete(f"{JOBS}/1").status_code == 409
    brought("1", State.SUCCEEDED)
    answer = client.delete(f"{JOBS}/1")

    assert answer.status_code == 409
    assert "job 2 needs the result of job 1" in answer.json()["detail"]
    assert folder.path.exists()
