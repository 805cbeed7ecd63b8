"""Runs beside each other, for programs."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.comparing import ComparisonView, fetched, named
from api.context import Rig
from api.problems import documented
from api.routes_jobs import EVERYBODY

router = APIRouter(prefix="/api/v1/compare", tags=["results"])

Ids = Annotated[str, Query(max_length=120, description="2 to 5 runs, as in 141,142")]
Baseline = Annotated[str, Query(max_length=20, description="The run to compare with; the first one when left out")]


@router.get("", operation_id="compareJobs", responses=documented(*EVERYBODY, 404, 422))
def compare_jobs(rig: Rig, ids: Ids, baseline: Baseline = "") -> ComparisonView:
    """Compare runs with a baseline: fields of their documents, metrics with deltas, costs, curves."""
    return ComparisonView.of(fetched(named(ids, baseline), rig))
