"""The service worker: what a phone shows of a rig that is off, how old that is, and when it forgets it."""

import json
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from browser.conftest import DESKTOP, Site
from until import until

from daemon.night import calendar

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

NOT_KEPT = "no page of it was kept on this device"
KEPT = """async () => { const cache = await caches.open('overnight-kept-1');
  return (await cache.keys()).map(request => new URL(request.url).pathname).sort(); }"""
#: Makes every kept page look as if it had been kept so many milliseconds earlier.
AGE = """async earlier_ms => { const cache = await caches.open('overnight-kept-1');
  for (const request of await cache.keys()) {
    const kept = await cache.match(request), headers = new Headers(kept.headers);
    if (!headers.has('x-kept-at')) continue;
    headers.set('x-kept-at', String(Number(headers.get('x-kept-at')) - earlier_ms));
    await cache.put(request, new Response(await kept.text(), { headers }));
  } }"""


@pytest.fixture
def phone(browser: "Browser", site: Site) -> "Iterator[Callable[[], Page]]":
    """Opens a browser of its own that is logged in and has the service worker."""
    opened: list[Any] = []

    def phone() -> "Page":
        context = browser.new_context(**DESKTOP)
        context.set_default_timeout(10_000)
        opened.append(context)
        assert context.request.post(f"{site.url}/login", data={"token": site.token}).ok
        page = context.new_page()
        page.goto(site.url)
        page.evaluate("async () => { await navigator.serviceWorker.ready }")
        until(lambda: page.evaluate("() => Boolean(navigator.serviceWorker.controller)"))
        page.goto(site.url)
        until(lambda: "/" in page.evaluate(KEPT))
        return page

    yield phone
    for context in opened:
        context.close()


@pytest.fixture
def killed(site: Site) -> Iterator[Callable[[], None]]:
    """Ends the rig's API by its process id, as a power cut would; it is started again afterwards."""

    def kill() -> None:
        assert site.process is not None
        os.kill(site.pid, signal.SIGKILL)
        site.process.wait()
        site.process = None

    yield kill
    if site.process is None:
        site.start()


def pages(page: "Page") -> list[str]:
    return [path for path in page.evaluate(KEPT) if not path.startswith("/static/")]


def test_with_the_rig_killed_the_last_report_is_shown_with_its_age(
    phone: "Callable[[], Page]", site: Site, killed: Callable[[], None]
) -> None:
    page = phone()
    night = calendar(site.rig.settings).last_date(time.time()).isoformat()
    page.goto(f"{site.url}/nights/{night}")
    until(lambda: f"/nights/{night}" in page.evaluate(KEPT))
    sentence = page.locator(".r-said").inner_text()
    page.goto(f"{site.url}/jobs")
    killed()
    for path, part in (("/", ".mood"), (f"/nights/{night}", ".r-said"), ("/plan", ".mood")):
        page.goto(f"{site.url}{path}")
        assert "The rig does not answer. This is the page as it was just now" in page.locator("#link").inner_text()
        assert "2 of 5 failed" in page.locator(part).inner_text()
    page.evaluate(AGE, 3 * 3_600_000)
    page.goto(site.url)
    assert "This is the page as it was 3 h ago." in page.locator("#link").inner_text()
    page.evaluate(AGE, 69 * 3_600_000)
    page.goto(f"{site.url}/nights/{night}")
    assert "3 days ago" in page.locator("#link").inner_text() and page.locator(".r-said").inner_text() == sentence


def test_logging_out_forgets_it_all(phone: "Callable[[], Page]", site: Site, killed: Callable[[], None]) -> None:
    page = phone()
    page.goto(f"{site.url}/settings")
    page.locator("#log-out").click()
    page.locator("#login-form").wait_for()
    until(lambda: page.evaluate(KEPT) == [])
    page.goto(site.url)
    assert page.url.startswith(f"{site.url}/login"), "the session is over"
    killed()
    page.goto(site.url)
    assert NOT_KEPT in page.locator("body").inner_text()


def test_it_forgets_even_when_the_rig_is_off_already(
    phone: "Callable[[], Page]", site: Site, killed: Callable[[], None]
) -> None:
    page = phone()
    page.goto(f"{site.url}/settings")
    killed()
    page.evaluate("fetch('/logout', { method: 'POST' }).catch(() => {})")
    until(lambda: page.evaluate(KEPT) == [])


def test_a_401_is_never_kept(phone: "Callable[[], Page]", site: Site, killed: Callable[[], None]) -> None:
    page = phone()
    page.context.clear_cookies()  # the session has ended
    asked = "url => fetch(url, { headers: { Accept: 'application/json' } }).then(answer => answer.status)"
    for path in ("/", "/fragments/night", "/api/v1/jobs", "/nights/2026-11-21"):
        assert page.evaluate(asked, path) == 401
    assert pages(page) == ["/"], "only what was seen while logged in"
    wrong = page.context.request.post(f"{site.url}/login", form={"token": "wrong"}, headers={"Origin": site.url})
    assert wrong.status == 401
    page.goto(site.url)  # a browser is led to the login, and whoever has to log in sees nothing of before
    page.locator("#token").fill("wrong")
    page.evaluate(
        "() => document.getElementById('login-form').submit()"
    )  # as without script: the answer is a page with 401
    page.locator("#login-note.bad").wait_for()
    assert pages(page) == []
    killed()
    page.goto(site.url)
    assert NOT_KEPT in page.locator("body").inner_text()


def test_what_needs_a_rig_does_not_pretend_that_it_worked(
    phone: "Callable[[], Page]", site: Site, killed: Callable[[], None]
) -> None:
    page = phone()
    killed()
    failed = "url => fetch(url).then(() => 'answered', () => 'failed')"
    assert [page.evaluate(failed, path) for path in ("/api/v1/jobs", "/fragments/night", "/api/v1/report")] == [
        "failed"
    ] * 3


def test_it_can_be_installed(phone: "Callable[[], Page]", site: Site) -> None:
    page = phone()
    cdp = page.context.new_cdp_session(page)
    found = cdp.send("Page.getAppManifest")
    assert found["errors"] == [] and found["url"].startswith(f"{site.url}/static/overnight.webmanifest")
    hindrances = {one["errorId"] for one in cdp.send("Page.getInstallabilityErrors")["installabilityErrors"]}
    assert hindrances <= {"in-incognito"}, "but for the test's own browser nothing speaks against it"
    manifest = json.loads(found["data"])
    assert manifest["start_url"] == manifest["scope"] == manifest["id"] == "/" and manifest["display"] == "standalone"
    assert {icon.get("purpose", "any") for icon in manifest["icons"]} == {"any", "maskable"}
    for icon in manifest["icons"]:
        answer = page.context.request.get(f"{site.url}/static/{icon['src']}")
        assert answer.ok and answer.headers["content-type"] == icon["type"]
        if icon["type"] == "image/png":
            width, height = struct.unpack(">II", answer.body()[16:24])
            assert icon["sizes"] == f"{width}x{height}"
    for shortcut in manifest["shortcuts"]:
        assert page.context.request.get(f"{site.url}{shortcut['url']}").ok
