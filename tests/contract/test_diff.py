"""What differs between two jobs: as data, and as `overnight diff` tells it with the exit status of diff."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from live_api import NOW, LiveApi
from starlette.testclient import TestClient

from api.cli import overnight
from daemon.settings import Settings
from daemon.store import Store
from jobs import snapshot
from jobs.model import End, Outcome
from jobs.rundir import run_dir, write_json
from jobs.spec import parse

ENVIRONMENT = {
    "attempt": 1,
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "trl": "1.16.0"},
    "inputs": {"data": "a" * 64},
    "cpu": {"model": "a CPU", "threads": 2},
}
Ran = Callable[..., str]


def have_run(
    store: Store, settings: Settings, document: dict[str, Any], environment: dict[str, Any] | None, **metrics: float
) -> str:
    """A job that has run, with what it left; its id."""
    full = (
        document
        if document.get("kind") == "command"
        else {"kind": "finetune", "model": "org/m", "data": "d", **document}
    )
    [job], _ = store.submit([parse(full)], now=NOW - 600)
    offered = store.offer(job.id, rig="rig", slots=(f"cpu:{job.id}",), epoch=store.new_epoch("rig"), now=NOW - 500)
    store.claim(job.id, fence=offered.fence, owner="w", now=NOW - 480, lease_s=60)
    folder = run_dir(settings.runs, job.id)
    folder.create()
    if environment is not None:
        write_json(folder.environment, environment)
    told = Outcome(end=End.SUCCEEDED, metrics={"eval_loss": 1.0, "tokens_per_s": 100.0 + int(job.id), **metrics})
    return store.finish(job.id, fence=offered.fence, outcome=told, now=NOW - 60).id


@pytest.fixture
def ran(store: Store, settings: Settings) -> Ran:
    """Puts a job there that has run."""
    return partial(have_run, store, settings)


def test_what_a_job_wrote_of_its_surroundings_may_be_anything(ran: Ran, client: TestClient, settings: Settings) -> None:
    one, other = ran({}, ENVIRONMENT), ran({}, ENVIRONMENT)
    for text in (r'{"python": "\ud800", "\ud801": 1}', '{"python": NaN}', '{"git": {"diff": 5}, "inputs": [1]}'):
        (run_dir(settings.runs, other).environment).write_text(text)
        assert client.get(f"/api/v1/diff?jobs={one},{other}").status_code == 200, text


def packed(settings: Settings, folder: Path, files: dict[str, bytes]) -> str:
    """A working folder as `submit` sends it along; its name."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    archive = folder.with_suffix(".tar.gz")
    with archive.open("wb") as file:
        snapshot.pack(folder, tuple(sorted(files)), file)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    settings.inputs.mkdir(exist_ok=True)
    archive.rename(settings.inputs / digest)
    return f"sha256:{digest}"


def test_a_repetition_differs_in_nothing(client: TestClient, ran: Ran) -> None:
    first, second = (
        ran({"name": "one"}, ENVIRONMENT),
        ran({"name": "two", "priority": "high"}, {**ENVIRONMENT, "attempt": 3}),
    )
    found = client.get("/api/v1/diff", params={"jobs": f"{first},{second}"}).json()
    assert found["same"] and not found["unknown"]
    assert [job["name"] for job in found["jobs"]] == ["one", "two"]


def test_fields_versions_data_and_results_that_differ_are_told(client: TestClient, ran: Ran) -> None:
    first = ran({"lora": {"r": 8}}, ENVIRONMENT)
    later = {**ENVIRONMENT, "packages": {"torch": "2.14.0", "trl": "1.16.0"}, "inputs": {"data": "b" * 64}}
    second = ran({"learning_rate": 1e-4, "lora": {"r": 8}}, later, eval_loss=0.9)
    found = client.get("/api/v1/diff", params={"jobs": f"{first},#{second}"}).json()
    assert not found["same"]
    assert {field["name"]: field["values"] for field in found["document"]} == {"learning_rate": [2e-4, 1e-4]}
    assert {field["name"]: field["values"] for field in found["environment"]} == {
        "packages.torch": ["2.13.0", "2.14.0"]
    }
    assert [field["name"] for field in found["inputs"]] == ["inputs.data"]
    [metric] = found["results"]
    assert (metric["name"], metric["values"][1]["words"]) == ("eval_loss", "0.1 lower, better")


