"""The page of all jobs: what it finds, in which order, however many there are; and what it does with many at once."""

import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from live_api import NOW
from starlette.testclient import TestClient

from api.app import create_app
from api.bulk import VERBS
from api.filters import moment_of
from daemon.rig import cpu_slots
from daemon.settings import Settings
from daemon.store import Store, Wanted
from jobs.model import Cause, End, Job, Outcome, State
from jobs.spec import parse
from jobs.sweep import SweepFacts

OURS = {"Origin": "http://localhost", "Accept": "text/html"}
XSS = "\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}"


@pytest.fixture
def browser(settings: Settings, store: Store) -> Iterator[TestClient]:
    """The owner's browser without script, at a fixed moment; it stays where it is sent."""
    store.describe_rig("rig", {"slots": [slot.to_json() for slot in cpu_slots(2)]})
    store.beat("rig", {"at": NOW})
    app = create_app(settings, store, now=lambda: NOW)
    headers = {"Authorization": f"Bearer {settings.token_file.read_text().strip()}", **OURS}
    with TestClient(app, base_url="http://localhost", headers=headers, follow_redirects=False) as client:
        yield client


@pytest.fixture
def settings(home: Path) -> Settings:
    """A rig that takes documents which name its data."""
    data = home.resolve() / "data"
    data.mkdir()
    (data / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    return Settings(home=home, rig="rig", port=0, slots="cpu:2", timezone="UTC", allowed_paths=(data,))


def put(store: Store, **fields: Any) -> Job:
    [job], _ = store.submit([parse({"kind": "command", "argv": ["true"], "window": "any", **fields})], now=NOW - 600)
    return job


def finetune(store: Store, **fields: Any) -> Job:
    [job], _ = store.submit([parse({"kind": "finetune", "model": "m", "data": "d", "window": "any", **fields})], now=NOW - 600)  # fmt: skip
    return job


def begin(store: Store, job: Job) -> Job:
    offered = store.offer(job.id, rig="rig", slots=(f"cpu:{job.id}",), epoch=store.new_epoch("rig"), now=NOW - 500)
    return store.claim(job.id, fence=offered.fence, owner="w", now=NOW - 480, lease_s=60)


def end(store: Store, job: Job, at: float = NOW, **outcome: Any) -> Job:
    job = begin(store, job)
    return store.finish(job.id, fence=job.fence, outcome=Outcome(**{"end": End.SUCCEEDED, **outcome}), now=at)


def fail(
    store: Store, job: Job, cause: Cause = Cause.BAD_INPUT, at: float = NOW, message: str = "It cannot be."
) -> Job:
    return end(store, job, at, end=End.FAILED, cause=cause, message=message)


def ids(html: str) -> list[str]:
    """The jobs of the list, from the top."""
    return re.findall(r'name="id" value="(\d+)"', html)


def of_form(html: str) -> dict[str, str]:
    """The hidden fields of the only form that asks."""
    return {name: unescape(value) for name, value in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', html)}  # fmt: skip


# -- what it finds ------------------------------------------------------------------------------------------------------------


def test_running_comes_first_then_failed_then_waiting_then_done(browser: TestClient, store: Store) -> None:
    jobs = [put(store, name=f"number {n}") for n in range(6)]
    end(store, jobs[0], NOW - 50)
    fail(store, jobs[1])
    begin(store, jobs[2])
    end(store, jobs[3], NOW - 20)
    html = browser.get("/jobs").text
    assert ids(html) == ["3", "2", "5", "6", "4", "1"], (
        "of what ended, the latest end first; of what waits, the next first"
    )
    titles = re.findall(r'<h2 id="part-\w+">(\w+)', html)
    assert titles == ["Running", "Failed", "Waiting", "Done"]


#: What each filter finds among the jobs of the test.
FOUND = (
    ("state=failed", {"2"}),
    ("state=failed&state=queued", {"2", "4", "5", "6", "7"}),
    ("kind=finetune", {"5"}),
    ("tag=a", {"1", "2"}),
    ("tag=a&state=succeeded", {"1"}),
    ("sweep=6", {"6", "7"}),
    ("since=1h", {"1", "2"}),
    ("since=1h&state=queued", set()),
    ("since=2026-11-01&tag=a", {"1", "2"}),
    ("cause=bad_input", {"2"}),
    ("cause=nan", set()),
    ("cause=bad_input&cause=nan&since=1h", {"2"}),
    ("sweep=none&state=succeeded", {"1", "3"}),
    ("until=1h", {"3"}),
    ("since=2h&until=1h&state=succeeded", {"3"}),
    ("until=2h", set()),
    ("q=SPECIAL", {"4"}),
    ("q=3", {"3"}),
    ("q=nothing", set()),
    ("state=failed&tag=a&kind=command&q=one&since=24h&cause=bad_input", {"2"}),
    ("kind=none", set()),
)


def test_filters_hold_together(browser: TestClient, store: Store) -> None:
    end(store, put(store, tags=["a"]))
    fail(store, put(store, tags=["a"], name="one"))
    end(store, put(store), NOW - 4000)
    put(store, name="a special one")
    finetune(store)
    facts = SweepFacts(name="s", method="grid", axes=("a",), base={})
    store.submit([parse({"kind": "command", "argv": ["x"]})] * 2, now=NOW, sweep=facts, points=[{"a": 1}, {"a": 2}])
    for query, found in FOUND:
        assert set(ids(browser.get(f"/jobs?{query}").text)) == found, query
        answer = browser.get(f"/api/v1/jobs?{query}")
        assert {job["id"] for job in answer.json()["jobs"]} == found, f"the API reads {query} as the page does"


@pytest.mark.parametrize("query", ["since=yesterday", "until=22 o'clock", "state=done", "cause=zeal", "&".join(["tag=a"] * 60)])  # fmt: skip
def test_the_api_refuses_a_filter_that_is_not_understood(browser: TestClient, query: str) -> None:
    answer = browser.get(f"/api/v1/jobs?{query}")
    assert answer.status_code == 422 and answer.json()["type"] == "urn:overnight:invalid"
    assert browser.get(f"/jobs?{query}").status_code == 200


def test_a_filter_that_is_not_understood_is_told_and_the_rest_counts(browser: TestClient, store: Store) -> None:
    fail(store, put(store))
    put(store)
    answer = browser.get("/jobs?state=failed&state=<b>&since=yesterday&cause=zeal")
    assert answer.status_code == 200 and ids(answer.text) == ["1"]
    text = unescape(answer.text)
    assert "There is no state “<b>”." in text and "“yesterday” is no time" in text and "<b>”" not in answer.text


@pytest.mark.parametrize("cursor", ["nonsense", "failed.x", "queued.-1", "done.1e999-3", "running.9999", "done.-", "failed.1-" + "9" * 30])  # fmt: skip
def test_a_cursor_that_is_none_is_no_error(browser: TestClient, store: Store, cursor: str) -> None:
    end(store, put(store))
    assert browser.get("/jobs", params={"cursor": cursor}).status_code in (200, 422)


@pytest.mark.parametrize("query", ["", "state=succeeded", "tag=many", "kind=command&since=24h", "q=number"])
def test_leafing_shows_each_job_once(browser: TestClient, store: Store, query: str) -> None:
    for n in range(40):
        job = put(store, name=f"number {n}", tags=["many"])
        (end if n % 3 else fail)(store, job, at=NOW - n // 10) if n % 4 else None  # ten in the same instant
    wanted = {job.id for job in store.page(limit=100).jobs}
    if "state" in query:
        wanted = {i for i in wanted if store.get(i).state is State.SUCCEEDED}
    if "since" in query:
        wanted = {i for i in wanted if store.get(i).state.final}
    seen: list[str] = []
    cursor = ""
    for _ in range(60):
        page = browser.get(f"/jobs?{query}&cursor={quote(cursor)}").text
        seen += ids(page)
        more = re.search(r'href="([^"]*)">Show more', page)
        if not more:
            break
        cursor = unescape(more[1]).partition("cursor=")[2].partition("&")[0]
    assert len(seen) == len(set(seen)) and set(seen) == wanted


def test_a_search_goes_on_where_its_bound_stopped_it(store: Store) -> None:
    for n in range(30):
        end(store, put(store, name="wanted" if n == 0 else "other"), NOW - 30 + n)
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = store.search(Wanted(text="e"), limit=7, cursor=cursor)
        seen += [job.id for job in page.jobs]
        cursor = page.next
        if cursor is None:
            break
    assert seen == [str(n) for n in range(30, 0, -1)]


def test_moments_are_read_as_people_write_them() -> None:
    from zoneinfo import ZoneInfo

    berlin = ZoneInfo("Europe/Berlin")
    assert moment_of("24h", NOW, berlin) == NOW - 86_400
    assert moment_of("7d", NOW, berlin) == NOW - 7 * 86_400
    assert moment_of("2026-11-18", NOW, berlin) == 1_794_956_400.0
    assert moment_of("2026-11-18T00:00+01:00", NOW, berlin) == 1_794_956_400.0
    assert moment_of("1794956400", NOW, berlin) == 1_794_956_400.0
    for text in ("", "0h", "h", "yesterday", "2026-13-01", "9" * 30):
        assert moment_of(text, NOW, berlin) is None


def test_the_page_needs_no_script_and_has_nothing_inline(browser: TestClient, store: Store) -> None:
    fail(store, put(store))
    for path in ("/jobs", "/fragments/joblist", "/compare", "/compare?ids=1"):
        html = browser.get(path).text
        assert not re.search(r"<script(?![^>]* src=\"/static/)|<style|\sstyle=|\son[a-z]+=|javascript:", html), path
    html = browser.get("/jobs").text
    assert '<form class="finder" id="finder" action="/jobs" method="get"' in html
    assert '<form class="bulk" id="bulk" method="post" action="/do/bulk"' in html
    assert 'data-live="joblist?state=failed"' in browser.get("/jobs?state=failed").text


# -- many at once -------------------------------------------------------------------------------------------------------------


def press(browser: TestClient, **fields: Any) -> str:
    """Send the bar's form, say yes; the page that asked."""
    asked = browser.post("/do/bulk", data=fields)
    assert asked.status_code == 200, asked.text
    form = of_form(asked.text)
    assert form["sure"] == "yes"
    answer = browser.post("/do/bulk", data=form)
    assert answer.status_code == 303, answer.text
    return asked.text


@pytest.mark.parametrize(
    ("verb", "check"),
    [
        ("hold", lambda store: store.get("1").held and store.get("2").held),
        ("cancel", lambda store: store.get("2").state is State.CANCELLED),
        ("first", lambda store: min(store.unfinished().values(), key=lambda job: job.rank).id == "1"),
        ("last", lambda store: max(store.unfinished().values(), key=lambda job: job.rank).id == "2"),
        ("priority-high", lambda store: store.get("1").priority == "high" and store.get("3").priority == "normal"),
    ],
)
def test_what_waits_is_changed_together_after_one_question(
    browser: TestClient, store: Store, verb: str, check: Callable[[Store], bool]
) -> None:
    for _ in range(3):
        put(store)
    asked = press(browser, verb=verb, id=["1", "2"])
    assert "2 jobs" in asked and check(store)


def test_held_jobs_are_released_running_ones_saved_and_ended_ones_deleted(browser: TestClient, store: Store) -> None:
    held, running, done = put(store), put(store), put(store)
    press(browser, verb="hold", id=[held.id])
    press(browser, verb="release", id=[held.id])
    assert not store.get(held.id).held
    begin(store, running)
    press(browser, verb="preempt", id=[running.id])
    wish = store.get(running.id).wish
    assert wish is not None and wish.kind == "preempt"
    end(store, done)
    press(browser, verb="delete", id=[done.id])
    assert done.id not in store.get_many([done.id])


def test_s45_nothing_happens_before_the_question_is_answered_and_the_question_counts(
    browser: TestClient, store: Store
) -> None:
    fail(store, put(store, name="broken"))
    put(store, name="waits")
    before = store.last_event_id()
    for verb in VERBS:
        asked = browser.post("/do/bulk", data={"verb": verb, "id": ["1", "2"]})
        assert asked.status_code == 200 and "http-equiv" not in asked.text, verb
    assert store.last_event_id() == before
    asked = browser.post("/do/bulk", data={"verb": "retry", "id": ["1", "2"]}).text
    assert "Retry 1 job?" in asked and "2 jobs chosen; 1 of them is in a state that does not allow it" in asked
    assert "broken" in asked and "waits" not in asked and of_form(asked)["ids"] == "1"
    assert browser.get("/do/bulk").status_code == 405
    assert (
        browser.post("/do/bulk", data={"verb": "retry", "id": "1"}, headers={"Origin": "http://evil"}).status_code
        == 403
    )


def test_what_the_question_counted_is_what_is_done(browser: TestClient, store: Store) -> None:
    for _ in range(3):
        fail(store, put(store))
    form = of_form(browser.post("/do/bulk", data={"verb": "retry", "all": "yes", "query": "state=failed"}).text)
    fail(store, put(store))  # it came after the question
    assert browser.post("/do/bulk", data=form).status_code == 303
    assert [store.get(str(n)).state for n in (1, 2, 3, 4)] == [State.QUEUED] * 3 + [State.FAILED]


def test_a_group_of_failures_is_offered_together_and_retried_with_changes(
    browser: TestClient, store: Store, settings: Settings
) -> None:
    [folder] = settings.allowed_paths
    for n in range(3):
        fail(
            store,
            finetune(store, name=f"big {n}", model="org/model", data=f"{folder}/rows.jsonl"),
            Cause.OOM_GPU,
            message="The GPU's memory ran out.",
        )
    fail(store, put(store), Cause.NAN)
    html = browser.get("/jobs").text
    assert "Failures by cause" in html and "Retry all 3" in html and "The GPU&#39;s memory ran out." in html
    group = next(of_form(f) for f in re.findall(r"<form.*?</form>", html, re.S) if "cause=oom_gpu" in f)
    asked = browser.post("/do/bulk", data=group).text
    assert "Retry 3 jobs?" in asked and "Half the micro-batch, with the same effective batch" in asked
    answer = browser.post(
        "/do/bulk", data={**of_form(asked), "remedy": "yes", "changes": "max_length = 512\nlora.r = 8"}
    )
    assert answer.status_code == 303, answer.text
    for n in ("1", "2", "3"):
        job = store.get(n)
        assert job.state is State.QUEUED
        changed = {n: job.effective_spec[n] for n in ("per_device_train_batch_size", "gradient_accumulation_steps", "max_length")}  # fmt: skip
        assert changed == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "max_length": 512}
        assert job.spec["lora"]["r"] == 8
    assert store.get("4").state is State.FAILED


@pytest.mark.parametrize("typed", ["learning_rate = ", 'learning_rate = "fast"', "nonsense", "x = 1", "[" * 3000])
def test_changes_that_cannot_be_are_told_where_they_were_typed_and_change_nothing(
    browser: TestClient, store: Store, typed: str
) -> None:
    fail(store, finetune(store))
    form = of_form(browser.post("/do/bulk", data={"verb": "retry", "id": "1"}).text)
    answer = browser.post("/do/bulk", data={**form, "changes": typed})
    assert answer.status_code == 422 and 'role="alert"' in answer.text and typed[:9] in unescape(answer.text)
    assert store.get("1").state is State.FAILED


def test_who_is_refused_is_told_and_the_others_are_done(browser: TestClient, store: Store) -> None:
    parent, child = put(store), put(store, after=["1"])
    store.finish(parent.id, fence=begin(store, parent).fence, outcome=Outcome(end=End.FAILED, cause=Cause.BAD_INPUT), now=NOW)  # fmt: skip
    store.abandon(child.id, parent.id, "its parent failed", now=NOW)
    fail(store, put(store))
    form = of_form(browser.post("/do/bulk", data={"verb": "retry", "id": ["2", "3"]}).text)
    answer = browser.post("/do/bulk", data=form)
    assert answer.status_code == 200 and "1 job queued again, 1 left as it was" in answer.text
    assert "waits for job 1, which is failed" in answer.text and store.get("3").state is State.QUEUED


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"verb": "explode", "id": "1"}, "Choose what is to be done"), ({"verb": "retry"}, "No job was chosen"), ({"verb": "retry", "id": "<b>"}, "No job was chosen"), ({}, "Choose")],
)  # fmt: skip
def test_a_form_that_says_nothing_is_answered_in_words(browser: TestClient, fields: dict[str, str], words: str) -> None:
    answer = browser.post("/do/bulk", data={**fields, "next": "//evil.example"})
    assert answer.status_code == 422 and words in answer.text and 'href="/jobs"' in answer.text
    assert "evil" not in answer.text


