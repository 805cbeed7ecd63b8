"""The owner's hand on the queue in a browser: a press, and the page shows what became of it, by script or without."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from browser.conftest import Site
from browser.filled_rig import finetune
from until import until

from jobs.model import Job, State

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

Visit = Callable[..., "Page"]
WAYS = pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])


@pytest.fixture
def jobs(site: Site) -> Iterator[list[Job]]:
    """Four more jobs at the end of the queue, and nothing of them afterwards."""
    made = [site.rig.submit(finetune(f"hand {number}"), time.time()) for number in range(4)]
    yield made
    for job in made:
        site.rig.cancel(site.rig.store.get(job.id), time.time())
        site.rig.store.delete(job.id)


def rows(page: "Page") -> list[str]:
    """The queue's own jobs of this test, in its order."""
    return [text for text in page.locator(".queue .row .what a").all_inner_texts() if text.startswith("hand ")]


def press(page: "Page", button: str, *, sure: bool = False) -> None:
    """Press a button; say yes where it asks: in the dialog, or on the page that asks without script."""
    page.locator(f"[id='{button}']").click()
    if sure:
        page.locator("#confirm-yes, #message-yes").click()


@WAYS
def test_the_queue_is_rearranged_from_its_rows(visit: Visit, site: Site, jobs: list[Job], script: bool) -> None:
    page, get = visit("/", script=script, phone=True), site.rig.store.get

    def act(job: Job, key: str, expected: list[int]) -> None:
        change = page.locator(f"[id='change-{job.id}']")
        if change.get_attribute("open") is None:
            change.locator("summary").click()
        press(page, f"{key}-{job.id}")
        until(lambda: rows(page) == [f"hand {number}" for number in expected], evidence=lambda: rows(page))

    act(jobs[3], "up", [0, 1, 3, 2])
    act(jobs[0], "down", [1, 0, 3, 2])
    act(jobs[0], "first", [0, 1, 3, 2])
    assert page.locator(".queue .row .what a").first.inner_text() == "hand 0"
    act(jobs[1], "last", [0, 3, 2, 1])
    act(jobs[2], "high", [2, 0, 3, 1])
    page.locator(".queue .row", has_text="hand 2").locator(".tag", has_text="high").wait_for()
    act(jobs[3], "hold", [2, 0, 3, 1])
    page.locator(".queue .row", has_text="hand 3").locator(".why", has_text="held until it is released").wait_for()
    act(jobs[3], "release", [2, 0, 3, 1])
    until(lambda: not get(jobs[3].id).held)
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


@WAYS
def test_a_jobs_own_page_holds_releases_moves_cancels_and_retries(
    visit: Visit, site: Site, jobs: list[Job], script: bool
) -> None:
    job, get = jobs[2], site.rig.store.get
    page = visit(f"/jobs/{job.id}", script=script)
    press(page, "act-hold")
    page.locator(".verdict", has_text="Held until it is released").wait_for()
    press(page, "act-release")
    page.locator("#act-hold").wait_for()
    press(page, "act-first")
    until(lambda: get(job.id).rank < get(jobs[0].id).rank)
    page.locator("#act-backlog").click()
    page.locator("#act-normal").wait_for()
    assert get(job.id).priority == "backlog"
    press(page, "act-cancel", sure=True)
    page.locator(".verdict", has_text="Cancelled before it ran").wait_for()
    press(page, "act-retry", sure=True)
    page.locator("#act-cancel").wait_for()
    assert get(job.id).state is State.QUEUED
    assert page.url == f"{site.url}/jobs/{job.id}"


@WAYS
def test_a_gpu_is_freed_for_its_owner(visit: Visit, site: Site, script: bool) -> None:
    page, slot, running = visit("/", script=script, phone=True), site.rig.slots[0], site.jobs["running"]
    try:
        press(page, f"free-{slot.id}", sure=True)
        page.locator(f"[id='slot-{slot.id}'] .chip", has_text="busy, then paused").wait_for()
        wish = site.rig.store.get(running.id).wish
        assert wish is not None and wish.kind == "preempt"
        assert f"{site.rig.settings.rig}:{slot.id}" in site.rig.store.paused()
        press(page, f"resume-{slot.id}", sure=True)
        page.locator(f"[id='pause-{slot.id}']").wait_for()
        assert page.locator(f"[id='free-{slot.id}']").count() == 0, "it was asked already"
        press(page, "pause-rig", sure=True)
        page.locator(".banner", has_text="The rig is paused.").wait_for()
        press(page, "resume-rig", sure=True)
        page.locator("#pause-rig").wait_for()
    finally:
        site.rig.store.resume(site.rig.settings.rig)
        site.rig.store.resume(site.rig.settings.rig, slot.id)
        site.rig.store.change(running.id, lambda job: type(job).from_json({**job.to_json(), "wish": None}))


def test_a_job_that_starts_under_the_hand_is_left_alone_and_the_page_says_why(
    visit: Visit, site: Site, jobs: list[Job]
) -> None:
    page = visit(f"/jobs/{jobs[1].id}")
    page.locator("#act-hold").wait_for()
    page.evaluate("() => hide(true)")  # it learns nothing more
    site.rig.store.offer(jobs[1].id, rig=site.rig.settings.rig, slots=("cpu:9",), epoch=site.rig.epoch, now=time.time())
    press(page, "act-hold")
    page.locator("#link", has_text="is about to start and can no longer be changed").wait_for()
    assert not site.rig.store.get(jobs[1].id).held


def test_an_open_row_stays_open_and_keeps_the_focus_while_the_queue_changes(
    visit: Visit, site: Site, jobs: list[Job]
) -> None:
    page = visit("/")
    page.wait_for_function("() => streams[0]?.readyState === 1")
    page.locator(f"[id='change-{jobs[1].id}'] summary").click()
    page.locator(f"[id='hold-{jobs[1].id}']").focus()
    late = site.rig.submit(finetune("hand 9"), time.time())
    page.locator(".queue .row", has_text="hand 9").wait_for()
    assert page.evaluate("() => document.activeElement.id") == f"hold-{jobs[1].id}"
    assert page.locator(f"[id='change-{jobs[1].id}']").get_attribute("open") is not None
    page.keyboard.press("Enter")
    page.locator(f"[id='release-{jobs[1].id}']").wait_for()
    site.rig.cancel(late, time.time())
    site.rig.store.delete(late.id)


def test_open_rows_can_be_hit_with_a_thumb_and_nothing_is_named_twice(visit: Visit, jobs: list[Job]) -> None:
    page = visit("/", phone=True)
    page.locator(f"[id='change-{jobs[0].id}'] summary").click()
    page.locator(f"[id='hold-{jobs[0].id}']").wait_for()
    small = page.evaluate(
        "() => [...document.querySelectorAll('.change .button, .change summary')].filter(e => e.checkVisibility())"
        ".map(e => [e.textContent, e.getBoundingClientRect()]).filter(([, r]) => r.height < 43.5 || r.right > innerWidth).map(([t]) => t)"
    )
    assert small == []
    assert page.evaluate(
        "() => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id); return ids.length === new Set(ids).size }"
    )
