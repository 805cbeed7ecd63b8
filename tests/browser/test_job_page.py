"""One job's page in a browser: it follows the job, obeys its reader, and shows hostile text as text."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from browser.conftest import Site
from browser.filled_rig import finetune
from until import until

from jobs.model import Cause, End, State
from jobs.rundir import append_json_line

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

Visit = Callable[..., "Page"]
EVIL = "<img src=x onerror=alert(1) class=evil>"
PAYLOADS = (
    EVIL,
    "<script class=evil>alert(2)</script>",
    "\"'><svg class=evil onload=alert(3)>",
    "</pre></title><iframe class=evil src='javascript:alert(4)'></iframe>",
    "<a class=evil href='javascript:alert(5)'>click</a>",
    "<style class=evil>*{display:none}</style>",
)


def test_a_running_job_is_followed_to_its_end(visit: Visit, site: Site) -> None:
    rig = site.rig
    job = rig.run(rig.submit({"kind": "command", "argv": ["true"], "name": "followed"}, time.time()), time.time(), [])
    folder = rig.folder(job)
    folder.log.write_text("hello\n")
    page = visit(f"/jobs/{job.id}")
    page.locator(".verdict", has_text="Running").wait_for()
    with folder.log.open("a") as log:
        log.write("another line\n")
    append_json_line(folder.metrics, {"step": 1, "loss": 2.0})
    append_json_line(folder.metrics, {"step": 2, "loss": 1.0})
    job = rig.progress(job, 2, 3, loss=1.0)
    page.locator("#log", has_text="another line").wait_for()
    page.locator("#curves .plot").first.wait_for()
    page.locator(".verdict", has_text="step 2 of 3").wait_for()
    rig.finish(job, time.time(), end=End.FAILED, cause=Cause.USER_ERROR, message="It exited with status 3.")
    page.locator(".verdict", has_text="Failed: program error").wait_for()
    page.locator("#act-retry").wait_for()
    assert "failed" in page.title()


def test_a_log_that_is_being_read_stays_where_it_is(visit: Visit, site: Site) -> None:
    page = visit(f"/jobs/{site.jobs['running'].id}")
    log = page.locator("#log")
    assert log.evaluate("e => e.scrollHeight - e.scrollTop - e.clientHeight") <= 1, "it begins at its end"
    log.evaluate("e => { e.scrollTop = 100; window.read = e }")
    with site.rig.folder(site.jobs["running"]).log.open("a") as file:
        file.write("a line from later\n")
    page.expect_response(lambda answer: "/fragments/job/" in answer.url)
    with page.expect_response(lambda answer: "/fragments/job/" in answer.url and "a line from later" in answer.text()):
        pass
    assert log.evaluate("e => e === window.read && e.scrollTop === 100")
    log.evaluate("e => { e.scrollTop = e.scrollHeight }")
    page.locator("#log", has_text="a line from later").wait_for()
    assert log.evaluate("e => e.scrollHeight - e.scrollTop - e.clientHeight") <= 1


def test_what_was_opened_stays_open(visit: Visit, site: Site) -> None:
    page = visit(f"/jobs/{site.jobs['running'].id}")
    page.locator("#defaults summary").click()
    with page.expect_response(lambda answer: "/fragments/job/" in answer.url):
        pass
    with page.expect_response(lambda answer: "/fragments/job/" in answer.url):
        pass
    assert page.locator("#defaults").evaluate("e => e.open")


def test_s45_cancel_asks_first_then_does_it(visit: Visit, site: Site) -> None:
    job = site.rig.submit(finetune("not wanted"), time.time())
    page = visit(f"/jobs/{job.id}", phone=True)
    page.locator("#act-cancel").click()
    page.locator("#confirm button[value=no]").click()
    page.locator("#act-cancel").click()
    page.keyboard.press("Escape")
    assert site.rig.store.get(job.id).state is State.QUEUED
    page.locator("#act-cancel").click()
    page.locator("#confirm-yes").click()
    page.locator(".verdict", has_text="Cancelled before it ran.").wait_for()
    assert site.rig.store.get(job.id).state is State.CANCELLED
    page.locator("#act-retry").click()
    page.locator("#confirm-yes").click()
    until(lambda: site.rig.store.get(job.id).state is State.QUEUED)
    site.rig.cancel(site.rig.store.get(job.id), time.time())


def test_a_refusal_is_told_in_words(visit: Visit, site: Site) -> None:
    job = site.rig.submit(finetune("changes under the hand"), time.time())
    page = visit(f"/jobs/{job.id}")
    page.locator("#act-cancel").click()
    site.rig.cancel(job, time.time())
    site.rig.store.delete(job.id)
    page.locator("#confirm-yes").click()
    page.locator("h1", has_text="There is no job").wait_for()


def test_files_come_as_downloads_and_never_as_pages(visit: Visit, site: Site) -> None:
    folder = site.rig.folder(site.jobs["generated"])
    (folder.output / "evil.html").write_text(f"<body onload=alert(1)>{EVIL}")
    page = visit(f"/jobs/{site.jobs['generated'].id}")
    with page.expect_download() as download:
        page.locator(".files a", has_text="evil.html").click()
    assert download.value.suggested_filename == "evil.html"
    assert page.url.endswith(f"/jobs/{site.jobs['generated'].id}")


def test_the_command_can_be_copied(visit: Visit, site: Site) -> None:
    page = visit(f"/jobs/{site.jobs['command'].id}")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("button[data-copy]").click()
    page.locator("button", has_text="Copied").wait_for()
    assert page.evaluate("() => navigator.clipboard.readText()") == "submit run --name 'convert to GGUF' --tag support-bot -- python convert.py --outtype q8_0"  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS)
def test_s16_hostile_text_makes_no_element_and_no_dialog(visit: Visit, site: Site, payload: str) -> None:
    rig = site.rig
    document = {"kind": "command", "argv": ["echo", payload], "name": payload[:128], "env": {"A": payload}}
    job = rig.run(rig.submit(document, time.time()), time.time(), [])
    folder = rig.folder(job)
    folder.log.write_text(f"{payload}\n\x1b]0;{payload}\x07\n\x1b[31m{payload}\n")
    (folder.output / payload.replace("/", "_")).write_text("x")
    for step in (1, 2):
        append_json_line(folder.metrics, {"step": step, payload: step, "loss": step})
    job = rig.progress(job, 1, 2, phase=payload, **{payload: 1.0})
    home, page = visit("/"), visit(f"/jobs/{job.id}")
    page.locator(".verdict", has_text="Running").wait_for()
    rig.finish(job, time.time(), end=End.FAILED, cause=Cause.USER_ERROR, message=payload, hint=payload, metrics={payload: 1.0, "text": payload})  # fmt: skip
    page.locator(".verdict", has_text="Failed").wait_for()  # by the script: live fragments are hostile, too
    home.locator("#jobs .row.failed .what", has_text=payload[:60]).first.wait_for()
    for shown in (home, page):
        assert shown.locator(".evil, iframe, img, script:not([src])").count() == 0
        assert payload in shown.locator("main").inner_text()
    assert page.locator("#log").inner_text().count(payload) >= 2
