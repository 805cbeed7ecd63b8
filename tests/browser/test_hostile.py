"""S16 over every page: a rig on which everything that somebody else may name is hostile. Nothing runs, nothing breaks the layout."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from browser.conftest import DESKTOP, PHONE, Site, site_of
from browser.filled_rig import GPUS, FilledRig, finetune
from model_folders import copy_tokenizer
from until import until

from api.page import PLACES
from daemon.night import calendar
from daemon.rig import Slot
from jobs.model import Cause, End, Job
from jobs.rundir import append_json_line, write_json
from jobs.spec import parse
from jobs.sweep import Goal, SweepFacts

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

Visit = Callable[..., "Page"]
#: Elements, handlers, addresses, templates, Markdown, terminal sequences, reversed text, and a word without end.
MARKUP = "\"'><img class=evil src=x onerror=alert(1)><script class=evil>alert(1)</script>"
CLOSING = "</pre></title></style></textarea></svg><iframe class=evil src='javascript:alert(2)'></iframe>"
LINK = "[a](javascript:alert(3)) ![i](//evil/x) `</code>` |cell| **b**"
TEMPLATE, PRODUCT = "{{ 7331 * 1301 }}{% raw %}${7331*1301}<%= 7 %>", "9537631"
ATTRIBUTE = "x' onmouseover='alert(4)' autofocus onfocus='alert(5)' style='display:none"
CONTROL = "\x1b[31mred\x1b]0;title\x07\u202eright\u2066"
ENDLESS = "W" * 300
TEXTS = (MARKUP, CLOSING, LINK, TEMPLATE, ATTRIBUTE, CONTROL, ENDLESS)
#: After these a job is not tried again.
FINAL = (Cause.BAD_INPUT, Cause.USER_ERROR, Cause.TIMEOUT)
#: What a document may name; the rest comes from files and from records of older versions.
SHORT = tuple(text[:120] for text in TEXTS if text.isprintable())


def hostile(rig: FilledRig) -> dict[str, Job]:
    """Jobs in every state whose every word is hostile."""
    rig.slots = tuple(Slot(slot.id, text, slot.index, slot.memory_bytes) for slot, text in zip(GPUS, (MARKUP, ENDLESS), strict=True))  # fmt: skip
    (rig.settings.home / "config.toml").write_text(
        f'currency = "<b>"\nallowed_paths = [{json.dumps("/tmp/" + MARKUP[:100])}]\n'
    )
    (rig.settings.home / "secrets.toml").write_text('HF_TOKEN = "x"\n')
    rig.begin()
    now, made = rig.now, {}
    for at, text in enumerate(TEXTS):
        made[f"failed-{at}"] = _failed(rig, text, now - 3000 + at)
    made["running"] = _running(rig, now)
    made["waiting"] = _renamed(
        rig, rig.submit(finetune("x", model=MARKUP[:90], data=LINK[:60], tags=[]), now - 90), CLOSING
    )
    made["data"] = _with_data(rig, now)
    made["sweep"] = _sweep(rig, now)
    rig.record(now - 900, now, lambda slot, ts: 0.9)
    rig.live(now)
    return made


def _renamed(rig: FilledRig, job: Job, text: str) -> Job:
    return rig.store.change(job.id, lambda one: one.edited(name=text, tags=(text[:64],)))


def _failed(rig: FilledRig, text: str, at: float) -> Job:
    job = rig.run(
        _renamed(rig, rig.submit({"kind": "command", "argv": ["echo", text.replace("\0", "")]}, at), text), at + 1, []
    )
    folder = rig.folder(job)
    folder.log.write_text(f"ValueError: {text}\n{text}\n")
    (folder.output / text.replace("/", "_")[:120]).write_text("x")
    for step in (1, 2, 3):
        append_json_line(folder.metrics, {"step": step, "loss": float(step), text[:90]: float(step)})
    return rig.finish(job, at + 60, end=End.FAILED, cause=FINAL[int(at) % 3], message=text, hint=text, metrics={text[:90]: 1.0, "text": text})  # fmt: skip


def _running(rig: FilledRig, now: float) -> Job:
    job = rig.run(
        _renamed(rig, rig.submit({"kind": "command", "argv": ["x"]}, now - 600), ENDLESS), now - 500, [rig.slots[0]]
    )
    rig.folder(job).log.write_text("\n".join(TEXTS))
    return rig.progress(job, 1, 2, phase=MARKUP, **{LINK: 1.0})


def _with_data(rig: FilledRig, now: float) -> Job:
    """A fine-tune whose rows, as its model sees them, say all of it."""
    job = rig.run(_renamed(rig, rig.submit(finetune("x"), now - 800), MARKUP), now - 700, [rig.slots[1]])
    parts = ("read", "learnt", "cut", "left_out")
    segments = [{"text": text, "part": parts[at % 4]} for at, text in enumerate(TEXTS)]
    example = {"line": 1, "tokens": 9, "trained": 3, "name": MARKUP, "segments": segments}
    left = {"rows": 2, "measured": 2, "tokens": 18, "kept_tokens": 18, "trained_tokens": 6, "max_length": 9, "cut": 1, "format": MARKUP, "source": ENDLESS, "conversions": TEXTS, "notes": TEXTS, "problems": TEXTS, "examples": [example]}  # fmt: skip
    write_json(rig.folder(job).preview, left)
    return rig.finish(job, now - 100, end=End.SUCCEEDED, metrics={"eval_loss": 1.0, MARKUP: 2.0})


def _sweep(rig: FilledRig, now: float) -> Job:
    first, second = SHORT[0], SHORT[2]
    facts = SweepFacts(
        name=MARKUP[:120], method="grid", axes=(first, second), base={first: 1}, goal=Goal(minimize=LINK[:60])
    )
    points = [{first: a, second: text} for a in (1, 2) for text in TEXTS[:2]]
    jobs, _ = rig.store.submit(
        [parse({"kind": "command", "argv": ["x"]})] * 4, now=now - 800, sweep=facts, points=points
    )
    for at, job in enumerate(jobs):
        ran = rig.run(job, now - 700, [])
        rig.finish(ran, now - 600, end=End.SUCCEEDED, metrics={LINK[:60]: 1.0 + at})
    return jobs[0]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with site_of(hostile) as site:
        yield site


def every_page(site: Site) -> list[str]:
    """Every page that there is, with and without what an address may bring in."""
    jobs, odd = site.jobs, quote(MARKUP)
    night = calendar(site.rig.settings).last_date(time.time())
    runs = f"{jobs['data'].id},{jobs['sweep'].id}"
    return [
        *(href for _, href, _, _ in PLACES),
        *(f"/jobs/{job.id}" for job in jobs.values()),
        f"/jobs/{jobs['data'].id}/data", f"/jobs/{jobs['waiting'].id}/data", f"/jobs/{jobs['failed-0'].id}?q={odd}",
        f"/sweeps/{jobs['sweep'].id}", f"/compare?ids={runs}&all=1", f"/compare?ids={odd[:100]}", "/gpus/0", "/gpus?span=30d", f"/gpus/{odd}",
        f"/plan?by={odd[:40]}", f"/submit?from={jobs['failed-0'].id}", f"/submit?kind=command&name={odd}&argv={odd}", "/submit?as=document",
        f"/nights/{night}", f"/nights/{odd}", f"/jobs?state={odd}&cause={odd}&tag={odd}&q={odd}&since={odd}&until={odd}&sweep={odd}&kind={odd}",
        f"/jobs/{odd}", f"/sweeps/{odd}", f"/login?next={odd}",
    ]  # fmt: skip


def is_whole(page: "Page", path: str) -> None:
    """Nothing of it became an element, and it is as wide as the screen, a phone's and a desk's."""
    assert (
        page.locator(".evil, iframe, img, embed, object, script:not([src]), [onmouseover], [onfocus], [style]").count()
        == 0
    ), path
    assert page.locator("main, pre").count() > 0, path
    for screen in (DESKTOP, PHONE):
        page.set_viewport_size(screen["viewport"])
        wide = page.evaluate("() => document.documentElement.scrollWidth")
        assert wide <= screen["viewport"]["width"], (
            f"{path} is {wide} wide on a screen of {screen['viewport']['width']}"
        )
    text = page.locator("body").inner_text()
    assert "\x1b" not in text and "\u202e" not in text and PRODUCT not in text, path


def test_s16_on_every_page_it_stays_text(visit: Visit, site: Site) -> None:
    page = visit("/")
    for path in every_page(site):
        answer = page.goto(f"{site.url}{path}")
        assert answer is not None and answer.status in (200, 404, 422), path
        is_whole(page, path)


def test_s16_it_is_shown_word_for_word(visit: Visit, site: Site) -> None:
    page = visit("/")
    shown = {
        f"/jobs/{site.jobs['failed-0'].id}": [MARKUP],
        f"/jobs/{site.jobs['failed-3'].id}": [TEMPLATE],
        f"/jobs/{site.jobs['data'].id}": [MARKUP, LINK],
        f"/sweeps/{site.jobs['sweep'].id}": [MARKUP[:120], LINK[:60]],
        "/gpus": [MARKUP],
        "/": [MARKUP],
    }
    for path, texts in shown.items():
        page.goto(f"{site.url}{path}")
        for text in texts:
            assert text in page.locator("body").inner_text(), path


def test_s16_what_comes_by_the_stream_stays_text(visit: Visit, site: Site) -> None:
    rig, pages = site.rig, [visit("/"), visit("/jobs"), visit("/plan")]
    for page in pages:
        page.wait_for_function("() => streams[0]?.readyState === 1")
    job = _failed(rig, f"{MARKUP} by the stream", time.time() - 70)
    for page in pages[:2]:
        until(lambda page=page: "by the stream" in page.locator("main").inner_text(), within_s=10.0)
    for page in pages:
        is_whole(page, page.url)
    rig.store.delete(job.id)


def test_s16_the_form_shows_what_was_typed_and_what_is_wrong_as_text(visit: Visit, site: Site) -> None:
    page = visit("/submit?kind=finetune")
    page.locator("#f-model").fill(MARKUP)
    page.locator("#f-data").fill(CLOSING)
    page.locator("#outlook.wrong").wait_for()
    is_whole(page, "/submit")
    page.goto(f"{site.url}/submit?as=document")
    page.locator("#f-document").fill(f"kind = {json.dumps(MARKUP)}\n{json.dumps(CLOSING)} = 1\n")
    page.locator("#outlook.wrong").wait_for()
    is_whole(page, "/submit?as=document")


def test_s16_rows_of_data_stay_text_in_the_preview_of_the_form(visit: Visit, site: Site, tiny_model: Path) -> None:
    settings, digest = site.rig.settings, "e" * 64
    copy_tokenizer(tiny_model, settings.models / "tiny")
    settings.inputs.mkdir(exist_ok=True)
    chat = [
        {"role": "user", "content": MARKUP + LINK + CONTROL},
        {"role": "assistant", "content": CLOSING + TEMPLATE + ENDLESS},
    ]
    (settings.inputs / digest).write_text(json.dumps({"messages": chat}) + "\n")
    page = visit("/submit?kind=finetune")
    page.locator("#f-model").fill("tiny")
    page.locator("#f-data").fill(f"sha256:{digest}")
    learnt = page.locator("#preview mark").first
    learnt.wait_for(timeout=30_000)
    assert learnt.inner_text().startswith(CLOSING + TEMPLATE)
    assert MARKUP in page.locator("#preview pre").inner_text()
    is_whole(page, "/submit")
    page.locator("#f-max_length").fill("64")
    page.locator("#preview pre del").wait_for(timeout=30_000)  # what is cut now
    is_whole(page, "/submit")
