"""A sweep's page.

/sweeps/{id}              its result as a picture of its axes, and the jobs, the best first
/fragments/sweep/{id}     everything on it that changes
"""

from typing import Any

import redis
from fastapi import APIRouter
from fastapi.responses import Response

from api import page, panels, sweep_charts, sweep_panel
from api.context import Context, Rig
from daemon.store import UnknownSweep

router = APIRouter(include_in_schema=False)


@router.get("/sweeps/{sweep_id}")
def sweep_page(rig: Rig, sweep_id: str) -> Response:
    """One sweep."""
    return _sweep_page("sweep.html", rig, sweep_id)


@router.get("/fragments/sweep/{sweep_id}")
def sweep_fragment(rig: Rig, sweep_id: str) -> Response:
    """Everything on a sweep's page that changes."""
    return _sweep_page("sweep_live.html", rig, sweep_id)


def _sweep_page(template: str, rig: Context, sweep_id: str) -> Response:
    now = rig.now()
    snap = panels.look(rig.store, rig.ledger, rig.settings, now)
    doubts = [banner for banner in panels.banners(snap) if banner.level == "warn"]
    common: dict[str, Any] = {"now": now, "snap": snap, "heart": panels.heart(snap), "banners": doubts, "here": "jobs"}
    try:
        if not (sweep_id.isascii() and sweep_id.isdigit() and len(sweep_id) <= 18):
            raise UnknownSweep(sweep_id)
        table = rig.tables.of(rig.store.sweep(sweep_id))
    except (UnknownSweep, redis.RedisError) as error:
        status = 404 if isinstance(error, UnknownSweep) else 503
        return page.render("missing.html", rig, status, **common, facts=snap.facts, job_id=sweep_id, what="sweep")
    return page.render(
        template,
        rig,
        200,
        **common,
        sweep_id=sweep_id,
        table=table,
        lines=sweep_panel.lines(table),
        acts=sweep_panel.acts(table),
        picture=sweep_charts.picture(table),
    )
