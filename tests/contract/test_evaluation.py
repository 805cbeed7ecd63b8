"""An evaluation from outside: what a rig refuses, what a page shows of its result, and a study in one request."""

import hashlib
import importlib.util
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from live_api import NOW
from starlette.testclient import TestClient

from api import evaluation_panel
from api.app import create_app
from daemon.admission import admit
from daemon.rig import cpu_slots
from daemon.settings import Settings
from daemon.store import Store
from jobs.evaluation import summary
from jobs.model import End, Job, Outcome
from jobs.rundir import RunDir, run_dir, write_json
from jobs.spec import InvalidSpec, parse

EXAMPLES = Path(__file__).parents[2] / "deploy/examples"
XSS = "</code><img src=x onerror=alert(1)>{{ 7 * 7 }}"


@pytest.fixture
def owner(settings: Settings, store: Store) -> Iterator[TestClient]:
    store.describe_rig("rig", {"slots": [slot.to_json() for slot in cpu_slots(2)]})
    store.beat("rig", {"at": NOW})
    app = create_app(settings, store, now=lambda: NOW)
    headers = {"Authorization": f"Bearer {settings.token_file.read_text().strip()}"}
    with TestClient(app, base_url="http://localhost", headers=headers) as client:
        yield client


def measured(index: int, loss: float, exact: bool, **more: Any) -> dict[str, Any]:
    return {"index": index, "id": f"q{index}", "loss": loss, "tokens": 4, "correct": 1, "all_loss": loss, "all_tokens": 9, "exact": exact, "includes": exact, "answer": "a", "expected": "b", **more}  # fmt: skip


def evaluated(store: Store, settings: Settings, rows: list[dict[str, Any]], *, tokens: str = "t", **fields: Any) -> Job:
    """An evaluation that ended with these rows."""
    [job], _ = store.submit([parse({"kind": "evaluate", "model": "org/m", "data": "/d", **fields})], now=NOW - 600)
    offered = store.offer(job.id, rig="rig", slots=("cpu:0",), epoch=store.new_epoch("rig"), now=NOW - 500)
    claimed = store.claim(job.id, fence=offered.fence, owner="w", now=NOW - 480, lease_s=60)
    folder = run_dir(settings.runs, job.id)
    folder.create()
    folder.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = summary(rows)
    metrics["measured_on"] |= {"definition": 1, "tokens_sha256": tokens, "data_sha256": "d", "max_new_tokens": 8}
    write_json(folder.results, {"metrics": metrics, "worst": rows[:1]})
    return store.finish(job.id, fence=claimed.fence, outcome=Outcome(end=End.SUCCEEDED, metrics=metrics), now=NOW - 60)


def test_a_result_stands_against_the_model_before_row_by_row(
    owner: TestClient, store: Store, settings: Settings
) -> None:
    evaluated(store, settings, [measured(at, 1.0 + at, False) for at in range(6)])
    tuned = evaluated(store, settings, [measured(at, 0.5 + at, at > 1, answer=XSS, id=XSS) for at in range(6)], adapter="/a")  # fmt: skip
    html = owner.get(f"/jobs/{tuned.id}").text
    assert "against" in html and "/jobs/1" in html and "row by row" in html
    assert "\u22120.5 ± 0" in html and "better" in html
    assert "<img src=x" not in html and "&lt;img src=x" in html and "{{ 7 * 7 }}" in html
    assert '<h2 id="metrics-title">Result</h2>' not in html  # the table has all of it


def test_a_result_on_other_rows_has_no_baseline(owner: TestClient, store: Store, settings: Settings) -> None:
    rows = [measured(at, 1.0 + at, False) for at in range(3)]
    evaluated(store, settings, rows, tokens="other", max_new_tokens=0)
    no_answers = [{name: value for name, value in row.items() if name not in ("exact", "includes")} for row in rows]
    tuned = evaluated(store, settings, no_answers, adapter="/a")
    html = owner.get(f"/jobs/{tuned.id}").text
    assert "Evaluation" in html and "difference" not in html


def test_without_the_rows_a_difference_has_the_error_of_two_results(store: Store, settings: Settings) -> None:
    base = evaluated(store, settings, [measured(at, 1.0 + at, False) for at in range(6)])
    tuned = evaluated(store, settings, [measured(at, 0.5 + at, True) for at in range(6)], adapter="/a")
    assert evaluation_panel.baseline_of(tuned, [base, tuned]) == base
    made = evaluation_panel.panel(tuned, base, [], [], [])
    assert made is not None and not made.paired
    [loss] = [line for line in made.lines if line.name == "eval loss"]
    assert (loss.difference, loss.judgement) == ("\u22120.5 ± 1.1", "")


@pytest.mark.parametrize("content", [b"", b"[1]\n", b'{"index": 0}\n', b"\xff\xfe", b'{"index": "x"' * 9])
def test_files_of_any_content_do_no_harm(tmp_path: Path, content: bytes) -> None:
    folder = RunDir(tmp_path)
    folder.create()
    folder.rows.write_bytes(content)
    folder.results.write_bytes(content)
    assert evaluation_panel.rows_of(folder) == [] and evaluation_panel.worst_of(folder) == []