def test_code_that_came_along_is_compared_file_by_file(
    client: TestClient, ran: Ran, settings: Settings, tmp_path: Path
) -> None:
    before = {
        "train.py": b"a = 1\nb = 2\n",
        "gone.py": b"x",
        "blob.bin": b"\0\1",
        "same.py": b"s",
        "long.py": b"x\n" * 900,
    }
    after = {
        "train.py": b"a = 1\nb = 3\n",
        "new/one.py": b"y",
        "blob.bin": b"\0\2",
        "same.py": b"s",
        "long.py": b"y\n" * 900,
    }
    names = [packed(settings, tmp_path / which, files) for which, files in (("1", before), ("2", after))]
    ids = [ran({"kind": "command", "argv": ["python", "train.py"], "workdir": name}, ENVIRONMENT) for name in names]
    found = client.get("/api/v1/diff", params={"jobs": ",".join(ids)}).json()
    code = {change["name"]: change for change in found["code"]}
    assert {name: change["how"] for name, change in code.items()} == {
        "blob.bin": "changed", "gone.py": "removed", "long.py": "changed", "new/one.py": "added", "train.py": "changed",
    }  # fmt: skip
    assert code["train.py"]["diff"] == [
        "--- 1/train.py",
        "+++ 2/train.py",
        "@@ -1,2 +1,2 @@",
        " a = 1",
        "-b = 2",
        "+b = 3",
    ]
    assert code["blob.bin"]["diff"] == [] and code["long.py"]["cut"] and len(code["long.py"]["diff"]) == 200


def test_of_a_folder_in_git_the_commit_and_what_was_not_committed_are_told(client: TestClient, ran: Ran) -> None:
    states = [{"commit": "c" * 40, "branch": "main", "diff": f"+x = {n}\n", "diff_cut": False} for n in (1, 2)]
    ids = [ran({"kind": "command", "argv": ["make"]}, {**ENVIRONMENT, "git": state}) for state in states]
    found = client.get("/api/v1/diff", params={"jobs": ",".join(ids)}).json()
    assert found["environment"] == []
    assert [(change["name"], change["diff"][-2:]) for change in found["code"]] == [
        ("what was not committed", ["-+x = 1", "++x = 2"])
    ]


def test_what_cannot_be_compared_is_said(client: TestClient, ran: Ran, settings: Settings, tmp_path: Path) -> None:
    there = packed(settings, tmp_path / "1", {"a.py": b"1"})
    documents = (
        {"kind": "command", "argv": ["python", "a.py"], "workdir": name} for name in (there, "sha256:" + "0" * 64)
    )
    ids = [ran(document, None) for document in documents]
    found = client.get("/api/v1/diff", params={"jobs": ",".join(ids)}).json()
    assert found["unknown"] == [
        f"what job {ids[0]} ran on: it left no word of it",
        f"what job {ids[1]} ran on: it left no word of it",
        f"the files of the working folders: that of job {ids[1]} is not on this rig",
    ]


def test_a_description_that_a_job_has_spoilt_does_no_harm(client: TestClient, ran: Ran) -> None:
    ids = [ran({}, ENVIRONMENT), ran({}, {"packages": 3, "inputs": [1], "x" * 5000: {"y": None}})]
    answer = client.get("/api/v1/diff", params={"jobs": ",".join(ids)})
    assert answer.status_code == 200 and not answer.json()["same"]


@pytest.mark.parametrize(("jobs", "status"), [("1", 422), ("1,1", 422), ("1,2,3", 422), ("1,x", 422), ("1,99", 404)])
def test_two_jobs_that_are_there_are_asked_for(client: TestClient, ran: Ran, jobs: str, status: int) -> None:
    ran({}, ENVIRONMENT)
    assert client.get("/api/v1/diff", params={"jobs": jobs}).status_code == status


def test_the_command_tells_it_to_people_and_exits_like_diff(live: LiveApi) -> None:
    ran = partial(have_run, live.store, live.settings)
    first, second = ran({}, ENVIRONMENT), ran({"learning_rate": 1e-4}, ENVIRONMENT, eval_loss=0.9)
    third = ran({"name": "again"}, ENVIRONMENT)
    flags = ["--server", live.url, "--token", live.token]
    told = CliRunner().invoke(overnight, ["diff", first, f"#{second}", *flags])
    assert told.exit_code == 1, told.output
    assert (
        "  learning_rate: 0.0002 → 0.0001\n" in told.stdout
        and "  eval_loss: 1 → 0.9 (0.1 lower, better)\n" in told.stdout
    )
    told = CliRunner().invoke(overnight, ["diff", first, third, *flags])
    assert (told.exit_code, told.stdout.splitlines()[-1]) == (0, "Nothing differs.")
    told = CliRunner().invoke(overnight, ["diff", first, third, "--json", *flags])
    assert json.loads(told.stdout)["same"]
    assert CliRunner().invoke(overnight, ["diff", first, "999", *flags]).exit_code == 5
