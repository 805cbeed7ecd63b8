"""The page of the plan: when every job starts and ends, what will be late, and what would have to give.

/plan               tonight          ?by=07:00 measures by that time instead of the window's end
/fragments/plan/... the same without what stands around it
"""

from typing import Annotated, Any

import redis
from fastapi import APIRouter, Query
from fastapi.responses import Response

from api import page, plan_panel, routes_plan
from api.context import Context, Rig

#: More jobs than this are not told; the lanes are of all.
MOST_JOBS = 1_000

router = APIRouter(include_in_schema=False)

By = Annotated[str, Query(max_length=8)]


@router.get("/plan")
def plan_page(rig: Rig, by: By = "") -> Response:
    """The night ahead."""
    return _plan("plan.html", rig, by)


@router.get("/fragments/plan")
def plan_fragment(rig: Rig) -> Response:
    """What changes on it."""
    return _plan("plan_live.html", rig, "")


@router.get("/fragments/plan/{by}")
def plan_by_fragment(rig: Rig, by: str) -> Response:
    """The same, measured by a time of day."""
    return _plan("plan_live.html", rig, by[:8])


def _plan(template: str, rig: Context, by: str) -> Response:
    frame = page.frame(rig)
    now, zone = frame["now"], rig.settings.zone
    deadline = plan_panel.deadline_of(by, now, zone) if by else None
    wrong = f"{by!r} is no time of day such as 07:00." if by and deadline is None else ""
    shown: dict[str, Any] = {"by": by if deadline else "", "wrong": wrong, "plan": None}
    facts = frame["facts"]
    if facts is not None:
        try:
            found = routes_plan.get_plan(rig, deadline, MOST_JOBS)
        except redis.RedisError:  # it went away in between: say so
            frame = page.frame(rig)
            return page.render(template, rig, 503, **frame, **shown)
        shown |= {
            "plan": found,
            "drawing": plan_panel.drawing(found, facts),
            "headline": plan_panel.headline(found, facts),
            "subline": plan_panel.subline(found, facts),
            "groups": plan_panel.groups(found, facts),
            "give_way": plan_panel.give_way_words(found.give_way, found, facts),
        }
    return page.render(template, rig, 200 if facts is not None else 503, **frame, **shown)
