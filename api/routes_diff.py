"""What differs between two jobs, for programs and `overnight diff`."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.context import Rig
from api.diffing import DiffView, diff, two
from api.problems import documented
from api.routes_jobs import EVERYBODY

router = APIRouter(prefix="/api/v1/diff", tags=["results"])

Jobs = Annotated[str, Query(max_length=60, description="Two jobs, as in 141,142")]


@router.get("", operation_id="diffJobs", responses=documented(*EVERYBODY, 404, 422))
def diff_jobs(rig: Rig, jobs: Jobs) -> DiffView:
    """What is not the same in two jobs: documents, versions and machine, content of their data, shipped code, results."""
    return diff(two(jobs), rig)
