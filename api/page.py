"""The rig's pages: what happened in the night, what it does now, the queue; a page for each job. Server-made, readable without script.

    /                     the night, the GPUs now, the queue, what ended
    /login                the way in
    /fragments/...        parts of these pages, for the script that keeps them fresh

Names, logs, numbers and errors are jobs' words: every output of a template is cleaned (`wording.printable`) and escaped.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import redis
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from api import (
    acts,
    job_panel,
    night_lanes,
    night_links,
    night_panel,
    panels,
    preview_panel,
    report_words,
    sweep_panel,
    wording,
)
from api.assets import asset_url
from api.auth import NEXT
from api.context import Context, Rig
from api.nights import NightUnknown
from daemon.night import Night
from daemon.rig import Slot
from daemon.settings import Settings

HERE = Path(__file__).parent
#: The pages that every page leads to: name, address, label, and the lines of its picture. A phone has room for the first five.
PLACES = (
    ("night", "/", "Night", "M20 14.5A8.5 8.5 0 1 1 10.2 4a7 7 0 0 0 9.8 10.5z"),
    ("gpus", "/gpus", "GPUs", "M7 7h10v10H7zM10 3v4M14 3v4M10 17v4M14 17v4M3 10h4M3 14h4M17 10h4M17 14h4"),
    ("jobs", "/jobs", "Jobs", "M9 6h11M9 12h11M9 18h11M4 6h1M4 12h1M4 18h1"),
    ("plan", "/plan", "Plan", "M3 6h9M9 12h12M6 18h8"),
    ("submit", "/submit", "Submit", "M12 5v14M5 12h14"),
    ("nights", "/nights", "Reports", "M6 3h12v18H6zM9 8h6M9 12h6M9 16h3"),
    ("settings", "/settings", "Settings", "M4 7h10M18 7h2M4 17h2M10 17h10M16 5v4M8 15v4"),
)
#: Which of them a template belongs to, by how its name begins.
PLACE_OF = {"gpu": "gpus", "plan": "plan", "submit": "submit", "job": "jobs", "sweep": "jobs", "compare": "jobs", "night": "nights", "report": "nights", "settings": "settings"}  # fmt: skip
#: Tells the service worker that it may keep this page for the hours in which the rig is off.
KEEP = {"Overnight-Keep": "page"}
#: So long a page waits for the newest night; after that it shows the one before, and its script asks again.
PAGE_WAITS_S, FRAGMENT_WAITS_S = 0.06, 2.0
#: What the list of jobs understands, and this page did once: old addresses still lead there.
FILTERS = ("state", "kind", "tag", "q")

router = APIRouter(include_in_schema=False)

Short = Annotated[str, Query(max_length=128)]


@router.get("/")
def status_page(rig: Rig, request: Request) -> Response:
    """The night, the GPUs, the queue, what ended."""
    if filters := {name: value for name, value in request.query_params.items() if name in FILTERS and value}:
        return RedirectResponse(f"/jobs?{urlencode(filters)}", 303)
    return _home(rig)


def warm(rig: Context) -> None:
    """Make what the first look after a start would wait for: the facts, the night, the templates."""
    _home(rig)


def _home(rig: Context) -> HTMLResponse:
    now = _now(rig)
    told = _night(rig, now["snap"], PAGE_WAITS_S)
    night: Night | None = told["night"]
    title = night_panel.title(night) if night else now["headline"]
    answer = render("home.html", rig, **{**now, **_lists(rig, now["snap"])}, **told, title=title)
    answer.headers.update(KEEP if night else {})
    return answer


@router.get("/fragments/night")
def night_fragment(rig: Rig) -> Response:
    """The night: what changes when a job ends."""
    now = _now(rig)
    return render("night_live.html", rig, **now, **_night(rig, now["snap"], FRAGMENT_WAITS_S))


@router.get("/fragments/slots")
def slots_fragment(rig: Rig) -> Response:
    """Health, headline and slots: what changes while nothing happens in the queue."""
    return render("slots_live.html", rig, **_now(rig))


@router.get("/fragments/jobs")
def jobs_fragment(rig: Rig) -> Response:
    """The queue, and what ended."""
    now = _now(rig)
    return render("jobs_live.html", rig, **{**now, **_lists(rig, now["snap"])})


@router.get("/login")
def login_page(rig: Rig, next: Short = "/") -> Response:
    """The form for the token. A link with a code is redeemed by the script."""
    return login_form(rig, next)


def login_form(rig: Context, next: str, *, wrong: str = "", status: int = 200) -> HTMLResponse:
    """The same, with what was wrong the last time."""
    return render("login.html", rig, status, next=next if NEXT.fullmatch(next) else "/", wrong=wrong)


# -- the status page ----------------------------------------------------------------------------------------------------------


def _now(rig: Context) -> dict[str, Any]:
    snap = panels.look(rig.store, rig.ledger, rig.settings, rig.now())
    return {
        "snap": snap,
        "facts": snap.facts,
        "now": snap.now,
        "heart": panels.heart(snap),
        "banners": panels.banners(snap),
        "headline": panels.headline(snap),
        "subline": panels.subline(snap),
        "slots": panels.slots(snap),
        "rig_acts": acts.of_rig(snap.facts.paused) if snap.facts is not None else [],
        "counts": snap.counts,
    }


def _night(rig: Context, snap: panels.Snapshot, patience_s: float) -> dict[str, Any]:
    """The last night, and whether all that has happened is in it; None while nobody can tell it."""
    if snap.facts is not None:
        try:
            night, is_new = rig.nights.last(snap.facts, tuple((snap.counts or {}).items()), patience_s=patience_s)
            return {"night": night, "night_is_new": is_new}
        except NightUnknown:
            pass  # the next look tells
    return {"night": None, "night_is_new": True}


def _lists(rig: Context, snap: panels.Snapshot) -> dict[str, Any]:
    """The head of the queue, and what ended last; `facts` is None when Redis went away in between."""
    if snap.facts is not None:
        try:
            queue, more = panels.waiting(snap.facts)
            ended = rig.store.ended(limit=panels.ROWS)
            over = {job.id for job in ended.jobs}  # read a moment later: what ended in between stands there only
            elsewhere = panels.elsewhere(snap.facts)
            return {
                "queue": [row for row in queue if row.job.id not in over],
                "queue_more": more,
                "ended": ended.jobs,
                "ended_more": ended.next,
                "elsewhere": elsewhere,
            }
        except redis.RedisError:
            pass  # said below, in the page's own words
    return {"facts": None, "queue": [], "queue_more": None, "ended": (), "ended_more": None, "elsewhere": []}


# -- parts of other pages ---------------------------------------------------------------------------------------------------


def _job_banners(snap: panels.Snapshot) -> list[panels.Banner]:
    """Only what makes this page doubtful."""
    return [banner for banner in panels.banners(snap) if banner.level == "warn"]


def message(
    rig: Context,
    status: int,
    *,
    title: str,
    text: str,
    back: str,
    act: acts.Act | None = None,
    fields: Mapping[str, str] | None = None,
) -> Response:
    """A page that says one thing, or asks one: then with the act's form and these fields."""
    sent = {name: value for name, value in (fields or {}).items() if name}
    return render("message.html", rig, status, title=title, text=text, back=back, act=act, fields=sent)


