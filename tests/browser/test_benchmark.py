"""A benchmark's page for everybody: axe-core finds nothing, tables scroll on a phone, both charts are drawn."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from benchmark_rows import some_rows
from browser.axe import violations
from browser.conftest import Site

from jobs.cells import metrics
from jobs.model import End
from jobs.rundir import append_json_line

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

Visit = Callable[..., "Page"]


@pytest.fixture(scope="module")
def address(site: Site) -> str:
    """The page of a benchmark that has ended."""
    rows, now = list(some_rows()), time.time()
    job = site.rig.run(site.rig.submit({"kind": "benchmark", "name": "how it runs here", "model": "Qwen/Qwen3-1.7B", "quantizations": ["none", "nf4", "int8"]}, now - 900), now - 800, [])  # fmt: skip
    for row in rows:
        append_json_line(site.rig.folder(job).cells, row)
    site.rig.finish(job, now, end=End.SUCCEEDED, metrics=metrics(rows))
    return f"/jobs/{job.id}"


@pytest.mark.parametrize("dark", [True, False], ids=["dark", "light"])
@pytest.mark.parametrize("phone", [True, False], ids=["phone", "desktop"])
def test_axe_finds_nothing_and_the_page_is_no_wider_than_the_screen(
    visit: Visit, address: str, phone: bool, dark: bool
) -> None:
    page = visit(address, phone=phone, dark=dark)
    assert page.locator("#benchmark table").count() == 2
    assert page.locator("#benchmark .plot").count() == 2
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    assert violations(page) == []


def test_a_benchmark_that_runs_shows_its_next_cell_by_itself(visit: Visit, site: Site) -> None:
    now = time.time()
    job = site.rig.run(site.rig.submit({"kind": "benchmark", "name": "live", "model": "org/m"}, now), now, [])
    folder = site.rig.folder(job)
    first, second, *_ = some_rows()
    append_json_line(folder.cells, first)
    page = visit(f"/jobs/{job.id}")
    assert page.locator("#benchmark tbody tr").count() == 1
    append_json_line(folder.cells, second)
    site.rig.progress(job, 2, 9, phase="measuring", eta_s=60.0)
    page.locator("#benchmark tbody tr").nth(1).wait_for()
    site.rig.finish(job, time.time(), end=End.SUCCEEDED)
