"""The report in its four forms, over HTTP, on its pages and in its files."""

import json
import re
from collections.abc import Callable
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from live_api import NOW
from markdown_it import MarkdownIt
from starlette.responses import Response
from starlette.testclient import TestClient

from api import report_html
from api.app import create_app
from api.guard import CSP, Guard
from api.night_keeper import NightKeeper
from daemon.night import kept
from daemon.night.message import MOST_BYTES
from daemon.settings import Settings
from daemon.store import Store
from jobs.model import Cause, End, Outcome, State
from jobs.rundir import RunDir, append_json_line
from jobs.spec import parse
from jobs.sweep import Goal, SweepFacts

REPORT = "/api/v1/report"
#: NOW is Wednesday, 18 November 2026, 11:06 UTC.
NIGHT = date(2026, 11, 17)

Submit, Bring, FolderOf = Callable[..., str], Callable[[str, State], Any], Callable[[str], RunDir]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A rig whose owner reads the report at noon: what ends at NOW belongs to the night of the evening before."""
    return settings.model_copy(update={"report_at": "12:00"})


@pytest.fixture
def clock(app: FastAPI) -> Callable[[float], None]:
    """Sets the time that the application sees."""

    def at(now: float) -> None:
        object.__setattr__(app.state.context, "now", lambda: now)

    at(NOW + 600)
    return at


@pytest.fixture
def night(
    client: TestClient, submit: Submit, brought: Bring, folder_of: FolderOf, clock: object
) -> Callable[..., list[str]]:
    """A night with a job that ended well and one that failed, both with curves, and one that waits."""

    def make(name: str = "a job", line: str = "It cannot be.") -> list[str]:
        store: Store = client.app.state.store  # type: ignore[attr-defined]
        ids = [submit() for _ in range(3)]
        for job_id in ids:  # names that the API would refuse, as an older version may have let in
            store.change(job_id, lambda job: job.edited(name=name))
        for job_id in ids[:2]:
            for step in range(1, 6):
                append_json_line(folder_of(job_id).metrics, {"step": step, "loss": 2.0 / step})
        brought(ids[0], State.SUCCEEDED)
        offered = store.offer(ids[1], rig="rig", slots=("cpu:1",), epoch=store.new_epoch("rig"), now=NOW)
        store.claim(ids[1], fence=offered.fence, owner="test", now=NOW, lease_s=60)
        store.finish(ids[1], fence=offered.fence, outcome=Outcome(end=End.FAILED, cause=Cause.BAD_INPUT, message=line, hint=line), now=NOW + 9)  # fmt: skip
        return ids

    return make


def test_the_report_comes_in_the_form_that_is_asked_for(client: TestClient, night: Callable[..., list[str]]) -> None:
    night()
    forms = {
        "application/json": "application/json",
        "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8": "text/html",
        "text/markdown": "text/markdown",
        "text/plain": "text/plain",
        "*/*": "application/json",
        "text/plain;q=0.2, text/markdown;q=0.4": "text/markdown",
    }
    for accept, kind in forms.items():
        answer = client.get(REPORT, headers={"Accept": accept})
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind), accept
        assert answer.headers["vary"] == "Accept"
    assert client.get(REPORT, headers={"Accept": "image/png"}).status_code == 406
    assert client.get(REPORT, params={"format": "md"}).text.startswith("# Night of 2026-11-17")


def test_the_json_says_what_the_night_was(client: TestClient, night: Callable[..., list[str]]) -> None:
    ids = night()
    told = client.get(REPORT).json()
    assert (told["date"], told["counts"]["done"], told["counts"]["failed"], told["counts"]["queued"]) == ("2026-11-17", 1, 1, 1)  # fmt: skip
    assert told["verdict"]["colour"] == "red" and told["needs_you"][0]["jobs"] == [ids[1]]
    assert told["since"].endswith("Z")


def test_a_night_that_has_not_begun_is_not_found_and_nonsense_is_refused(client: TestClient, clock: object) -> None:
    assert client.get(REPORT, params={"night": "2026-11-19"}).status_code == 404
    assert client.get(REPORT, params={"night": "yesterday"}).status_code == 422
    assert client.get(REPORT, params={"night": "2026-11-17", "since": "2026-11-17T20:00Z"}).status_code == 422
    assert client.get(REPORT, params={"since": "1999-11-17T20:00Z"}).status_code == 422
    assert client.get(REPORT, params={"night": "0001-01-01"}).status_code in (200, 404)
    assert client.get(REPORT, params={"night": "9999-12-31"}).status_code == 404


def test_hours_of_ones_own_can_be_asked_for(client: TestClient, night: Callable[..., list[str]]) -> None:
    night()
    since = "2026-11-18T11:00:00Z"
    assert client.get(REPORT, params={"since": since}).json()["since"] == since
    assert client.get(REPORT, params={"since": "2026-11-18T11:10:00Z"}).json()["counts"]["done"] == 0


def test_the_message_has_at_most_400_bytes_whatever_jobs_are_called(
    client: TestClient, night: Callable[..., list[str]]
) -> None:
    night(name="日本語の名前" * 20, line="ünï" * 100)
    answer = client.get(REPORT, params={"format": "text"})
    assert len(answer.content) <= MOST_BYTES
    assert "1 of 2 failed" in answer.text and "FAILED 1 x bad input" in answer.text


def test_the_file_has_its_style_and_its_curves_in_it_and_asks_for_nothing(
    client: TestClient, night: Callable[..., list[str]]
) -> None:
    night()
    answer = client.get(REPORT, params={"format": "html"})
    page = answer.text
    assert answer.headers.get_list("content-security-policy") == [report_html.policy()]
    assert "script" not in report_html.policy() and "unsafe" not in report_html.policy()
    assert report_html.policy(framed=True) in page.replace("&#39;", "'")
    assert page.count('<svg class="r-plot"') == 2 and '<path class="r-line' in page
    assert not re.search(r"<script|<link|<img|\son\w+=|(src|href)=", page)


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "`</code>` **b** [a](javascript:alert(1)) ![i](http://evil/x.png) <b>",
    "|cell|\n\n# heading\n- list <http://evil>",
    "\x1b]0;title\x07\x1b[31mred\u202eright\r\nFORGED 9 x line",
    "{{ 7*7 }}{% raw %}</style><style>*{}",
]


class Tags(HTMLParser):
    """Counts the elements and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name in (tag, *(f"{tag}@{attribute}" for attribute, _ in attrs)):
            self.found[name] = self.found.get(name, 0) + 1


