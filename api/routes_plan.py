"""The night ahead: when each job starts and ends, and what will be late. Nothing here changes anything."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import AwareDatetime

from api.context import Context, Rig
from api.documents import BatchRead, batch_of, csv_reader, json_body
from api.plan_views import PlannedJob, PlanView
from api.problems import ApiError, documented
from api.routes_jobs import EVERYBODY, KnownJob
from api.submission import glimpsed, one, supposed
from daemon.forecast import Forecast
from daemon.give_way import give_way
from daemon.plan import Facts
from jobs.model import Job

#: A submission waits for the answer: less work than for the whole night.
WORK_FOR_ONE = 150_000
#: Epoch seconds that every calendar can show.
FURTHEST = 4e9

router = APIRouter(prefix="/api/v1", tags=["plan"])

By = Annotated[
    AwareDatetime | None, Query(description="A deadline instead of the window's end (ISO 8601 with offset).")
]
Limit = Annotated[int, Query(ge=1, le=10_000, description="So many jobs are told; lanes and `late` are of all.")]
WHAT_IF = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"oneOf": [
    {"$ref": "#/components/schemas/JobDocument"}, {"$ref": "#/components/schemas/BatchDocument"}]}}}}}  # fmt: skip


@router.get("/plan", operation_id="getPlan", responses=documented(*EVERYBODY, 422))
def get_plan(rig: Rig, by: By = None, limit: Limit = 1_000) -> PlanView:
    """The forecast: for each job when it starts and ends and on which GPUs, and what will not be done by the window's end."""
    return _view(rig, rig.facts(), by, limit)


@router.post(
    "/plan", operation_id="whatIf", responses=documented(*EVERYBODY, 400, 413, 415, 422), openapi_extra=WHAT_IF
)
def what_if(rig: Rig, body: Annotated[Any, Depends(json_body)], by: By = None, limit: Limit = 1_000) -> PlanView:
    """The same with one more job, or a batch of them, at the end of the queue. Nothing is stored."""
    is_one = isinstance(body, dict) and "kind" in body
    batch = one(body) if is_one else batch_of(body, csv_reader(rig.settings.inputs))
    then, jobs = _with(batch, rig)
    return _view(rig, then, by, limit, [job.id for job in jobs])


def expected(body: Any, rig: Context) -> PlannedJob:
    """When one more job, at the end of the queue, would start and end. Raises InvalidSpec."""
    then, [job] = _with(one(body), rig)
    found = _foresee(rig, then, max_work=WORK_FOR_ONE, until_done=job.id)
    return PlannedJob.of(found.jobs[job.id], late=job.id in found.late)


@router.get("/jobs/{job_id}/plan", operation_id="getJobPlan", responses=documented(*EVERYBODY, 404, 409))
def get_job_plan(job: KnownJob, rig: Rig) -> PlannedJob:
    """When one job will start and end."""
    facts = rig.facts()
    if job.id not in facts.jobs:
        raise ApiError(409, f"Job {job.id} has ended ({job.state}); there is nothing to expect of it.")
    found = _foresee(rig, facts, max_work=WORK_FOR_ONE, until_done=job.id)
    return PlannedJob.of(found.jobs[job.id], late=job.id in found.late)


def _with(batch: BatchRead, rig: Context) -> tuple[Facts, list[Job]]:
    """The facts as they would be with these jobs in the queue, and the jobs."""
    glimpses = glimpsed(batch, rig)
    facts = rig.facts()
    jobs = supposed(glimpses, facts)
    then = replace(facts, jobs={**facts.jobs, **{job.id: job for job in jobs}})
    expected_s = rig.ledger.expected_s(facts.now, then.jobs, [each.slot for each in facts.slots])
    return replace(then, expected_s=expected_s), jobs


def _view(rig: Context, facts: Facts, by: AwareDatetime | None, limit: int, what_if: Sequence[str] = ()) -> PlanView:
    if by is not None and not facts.now < by.timestamp() < FURTHEST:
        raise ApiError(422, "`by` is not a moment to come.")
    found = _foresee(rig, facts, by=by.timestamp() if by else None)
    gives = give_way(facts, found, partial(_foresee, rig))
    return PlanView.of(found, facts, gives=gives, what_if=list(what_if), limit=limit)


def _foresee(rig: Context, facts: Facts, **how: Any) -> Forecast:
    return rig.ledger.foresee(facts, rig.settings, **how)
