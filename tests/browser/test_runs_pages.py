"""The list of jobs, a comparison and a log's search in a real browser: with script, without, and as a screen reader finds them."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from browser.axe import violations
from browser.conftest import Site
from browser.filled_rig import finetune
from until import until

from jobs.model import Cause, End, State
from jobs.spec import parse
from jobs.sweep import SweepFacts

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

Visit = Callable[..., "Page"]


def failed(site: Site, name: str) -> str:
    rig, now = site.rig, time.time()
    job = rig.run(rig.submit({"kind": "command", "argv": ["true"], "name": name}, now), now, [])
    return rig.finish(job, now, end=End.FAILED, cause=Cause.USER_ERROR, message="It exited with status 1.").id


def a_grid(site: Site) -> str:
    """A sweep over two axes and seeds, all of it done."""
    points = [{"learning_rate": lr, "lora.r": r, "seed": s} for lr in (1e-4, 2e-4) for r in (8, 16) for s in (1, 2)]
    facts = SweepFacts(name="grid", method="grid", axes=("learning_rate", "lora.r", "seed"), base={})
    specs = [parse(finetune(f"point {at}")) for at in range(len(points))]
    rig, now = site.rig, time.time()
    jobs, _ = rig.store.submit(specs, now=now, sweep=facts, points=points)
    for at, job in enumerate(jobs):
        rig.finish(rig.run(job, now, []), now, end=End.SUCCEEDED, metrics={"eval_loss": 1.2 + at / 10})
    return jobs[0].id


def test_ticks_survive_a_refresh_and_lead_to_a_question_with_counts(visit: Visit, site: Site) -> None:
    first, second = failed(site, "ticked"), failed(site, "ticked too")
    page = visit("/jobs?q=ticked", phone=True)
    page.locator(f"#tick-{first}").check()
    page.locator(f"#tick-{second}").check()
    assert page.locator("#chosen-count").inner_text() == "2 chosen"
    third = failed(site, "ticked later")
    page.locator(f"#tick-{third}").wait_for()  # by the script
    assert page.locator("#bulk input[name=id]:checked").count() == 2
    page.locator("#bulk-verb").select_option("retry")
    page.locator(".bulkbar .button").click()
    page.locator("h1", has_text="Retry 2 jobs?").wait_for()
    page.locator("#message-yes").click()
    page.wait_for_url("**/jobs?q=ticked")
    assert [site.rig.store.get(i).state for i in (first, second, third)] == [State.QUEUED] * 2 + [State.FAILED]
    for job_id in (first, second):
        site.rig.cancel(site.rig.store.get(job_id), time.time())


def test_without_script_filters_ticks_and_actions_are_forms(visit: Visit, site: Site) -> None:
    job = site.rig.submit(finetune("held without script"), time.time())
    page = visit("/jobs", script=False)
    page.locator("#q").fill("held without")
    page.locator(".finder .filter .button").click()
    assert page.locator(".picks .row").count() == 1
    page.locator(f"#tick-{job.id}").check()
    page.locator("#bulk-verb").select_option("hold")
    page.locator(".bulkbar .button").click()
    page.locator("#message-yes").click()
    assert site.rig.store.get(job.id).held
    page.locator(".tag", has_text="held").wait_for()
    site.rig.cancel(site.rig.store.get(job.id), time.time())


def test_a_state_is_chosen_with_one_touch(visit: Visit, site: Site) -> None:
    page = visit("/jobs", phone=True)
    page.locator(".pick", has_text="failed").click()
    page.wait_for_url("**/jobs?*state=failed*")
    until(lambda: set(page.locator(".picks .word").all_inner_texts()) and page.locator(".row.succeeded").count() == 0)


def test_the_lines_that_were_found_stay_while_the_job_goes_on(visit: Visit, site: Site) -> None:
    running = site.jobs["running"].id
    page = visit(f"/jobs/{running}")
    page.locator("#log-q").fill("step  742")
    page.locator(".logfinder .button").click()
    page.locator("#found mark").first.wait_for()
    with page.expect_response(lambda answer: "/fragments/job/" in answer.url):
        pass
    assert page.locator("#found mark").count() == 1 and page.locator("#log").count() == 0


@pytest.mark.parametrize(("phone", "dark"), [(True, True), (False, False)], ids=["phone-dark", "desktop-light"])
def test_the_pages_fit_and_axe_finds_nothing(visit: Visit, site: Site, phone: bool, dark: bool) -> None:
    jobs = site.jobs
    pages = ("/jobs", f"/sweeps/{a_grid(site)}", f"/jobs/{jobs['mended'].id}", f"/compare?ids={jobs['best'].id},{jobs['running'].id},{jobs['mended'].id}&all=1")  # fmt: skip
    page = visit("/", phone=phone, dark=dark)
    for path in pages:
        page.goto(f"{site.url}{path}")
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), path
        assert violations(page) == [], path
