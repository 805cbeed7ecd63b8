"""A real browser in front of a real `python -m api`, on a rig in the middle of its night."""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser.filled_rig import FilledRig, a_night, rig_at
from live_api import address_of, start_api

from daemon import redis_server
from daemon.settings import Settings
from daemon.store import Store, connect
from jobs.model import Job

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}  # fmt: skip
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
#: Runs before the page: notes what the policy refuses, every stream, and lets a test hide the tab.
WATCH = """
window.violations = []; window.streams = []; let hidden = false;
document.addEventListener('securitypolicyviolation', e => violations.push(e.violatedDirective + ' ' + e.blockedURI));
window.EventSource = class extends EventSource { constructor(url) { super(url); streams.push(this); } };
Object.defineProperty(document, 'hidden', { get: () => hidden });
window.hide = value => { hidden = value; document.dispatchEvent(new Event('visibilitychange')); };
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", type=Path, help="folder to write the pictures of the docs to")


def chromium() -> str | None:
    """The browser to use: $CHROMIUM, or one that is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM") or next((found for name in names if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")  # not longer: its event loop would run on beside other tests
def browser() -> "Iterator[Browser]":
    """Chromium without a window."""
    with launched() as browser:
        yield browser


@contextmanager
def launched(**environment: str) -> "Iterator[Browser]":
    """The same, with more variables in its environment."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'"
    )
    program = chromium()
    if program is None:
        pytest.skip("no Chromium: install chromium or google-chrome, or set CHROMIUM to its path")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=list(ARGS), env={**os.environ, **environment})
        yield browser
        browser.close()


@dataclass
class Site:
    """The rig, its page's address, and its jobs by what they are for."""

    rig: FilledRig
    url: str
    token: str
    process: "subprocess.Popen[bytes] | None"
    jobs: dict[str, Job]
    #: Whether the daemon and the sampler go on telling that they live.
    alive: threading.Event = field(default_factory=threading.Event)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """The API; after `stop` again at the same address."""
        settings, home = self.rig.settings, self.rig.settings.home
        own = {"OVERNIGHT_RIG": settings.rig, "OVERNIGHT_TIMEZONE": settings.timezone, "OVERNIGHT_WINDOW": settings.window}  # fmt: skip
        if self.url:
            own["OVERNIGHT_PORT"] = self.url.rpartition(":")[2]
        log = home / "api.log"
        self.process = start_api(home, log, **own)
        self.url = str(address_of(home, self.process, log)["url"])
        self.token = (home / "token").read_text().strip()

    def stop(self) -> None:
        """As if the rig was switched off."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(10)
            self.process = None


@contextmanager
def site_of(
    fill: "Callable[[FilledRig], dict[str, Job]]", rig_at: "Callable[[Path], Settings]" = rig_at
) -> "Iterator[Site]":
    """A rig of its own, filled, with its API; ended again."""
    home = Path(tempfile.mkdtemp(prefix="on-"))
    settings = rig_at(home)
    server = redis_server.start(settings)
    store = Store(connect(str(server.socket)))
    rig = FilledRig(settings, store, now=time.time())
    site = Site(rig, "", "", None, fill(rig))
    ended = threading.Event()
    pulse = threading.Thread(target=_beat, args=(site, ended))
    try:
        site.start()
        site.alive.set()
        pulse.start()
        yield site
    finally:
        ended.set()
        if pulse.ident is not None:
            pulse.join()
        site.stop()
        store.redis.close()
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """One rig for the tests of a module: they add to it, and leave the night's own jobs as they are."""
    with site_of(lambda rig: a_night(rig, whole=True)) as site:
        yield site


def _beat(site: Site, ended: threading.Event) -> None:
    while not ended.wait(0.5):
        if site.alive.is_set():
            site.rig.live(time.time())


@pytest.fixture
def visit(browser: "Browser", site: Site) -> "Iterator[Callable[..., Page]]":
    """Opens a page of the rig in a session of its own. At the end: no error, no dialog, nothing refused by the policy."""
    opened: list[tuple[Page, list[str]]] = []

    def visit(
        path: str = "/", *, phone: bool = False, dark: bool = False, script: bool = True, logged_in: bool = True
    ) -> "Page":
        shape = PHONE if phone else DESKTOP
        context = browser.new_context(**shape, color_scheme="dark" if dark else "light", java_script_enabled=script, reduced_motion="reduce")  # fmt: skip
        context.set_default_timeout(10_000)
        if script:
            context.add_init_script(WATCH)
        if logged_in:
            assert context.request.post(f"{site.url}/login", data={"token": site.token}).ok
        page, troubles = context.new_page(), []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda said: troubles.append(said.text) if "Content Security Policy" in said.text else None)
        page.on(
            "request", lambda asked: None if asked.url.startswith((site.url, "data:")) else troubles.append(asked.url)
        )
        opened.append((page, troubles))
        page.goto(f"{site.url}{path}")
        return page

    yield visit
    for page, troubles in opened:
        refused = page.evaluate("() => window.violations || []") if _runs_script(page) else []
        page.context.close()
        assert troubles + refused == []


def _runs_script(page: "Page") -> bool:
    return bool(page.evaluate("() => 'violations' in window"))