@pytest.mark.parametrize(
    "hostile", [{"loss": 1e308, "tokens": 1e9}, {"exact": "yes"}, {"includes": 10**400}, {"loss": -1}]
)
def test_rows_of_any_numbers_do_no_harm(store: Store, settings: Settings, hostile: dict[str, Any]) -> None:
    base = evaluated(store, settings, [measured(at, 1.0 + at, False) for at in range(6)])
    tuned = evaluated(store, settings, [measured(at, 0.5 + at, True) for at in range(6)], adapter="/a")
    folder = run_dir(settings.runs, tuned.id)
    folder.rows.write_text("".join(json.dumps(measured(at, 1.0, True) | hostile) + "\n" for at in range(6)))
    before = evaluation_panel.rows_of(run_dir(settings.runs, base.id))
    made = evaluation_panel.panel(tuned, base, evaluation_panel.rows_of(folder), before, [])
    assert made is not None and not made.paired


def test_the_worst_rows_are_shown_as_text_and_not_too_much_of_it(store: Store, settings: Settings) -> None:
    job = evaluated(store, settings, [measured(0, 1.0, False)])
    made = evaluation_panel.panel(
        job, None, [], [], [{"id": [1], "answer": "\u202eabc\x1b[31m", "expected": "x" * 10**6}]
    )
    assert made is not None
    [worst] = made.worst
    assert (worst.id, worst.answer) == ("[1]", "abc") and len(worst.expected) < 500


# -- what a rig refuses -------------------------------------------------------------------------------------------------


def refusals(settings: Settings, known: Mapping[str, Job] | None = None, **document: Any) -> dict[str, str]:
    (settings.models / "tiny").mkdir(parents=True, exist_ok=True)
    (settings.models / "tiny/config.json").write_text("{}")
    (settings.models / "tiny/model.safetensors").touch()
    spec = parse({"kind": "evaluate", "model": "tiny", **document})
    try:
        admit(spec, settings, slots=1, known_jobs=lambda ids: {name: job for name, job in (known or {}).items() if name in ids})  # fmt: skip
    except InvalidSpec as error:
        return {each.field: each.message for each in error.errors}
    return {}


def test_tasks_are_refused_where_lm_eval_is_not_installed_with_what_to_do(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusals(settings, tasks=["arc_easy"])["tasks"].endswith("pip install 'overnight[eval]'")


def test_a_folder_of_tasks_must_be_allowed(settings: Settings, tmp_path: Path) -> None:
    assert "outside the folders" in refusals(settings, tasks=["mine"], task_path=str(tmp_path))["task_path"]
    allowed = settings.model_copy(update={"allowed_paths": (tmp_path.resolve(),)})
    assert "task_path" not in refusals(allowed, tasks=["mine"], task_path=str(tmp_path))


def test_answers_of_a_generation_are_no_rows_to_measure_on(settings: Settings) -> None:
    asked = Job(id="4", kind="generate", name="", spec={"model": "tiny"}, created_at=0.0, rank=0.0)
    assert "an evaluation reads" in refusals(settings, {"4": asked}, data="job:4")["data"]


# -- a study in one request ---------------------------------------------------------------------------------------------


def test_a_study_is_stored_whole_with_each_evaluation_waiting_for_its_own_fine_tune(
    owner: TestClient, store: Store, settings: Settings
) -> None:
    body = tomllib.loads((EXAMPLES / "study.toml").read_text())
    model = settings.models / body["jobs"][0]["model"]
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").touch()
    for name in {job["data"] for job in body["jobs"]}:
        raw = (EXAMPLES / name).read_bytes()
        digest = hashlib.sha256(raw).hexdigest()
        settings.inputs.mkdir(parents=True, exist_ok=True)
        (settings.inputs / digest).write_bytes(raw)
        for job in body["jobs"]:
            job["data"] = f"sha256:{digest}" if job["data"] == name else job["data"]
    answer = owner.post("/api/v1/jobs/batch", json=body)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["sweep"], len(made["jobs"])) == ("1", 13)
    jobs = [store.get(str(number)) for number in range(1, 14)]
    assert [job.kind for job in jobs] == ["evaluate", *["finetune", "evaluate"] * 6]
    assert [job.spec["adapter"] for job in jobs[2::2]] == [f"job:{number}" for number in range(2, 13, 2)]
    assert all(job.after == (f"{int(job.id) - 1}",) for job in jobs[2::2])
    sweep = owner.get("/api/v1/sweeps/1").json()
    assert sweep["axes"] == ["train.learning_rate", "train.lora.r"]
    assert sorted(row["stages"].get("train", "") for row in sweep["rows"]) == ["", "10", "12", "2", "4", "6", "8"]
    assert owner.get("/sweeps/1").status_code == 200 and owner.get("/jobs/3").status_code == 200
    wrong = {**body, "sweep": {"learning_rate": [1e-3]}}
    [error] = owner.post("/api/v1/jobs/batch", json=wrong).json()["errors"]
    assert "train.learning_rate" in error["message"] or "before.learning_rate" in error["message"]
