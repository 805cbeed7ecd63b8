"""The pictures of the docs: four nights on a phone and a desktop, dark and light, and whether they show what they should.

`make pictures` (pytest tests/browser/test_pictures.py --screenshots docs/screenshots) writes them anew; without it they go to a folder
that is thrown away.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser.axe import violations
from browser.conftest import Site, launched, site_of
from browser.nights import NIGHTS, morning_at
from until import until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

Visit = Callable[..., "Page"]
#: Letters about as wide as those of a phone. The other tests keep the wider ones that Chromium takes here by itself.
FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>
<include ignore_missing="yes">/etc/fonts/fonts.conf</include>{}</fontconfig>"""
FONT = """<match target="pattern"><test name="family" qual="any"><string>{}</string></test>
<edit name="family" mode="prepend" binding="strong"><string>Liberation Sans</string></edit></match>"""
#: By night: the verdict's colour, and how its sentence begins.
VERDICTS = {
    "good": ("green", "All 8 done. Best eval loss 1.108 (\u221217\u202f%). The queue is empty."),
    "bad": (
        "red",
        "10 of 13 failed, 10 need you. Best eval loss 1.214 (\u221210\u202f%). The queue may be empty about",
    ),
    "silent": (
        "amber",
        "All 8 done. The sampler was last heard 14\u202fmin ago. Best eval loss 1.108 (\u221217\u202f%).",
    ),
}
GROUND = {"green": "--ok-bg", "amber": "--warn-bg", "red": "--bad-bg"}
COLOUR_OF = "(name) => { const probe = document.createElement('i'); probe.style.color = `var(${name})`; document.body.append(probe); const found = getComputedStyle(probe).color; probe.remove(); return found; }"  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Browser]":
    fonts = tmp_path_factory.mktemp("fonts") / "fonts.conf"
    fonts.write_text(FONTS.format("".join(FONT.format(name) for name in ("system-ui", "sans-serif"))))
    with launched(FONTCONFIG_FILE=str(fonts)) as browser:
        yield browser


@pytest.fixture(scope="module", params=NIGHTS)
def night(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def site(night: str) -> Iterator[Site]:
    with site_of(NIGHTS[night], morning_at) as site:
        yield site


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where the pictures go."""
    given: Path | None = request.config.getoption("--screenshots", default=None)
    found = given or tmp_path
    found.mkdir(parents=True, exist_ok=True)
    return found


def told(page: "Page", night: str) -> str:
    """The verdict, once the forecast is in it."""
    if night not in VERDICTS:
        return ""
    begins = VERDICTS[night][1]

    def verdict() -> str:
        said = page.locator(".mood > span").inner_text().partition("\n")[2] or page.locator(".mood > span").inner_text()
        if begins not in said:
            page.reload()
        return said if begins in said else ""

    return until(verdict, within_s=20.0, evidence=lambda: page.locator(".mood").inner_text())


@pytest.mark.parametrize("dark", [True, False], ids=["dark", "light"])
@pytest.mark.parametrize("phone", [True, False], ids=["phone", "desktop"])
def test_a_night_has_its_picture_taken(
    visit: Visit, night: str, site: Site, folder: Path, phone: bool, dark: bool
) -> None:
    page = visit("/", phone=phone, dark=dark)
    told(page, night)
    page.wait_for_function("() => streams[0]?.readyState === 1")
    width, shown = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    assert width <= shown, "nothing is cut off at the right"
    if phone is not dark:
        assert violations(page) == []
    name = f"{night}-{'phone' if phone else 'desktop'}-{'dark' if dark else 'light'}.png"
    assert len(page.screenshot(path=folder / name)) > 20_000


def test_the_verdict_has_its_words_its_colour_and_its_shape(visit: Visit, night: str, site: Site) -> None:
    page = visit("/", phone=True)
    if night == "empty":
        assert page.locator("#night-title").inner_text() == "Ready for the first job"
        assert page.locator(".mood, .need, .best, .lanes").count() == 0
        assert "submit run -- echo hello" in page.locator(".steps").inner_text()
        return
    told(page, night)
    colour, _ = VERDICTS[night]
    mood = page.locator(".mood")
    assert mood.evaluate("e => getComputedStyle(e).backgroundColor") == page.evaluate(COLOUR_OF, GROUND[colour])
    assert mood.locator(f".sign.{colour}").count() == 1
    top, height = page.evaluate("() => { const box = document.querySelector('.mood').getBoundingClientRect(); return [box.top, box.bottom]; }")  # fmt: skip
    assert 0 < top < height < 300, "the first thing that one reads"


@pytest.mark.parametrize("night", ["bad"], indirect=True, scope="module")
def test_a_bad_night_groups_its_failures_by_cause_with_the_line_and_a_way_on(
    visit: Visit, night: str, site: Site
) -> None:
    page = visit("/", phone=True)
    titles = page.locator(".need h3").all_inner_texts()
    assert titles == ["6\u202f\u00d7 out of GPU memory", "3\u202f\u00d7 training diverged", "Program error"]
    lines = page.locator(".need .decisive").all_inner_texts()
    assert "per_device_train_batch_size = 2" in lines[0] and "not finite" in lines[1] and "--outfile" in lines[2]
    ways = [text.strip() for text in page.locator(".need .acts").all_inner_texts()]
    assert ways[:2] == ["Retry all 6 with half the batch", "Retry all 3 with half the learning rate"]
    assert page.locator(".mended summary").inner_text() == "1 failure mended by a retry"
    box = page.locator(".need").first.bounding_box()
    assert box is not None and box["y"] + 120 < 844, "its cause and its line are on the first screen"


@pytest.mark.parametrize("night", ["silent"], indirect=True, scope="module")
def test_a_dead_sampler_is_amber_with_its_age_though_every_job_passed(visit: Visit, night: str, site: Site) -> None:
    page = visit("/", phone=True)
    assert page.locator("#heart.ill").inner_text().split("\n")[-1] == "sampler silent 14\u202fmin"
    assert page.locator(".tiles .failed b").inner_text() == "0" and page.locator(".tiles .succeeded b").inner_text() == "8"  # fmt: skip
    assert page.locator("#banners .warn").all_inner_texts() == ["The sampler spoke last 14\u202fmin ago. It is down and will be restarted. The readings below are old."]  # fmt: skip
    assert page.locator(".slot .stale").all_inner_texts() == ["as it was 14\u202fmin ago"] * 2
    assert "not all of this can be trusted" in page.locator(".calm").inner_text()


@pytest.mark.parametrize("night", ["bad"], indirect=True, scope="module")
def test_pictures_of_the_readme(request: pytest.FixtureRequest, visit: Visit, night: str, site: Site) -> None:
    folder: Path | None = request.config.getoption("--screenshots", default=None)
    if folder is None:
        pytest.skip("only with --screenshots FOLDER")
    page = visit("/", dark=True)
    page.set_viewport_size({"width": 1280, "height": 1000})
    told(page, night)
    page.wait_for_function("() => streams[0]?.readyState === 1")
    page.screenshot(path=folder / "status.png")
    page.goto(f"{site.url}/jobs/{site.jobs['running'].id}")
    page.wait_for_function("() => streams[0]?.readyState === 1")
    page.screenshot(path=folder / "job.png")
