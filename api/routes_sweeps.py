"""Sweeps: list them, look at a result, cancel what is left of one. They are submitted with POST /jobs/batch."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel

from api.context import Rig
from api.files import attachment
from api.problems import ApiError, documented
from api.routes_jobs import BY_OWNER, EVERYBODY, LONGEST_ID
from api.sweep_panel import as_csv
from api.sweep_views import SweepList, SweepSummary, SweepView
from daemon.store import UnknownSweep
from jobs.model import Wish, WishKind
from jobs.sweep import Sweep

router = APIRouter(prefix="/api/v1/sweeps", tags=["sweeps"])


class Asked(BaseModel):
    """How many jobs were asked to stop."""

    asked: int


def known(sweep_id: str, rig: Rig) -> Sweep:
    """The sweep of the address. Raises ApiError 404."""
    try:
        if sweep_id.isascii() and sweep_id.isdigit() and len(sweep_id) <= LONGEST_ID:
            return rig.store.sweep(sweep_id)
    except UnknownSweep:
        pass
    raise ApiError(404, f"There is no sweep {sweep_id[:LONGEST_ID]}. A sweep has the id of its first job.")


KnownSweep = Annotated[Sweep, Depends(known)]


@router.get("", operation_id="listSweeps", responses=documented(*EVERYBODY, 422))
def list_sweeps(
    rig: Rig,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,18}$")] = None,
) -> SweepList:
    """Sweeps, newest first."""
    sweeps = rig.store.sweeps(limit=limit, below=cursor)
    return SweepList(sweeps=[SweepSummary.of(s) for s in sweeps], next=sweeps[-1].id if len(sweeps) == limit else None)


@router.get("/{sweep_id}", operation_id="getSweep", responses=documented(*EVERYBODY, 404))
def get_sweep(sweep: KnownSweep, rig: Rig) -> SweepView:
    """A sweep's result: each job's point and metrics, the best first."""
    return SweepView.of_table(rig.tables.of(sweep))


@router.get(
    "/{sweep_id}/table.csv",
    operation_id="getSweepTable",
    response_class=Response,
    responses={**documented(*EVERYBODY, 404), 200: {"content": {"text/csv": {}}, "description": "The table"}},
)
def get_table(sweep: KnownSweep, rig: Rig) -> Response:
    """The same as CSV: job, state, point, metrics."""
    name = f"sweep-{sweep.id}.csv"
    return Response(as_csv(rig.tables.of(sweep)), media_type="text/csv; charset=utf-8", headers=attachment(name))


@router.post("/{sweep_id}/cancel", operation_id="cancelSweep", status_code=202, responses=documented(*EVERYBODY, 404))
def cancel_sweep(sweep: KnownSweep, rig: Rig) -> Asked:
    """Ask all of its jobs that wait or run to stop for good."""
    wish = Wish(kind=WishKind.CANCEL, reason=BY_OWNER, asked_at=rig.now())
    return Asked(asked=rig.store.cancel_sweep(sweep, wish))
