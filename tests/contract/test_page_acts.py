"""The page's buttons as plain forms: they work without script, ask before they destroy, and obey our own page only."""

import re
from collections.abc import Callable
from html import unescape
from urllib.parse import unquote

import pytest
from live_api import NOW
from starlette.testclient import TestClient

from daemon.store import Store
from jobs.model import Job, State

Submit = Callable[..., str]
Bring = Callable[[str, State], Job]
OURS = {"Origin": "http://localhost", "Accept": "text/html"}
SCRIPT = {"Origin": "http://localhost", "Accept": "application/json"}


@pytest.fixture
def browser(client: TestClient) -> TestClient:
    """The owner's browser, which stays where it is sent."""
    client.follow_redirects = False
    client.headers.update(OURS)
    return client


def press(browser: TestClient, path: str, **fields: str) -> str:
    """Send a button's form, say yes when asked; where it leads to."""
    answer = browser.post(f"/do{path}", data=fields)
    if answer.status_code == 200:
        action = re.search(r'<form [^>]*method="post" action="([^"]+)"', answer.text)
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', answer.text))
        assert action and unquote(action[1]) == f"/do{path}" and hidden["sure"] == "yes"
        answer = browser.post(unescape(action[1]), data={name: unescape(value) for name, value in hidden.items()})
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"])


def order(store: Store) -> list[str]:
    return [job.id for job in sorted(store.unfinished().values(), key=lambda job: job.rank)]


def test_every_button_of_a_job_works_without_script(
    browser: TestClient, store: Store, submit: Submit, brought: Bring
) -> None:
    for _ in range(3):
        submit()
    assert press(browser, "/jobs/2/hold") == "/jobs/2" and store.get("2").held
    assert press(browser, "/jobs/2/release", next="/#jobs") == "/#jobs" and not store.get("2").held
    press(browser, "/jobs/3/move", position="first")
    assert order(store) == ["3", "1", "2"]
    press(browser, "/jobs/3/move", position="after:1")
    assert order(store) == ["1", "3", "2"]
    press(browser, "/jobs/2/priority", priority="high")
    assert order(store) == ["2", "1", "3"]
    assert press(browser, "/jobs/1/cancel", next="/jobs?state=queued") == "/jobs?state=queued"
    assert store.get("1").state is State.CANCELLED
    press(browser, "/jobs/1/retry")
    assert store.get("1").state is State.QUEUED
    brought("1", State.RUNNING)
    press(browser, "/jobs/1/preempt")
    wish = store.get("1").wish
    assert wish is not None and wish.kind == "preempt"


def test_s45_what_cannot_be_taken_back_is_asked_first_and_is_never_a_link(
    browser: TestClient, store: Store, submit: Submit, brought: Bring
) -> None:
    submit()
    submit()
    brought("2", State.RUNNING)
    before = store.last_event_id()
    for path in (
        "/jobs/1/cancel",
        "/jobs/2/cancel",
        "/jobs/2/preempt",
        "/gpus/cpu:0/pause",
        "/gpus/cpu:0/free",
        "/rig/pause",
    ):
        asked = browser.post(f"/do{path}")
        assert (asked.status_code, "?</h1>" in asked.text) == (200, True), path
        assert browser.get(f"/do{path}").status_code == 405
        assert "http-equiv" not in asked.text, "a page that reloads itself would send the form again"
    assert store.last_event_id() == before
    asked = browser.post("/do/gpus/cpu:0/free", data={"next": "//evil.example"})
    assert "job 2 saves its work" in asked.text and 'href="/"' in asked.text and "evil" not in asked.text


def test_a_refusal_is_a_page_in_words_with_a_way_back(browser: TestClient, store: Store, submit: Submit) -> None:
    submit()
    submit()
    store.offer("1", rig="rig", slots=("cpu:0",), epoch=store.new_epoch("rig"), now=NOW)
    for path, fields, status, words in (
        ("/jobs/1/hold", {}, 409, "job 1 is about to start and can no longer be changed"),
        ("/jobs/1/retry", {"sure": "yes"}, 303, ""),
        ("/jobs/9/cancel", {}, 404, "There is no job 9."),
        ("/jobs/<b>/cancel", {}, 404, "There is no job &lt;b&gt;."),
        ("/jobs/1/move", {"position": "top"}, 422, "before:ID"),
        ("/jobs/1/move", {}, 422, "before:ID"),
        ("/jobs/2/priority", {"priority": "top"}, 422, "priority"),
        ("/gpus/GPU-9/pause", {"sure": "yes"}, 404, "No rig of this queue has such a slot"),
    ):
        answer = browser.post(f"/do{path}", data={"next": "/#jobs", **fields})
        assert answer.status_code == status, (path, answer.text)
        if status != 303:
            assert words in unescape(answer.text).replace("<b>", "&lt;b&gt;") and 'href="/#jobs">Back' in answer.text
            assert "<b>" not in answer.text
    for path in ("/jobs/1/explode", "/rig/explode", "/gpus/cpu:0/explode"):
        assert browser.post(f"/do{path}").status_code == 404


