"""The pages of the GPUs: what they do now, and what they did in the last hour, night, week or month.

/gpus                    every slot of this rig      ?span=1h 6h 24h 7d 30d
/gpus/{slot}             one, by its id or its number
/fragments/gpus/...      the same without what stands around it, for the script that keeps it fresh
"""

from collections.abc import Iterator
from typing import Annotated, Any

import redis
from fastapi import APIRouter, Query
from fastapi.responses import Response

from api import gpu_panel, page, panels
from api.context import Context, Rig
from api.gpu_panel import SPANS, USUAL_SPAN, View
from api.panels import SlotCard, Snapshot
from daemon import telemetry
from daemon.slot_past import past
from jobs.model import Job

#: Of more jobs than this only the latest are drawn: a page is no archive.
MOST_JOBS = 1_000
LISTED_JOBS, LISTED_FAULTS = 12, 20
#: In the overview a chart is small.
FEW_POINTS = 120

router = APIRouter(include_in_schema=False)

Span = Annotated[str, Query(max_length=8)]


@router.get("/gpus")
def gpus_page(rig: Rig, span: Span = USUAL_SPAN) -> Response:
    """Every slot of this rig, now and in this time."""
    return _overview("gpus.html", rig, span)


@router.get("/fragments/gpus/{span}")
def gpus_fragment(rig: Rig, span: str) -> Response:
    """What changes on it."""
    return _overview("gpus_live.html", rig, span)


@router.get("/gpus/{slot_id}")
def gpu_page(rig: Rig, slot_id: str, span: Span = USUAL_SPAN) -> Response:
    """One slot."""
    return _one("gpu.html", rig, slot_id, span)


@router.get("/fragments/gpus/{span}/{slot_id}")
def gpu_fragment(rig: Rig, slot_id: str, span: str) -> Response:
    """What changes on it."""
    return _one("gpu_live.html", rig, slot_id, span)


def _overview(template: str, rig: Context, span: str) -> Response:
    frame, span = page.frame(rig), span if span in SPANS else USUAL_SPAN
    snap: Snapshot = frame["snap"]
    cards = panels.slots(snap)
    jobs = _jobs_since(rig, snap, snap.now - SPANS[span])
    views = {card.id: _view(rig, snap, card, jobs, span, FEW_POINTS) for card in cards}
    return page.render(template, rig, **frame, **_words(rig, span), cards=cards, views=views, has_gpu=_has_gpu(cards))


def _one(template: str, rig: Context, slot_id: str, span: str) -> Response:
    frame, span = page.frame(rig), span if span in SPANS else USUAL_SPAN
    snap: Snapshot = frame["snap"]
    cards = panels.slots(snap)
    card = next((card for number, card in enumerate(cards) if slot_id in (card.id, _number(card, number))), None)
    if card is None:
        missing = {"job_id": slot_id[:60], "what": "GPU"}
        return page.render("missing.html", rig, 404 if snap.facts is not None else 503, **frame, **missing)
    jobs = _jobs_since(rig, snap, snap.now - SPANS[span])
    seen = _view(rig, snap, card, jobs, span)
    shown: dict[str, Any] = {
        "energy_j": seen.past.energy_j,
        "cost": seen.past.cost(rig.settings.prices),
        "stays": seen.stays[:LISTED_JOBS],
        "faults": seen.faults[::-1][:LISTED_FAULTS],
    }
    return page.render(template, rig, **frame, **_words(rig, span), **shown, card=card, view=seen)


def _number(card: SlotCard, place: int) -> str:
    """What people call it by: the number in its title."""
    return card.title.rpartition(" ")[2] or str(place)


def _has_gpu(cards: list[SlotCard]) -> bool:
    return any(not card.shared for card in cards)


def _words(rig: Context, span: str) -> dict[str, Any]:
    return {
        "span": span,
        "spans": gpu_panel.SPAN_WORDS,
        "span_words": gpu_panel.SPAN_WORDS[span],
        "has_prices": rig.settings.prices.known,
        "gpu_panel": gpu_panel,
        "most_jobs": MOST_JOBS,
    }


def _view(rig: Context, snap: Snapshot, card: SlotCard, jobs: list[Job], span: str, most: int = 300) -> View:
    settings, start = rig.settings, snap.now - SPANS[span]
    found = past(settings.home, card.id, start, snap.now, most=most)
    events = telemetry.events(settings.home, found.start, snap.now, slots=[card.id])
    zone = settings.zone
    return gpu_panel.view(found, card.now, jobs, events, slot=card.id, rig=settings.rig, at=snap.now, zone=zone)


def _jobs_since(rig: Context, snap: Snapshot, start: float) -> list[Job]:
    """Jobs that may have run since then: those that have a slot, and what ended."""
    if snap.facts is None:
        return []
    try:
        return [*(job for job in snap.facts.jobs.values() if job.attempts), *_ended_since(rig, start)]
    except redis.RedisError:
        return []  # it went away in between: the charts are there all the same


def _ended_since(rig: Context, start: float) -> Iterator[Job]:
    cursor, seen = None, 0
    while seen < MOST_JOBS:
        found = rig.store.ended(limit=200, cursor=cursor)
        for job in found.jobs:
            if (job.finished_at or 0.0) < start:
                return
            yield job
        cursor, seen = found.next, seen + len(found.jobs)
        if cursor is None:
            return