def tags(text: str) -> dict[str, int]:
    parser = Tags()
    parser.feed(text)
    return parser.found


class Shape:
    """What each form of the report is built of, without its words."""

    def __init__(self, client: TestClient):
        self.told = {form: client.get(REPORT, params={"format": form}).text for form in ("html", "md", "text", "json")}
        self.page = tags(client.get(f"/nights/{NIGHT}").text)
        self.file = tags(self.told["html"])
        self.tokens = MarkdownIt("commonmark").enable("table").parse(self.told["md"])
        self.markdown = [token.type for token in self.tokens]

    def is_like(self, plain: "Shape", text: str) -> None:
        """The same elements, the same Markdown, the same number of lines, whatever the words are."""
        assert self.file == plain.file and self.page == plain.page, text
        assert self.markdown == plain.markdown, text
        inside = {child.type for token in self.tokens for child in token.children or ()}
        assert not inside & {"html_inline", "link_open", "image"}, text
        assert len(self.told["text"].splitlines()) == len(plain.told["text"].splitlines()), text
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", self.told["text"] + self.told["md"]), text


def anew(client: TestClient, store: Store, *, slots: str = "CPU slot") -> None:
    """An empty queue on a rig whose slots are called so."""
    store.redis.flushall()
    store.describe_rig("rig", {"slots": [{"id": f"cpu:{n}", "name": slots, "index": n} for n in (0, 1)]})
    store.beat("rig", {"at": NOW})
    client.app.state.ledger.forget()  # type: ignore[attr-defined]


