"""Sweeps over HTTP: submitted whole, looked at as a table, cancelled whole; and their page."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from typing import Any

import pytest
from live_api import COMMAND, NOW
from starlette.testclient import TestClient

from daemon.facts import Ledger
from daemon.plan import Cancel
from daemon.settings import Settings
from daemon.store import Store
from daemon.sweep_watch import SweepWatch
from jobs.model import Cause, End, Job, Outcome, State
from jobs.rundir import RunDir, append_json_line

JOBS, SWEEPS = "/api/v1/jobs", "/api/v1/sweeps"
BASE = {**COMMAND, "name": "s"}
FolderOf = Callable[[str], RunDir]


def send(client: TestClient, sweep: Any, base: Any = BASE) -> str:
    answer = client.post(f"{JOBS}/batch", json={"base": base, "sweep": sweep})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["sweep"])


def claim(store: Store, job_id: str) -> Job:
    slot = f"cpu:{job_id}"
    offered = store.offer(job_id, rig="rig", slots=(slot,), epoch=store.new_epoch("rig"), now=NOW)
    return store.claim(job_id, fence=offered.fence, owner="test", now=NOW, lease_s=60)


def end(store: Store, job_id: str, **metrics: float) -> None:
    fence = claim(store, job_id).fence
    store.finish(job_id, fence=fence, outcome=Outcome(end=End.SUCCEEDED, metrics=metrics), now=NOW + 9)


def test_a_sweep_has_the_id_of_its_first_job_and_its_jobs_know_it(client: TestClient, store: Store) -> None:
    client.post(JOBS, json=COMMAND)
    sweep = {"env.A": ["1", "2"], "max_concurrent": 1, "goal": {"maximize": "accuracy"}}
    assert send(client, sweep) == "2"
    jobs = store.get_many(["1", "2", "3"])
    assert [(job.sweep, dict(job.point), job.max_concurrent) for job in jobs.values()] == [
        ("", {}, None),
        ("2", {"env.A": "1"}, 1),
        ("2", {"env.A": "2"}, 1),
    ]
    seen = client.get(f"{JOBS}/3").json()
    assert (seen["sweep"], seen["point"], seen["spec"]["env"]) == ("2", {"env.A": "2"}, {"A": "2"})


def test_a_plain_batch_is_no_sweep(client: TestClient) -> None:
    assert client.post(f"{JOBS}/batch", json={"jobs": [COMMAND]}).json()["sweep"] is None
    assert client.get(SWEEPS).json() == {"sweeps": [], "next": None}


def test_the_table_has_the_best_first_and_names_it(client: TestClient, store: Store, folder_of: FolderOf) -> None:
    sweep_id = send(client, {"env.A": ["1", "2", "3", "4"]})
    end(store, "1", eval_loss=2.0, exit_code=0)
    end(store, "2", eval_loss=1.0, tokens_per_s=90.0)
    claim(store, "3")
    append_json_line(folder_of("3").metrics, {"step": 1, "eval_loss": 3.0, "time": NOW})
    found = client.get(f"{SWEEPS}/{sweep_id}").json()
    assert [(row["job"], row["state"], row["value"]) for row in found["rows"]] == [
        ("2", "succeeded", 1.0), ("1", "succeeded", 2.0), ("3", "running", 3.0), ("4", "queued", None),
    ]  # fmt: skip
    assert found["best"] == {"job": "2", "value": 1.0}
    assert found["goal"] == {"minimize": "eval_loss", "maximize": None}
    assert (found["metrics"], found["axes"], found["jobs"]) == (["eval_loss", "tokens_per_s"], ["env.A"], 4)
    assert found["counts"]["queued"] == found["counts"]["running"] == 1


def test_the_table_as_csv_can_be_submitted_again(client: TestClient, store: Store) -> None:
    sweep_id = send(client, {"points": [{"tags": ["a"], "gpus": 1}, {"env.A": "=1+1"}]})
    end(store, "1", **{"eval_loss": 0.5, "=evil()": 1.0})
    answer = client.get(f"{SWEEPS}/{sweep_id}/table.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    assert "attachment" in answer.headers["content-disposition"]
    assert answer.text.splitlines() == [
        "job,state,tags,gpus,env.A,eval_loss,'=evil()",
        '1,succeeded,"[""a""]",1,,0.5,1.0',
        "2,queued,,,=1+1,,",
    ]


def test_sweeps_are_listed_newest_first_and_pages_go_on(client: TestClient) -> None:
    for name in "abc":
        send(client, {"gpus": [1, 2]}, {**COMMAND, "name": name})
    page = client.get(SWEEPS, params={"limit": 2}).json()
    assert [(s["id"], s["name"], s["jobs"]) for s in page["sweeps"]] == [("5", "c", 2), ("3", "b", 2)]
    rest = client.get(SWEEPS, params={"limit": 2, "cursor": page["next"]}).json()
    assert [s["id"] for s in rest["sweeps"]] == ["1"] and rest["next"] is None


def test_what_is_left_of_a_sweep_is_cancelled_together(client: TestClient, store: Store) -> None:
    sweep_id = send(client, {"env.A": ["1", "2", "3"]})
    end(store, "1")
    claim(store, "2")
    assert client.post(f"{SWEEPS}/{sweep_id}/cancel").json() == {"asked": 2}
    assert [store.get(n).state for n in "123"] == [State.SUCCEEDED, State.RUNNING, State.CANCELLED]
    assert store.get("2").wish is not None
    assert client.post(f"{SWEEPS}/{sweep_id}/cancel").json() == {"asked": 1}


def test_a_retried_job_stays_in_its_sweep_and_a_deleted_one_is_missing(client: TestClient, store: Store) -> None:
    sweep_id = send(client, {"env.A": ["1", "2"]})
    store.finish("1", fence=claim(store, "1").fence, outcome=Outcome(end=End.FAILED, cause=Cause.NAN), now=NOW)
    assert client.post(f"{JOBS}/1/retry").status_code == 202
    assert store.get("1").sweep == sweep_id
    end(store, "2")
    assert client.delete(f"{JOBS}/2").status_code == 204
    assert [row["job"] for row in client.get(f"{SWEEPS}/{sweep_id}").json()["rows"]] == ["1"]


def test_a_repeat_with_its_key_makes_no_second_sweep(client: TestClient) -> None:
    body, key = {"base": BASE, "sweep": {"gpus": [1, 2]}}, {"Idempotency-Key": "k"}
    first = client.post(f"{JOBS}/batch", json=body, headers=key).json()
    again = client.post(f"{JOBS}/batch", json=body, headers=key)
    assert (again.status_code, again.json()) == (200, first)
    assert len(client.get(SWEEPS).json()["sweeps"]) == 1


@pytest.mark.parametrize("name", ["99", "0", "x", "1" * 30, "1:rungs"])
def test_what_is_no_sweep_is_not_found(client: TestClient, name: str) -> None:
    client.post(JOBS, json=COMMAND)
    for path in (f"{SWEEPS}/{name}", f"{SWEEPS}/{name}/table.csv", f"/sweeps/{name}"):
        assert client.get(path).status_code == 404
    assert client.post(f"{SWEEPS}/{name}/cancel").status_code == 404


def test_nobody_without_the_token_sees_a_sweep(client: TestClient, stranger: TestClient) -> None:
    sweep_id = send(client, {"gpus": [1, 2]})
    for path in (SWEEPS, f"{SWEEPS}/{sweep_id}", f"{SWEEPS}/{sweep_id}/table.csv"):
        assert stranger.get(path).status_code == 401
    assert stranger.get(f"/sweeps/{sweep_id}", follow_redirects=False).status_code in (303, 307, 401)


# -- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sweep", "field", "words"),
    [
        ({"gpu": [1]}, "sweep.gpu", "did you mean 'gpus'?"),
        ({"gpus": [1, 9]}, "sweep.gpus", "the job asks for 9"),
        ({"gpus": [1, -1]}, "sweep.gpus", "greater than or equal to 1"),
        ({"points": [{"gpus": 1}] * 10_001}, "sweep", "makes 10001 jobs"),
        ({"csv": "points.csv"}, "sweep.csv", "is not an uploaded file"),
        ({"csv": f"sha256:{'0' * 64}"}, "sweep.csv", "is not uploaded"),
    ],
)
def test_a_wrong_sweep_is_refused_with_its_field(
    client: TestClient, store: Store, sweep: Any, field: str, words: str
) -> None:
    answer = client.post(f"{JOBS}/batch", json={"base": BASE, "sweep": sweep})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field and words in answer.json()["detail"]
    assert sum(store.counts().values()) == 0 and client.get(SWEEPS).json()["sweeps"] == []


def test_what_all_jobs_of_a_sweep_have_wrong_is_told_once(client: TestClient) -> None:
    sweep = {"env.A": [str(n) for n in range(100)]}
    answer = client.post(f"{JOBS}/batch", json={"base": {**BASE, "prioritty": "high"}, "sweep": sweep})
    assert [error["field"] for error in answer.json()["errors"]] == ["base.prioritty"]


def test_an_uploaded_table_makes_one_job_of_each_line(client: TestClient, store: Store) -> None:
    table = b"env.A,gpus\nx,1\ny,2\n"
    digest = hashlib.sha256(table).hexdigest()
    assert client.put(f"/api/v1/inputs/{digest}", content=table).status_code in (200, 201, 204)
    send(client, {"csv": f"sha256:{digest}"})
    assert [(job.spec["env"], job.gpus) for job in store.get_many(["1", "2"]).values()] == [({"A": "x"}, 1), ({"A": "y"}, 2)]  # fmt: skip


@pytest.mark.slow
def test_ten_thousand_jobs_are_one_sweep(client: TestClient, store: Store) -> None:
    space = {"priority": ["high", "backlog"], "max_runtime_s": {"min": 1.0, "max": 9.0}}
    sweep_id = send(client, {"space": space, "samples": 10_000})
    assert store.counts()["queued"] == 10_000
    assert client.post(f"{SWEEPS}/{sweep_id}/cancel").json() == {"asked": 10_000}


def test_openapi_tells_how_a_sweep_is_made(client: TestClient) -> None:
    schemas = client.get("/api/v1/openapi.json").json()["components"]["schemas"]
    assert {"grid", "space", "points", "csv", "goal", "halving", "samples"} <= set(
        schemas["SweepDocument"]["properties"]
    )
    assert "$defs" not in json.dumps(schemas["SweepDocument"])


def test_a_sweep_whose_record_was_lost_comes_back_with_its_jobs(client: TestClient, store: Store) -> None:
    sweep_id = send(client, {"points": [{"env.A": "1"}, {"gpus": 1}]})
    for number in "12":
        end(store, number, eval_loss=float(number))
    jobs = list(store.get_many(["1", "2"]).values())
    store.redis.flushall()
    assert store.restore(jobs) == 2
    found = client.get(f"{SWEEPS}/{sweep_id}").json()
    assert (found["axes"], found["best"], found["jobs"]) == (["env.A", "gpus"], {"job": "1", "value": 1.0}, 2)


# -- early stop ---------------------------------------------------------------------------------------------------------------


def test_the_daemon_reads_metrics_as_they_come_and_names_who_stops(
    client: TestClient, store: Store, settings: Settings, folder_of: FolderOf
) -> None:
    send(client, {"env.A": [*"123"], "goal": {"minimize": "loss"}, "halving": {"first_step": 10, "factor": 3}})
    ledger, watch = Ledger(store), SweepWatch(store, settings.runs)
    for number in "123":
        claim(store, number)
    assert watch.look(ledger.facts(NOW, settings)) == []
    for number in "12":
        append_json_line(folder_of(number).metrics, {"step": 10, "loss": float(number)})
    append_json_line(folder_of("3").metrics, {"step": 9, "loss": 3.0})
    assert watch.look(ledger.facts(NOW, settings)) == []
    append_json_line(folder_of("3").metrics, {"step": 11, "loss": 0.5})
    found = watch.look(ledger.facts(NOW, settings))
    assert {decision.job for decision in found} == {"1", "2"}
    assert Cancel("2", "Stopped early: loss 2 at step 10 is not among the best third of 3.") in found
    assert store.rungs("1") == {10: {"1": 1.0, "2": 2.0, "3": 0.5}}
    # a daemon that starts anew knows the same
    assert {d.job for d in SweepWatch(store, settings.runs).look(ledger.facts(NOW, settings))} == {"1", "2"}


def test_who_was_stopped_early_and_retried_by_hand_is_left_alone(
    client: TestClient, store: Store, settings: Settings, folder_of: FolderOf
) -> None:
    sweep_id = send(client, {"env.A": [*"12"], "halving": {"first_step": 1, "factor": 2}})
    ledger, watch = Ledger(store), SweepWatch(store, settings.runs)
    for number in "12":
        claim(store, number)
        append_json_line(folder_of(number).metrics, {"step": 1, "eval_loss": float(number)})
    [stop] = watch.look(ledger.facts(NOW, settings))
    outcome = Outcome(end=End.CANCELLED, message=stop.reason)
    store.finish("2", fence=store.get("2").fence, outcome=outcome, now=NOW)
    [row] = [row for row in client.get(f"{SWEEPS}/{sweep_id}").json()["rows"] if row["job"] == "2"]
    assert (row["state"], row["stopped_early"], row["value"]) == ("cancelled", True, 2.0)
    client.post(f"{JOBS}/2/retry")
    claim(store, "2")
    assert watch.look(ledger.facts(NOW, settings)) == []


def test_a_pipe_or_a_link_in_place_of_the_metrics_holds_nobody_up(
    client: TestClient, store: Store, settings: Settings, folder_of: FolderOf
) -> None:
    sweep_id = send(client, {"env.A": [*"12"], "halving": {"first_step": 1, "factor": 2}})
    for number in "12":
        claim(store, number)
    os.mkfifo(folder_of("1").metrics)
    secret = settings.home / "secret.jsonl"
    secret.write_text('{"step": 1, "eval_loss": 1.0}\n')
    folder_of("2").metrics.symlink_to(secret)
    assert SweepWatch(store, settings.runs).look(Ledger(store).facts(NOW, settings)) == []
    assert all(row["metrics"] == {} for row in client.get(f"{SWEEPS}/{sweep_id}").json()["rows"])


# -- the page ---------------------------------------------------------------------------------------------------------------


def test_the_page_names_the_best_and_links_its_jobs_which_link_back(client: TestClient, store: Store) -> None:
    sweep_id = send(client, {"env.A": ["1", "2"], "max_concurrent": 3, "halving": {"first_step": 50}})
    end(store, "2", eval_loss=1.5, tokens_per_s=80.0)
    page = client.get(f"/sweeps/{sweep_id}").text
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "Best: job 2, eval loss 1.5 with env.A 2." in text
    assert "2 jobs: 1 waiting, 1 succeeded." in text
    assert "at most 3 at once; from step 50 on, one in 3 goes on" in text
    assert page.index('href="/jobs/2"') < page.index('href="/jobs/1"')
    assert f'action="/do/sweeps/{sweep_id}/cancel"' in page
    assert f'href="/sweeps/{sweep_id}"' in client.get("/jobs/1").text
    assert 'id="sweeptable"' in client.get(f"/fragments/sweep/{sweep_id}").text


def test_the_pages_button_asks_first_and_works_without_script(client: TestClient, store: Store) -> None:
    sweep_id = send(client, {"env.A": ["1", "2"]})
    form, ours = {"next": f"/sweeps/{sweep_id}"}, {"Sec-Fetch-Site": "same-origin"}
    address = f"/do/sweeps/{sweep_id}/cancel"
    assert client.post(address, data=form).status_code == 403  # no page sent this
    asked = client.post(address, data=form, headers=ours)
    assert "2 jobs that wait or run will stop" in asked.text and store.counts()["queued"] == 2
    done = client.post(address, data={**form, "sure": "yes"}, headers=ours, follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, f"/sweeps/{sweep_id}")
    assert store.counts()["cancelled"] == 2


def test_nothing_in_a_sweep_becomes_html(client: TestClient, store: Store) -> None:
    evil = "<script>alert(1)</script>"
    sweep_id = send(client, {"points": [{"env.A": evil, "tags": ["a"]}]}, {**COMMAND, "name": evil})
    end(store, "1", **{f"loss{evil}": 1.0})
    page = client.get(f"/sweeps/{sweep_id}")
    assert evil not in page.text and "&lt;script&gt;" in page.text
    assert "style=" not in page.text and "onclick" not in page.text