def test_jobs_of_no_fitting_state_lead_to_no_question(browser: TestClient, store: Store) -> None:
    put(store)
    answer = browser.post("/do/bulk", data={"verb": "retry", "id": "1"}).text
    assert "There is nothing to retry" in answer and "sure" not in answer


def test_chosen_jobs_are_compared_with_the_baseline_first(browser: TestClient, store: Store) -> None:
    put(store), put(store), put(store, tags=["baseline"])
    answer = browser.post("/do/bulk", data={"verb": "compare", "id": ["2", "1"]})
    assert (answer.status_code, answer.headers["location"]) == (303, "/compare?ids=1,2"), "the one that was first"
    answer = browser.post("/do/bulk", data={"verb": "compare", "id": ["2", "1", "3"]})
    assert answer.headers["location"] == "/compare?ids=3,1,2"


# -- hostile text -------------------------------------------------------------------------------------------------------------


def test_s16_names_messages_and_filters_never_become_html(browser: TestClient, store: Store) -> None:
    fail(store, put(store, name=XSS), message=XSS)
    fail(store, put(store, name=XSS), message=XSS)
    put(store, name=XSS)
    paths = [
        f"/jobs?{name}={quote(XSS)}" for name in ("q", "tag", "sweep", "kind", "since", "state", "cause", "cursor")
    ]
    pages = [browser.get(path) for path in ("/jobs", "/fragments/joblist", *paths)]
    pages.append(browser.post("/do/bulk", data={"verb": "retry", "id": ["1", "2"]}))
    pages.append(browser.post("/do/bulk", data={"verb": "retry", "sure": "yes", "ids": "1", "changes": XSS}))
    pages.append(browser.post("/do/bulk", data={"verb": XSS, "id": ["1"], "next": XSS}))
    for answer in pages:
        assert (
            answer.status_code in (200, 422)
            and "<img" not in answer.text
            and "49" not in answer.text.replace("449", "")
        )
    assert unescape(pages[0].text).count(XSS) >= 6
