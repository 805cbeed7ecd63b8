"""The first screen of the morning in a browser: what stands there and in which order, what its buttons do, what is kept of it."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from browser.conftest import Site, site_of
from browser.filled_rig import FilledRig, a_night
from until import until

from jobs.model import Cause, End, Job, State

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

Visit = Callable[..., "Page"]
HOSTILE = "\"'><img class=evil src=x onerror=alert(1)><script class=evil>alert(1)</script>{{ 7 * 7 }}"
KEPT = """async () => { const cache = await caches.open('overnight-kept-1');
  return (await cache.keys()).map(request => new URL(request.url).pathname).sort(); }"""


def too_slow(rig: FilledRig, name: str) -> Job:
    """A command that ran out of time just now."""
    document = {"kind": "command", "argv": ["true"], "name": name, "max_runtime_s": 60}
    job = rig.run(rig.submit(document, time.time() - 90), time.time() - 60, [])
    return rig.finish(job, time.time(), end=End.FAILED, cause=Cause.TIMEOUT, message="It ran for longer than 60 s.")


def test_the_first_phone_screen_answers_in_this_order(visit: Visit, site: Site) -> None:
    page = visit("/", phone=True)
    parts = ["#heart", "#night-title", ".when p", ".mood", ".tiles", ".lanes", ".todo h2", ".need", ".best", "#now", "#slots", "#q", "#jobs"]  # fmt: skip
    tops = [box["y"] for part in parts if (box := page.locator(part).first.bounding_box())]
    assert len(tops) == len(parts) and tops == sorted(tops)
    assert tops[parts.index(".need")] < 844, "what needs somebody is on the first screen"
    assert "2 of 5 failed, 2 need you" in page.locator(".mood").inner_text()
    assert page.locator(".lane .failed rect[fill='url(#hatch)']").count() == 3, "not by colour alone"
    assert "kWh" in page.locator("#lanes-words").inner_text()
    decisive = page.locator(".need", has_text="convert to GGUF").locator(".decisive").inner_text()
    assert decisive == "convert.py: error: the following arguments are required: --outfile"


def test_every_tile_leads_to_its_jobs(visit: Visit, site: Site) -> None:
    page = visit("/")
    for state, job in (("failed", "nan"), ("succeeded", "best"), ("running", "running"), ("queued", "next")):
        page.goto(site.url)
        page.locator(f".tiles .{state} a").click()
        page.locator("#joblist a", has_text=site.jobs[job].name).first.wait_for()


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_a_group_of_failures_goes_again_with_one_button_that_asks_first(visit: Visit, site: Site, script: bool) -> None:
    failed = [too_slow(site.rig, f"too slow {script} {n}") for n in range(2)]
    page = visit("/", script=script)

    def asked() -> Any:
        page.goto(site.url)  # the night is made anew a moment after the event
        return page.locator(f"#act-group-{failed[0].id}").count()

    until(asked, within_s=10.0)
    need = page.locator(f"#need-{failed[0].id}")
    assert need.locator("h3").inner_text().startswith("2\u202f\u00d7 over its time limit")
    page.locator(f"#act-group-{failed[0].id}").click()
    question = page.locator("#confirm-text" if script else ".message .sub")
    assert "2 jobs go to the end of the queue" in question.inner_text()
    assert all(site.rig.store.get(job.id).state is State.FAILED for job in failed)
    page.locator("#confirm-yes" if script else "#message-yes").click()
    again = until(lambda: _waiting(site, failed), evidence=lambda: page.locator("body").inner_text())
    assert [job.max_runtime_s for job in again] == [120, 120]
    for job in failed:
        site.rig.cancel(site.rig.store.get(job.id), time.time())
        site.rig.store.delete(job.id)


def _waiting(site: Site, jobs: list[Job]) -> list[Job]:
    """All of them, once all wait again."""
    now = [site.rig.store.get(job.id) for job in jobs]
    return now if all(job.state is State.QUEUED for job in now) else []


def test_s16_hostile_names_and_lines_stay_text_in_the_night(visit: Visit, site: Site) -> None:
    page = visit("/")
    page.wait_for_function("() => streams[0]?.readyState === 1")
    job = site.rig.run(site.rig.submit({"kind": "command", "argv": ["true"], "name": HOSTILE}, time.time()), time.time(), [])  # fmt: skip
    site.rig.folder(job).log.write_text(f"ValueError: {HOSTILE}\n")
    site.rig.finish(job, time.time(), end=End.FAILED, cause=Cause.USER_ERROR, message=HOSTILE, hint=HOSTILE)
    page.locator(".need", has_text="onerror").first.wait_for()  # by the script
    fresh = visit("/")
    for shown in (page, fresh):
        shown.locator(".need", has_text="onerror").first.wait_for()
        assert shown.locator(".evil, iframe, img, script:not([src])").count() == 0
        assert HOSTILE in shown.locator(".todo").inner_text()
    site.rig.store.delete(job.id)


def test_a_block_of_the_timeline_leads_to_its_job(visit: Visit, site: Site) -> None:
    page = visit("/")
    page.locator(f".lane g[data-to='/jobs/{site.jobs['mended'].id}'].succeeded").click()
    page.locator("#jobname").wait_for()
    assert page.url == f"{site.url}/jobs/{site.jobs['mended'].id}"


def test_the_heartbeat_grows_old_when_nothing_comes(visit: Visit, site: Site) -> None:
    page = visit("/")
    page.evaluate("() => { window.fetch = () => new Promise(() => {}) }")  # the rig hangs
    until(lambda: int("".join(filter(str.isdigit, page.locator("#heart b").inner_text())) or "0") >= 3, within_s=20.0)


# -- while the rig is off -----------------------------------------------------------------------------------------------------


def test_the_last_page_is_shown_with_its_age_while_the_rig_is_off_and_comes_alive_again(browser: Any) -> None:
    with site_of(a_night) as site:
        context = browser.new_context(viewport={"width": 390, "height": 844})
        context.request.post(f"{site.url}/login", data={"token": site.token})
        page = context.new_page()
        page.goto(f"{site.url}/")
        page.evaluate("async () => { await navigator.serviceWorker.ready }")
        until(lambda: page.evaluate("() => Boolean(navigator.serviceWorker.controller)"))
        page.goto(f"{site.url}/")
        until(lambda: "/" in page.evaluate(KEPT))
        page.goto(f"{site.url}/jobs/{site.jobs['best'].id}")
        page.goto(f"{site.url}/jobs?q=secret-token-in-an-address")
        page.request.get(f"{site.url}/api/v1/jobs")
        kept = page.evaluate(KEPT)
        assert [path for path in kept if not path.startswith("/static/")] == ["/"], "nothing else is kept"
        assert {"/static/overnight.css", "/static/overnight.js", "/static/icon.svg"} <= set(kept)

        site.stop()
        page.goto(f"{site.url}/")
        assert "The rig does not answer. This is the page as it was" in page.locator("#link").inner_text()
        assert "failed" in page.locator(".mood").inner_text()
        assert page.locator("main").evaluate("e => getComputedStyle(e).maxWidth") != "none", "its style is there, too"
        page.goto(f"{site.url}/jobs/{site.jobs['best'].id}")
        assert "This is the page as it was" in page.locator("#link").inner_text()

        site.start()
        until(lambda: page.locator("#link").inner_text() == "", within_s=30.0)
        page.goto(f"{site.url}/")
        assert page.locator("#link").inner_text() == ""
        context.clear_cookies()
        page.goto(f"{site.url}/login")
        until(lambda: page.evaluate(KEPT) == [])  # who has to log in sees nothing of before
        context.close()
