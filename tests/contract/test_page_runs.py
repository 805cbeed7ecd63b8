"""A job's, a sweep's and a comparison's page as documents, the comparison as data and on the command line."""

import json
import re
import sys
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import pytest
from live_api import NOW, LiveApi
from starlette.testclient import TestClient

from api.app import create_app
from api.cli import overnight
from api.log_search import MOST_SHOWN, search
from daemon.rig import cpu_slots
from daemon.settings import Settings
from daemon.store import Store
from jobs.model import Cause, End, Job, Outcome, State
from jobs.rundir import RunDir, append_json_line, run_dir
from jobs.spec import parse
from jobs.sweep import Goal, SweepFacts

XSS = "\"'></text></svg><img src=x onerror=alert(1)>{{ 7 * 7 }}"


class Elements(HTMLParser):
    """Every element of a document with the names of its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


@pytest.fixture
def reader(settings: Settings, store: Store) -> Iterator[TestClient]:
    """The owner, without script, at a fixed moment."""
    store.describe_rig("rig", {"slots": [slot.to_json() for slot in cpu_slots(2)]})
    store.beat("rig", {"at": NOW})
    app = create_app(settings, store, now=lambda: NOW)
    headers = {"Authorization": f"Bearer {settings.token_file.read_text().strip()}"}
    with TestClient(app, base_url="http://localhost", headers=headers, follow_redirects=False) as client:
        yield client


def run(store: Store, settings: Settings, document: dict[str, Any], *, loss: float = 1.0, told: str = "loss", **outcome: Any) -> Job:  # fmt: skip
    """A job that ran to its end, with what it left."""
    [job], _ = store.submit([parse({"model": "org/model", "data": "d", "kind": "finetune", **document})], now=NOW - 600)
    return finish(store, settings, job, loss=loss, told=told, **outcome)


def finish(store: Store, settings: Settings, job: Job, *, loss: float = 1.0, told: str = "loss", **outcome: Any) -> Job:
    offered = store.offer(job.id, rig="rig", slots=(f"cpu:{job.id}",), epoch=store.new_epoch("rig"), now=NOW - 500)
    claimed = store.claim(job.id, fence=offered.fence, owner="w", now=NOW - 480, lease_s=60)
    folder = run_dir(settings.runs, job.id)
    folder.create()
    folder.log.write_text("first line\n\x1b[31mA WARNING in red\x1b[0m\nlast line\n")
    for step in range(1, 11):
        append_json_line(folder.metrics, {"step": step, told: loss + 1 / step, "time": NOW - 480 + step})
        append_json_line(folder.metrics, {"step": step, "eval_loss": loss + 2 / step})
    told_of = {
        "end": End.SUCCEEDED,
        "metrics": {"eval_loss": loss, "tokens_per_s": 100.0},
        "usage": {"energy_j": 3.6e6},
    }
    return store.finish(claimed.id, fence=claimed.fence, outcome=Outcome(**{**told_of, **outcome}), now=NOW - 60)


@pytest.fixture
def three(store: Store, settings: Settings) -> list[str]:
    """Three runs that differ in learning rate and rank."""
    documents = ({"name": "one"}, {"name": "two", "learning_rate": 1e-4}, {"name": "three", "lora": {"r": 64}})
    losses = (1.34, 1.22, 1.5)
    return [run(store, settings, d, loss=loss).id for d, loss in zip(documents, losses, strict=True)]


# -- several runs -------------------------------------------------------------------------------------------------------------


def test_runs_stand_beside_each_other_with_deltas_in_words(reader: TestClient, three: list[str]) -> None:
    html = reader.get("/compare?ids=1,2,3").text
    text = unescape(re.sub(r"<[^>]+>", " ", html))
    text = re.sub(r"\s+", " ", text)
    assert "Job 2 is best: eval loss 1.22, 0.12 lower" in text
    assert "↓ 0.12 lower, better" in text and "↑ 0.16 higher, worse" in text
    assert "learning_rate 2e-4 1e-4 2e-4" in text and "lora.r 16 16 64" in text
    assert "max_length" not in text and "max_length" in reader.get("/compare?ids=1,2,3&all=1").text
    lines = set(re.findall(r'<path class="line (k\d)"', html))
    assert lines == {"k0", "k1", "k2"} and html.count('role="img"') >= 2
    assert 'aria-label="loss: #1' in html, "each chart says in words what it shows"


def test_the_baseline_is_pinned_first_and_can_be_another(reader: TestClient, three: list[str]) -> None:
    html = reader.get("/compare?ids=1,2,3&baseline=3").text
    assert re.findall(r'<span class="id">#(\d)</span>', html)[:3] == ["3", "1", "2"]
    assert 'href="/compare?ids=1,2,3"' in html


def test_the_same_is_data(reader: TestClient, three: list[str]) -> None:
    made = reader.get("/api/v1/compare", params={"ids": "2,3", "baseline": "1"}).json()
    assert made["baseline"] == "1" and [r["id"] for r in made["runs"]] == ["1", "2", "3"]
    [metric] = [m for m in made["metrics"] if m["name"] == "eval_loss"]
    assert [v["words"] for v in metric["values"]] == ["", "0.12 lower, better", "0.16 higher, worse"]
    assert {f["name"] for f in made["fields"] if f["differs"]} == {"learning_rate", "lora.r"}
    assert len(made["curves"]["loss"]) == 3 and made["curves"]["loss"][0][0] == [1.0, 2.34]
    assert [c["name"] for c in made["costs"]] == ["run time", "energy"]


@pytest.mark.parametrize(
    ("ids", "status", "words"),
    [("1", 422, "2 to 5 runs can be compared; these are 1."), ("1,1", 422, "these are 1."), ("1,2,3,4,5,6", 422, "these are 6."), ("1,<b>", 422, "by their numbers"), ("1,99", 404, "There is no job 99."), ("1,2,0", 422, "by their numbers")],
)  # fmt: skip
def test_what_cannot_be_compared_is_told_with_a_way_on(reader: TestClient, three: list[str], ids: str, status: int, words: str) -> None:  # fmt: skip
    page, data = reader.get("/compare", params={"ids": ids}), reader.get("/api/v1/compare", params={"ids": ids})
    assert (page.status_code, data.status_code) == (status, status)
    assert words in page.text and words in data.json()["detail"] and 'name="ids"' in page.text
    assert reader.get("/compare").status_code == 200


def test_a_sweeps_goal_says_which_way_is_better(reader: TestClient, store: Store, settings: Settings) -> None:
    facts = SweepFacts(name="s", method="grid", axes=("seed",), base={}, goal=Goal(maximize="zeal"))
    specs = [parse({"kind": "command", "argv": ["x"], "name": str(n)}) for n in (1, 2)]
    jobs, _ = store.submit(specs, now=NOW, sweep=facts, points=[{"seed": 1}, {"seed": 2}])
    for job, zeal in zip(jobs, (1.0, 2.0), strict=True):
        finish(store, settings, job, metrics={"zeal": zeal})
    assert "1 higher, better" in reader.get(f"/compare?ids={jobs[0].id},{jobs[1].id}").text


def test_the_command_line_shows_the_same(
    live: LiveApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [run(live.store, live.settings, {"name": f"job {XSS}"}, loss=loss).id for loss in (1.34, 1.22)]
    monkeypatch.setenv("OVERNIGHT_URL", live.url)
    monkeypatch.setenv("OVERNIGHT_TOKEN", live.token)

    def said(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["overnight", *argv])
        with pytest.raises(SystemExit) as ended:
            overnight(list(argv))
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    code, out, _ = said("compare", *ids)
    assert code == 0 and "1.22 (↓ 0.12 lower, better)" in out and "max_length" not in out and "\x1b" not in out
    assert f"{live.url}/compare?ids={','.join(ids)}" in out
    assert "max_length" in said("compare", "--all", *ids)[1]
    assert json.loads(said("compare", "--json", "--baseline", ids[1], ids[0])[1])["baseline"] == ids[1]
    code, _, err = said("compare", ids[0])
    assert code == 2 and "2 to 5 runs" in err
    assert said("compare", ids[0], "999999")[0] == 5


# -- a job --------------------------------------------------------------------------------------------------------------------


def test_a_job_tells_what_was_changed_between_its_runs(reader: TestClient, store: Store, settings: Settings) -> None:
    [job], _ = store.submit([parse({"kind": "finetune", "model": "org/model", "data": "d"})], now=NOW)
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}
    finish(store, settings, job, end=End.FAILED, cause=Cause.OOM_GPU, metrics={}, next_fields=changes)
    assert store.get(job.id).state is State.QUEUED
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", reader.get(f"/jobs/{job.id}").text))
    assert "Changed for the next run: per_device_train_batch_size 4 → 2 gradient_accumulation_steps 4 → 8" in text
    assert store.get(job.id).attempts[0].changes == changes
    assert reader.get(f"/api/v1/jobs/{job.id}").json()["attempts"][0]["changes"] == changes


def test_a_log_is_searched_on_the_server(reader: TestClient, three: list[str]) -> None:
    html = reader.get("/jobs/1?q=warning").text
    assert "1 line with “warning”" in html and "<mark>WARNING</mark> in red" in html and "31m" not in html
    assert "last line" not in html.partition('id="found"')[2].partition("</section>")[0]
    assert "No line has it." in reader.get("/jobs/1?q=absent").text
    assert '<pre class="log"' in reader.get("/jobs/1?q=").text
    fragment = reader.get("/fragments/job/1?q=warning").text
    assert 'id="found"' not in fragment, "a refresh leaves the lines that were found alone"


def test_of_a_long_log_the_last_lines_that_match_are_shown_and_all_are_counted(settings: Settings) -> None:
    folder = run_dir(settings.runs, "1")
    folder.create()
    folder.log.write_bytes(b"".join(b"step %d \xff\n" % n for n in range(1000)) + b"a step without end")
    found = search(folder, " STEP ")
    assert (found.total, len(found.hits), found.hits[-1].number) == (1001, MOST_SHOWN, 1001)
    assert found.hits[0].pieces[:2] == ("", "step") and search(RunDir(folder.path / "no"), "x").total == 0


def test_s19_a_log_that_is_a_link_is_not_searched(settings: Settings) -> None:
    folder = run_dir(settings.runs, "1")
    folder.create()
    secret = settings.home / "secret"
    secret.write_text("canary\n")
    folder.log.symlink_to(secret)
    assert search(folder, "canary").total == 0


def test_a_job_leads_to_what_it_can_be_compared_with(reader: TestClient, three: list[str]) -> None:
    html = reader.get("/jobs/3").text
    assert 'href="/compare?ids=2,3"' in html and "same model and data; other learning_rate, lora.r" in html


# -- a sweep ------------------------------------------------------------------------------------------------------------------


def test_a_sweep_of_two_axes_and_seeds_is_a_table_with_means(reader: TestClient, store: Store, settings: Settings) -> None:  # fmt: skip
    points = [{"learning_rate": lr, "lora.r": r, "seed": s} for lr in (1e-4, 2e-4) for r in (8, 16) for s in (1, 2)]
    facts = SweepFacts(name="grid", method="grid", axes=("learning_rate", "lora.r", "seed"), base={"kind": "finetune"})
    specs = [parse({"kind": "finetune", "model": "org/model", "data": "d", "name": str(n)}) for n in range(8)]
    jobs, _ = store.submit(specs, now=NOW, sweep=facts, points=points)
    for at, job in enumerate(jobs[:7]):
        finish(store, settings, job, loss=1.0 + at / 10)
    html = reader.get(f"/sweeps/{jobs[0].id}").text
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    assert "1.05 ± 0.071 best" in text and "Over its seeds: best learning_rate 1e-4, lora.r 8 with 1.05" in text
    assert re.search(r'<th scope="row">8</th>\s*<td class="h6 leader">', html) and 'id="parallel"' in html
    assert 'href="/compare?ids=1,2"' in html and "1 of 2" in text
    assert 'href="/compare?ids=1,3,5,7"' in html, "the best job of each point"


# -- hostile text -------------------------------------------------------------------------------------------------------------


def pages_of(text: str, reader: TestClient, store: Store, settings: Settings) -> list[str]:
    """Every page about jobs whose every text is this one."""
    facts = SweepFacts(name=text, method="grid", axes=(text, "b"), base={text: text}, goal=Goal(minimize=text))
    points = [{text: value, "b": b} for value in (text, text + "x") for b in (1, 2)]
    specs = [parse({"kind": "command", "argv": [text, str(n)], "name": text, "env": {"A": text}}) for n in range(4)]
    jobs, _ = store.submit(specs, now=NOW, sweep=facts, points=points)
    for at, job in enumerate(jobs):
        finish(store, settings, job, told=text, loss=at, metrics={text: float(at)})
    folder = run_dir(settings.runs, jobs[0].id)
    folder.log.write_text(f"{text}\n")
    first, second = jobs[0].id, jobs[1].id
    both = f"/compare?ids={first},{second}"
    jobs_pages = [f"/jobs/{first}", f"/jobs/{first}?q={quote(text)}", f"/fragments/job/{first}"]
    paths = [*jobs_pages, f"/sweeps/{first}", both, f"{both}&all=1"]
    answers = [reader.get(path) for path in paths]
    assert {answer.status_code for answer in answers} == {200}, [a.status_code for a in answers]
    return [answer.text for answer in answers]


def test_s16_nothing_that_a_job_says_becomes_html(reader: TestClient, store: Store, settings: Settings) -> None:
    harmless, hostile = (pages_of(text, reader, store, settings) for text in ("harmless", XSS))
    for one, other in zip(harmless, hostile, strict=True):
        assert Elements(one).found == Elements(other).found
        assert XSS in unescape(other) and "<img" not in other
    ids = reader.get("/compare", params={"ids": XSS, "baseline": XSS[:20]})
    assert ids.status_code == 422 and "<img" not in ids.text


@pytest.mark.parametrize("path", ["/jobs/1", "/jobs/1?q=line", "/sweeps/1", "/compare?ids=1,2"])
def test_s15_pages_have_nothing_inline_and_name_no_other_site(
    reader: TestClient, store: Store, settings: Settings, path: str
) -> None:
    pages_of("harmless", reader, store, settings)
    html = reader.get(path).text
    assert not re.search(r"<script(?![^>]* src=\"/static/)|<style|\sstyle=|\son[a-z]+=|javascript:", html)
    assert not re.search(r"(?:src|href|action)=\"(?!/|#)", html)
    assert html.count("<h1") == 1 and 'id="main"' in html
    for svg in re.findall(r'<svg[^>]*class="plot"[^>]*>', html):
        assert 'role="img"' in svg and "aria-label=" in svg


def test_a_gpu_that_was_never_used_is_told_on_the_page_and_by_the_api(reader: TestClient, store: Store, settings: Settings) -> None:  # fmt: skip
    [job], _ = store.submit([parse({"kind": "command", "argv": ["x"]})], now=NOW - 9000)
    offered = store.offer(job.id, rig="rig", slots=("GPU-1",), epoch=store.new_epoch("rig"), now=NOW - 8000)
    store.claim(job.id, fence=offered.fence, owner="w", now=NOW - 7800, lease_s=60)
    idle = {"coverage": 1.0, "utilization_mean": 0.0, "utilization_p95": 0.0, "peak_own_vram_bytes": 0}
    store.finish(job.id, fence=offered.fence, outcome=Outcome(end=End.SUCCEEDED, usage=idle), now=NOW - 60)

    assert "It never used its GPU: in 2" in reader.get(f"/jobs/{job.id}").text
    [warning] = reader.get(f"/api/v1/jobs/{job.id}").json()["warnings"]
    assert warning.startswith("It never used its GPU")