def slot_title(slot: Slot) -> str:
    """GPU 0, CPU slot 1."""
    return panels.title_of(slot.is_gpu, slot.index)


# -- rendering ----------------------------------------------------------------------------------------------------------------


def frame(rig: Context) -> dict[str, Any]:
    """What stands around every page: the moment, the look at the rig, its health."""
    now = rig.now()
    snap = panels.look(rig.store, rig.ledger, rig.settings, now)
    return {
        "now": now,
        "snap": snap,
        "facts": snap.facts,
        "heart": panels.heart(snap),
        "banners": _job_banners(snap),
    }


def render(template: str, rig: Context, status: int = 200, **values: Any) -> HTMLResponse:
    """A page. Those that have a module of their own make theirs with this."""
    values.setdefault("here", next((place for start, place in PLACE_OF.items() if template.startswith(start)), ""))
    text = _templates().get_template(template).render(settings=rig.settings, zone=rig.settings.zone, **values)
    return HTMLResponse(text, status)


@cache
def _templates() -> Environment:
    """Autoescape everywhere, every output cleaned, a misspelt name is an error."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=wording.printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(wording, name)
        for name in ("age", "brief", "duration", "energy", "fixed", "number", "percent", "short", "size", "words")
    }
    environment.globals |= {
        "asset": asset_url,
        "moment": _moment,
        "file_link": _file_link,
        "state_words": wording.STATE_WORDS,
        "cause_words": wording.CAUSE_WORDS,
        "count": wording.count,
        "telling_metric": wording.telling_metric,
        "acts_of": acts.of_job,
        "panels": panels,
        "preview_panel": preview_panel,
        "places": PLACES,
        "job_panel": job_panel,
        "night_lanes": night_lanes,
        "night_links": night_links,
        "night_panel": night_panel,
        "report_words": report_words,
        "sweep_panel": sweep_panel,
    }
    return environment


def _moment(moment: float, now: float, settings: Settings) -> Markup:
    """A time of day; the whole of it for those who point at it."""
    short, whole = wording.clock(moment, now, settings.zone), wording.stamp(moment, settings.zone)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(wording.iso(moment), whole, escape(short))


def _file_link(job_id: str, path: str) -> str:
    return f"/api/v1/jobs/{job_id}/files/{quote(path)}"
