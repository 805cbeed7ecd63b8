"""A sweep's page in a real browser."""

from typing import TYPE_CHECKING, Any

import pytest
from until import until

from daemon.store import Store
from jobs.model import End, Outcome
from jobs.spec import parse
from jobs.sweep import SweepFacts

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


@pytest.fixture
def sweep(site: Any) -> str:
    """A sweep of four jobs; one has ended."""
    store: Store = site.rig.store
    points = [{"learning_rate": 10.0**-n, "lora.r": 8} for n in range(3, 7)]
    facts = SweepFacts(name="a sweep", method="grid", axes=("learning_rate", "lora.r"), base={})
    specs = [parse({"kind": "command", "argv": ["true"], "name": f"point {n}"}) for n in range(4)]
    jobs, _ = store.submit(specs, now=1.0, sweep=facts, points=points)
    end(store, jobs[1].id, 2.0)
    return jobs[0].id


def end(store: Store, job_id: str, eval_loss: float) -> None:
    slot = f"cpu:{job_id}"
    offered = store.offer(job_id, rig="elsewhere", slots=(slot,), epoch=store.new_epoch("elsewhere"), now=1.0)
    store.claim(job_id, fence=offered.fence, owner="test", now=2.0, lease_s=60.0)
    outcome = Outcome(end=End.SUCCEEDED, metrics={"eval_loss": eval_loss})
    store.finish(job_id, fence=offered.fence, outcome=outcome, now=3.0)


@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
def test_the_table_fits_and_follows(visit: "Callable[..., Page]", site: Any, sweep: str, phone: bool) -> None:
    page = visit(f"/sweeps/{sweep}", phone=phone)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    first = page.locator(".results tbody tr").first
    assert first.locator(".figure").inner_text() == "2" and "best" in first.inner_text()

    end(site.rig.store, str(int(sweep) + 3), 1.25)

    until(lambda: first.locator(".figure").inner_text() == "1.25", within_s=15.0)
    assert f"Best: job {int(sweep) + 3}" in page.locator("#sweephead").inner_text()
