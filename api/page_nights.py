"""The nights: a list of those that were kept, and a page for each.

/nights                ?before=2026-11-21 goes on
/nights/{date}         one night, by the date of its evening
"""

from datetime import date, timedelta
from typing import Any

import redis
from fastapi import APIRouter
from fastapi.responses import Response

from api import page, panels, report_html, report_words
from api.context import Context, Rig
from api.night_keeper import night_of
from daemon.night import calendar, kept

LISTED = 31

router = APIRouter(include_in_schema=False)


@router.get("/nights")
def nights_page(rig: Rig, before: date | None = None) -> Response:
    """The kept nights, the latest first."""
    days = [day for day in kept.nights(rig.settings.home) if before is None or day < before]
    known = [mark for day in days[:LISTED] if (mark := kept.read_mark(rig.settings.home, day)) is not None]
    more = days[LISTED - 1].isoformat() if len(days) > LISTED else ""
    return page.render("nights.html", rig, kept=known, before=more, words_of=report_words, **_common(rig))


@router.get("/nights/{day}")
def night_page(rig: Rig, day: str) -> Response:
    """One night."""
    common = _common(rig)
    try:
        wanted = date.fromisoformat(day)
        night = night_of(rig, wanted)
    except (ValueError, OverflowError):
        night = None
    except redis.RedisError:
        return page.render("missing.html", rig, 503, job_id=day, what="night", **common)
    if night is None:
        return page.render("missing.html", rig, 404, job_id=day, what="night", **common)
    last = calendar(rig.settings).date_of(rig.now())
    beside: dict[str, Any] = {"earlier": (wanted - timedelta(days=1)).isoformat(), "later": ""}
    if wanted < last:
        beside["later"] = (wanted + timedelta(days=1)).isoformat()
    answer = page.render("night.html", rig, linked=True, **report_html.shown(rig, night), **beside, **common)
    answer.headers.update(page.KEEP)
    return answer


def _common(rig: Context) -> dict[str, Any]:
    now = rig.now()
    snap = panels.look(rig.store, rig.ledger, rig.settings, now)
    banners = [banner for banner in panels.banners(snap) if banner.level == "warn"]
    return {"now": now, "snap": snap, "heart": panels.heart(snap), "facts": snap.facts, "banners": banners}