def test_the_script_gets_no_page_but_the_result_or_the_problem(
    browser: TestClient, store: Store, submit: Submit
) -> None:
    submit()
    assert browser.post("/do/jobs/1/hold", headers=SCRIPT).status_code == 204
    refused = browser.post("/do/jobs/1/move", data={"position": "before:1"}, headers=SCRIPT)
    assert (refused.status_code, refused.json()["detail"]) == (409, "job 1 cannot stand before itself.")
    assert browser.post("/do/jobs/1/cancel", data={"sure": "yes"}, headers=SCRIPT).status_code == 204
    assert store.get("1").state is State.CANCELLED


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://other.localhost"},
    ],
)
def test_s9_a_form_that_our_own_page_did_not_send_does_nothing(
    client: TestClient, store: Store, submit: Submit, headers: dict[str, str]
) -> None:
    submit()
    before = store.last_event_id()
    for path in ("/jobs/1/hold", "/jobs/1/cancel", "/gpus/cpu:0/pause", "/rig/pause"):
        answer = client.post(f"/do{path}", data={"sure": "yes"}, headers=headers)
        assert answer.status_code == 403, path
    assert store.last_event_id() == before


def test_s12_a_form_is_a_form(browser: TestClient, submit: Submit) -> None:
    submit()
    assert browser.post("/do/jobs/1/hold", json={"sure": "yes"}).status_code == 415
    assert browser.post("/do/jobs/1/hold", files={"a": b"b"}).status_code == 415
    long = browser.post("/do/jobs/1/hold", content="&".join(f"a{n}=1" for n in range(50)), headers={"Content-Type": "application/x-www-form-urlencoded"})  # fmt: skip
    assert long.status_code == 400


def test_whoever_is_no_longer_logged_in_is_led_to_the_login(browser: TestClient, submit: Submit) -> None:
    submit()
    answer = browser.post("/do/jobs/1/hold", headers={"Authorization": ""})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/")
    assert browser.post("/do/jobs/1/hold", headers={"Authorization": "", **SCRIPT}).status_code == 401


def test_slots_and_the_rig_are_paused_and_resumed(
    browser: TestClient, store: Store, submit: Submit, brought: Bring
) -> None:
    submit()
    submit()
    brought("2", State.RUNNING)
    press(browser, "/gpus/cpu:1/pause")
    press(browser, "/rig/pause")
    assert store.paused() == {"rig", "rig:cpu:1"}
    page = browser.get("/").text
    assert 'formaction="/do/gpus/cpu%3A1/resume"' in page and 'formaction="/do/rig/resume"' in page
    press(browser, "/gpus/cpu:1/resume")
    press(browser, "/rig/resume")
    assert store.paused() == frozenset()
    assert store.get("2").wish is None
    press(browser, "/gpus/cpu:0/free")
    wish = store.get("2").wish
    assert wish is not None and wish.kind == "preempt" and store.paused() == {"rig:cpu:0"}


def test_the_queue_stands_in_its_order_with_places_reasons_and_neighbours(
    browser: TestClient, store: Store, submit: Submit
) -> None:
    for priority in ("normal", "normal", "high", "normal"):
        submit(priority=priority, name=f"a {priority} one")
    press(browser, "/jobs/2/hold")
    store.offer("1", rig="rig", slots=("cpu:0",), epoch=store.new_epoch("rig"), now=NOW)
    for path in ("/", "/fragments/jobs"):
        html = browser.get(path).text
        rows = re.findall(r'<li class="row queued"[^>]*>.*?</li>', html, re.DOTALL)
        assert [re.findall(r'class="place"[^>]*>(\d+)\.', row)[0] for row in rows] == ["1", "2", "3", "4"]
        assert [re.findall(r'class="id">#(\d+)', row)[0] for row in rows] == ["1", "3", "2", "4"]
        assert all(re.search(r'class="why">\S', row) for row in rows)
        assert "held until it is released" in rows[2] and ">held</span>" in rows[2]
        offered, alone, held, last = (re.findall(r'value="([^"]+)"', row) for row in rows)
        assert not {"first", "last"} & set(offered)
        assert not [value for value in alone if ":" in value], "no neighbour of its priority"
        assert "after:4" in held and not [value for value in held if value.startswith("before:")]
        assert "before:2" in last and not [value for value in last if value.startswith("after:")]


def test_what_is_left_of_a_sweep_is_cancelled_after_a_question_with_its_count(
    browser: TestClient, store: Store
) -> None:
    body = {"base": {"kind": "command", "argv": ["true"]}, "sweep": {"max_runtime_s": [60, 90, 120]}}
    sweep = browser.post("/api/v1/jobs/batch", json=body).json()["sweep"]
    assert f'formaction="/do/sweeps/{sweep}/cancel"' in browser.get(f"/sweeps/{sweep}").text
    asked = browser.post(f"/do/sweeps/{sweep}/cancel")
    assert "3 jobs that wait or run will stop" in asked.text.replace("\u202f", " ")
    assert store.counts()["queued"] == 3
    assert press(browser, f"/sweeps/{sweep}/cancel") == f"/sweeps/{sweep}"
    assert store.counts()["cancelled"] == 3
    assert browser.post("/do/sweeps/99/cancel").status_code == 404
