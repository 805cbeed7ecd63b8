"""The rig's page in a browser: live, quiet while nobody looks, usable with a thumb, and honest when it is cut off."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from browser.conftest import Site
from browser.filled_rig import finetune
from until import until

from jobs.model import Cause, End, State

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

Visit = Callable[..., "Page"]
PATHS = ("/", "/jobs?state=failed", "/jobs?state=queued", "/jobs?q=lora")


@pytest.mark.parametrize("phone", [True, False], ids=["phone", "desktop"])
def test_no_page_scrolls_sideways(visit: Visit, site: Site, phone: bool) -> None:
    long = site.rig.submit(finetune("a_name_without_any_place_to_break_" * 3), time.time())
    page = visit("/", phone=phone)
    for path in (*PATHS, f"/jobs/{site.jobs['running'].id}", f"/jobs/{site.jobs['nan'].id}", f"/jobs/{long.id}", "/login", "/jobs/9999"):  # fmt: skip
        page.goto(f"{site.url}{path}")
        width, shown = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
        assert width <= shown, path


def test_a_new_job_and_its_fate_appear_by_themselves(visit: Visit, site: Site) -> None:
    page = visit("/")
    page.wait_for_function("() => streams.length && streams[0].readyState === 1")
    job = site.rig.submit({"kind": "command", "argv": ["true"], "name": "a late arrival"}, time.time())
    row = page.locator("#jobs .row", has_text="a late arrival")
    row.wait_for()
    assert "needs a GPU" in row.inner_text()
    site.rig.cancel(job, time.time())
    page.locator("#jobs .row.cancelled", has_text="a late arrival").wait_for()
    assert page.evaluate("() => performance.getEntriesByType('navigation').length") == 1


def test_progress_and_readings_move(visit: Visit, site: Site) -> None:
    page = visit("/")
    card = page.locator(f"[id='slot-{site.rig.slots[0].id}']")
    job = site.rig.progress(site.jobs["running"], 913, 2000, eta_s=60.0, loss=1.0707)
    page.locator("text=loss 1.071").wait_for()
    assert "step 913 of 2\u202f000" in card.inner_text()
    site.rig.busy = {**site.rig.busy, site.rig.slots[0].id: 0.31}
    page.locator(".big b", has_text="31").wait_for()
    site.rig.busy = {**site.rig.busy, site.rig.slots[0].id: 0.97}
    site.rig.progress(job, 742, 2000, eta_s=166 * 60.0, loss=1.1934)


def test_a_hidden_tab_follows_nothing_and_comes_back_without_a_gap(visit: Visit, site: Site) -> None:
    page = visit("/")
    page.wait_for_function("() => streams.length === 1 && streams[0].readyState === 1")
    page.evaluate("() => hide(true)")
    assert page.evaluate("() => streams[0].readyState") == 2
    job = site.rig.submit({"kind": "command", "argv": ["true"], "name": "while nobody looked"}, time.time())
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("() => hide(false)")
    page.locator("#jobs .row", has_text="while nobody looked").wait_for()
    assert page.evaluate("() => streams.length") == 2
    [again] = [url for url in asked if "/api/v1/events" in url]
    assert "?since=" in again
    site.rig.cancel(job, time.time())


def test_one_page_opens_one_stream_and_asks_at_most_once_a_second(visit: Visit, site: Site) -> None:
    page = visit("/")
    page.wait_for_function("() => streams[0]?.readyState === 1")
    jobs = [
        site.rig.submit({"kind": "command", "argv": ["true"], "name": f"one of {n}"}, time.time()) for n in range(40)
    ]
    try:
        for job in jobs:
            site.rig.cancel(job, time.time())
        page.locator("#jobs .row", has_text="one of 39").wait_for()
        asked = page.evaluate(
            "() => performance.getEntriesByType('resource').filter(e => e.name.endsWith('/fragments/jobs')).map(e => e.startTime)"
        )
        assert all(later - earlier >= 950 for earlier, later in pairwise(asked)), asked
        assert page.evaluate("() => streams.length") == 1
    finally:  # the night's own jobs must stay on the first page
        for job in jobs:
            site.rig.cancel(site.rig.store.get(job.id), time.time())
            site.rig.store.delete(job.id)


def test_the_focus_stays_where_it_was_when_parts_are_replaced(visit: Visit, site: Site) -> None:
    page = visit("/")
    link = page.locator(f"[id='on-{site.rig.slots[1].id}']")
    link.focus()
    job = site.rig.progress(site.jobs["second"], 3333, 4800, phase="generating", eta_s=60.0)
    page.locator("text=3\u202f333").wait_for()
    assert page.evaluate("() => document.activeElement.id") == f"on-{site.rig.slots[1].id}"
    site.rig.progress(job, 3120, 4800, phase="generating", eta_s=22 * 60.0, tokens_per_s=1620.0)


def test_the_focus_stays_on_a_job_whose_row_moves(visit: Visit, site: Site) -> None:
    page = visit("/")
    page.wait_for_function("() => streams[0]?.readyState === 1")
    mine, row = f"name-{site.jobs['nan'].id}", page.locator(f"#row-{site.jobs['nan'].id}")
    page.locator(f"#{mine}").focus()
    before = row.bounding_box()
    job = site.rig.submit({"kind": "command", "argv": ["true"], "name": "pushes them down"}, time.time())
    site.rig.cancel(job, time.time())
    page.locator("#jobs .row.cancelled", has_text="pushes them down").wait_for()
    after = row.bounding_box()
    assert before is not None and after is not None and after["y"] > before["y"] + 20
    assert page.evaluate("() => document.activeElement.id") == mine
    site.rig.store.delete(job.id)


def test_an_open_menu_stays_open_when_the_list_changes(visit: Visit, site: Site) -> None:
    page = visit("/")
    page.wait_for_function("() => streams[0]?.readyState === 1")
    page.locator(f"#change-{site.jobs['next'].id} summary").click()
    job = site.rig.submit({"kind": "command", "argv": ["true"], "name": "comes in meanwhile"}, time.time())
    page.locator("#jobs .row.queued", has_text="comes in meanwhile").wait_for()
    assert page.locator(f"#change-{site.jobs['next'].id}").get_attribute("open") is not None
    site.rig.cancel(job, time.time())
    site.rig.store.delete(job.id)


def test_a_page_that_is_cut_off_says_so_and_recovers(visit: Visit, site: Site) -> None:
    page = visit("/")
    page.wait_for_function("() => streams[0]?.readyState === 1")
    page.context.set_offline(True)
    page.evaluate("() => { hide(true); hide(false) }")
    page.locator("#link", has_text="No connection to the rig").wait_for()
    page.context.set_offline(False)
    until(lambda: page.locator("#link").inner_text() == "")
    assert page.locator("h1").inner_text()


def test_a_silent_daemon_turns_the_page_amber(visit: Visit, site: Site) -> None:
    site.alive.clear()
    try:
        site.rig.store.redis.delete(f"overnight:beat:{site.rig.settings.rig}")
        page = visit("/")
        page.locator(".banner.warn", has_text="The daemon has been silent").wait_for()
        assert page.locator("#heart.ill").count() == 1
    finally:
        site.alive.set()
    page.locator("#heart.well").wait_for()
    assert page.locator(".banner.warn").count() == 0


def test_s45_pausing_a_slot_asks_first_and_is_a_post(visit: Visit, site: Site) -> None:
    page, slot = visit("/"), site.rig.slots[1].id
    asked: list[tuple[str, str]] = []
    page.on("request", lambda request: asked.append((request.method, request.url)) if "/gpus/" in request.url else None)
    page.locator(f"[id='pause-{slot}']").click()
    page.locator("#confirm button[value=no]").click()
    assert asked == [] and not site.rig.store.paused()
    page.locator(f"[id='pause-{slot}']").click()
    assert "GPU 1" in page.locator("#confirm-title").inner_text()
    page.locator("#confirm-yes").click()
    page.locator(".chip", has_text="busy, then paused").wait_for()
    assert [method for method, _ in asked] == ["POST"] and f"{site.rig.settings.rig}:{slot}" in site.rig.store.paused()
    page.locator(f"[id='resume-{slot}']").click()
    page.locator("#confirm-yes").click()
    page.locator(f"[id='pause-{slot}']").wait_for()
    assert not site.rig.store.paused()


def test_finding_jobs_and_leaving_again(visit: Visit) -> None:
    page = visit("/", phone=True)
    page.locator("#q").fill("GGUF")
    page.locator("#q").press("Enter")
    page.locator("#joblist .row", has_text="convert to GGUF").wait_for()
    assert page.locator("#joblist .row").count() == 1
    page.locator(".tabs a", has_text="Night").click()
    page.locator("#night-title").wait_for()


def test_everything_can_be_hit_with_a_thumb(visit: Visit, site: Site) -> None:
    page = visit("/", phone=True)
    for path in ("/", f"/jobs/{site.jobs['running'].id}", f"/jobs/{site.jobs['command'].id}", "/login"):
        page.goto(f"{site.url}{path}")
        small = page.evaluate(
            """() => [...document.querySelectorAll('a.button, button, input:not([type=hidden]), summary, .tiles a, .row, .work:not(.none), .files a, .crumb a, .brand')]
            .filter(e => e.checkVisibility()).map(e => [e.className || e.tagName, e.getBoundingClientRect().height])
            .filter(([, height]) => height < 43.5)"""
        )
        assert small == [], path


@pytest.mark.parametrize("dark", [True, False], ids=["dark", "light"])
def test_those_who_do_not_see_it_find_their_way(visit: Visit, site: Site, dark: bool) -> None:
    page = visit("/", dark=dark)
    for path in ("/", f"/jobs/{site.jobs['running'].id}", "/login"):
        page.goto(f"{site.url}{path}")
        wrong = page.evaluate(
            """() => { const all = s => [...document.querySelectorAll(s)], wrong = [];
            for (const s of ['h1', 'main', 'body > header', '.skip']) if (all(s).length !== 1) wrong.push(s + ' ' + all(s).length);
            const ids = all('[id]').map(e => e.id); if (new Set(ids).size !== ids.length) wrong.push('an id stands there twice');
            for (const e of all('svg')) { const hidden = e.closest('[aria-hidden=true]'), part = e.parentElement.closest('svg');
              if (!hidden && !part && !(e.getAttribute('role') === 'img' && e.getAttribute('aria-label'))) wrong.push(e.outerHTML.slice(0, 80)); }
            for (const e of all('input:not([type=hidden])')) if (!e.labels.length) wrong.push('no label: ' + e.name);
            for (const e of all('button, a')) if (!e.textContent.trim()) wrong.push('no name: ' + e.outerHTML.slice(0, 80));
            for (const e of all('[aria-labelledby]')) if (!document.getElementById(e.getAttribute('aria-labelledby'))) wrong.push('no title: ' + e.id);
            for (const e of all('progress')) if (!e.getAttribute('aria-label')) wrong.push('progress');
            for (const e of all('pre')) if (e.tabIndex !== 0) wrong.push('cannot be scrolled by keys');
            let level = 0; for (const e of all('main h1, main h2, main h3')) { const n = +e.tagName[1]; if (n > level + 1) wrong.push('skips to ' + e.tagName); level = n; }
            return wrong; }"""
        )
        assert wrong == [], path
    page.goto(site.url)
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"


def test_without_script_everything_can_be_read(visit: Visit, site: Site) -> None:
    page = visit("/", phone=True, script=False)
    assert "failed" in page.locator(".mood").inner_text()
    assert page.locator(".lane").count() == 2 and page.locator(".lane g").count() >= 6
    assert page.locator(f"#act-group-{site.jobs['nan'].id}").is_visible(), "the safe way on is a form"
    assert page.locator(".slot").count() == 2
    assert page.locator(".spark .line").first.get_attribute("d")
    assert page.locator("#jobs .row").count() >= 8
    assert 'http-equiv="refresh"' in page.content()
    page.locator("#jobs a", has_text="convert to GGUF").click()
    assert "Failed: program error" in page.locator(".verdict").inner_text()
    assert page.locator("#act-retry").is_visible()
    assert not page.locator("[data-copy]").is_visible(), "a button that does nothing"


# -- the way in ---------------------------------------------------------------------------------------------------------------


def test_s7_a_link_logs_in_once_and_leaves_no_code_behind(visit: Visit, site: Site) -> None:
    page = visit("/login", logged_in=False)
    made = page.request.post(f"{site.url}/api/v1/login-codes", headers={"Authorization": f"Bearer {site.token}"}).json()
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    page.goto("about:blank")
    page.goto(made["url"])
    page.locator("#slots").wait_for()
    assert page.url == f"{site.url}/"
    assert not any(made["code"] in url.partition("#")[0] for url in sent)
    again = visit("/login", logged_in=False)
    again.goto("about:blank")
    again.goto(made["url"])
    again.locator("#login-note.bad", has_text="Codes work once").wait_for()
    assert "code=" not in again.url


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_the_token_logs_in_and_leads_to_where_one_wanted(visit: Visit, site: Site, script: bool) -> None:
    path = f"/jobs/{site.jobs['best'].id}"
    page = visit(path, logged_in=False, script=script)
    assert "/login" in page.url
    page.locator("#token").fill(site.token)
    page.locator("button", has_text="Log in").click()
    page.locator("#jobname").wait_for()
    assert page.url == f"{site.url}{path}"


def test_a_wrong_token_is_refused_in_words(visit: Visit) -> None:
    page = visit("/login", logged_in=False)
    page.locator("#token").fill("wrong")
    page.locator("button", has_text="Log in").click()
    page.locator("#login-note.bad", has_text="opens nothing").wait_for()


def test_an_ended_session_leads_to_the_login(visit: Visit, site: Site) -> None:
    page = visit("/")
    page.wait_for_function("() => streams[0]?.readyState === 1")
    page.context.clear_cookies()
    job = site.rig.submit({"kind": "command", "argv": ["true"]}, time.time())
    page.locator("#login-form").wait_for()
    site.rig.cancel(job, time.time())


def test_states_differ_in_shape_and_word_not_only_in_colour(visit: Visit, site: Site) -> None:
    page = visit("/")
    shapes = {
        state: page.locator(f"#jobs .mark.{state}").first.inner_html()
        for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.QUEUED)
    }
    assert len(set(shapes.values())) == 4
    text = page.locator("#jobs").inner_text()
    assert "failed: training diverged" in text and "succeeded" in text and "cancelled" in text
    assert Cause.NAN and End.FAILED
