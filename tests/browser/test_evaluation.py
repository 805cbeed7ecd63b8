"""An evaluation's page for everybody: axe-core finds nothing, it is no wider than the screen, and the worst rows open."""

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from browser.axe import violations
from browser.conftest import Site

from jobs.evaluation import summary
from jobs.model import End, Job
from jobs.rundir import write_json

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

Visit = Callable[..., "Page"]
LONG = "a_word_without_any_place_to_break_" * 6


def row(index: int, loss: float, *, exact: bool) -> dict[str, Any]:
    return {"index": index, "id": index, "loss": loss, "tokens": 3, "correct": 1 + exact, "all_loss": loss, "all_tokens": 9, "answer": LONG, "expected": "hang", "exact": exact, "includes": exact}  # fmt: skip


def evaluated(site: Site, name: str, rows: list[dict[str, Any]], **fields: Any) -> Job:
    now = time.time()
    job = site.rig.run(site.rig.submit({"kind": "evaluate", "name": name, "model": "Qwen/Qwen3-1.7B", "data": "sha256:" + "b" * 64, **fields}, now - 900), now - 800, [])  # fmt: skip
    metrics = summary(rows)
    metrics["measured_on"] |= {"definition": 1, "tokens_sha256": "t" * 64, "data_sha256": "d" * 64, "max_new_tokens": 8}
    folder = site.rig.folder(job)
    folder.rows.write_text("".join(json.dumps(one) + "\n" for one in rows))
    write_json(folder.results, {"metrics": metrics, "worst": rows[:5]})
    return site.rig.finish(job, now, end=End.SUCCEEDED, metrics=metrics)


@pytest.fixture(scope="module")
def address(site: Site) -> str:
    """The page of an evaluation with a baseline."""
    evaluated(site, "before", [row(at, 3.0 + at % 5, exact=False) for at in range(40)])
    tuned = evaluated(site, "after", [row(at, 0.5 + at % 5, exact=at > 9) for at in range(40)], adapter="/data/adapter")
    return f"/jobs/{tuned.id}"


@pytest.mark.parametrize("dark", [True, False], ids=["dark", "light"])
@pytest.mark.parametrize("phone", [True, False], ids=["phone", "desktop"])
def test_axe_finds_nothing_and_the_page_is_no_wider_than_the_screen(
    visit: Visit, address: str, phone: bool, dark: bool
) -> None:
    page = visit(address, phone=phone, dark=dark)
    page.locator("#worst summary").click()
    assert page.locator("#evaluation .better").count() >= 3
    assert page.locator("#worst tbody tr").count() == 5
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    assert violations(page) == []
