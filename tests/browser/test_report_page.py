"""A night's page and its file in a real browser."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
def test_the_last_nights_page_fits_and_is_drawn_in_its_own_style(
    visit: "Callable[..., Page]", site: Any, phone: bool
) -> None:
    page = visit("/nights", phone=phone)
    night = page.evaluate("fetch('/api/v1/report').then(answer => answer.json())")
    page.goto(f"{page.url.removesuffix('/nights')}/nights/{night['date']}")
    assert night["verdict"]["sentence"] in page.locator(".r-said").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("violations") == []
    assert page.locator(".r-lane").count() == len(night["lanes"])


def test_the_file_needs_nothing_else_and_is_drawn_from_disk(
    visit: "Callable[..., Page]", browser: "Browser", tmp_path: Path
) -> None:
    text = visit("/nights").evaluate("fetch('/api/v1/report?format=html').then(answer => answer.text())")
    file = tmp_path / "night.html"
    file.write_text(text)
    page = browser.new_context().new_page()
    told: list[str] = []
    page.on("request", lambda request: told.append(request.url))
    page.on("console", lambda said: told.append(said.text))
    page.goto(file.as_uri())
    assert told == [file.as_uri()]  # no request, nothing refused by its policy
    assert page.evaluate("getComputedStyle(document.querySelector('.report')).maxWidth") != "none"
    page.context.close()
