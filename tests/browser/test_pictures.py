"""Pictures of the pages: for whoever changes them, and with `--screenshots docs/screenshots` for the README."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser.conftest import Site

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

Visit = Callable[..., "Page"]


@pytest.mark.parametrize("dark", [True, False], ids=["dark", "light"])
@pytest.mark.parametrize("phone", [True, False], ids=["phone", "desktop"])
def test_pages_have_their_picture_taken(visit: Visit, site: Site, tmp_path: Path, phone: bool, dark: bool) -> None:
    page = visit("/", phone=phone, dark=dark)
    for name, path in (("status", "/"), ("job", f"/jobs/{site.jobs['running'].id}"), ("failed", f"/jobs/{site.jobs['command'].id}"), ("login", "/login")):  # fmt: skip
        page.goto(f"{site.url}{path}")
        picture = page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
        assert len(picture) > 10_000


def test_pictures_of_the_readme(request: pytest.FixtureRequest, visit: Visit, site: Site) -> None:
    folder: Path | None = request.config.getoption("--screenshots", default=None)
    if folder is None:
        pytest.skip("only with --screenshots FOLDER")
    folder.mkdir(parents=True, exist_ok=True)
    page = visit("/", dark=True)
    page.set_viewport_size({"width": 1200, "height": 1000})
    page.screenshot(path=folder / "status.png", full_page=True)
    page.goto(f"{site.url}/jobs/{site.jobs['running'].id}")
    page.screenshot(path=folder / "job.png", full_page=True)
    visit("/", phone=True, dark=True).screenshot(path=folder / "phone.png")
