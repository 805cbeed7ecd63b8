"""What holds for every page: axe-core finds nothing, no request leaves the rig, one stream at most, and the first screen is small."""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from browser.axe import violations
from browser.conftest import DESKTOP, PHONE, Site
from browser.filled_rig import a_night
from until import until

from api.page import PLACES
from daemon.night import calendar
from jobs.spec import parse
from jobs.sweep import SweepFacts

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

Visit = Callable[..., "Page"]
#: The issue's budget of the first screen, with everything that comes until it is live.
MOST_BYTES = 30_000
#: The page, its style, its script, the first look at what changed, the stream; the manifest and the service worker come later.
MOST_REQUESTS = 8


def own_pages(site: Site) -> list[str]:
    """The pages of every night."""
    return ["/", f"/jobs/{site.jobs['running'].id}", f"/jobs/{site.jobs['nan'].id}", f"/sweeps/{a_sweep(site)}", "/login", "/jobs/9999"]  # fmt: skip


def all_pages(site: Site) -> list[str]:
    """Those, what the navigation leads to, and what that leads to."""
    best, other, settings = site.jobs["best"].id, site.jobs["mended"].id, site.rig.settings
    night = calendar(settings).last_date(time.time())
    places = [href for _, href, _, _ in PLACES if href != "/"]
    return [*own_pages(site), *places, "/gpus/0", f"/nights/{night}", f"/compare?ids={best},{other}", "/jobs?state=failed", f"/jobs/{best}/data"]  # fmt: skip


def a_sweep(site: Site) -> str:
    """A sweep's id; the sweep is made once."""
    if "sweep" not in site.jobs:
        points = [{"learning_rate": 10.0**-n} for n in range(3, 5)]
        facts = SweepFacts(name="rates", method="grid", axes=("learning_rate",), base={})
        specs = [parse({"kind": "command", "argv": ["true"], "name": f"rate {n}"}) for n in range(2)]
        jobs, _ = site.rig.store.submit(specs, now=time.time(), sweep=facts, points=points)
        site.jobs["sweep"] = jobs[0]
    return site.jobs["sweep"].id


@pytest.mark.parametrize("dark", [True, False], ids=["dark", "light"])
@pytest.mark.parametrize("phone", [True, False], ids=["phone", "desktop"])
def test_axe_finds_nothing(visit: Visit, site: Site, phone: bool, dark: bool) -> None:
    page = visit("/", phone=phone, dark=dark)
    found: dict[str, Any] = {}
    # the pages of the runs and of the rig are looked at in the two other ways beside their own tests
    for path in all_pages(site) if phone is not dark else own_pages(site):
        page.goto(f"{site.url}{path}")
        found |= {path: violations(page)}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


def test_every_page_asks_the_rig_alone_and_leads_nowhere_else(visit: Visit, site: Site) -> None:
    page = visit("/")
    asked: set[str] = set()
    page.context.on("request", lambda request: asked.add(request.url))
    for path in all_pages(site):
        answer = page.goto(f"{site.url}{path}")
        assert answer is not None and answer.status in (200, 404 if path.endswith("9999") else 200), path
        page.locator("main").wait_for()
        away = page.evaluate("() => [...document.querySelectorAll('a, link, form, img, script')].map(e => e.href || e.action || e.src).filter(u => typeof u === 'string' && u && !u.startsWith(location.origin))")  # fmt: skip
        assert away == [], path
    assert all(url.startswith((f"{site.url}/", "data:")) for url in asked), asked
    assert len(asked) > len(all_pages(site))


def test_every_place_is_marked_where_one_is(visit: Visit, site: Site) -> None:
    page = visit("/")
    for name, href, label, _ in PLACES:
        page.goto(f"{site.url}{href}")
        assert page.locator(".tabs [aria-current]").all_inner_texts() == [label], name


@pytest.mark.parametrize("phone", [True, False], ids=["phone", "desktop"])
def test_the_first_screen_is_small_and_comes_in_few_requests(
    browser: Any, site: Site, phone: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    context = browser.new_context(**(PHONE if phone else DESKTOP))
    context.request.post(f"{site.url}/login", data={"token": site.token})
    page = context.new_page()
    page.add_init_script("window.live = 0; const Plain = EventSource; window.EventSource = class extends Plain { constructor(url) { super(url); this.addEventListener('open', () => { live ||= performance.now() }); } };")  # fmt: skip
    cdp = context.new_cdp_session(page)
    addresses: dict[str, str] = {}
    sizes: dict[str, float] = {}
    cdp.on("Network.responseReceived", lambda event: addresses.__setitem__(event["requestId"], event["response"]["url"]))  # fmt: skip
    cdp.on("Network.loadingFinished", lambda event: sizes.__setitem__(event["requestId"], event["encodedDataLength"]))
    cdp.send("Network.enable")
    page.goto(site.url)
    until(lambda: page.evaluate("() => live"))
    told = {addresses[one].removeprefix(site.url).partition("?")[0]: round(size) for one, size in sizes.items()}
    with capsys.disabled():
        print(f"\n  {'phone' if phone else 'desktop'}: {sum(told.values())} bytes {told}, live after {page.evaluate('() => live'):.0f} ms")  # fmt: skip
    assert sum(sizes.values()) <= MOST_BYTES, told
    assert len(addresses) <= MOST_REQUESTS, addresses
    context.close()


def test_the_first_screen_is_small_though_the_night_was_long(browser: Any, site: Site) -> None:
    """Every job of the night failed in a way of its own, and each says a lot."""
    context = browser.new_context(**PHONE)
    context.request.post(f"{site.url}/login", data={"token": site.token})
    noise = [os.urandom(60).hex() for _ in range(40)]
    store = site.rig.store
    made = []
    for text in noise:
        job = site.rig.submit({"kind": "command", "argv": ["false"], "name": text[:100]}, time.time())
        made.append(site.rig.cancel(job, time.time()))
    answer = context.request.get(site.url, headers={"Accept-Encoding": "gzip"})
    assert int(answer.headers["content-length"]) <= MOST_BYTES / 2
    for job in made:
        store.delete(job.id)
    context.close()
    assert a_night


def test_every_live_page_follows_one_stream_and_none_while_it_is_hidden(visit: Visit, site: Site) -> None:
    page, followed = visit("/"), set[str]()
    for path in all_pages(site):
        page.goto(f"{site.url}{path}")
        if page.locator("body[data-live]").count() == 0:
            assert page.evaluate("() => streams.length") == 0, f"{path} follows what it does not show"
            continue
        followed.add(path)
        page.wait_for_function("() => streams.length && streams[0].readyState === 1")
        assert page.evaluate("() => streams.length") == 1, path
        page.evaluate("() => hide(true)")
        assert page.evaluate("() => streams.map(one => one.readyState)") == [2], f"{path} goes on while nobody looks"
        page.evaluate("() => hide(false)")
        page.wait_for_function("() => streams.length === 2 && streams[1].readyState === 1")
    assert {"/", "/jobs", "/plan", "/gpus", f"/jobs/{site.jobs['running'].id}"} <= followed