def test_s16_hostile_names_and_lines_change_nothing_in_any_form(
    client: TestClient, store: Store, night: Callable[..., list[str]], clock: object
) -> None:
    night(name="plain", line="plain")
    plain = Shape(client)
    for text in HOSTILE:
        anew(client, store)
        night(name=text, line=text)
        found = Shape(client)
        found.is_like(plain, text)
        assert json.loads(found.told["json"])["ran"][0]["name"] == text  # data stays what it was


def a_sweep_of(client: TestClient, store: Store, text: str) -> None:
    """GPUs, a sweep, its parameters and its metric are called so; two of its jobs failed, two are done, one the baseline."""
    anew(client, store, slots=text)
    name = "".join(c for c in text if c.isprintable())[:100]
    facts = SweepFacts(name=name, method="grid", axes=(name,), base={name: 1}, goal=Goal(minimize=name))
    spec = parse({"kind": "command", "argv": ["true"], "name": "a point"})
    jobs, _ = store.submit([spec] * 4, now=NOW, sweep=facts, points=[{name: n} for n in range(4)])
    for at, job in enumerate(jobs):
        offered = store.offer(job.id, rig="rig", slots=("cpu:0",), epoch=store.new_epoch("rig"), now=NOW)
        store.claim(job.id, fence=offered.fence, owner="test", now=NOW + at, lease_s=60)
        failed = Outcome(end=End.FAILED, cause=Cause.NAN, message=text, hint=text)
        done = Outcome(end=End.SUCCEEDED, metrics={name: 1.0 + at, text: 2.0})
        store.finish(job.id, fence=offered.fence, outcome=failed if at > 1 else done, now=NOW + at + 60)


def test_s16_names_of_gpus_sweeps_parameters_and_metrics_change_nothing_in_any_form(
    client: TestClient, store: Store, clock: object
) -> None:
    a_sweep_of(client, store, "plain")
    plain = Shape(client)
    told = json.loads(plain.told["json"])
    assert told["best"]["metric"] == "plain" and told["needs_you"][0]["sweep_name"] == "plain"
    for text in HOSTILE:
        a_sweep_of(client, store, text)
        found = Shape(client)
        found.is_like(plain, text)
        assert json.loads(found.told["json"])["lanes"][0]["name"] == text


def test_a_night_that_is_over_is_kept_and_served_from_its_file(
    client: TestClient,
    settings: Settings,
    store: Store,
    night: Callable[..., list[str]],
    clock: Callable[[float], None],
) -> None:
    night()
    clock(NOW + 86_400)
    first = client.get(REPORT, params={"night": str(NIGHT)})
    assert first.json()["over"] is True
    files = sorted(path.name for path in (settings.home / "reports").iterdir())
    assert files == ["2026-11-17.html", "2026-11-17.json"]
    store.redis.flushall()
    again = client.get(REPORT, params={"night": str(NIGHT)})
    assert again.content == first.content
    assert client.get(REPORT, params={"night": str(NIGHT)}, headers={"If-None-Match": again.headers["etag"]}).status_code == 304  # fmt: skip


def test_a_restart_changes_nothing_in_the_report(
    client: TestClient, settings: Settings, store: Store, night: Callable[..., list[str]], app: FastAPI, token: str
) -> None:
    night()
    fresh = create_app(settings, store, now=lambda: NOW + 600)
    with TestClient(fresh, base_url="http://localhost", headers={"Authorization": f"Bearer {token}"}) as second:
        for form in ("html", "md", "text"):
            assert second.get(REPORT, params={"format": form}).text == client.get(REPORT, params={"format": form}).text
        told = [each.get(REPORT).json() for each in (client, second)]
    for one in told:
        del one["disk_free_bytes"], one["disk_free_ratio"]  # of this very moment
    assert told[0] == told[1]


def test_a_kept_file_that_cannot_be_read_is_made_anew(
    client: TestClient, settings: Settings, night: Callable[..., list[str]], clock: Callable[[float], None]
) -> None:
    night()
    clock(NOW + 86_400)
    folder = settings.home / "reports"
    folder.mkdir()
    for wrong in ("{", "[]", '{"date": 5}'):
        (folder / "2026-11-17.json").write_text(wrong)
        assert client.get(REPORT, params={"night": str(NIGHT)}).json()["counts"]["done"] == 1


