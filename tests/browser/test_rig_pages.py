"""The GPUs, the plan, the form and the settings in a real browser: with a thumb, with axe, and while somebody types."""

import hashlib
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from browser.axe import violations
from browser.conftest import Site
from browser.filled_rig import finetune
from until import until

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

Visit = Callable[..., "Page"]
PAGES = ("/gpus", "/gpus/1?span=1h", "/plan", "/submit?kind=finetune", "/submit?kind=command", "/submit?as=document", "/settings")  # fmt: skip
#: Whatever can be hit, but for links within a text.
TARGETS = "a.button, button, input:not([type=hidden]):not([type=file]):not([type=checkbox]), select, textarea, label.toggle, summary, .spans a, .kinds a"  # fmt: skip


@pytest.mark.parametrize(("phone", "dark"), [(True, True), (False, False)], ids=["dark phone", "light desktop"])
def test_everybody_can_use_the_new_pages(visit: Visit, site: Site, phone: bool, dark: bool) -> None:
    site.rig.submit(finetune("a_name_without_any_place_to_break_" * 3), time.time())
    page = visit("/gpus", phone=phone, dark=dark)
    for path in PAGES:
        page.goto(f"{site.url}{path}")
        page.evaluate("() => document.querySelectorAll('details').forEach(e => e.open = true)")
        width, shown = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
        assert width <= shown, path
        assert violations(page) == [], path
        if phone:
            small = page.evaluate(
                "targets => [...document.querySelectorAll(targets)].filter(e => e.checkVisibility())"
                ".map(e => [e.outerHTML.slice(0, 80), e.getBoundingClientRect().height]).filter(([, height]) => height < 43.5)",
                TARGETS,
            )
            assert small == [], path


def test_a_new_job_comes_onto_its_lane_by_itself(visit: Visit, site: Site) -> None:
    page = visit("/plan")
    page.wait_for_function("() => streams.length && streams[0].readyState === 1")
    job = site.rig.submit({"kind": "command", "argv": ["true"], "name": "a late arrival on the plan"}, time.time())
    page.locator(".plan-group .row", has_text="a late arrival on the plan").wait_for()
    site.rig.cancel(job, time.time())


def test_the_form_is_checked_while_somebody_types_and_then_makes_the_job(visit: Visit, site: Site) -> None:
    page = visit("/submit?kind=command")
    outlook = page.locator("#outlook")
    page.locator("#f-gpus").fill("many")
    page.locator("[id='e-gpus']", has_text="valid integer").wait_for()
    assert page.locator("#f-gpus").get_attribute("aria-invalid") == "true"
    page.locator("#f-gpus").fill("1")
    outlook.get_by_text("Still needed: command.").wait_for()
    assert page.locator("#e-gpus").inner_text() == ""
    page.locator("#f-argv").fill("true 'with two words'")
    outlook.locator(".headline", has_text="Ready.").wait_for()
    outlook.locator("summary", has_text="As a command line").click()
    assert "submit run -- true 'with two words'" in page.locator("#command").inner_text()
    page.locator("#f-name").fill("made by hand")
    page.locator("#command", has_text="--name 'made by hand'").wait_for()
    assert page.locator("#command").is_visible(), "what was unfolded stays so"
    page.locator("button", has_text="Submit").click()
    page.locator("#jobname", has_text="made by hand").wait_for()
    job = site.rig.store.get(page.url.rpartition("/")[2])
    assert job.spec["argv"] == ["true", "with two words"]
    site.rig.cancel(job, time.time())


@pytest.mark.parametrize("size", [0, 55, 64, (1 << 20) + 4321])
def test_a_file_is_sent_by_its_content_and_named_by_it(visit: Visit, site: Site, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    content = content[:size]
    digest = hashlib.sha256(content).hexdigest()
    page = visit("/submit?kind=finetune")
    page.locator("#up-data").set_input_files({"name": "rows.jsonl", "mimeType": "", "buffer": content})
    page.locator("#said-data", has_text="rows.jsonl is on the rig").wait_for()
    assert page.locator("#f-data").input_value() == f"sha256:{digest}"
    assert (site.rig.settings.inputs / digest).read_bytes() == content


def test_another_kind_keeps_what_fits_it(visit: Visit) -> None:
    page = visit("/submit?kind=finetune")
    page.locator("#f-model").fill("org/model")
    page.locator("#f-name").fill("<b>kept</b> & more")
    page.locator(".kinds a", has_text="generate").click()
    page.wait_for_url(re.compile("kind=generate"))
    assert (page.locator("#f-model").input_value(), page.locator("#f-name").input_value()) == ("org/model", "<b>kept</b> & more")  # fmt: skip


def test_a_field_is_found_among_many(visit: Visit) -> None:
    page = visit("/submit?kind=finetune")
    page.locator("summary", has_text="More of finetune").click()
    page.locator("#find").fill("warmup_ratio")
    until(lambda: page.locator("#own-fields .field:visible").count() in (1, 2))
    assert page.locator("#f-warmup_ratio").is_visible() and not page.locator("#f-seed").is_visible()
    page.locator("#find").fill("")
    assert page.locator("#f-seed").is_visible()


def test_a_pasted_document_is_checked_too(visit: Visit) -> None:
    page = visit("/submit?as=document")
    page.locator("#f-document").fill('kind = "command"\nargv = "not a list"')
    page.locator("#e-document", has_text="argv").wait_for()
    page.locator("#f-document").fill('kind = "command"\nargv = ["true"]')
    page.locator("#outlook .headline", has_text="Ready.").wait_for()
    until(lambda: page.locator("#e-document").inner_text() == "")


def test_pausing_a_gpu_from_its_page_shows_there(visit: Visit, site: Site) -> None:
    slot = site.rig.slots[1].id
    page = visit("/gpus/1")
    page.wait_for_function("() => streams.length && streams[0].readyState === 1")
    page.locator(f"[id='pause-{slot}']").click()
    page.locator("#confirm-yes").click()
    page.locator("#gpu-head .chip", has_text="busy, then paused").wait_for()
    page.locator(f"[id='resume-{slot}']").click()
    page.locator("#confirm-yes").click()
    page.locator(f"[id='pause-{slot}']").wait_for()


def test_without_script_the_form_works_as_well(visit: Visit, site: Site) -> None:
    page = visit("/submit?kind=command", script=False, phone=True)
    assert not page.locator(".send").is_visible(), "a button that does nothing"
    page.locator("#f-argv").fill("true")
    page.locator("#f-gpus").fill("9")
    page.locator("button", has_text="Submit").click()
    assert "this rig has 2" in page.locator("#e-gpus").inner_text()
    assert page.locator("#f-argv").input_value() == "true"
    page.locator("#f-gpus").fill("1")
    page.locator("button", has_text="Check").click()
    assert "Ready." in page.locator("#outlook").inner_text()
    page.locator("button", has_text="Submit").click()
    page.locator("#jobname").wait_for()
    site.rig.cancel(site.rig.store.get(page.url.rpartition("/")[2]), time.time())
