"""What axe-core, the checker of accessibility, has to say against a page."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page


def violations(page: "Page") -> list[tuple[str, list[str]]]:
    """Its rules that the page breaks, each with up to three elements. Skips the test where axe-playwright-python is not installed."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    found = axe.run(page).response["violations"]
    return [(one["id"], [node["html"][:200] for node in one["nodes"]][:3]) for one in found]