def test_the_keeper_writes_the_promise_and_then_the_report(
    client: TestClient, settings: Settings, night: Callable[..., list[str]], app: FastAPI, clock: Callable[[float], None],
    submit: Submit, brought: Bring,
) -> None:  # fmt: skip
    waiting = submit()
    keeper = NightKeeper(app.state.context)
    keeper.look()
    promise = kept.read_promise(settings.home, NIGHT)
    assert promise is not None and waiting in promise.ends
    brought(waiting, State.SUCCEEDED)
    keeper.look()  # nothing is left to run
    mark = kept.read_mark(settings.home, NIGHT)
    assert mark is not None and not mark.over and mark.sentence.startswith("1 job done")
    clock(NOW + 3600)  # past noon: the night is over
    keeper.look()
    mark = kept.read_mark(settings.home, NIGHT)
    assert mark is not None and mark.over
    found = kept.read_night(settings.home, NIGHT)
    assert found is not None and found.foretold is not None and found.foretold.at == promise.at


def test_the_nights_are_listed_and_each_has_its_page(
    client: TestClient, night: Callable[..., list[str]], clock: Callable[[float], None]
) -> None:
    ids = night()
    assert "No night has been kept yet" in client.get("/nights").text
    clock(NOW + 86_400)
    page = client.get("/nights/2026-11-17")
    assert page.headers["content-security-policy"] == CSP and f'href="/jobs/{ids[1]}"' in page.text
    assert 'href="/nights/2026-11-17"' in client.get("/nights").text
    assert client.get("/nights/2031-01-01").status_code == 404
    assert client.get("/nights/nonsense").status_code == 404


def test_each_end_is_told_in_one_dated_night_and_at_once_in_the_last_one(
    client: TestClient,
    settings: Settings,
    night: Callable[..., list[str]],
    clock: Callable[[float], None],
    app: FastAPI,
) -> None:
    """The report is due at seven and two jobs end by day, outside the window: nobody has to wait for them, and none is lost."""
    by_day = settings.model_copy(update={"report_at": "07:00", "window": "22:00-06:00"})
    object.__setattr__(app.state.context, "settings", by_day)
    night()
    assert client.get(REPORT).json()["counts"]["done"] == 1, "the last night goes on until the next one begins"
    clock(NOW + 3 * 86_400)
    told = {day: client.get(REPORT, params={"night": day}).json() for day in ("2026-11-17", "2026-11-18", "2026-11-19")}
    assert [(one["counts"]["done"], one["counts"]["failed"]) for one in told.values()] == [(0, 0), (1, 1), (0, 0)]
    assert told["2026-11-18"]["since"].startswith("2026-11-18T11:06"), "it is drawn from where its first job ran"
    assert told["2026-11-18"]["until"].startswith("2026-11-19T06:01"), "to where the window closed, and jobs had saved"


def test_an_empty_night_has_a_report_and_leaves_no_file(
    client: TestClient, settings: Settings, clock: Callable[[float], None]
) -> None:
    clock(NOW + 86_400)
    for form in ("json", "html", "md", "text"):
        assert client.get(REPORT, params={"night": str(NIGHT), "format": form}).status_code == 200
    assert not Path(settings.home / "reports").exists()


@pytest.mark.parametrize("policy", ["", "default-src *", "default-src 'none'; style-src 'unsafe-inline'"])
def test_s15_only_a_stricter_policy_passes_the_guard(settings: Settings, policy: str) -> None:
    async def inside(scope: Any, receive: Any, send: Any) -> None:
        said = report_html.policy() if scope["path"] == "/strict" else policy
        await Response("x", headers={"Content-Security-Policy": said})(scope, receive, send)

    client = TestClient(Guard(inside, settings=settings), base_url="http://localhost")
    assert client.get("/").headers.get_list("content-security-policy") == [CSP]
    assert client.get("/strict").headers.get_list("content-security-policy") == [report_html.policy()]
