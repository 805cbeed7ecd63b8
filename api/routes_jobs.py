"""Jobs: submit, list, look at, change, stop, try again, delete."""

import shutil
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from api.context import Context, Rig
from api.documents import batch_of, csv_reader, json_body, optional_json_body
from api.editing import edit, move, retry
from api.filters import MOMENTS, Filters
from api.previewing import glimpse
from api.problems import ApiError, documented
from api.submission import checked, one, submit, would_wait_because
from api.views import Batch, JobList, JobPage, JobSummary, JobView, RanBefore, Trial, TrialBatch
from daemon.plan import Facts
from daemon.store import UnknownJob, Wanted
from jobs.model import Cause, InvalidTransition, Job, State, Wish, WishKind
from jobs.rundir import run_dir
from jobs.spec import FieldError, InvalidSpec, dump

BY_OWNER = "Its owner asked for it."
LONGEST_REASON = 500
LONGEST_ID = 18
REPLAY = "Known by its key, or a dry run"

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])

Body = Annotated[Any, Depends(json_body)]
OptionalBody = Annotated[Any, Depends(optional_json_body)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", pattern=r"^[\x21-\x7e]{1,128}$", description="A repeated call with the same key and body makes no second job.")]  # fmt: skip
Revision = Annotated[str | None, Header(alias="If-Match", pattern=r"^[0-9a-f]{16}$", description="The job's `revision` as it was read: 412 when somebody has edited it since.")]  # fmt: skip
DryRun = Annotated[bool, Query(description="Check everything, store nothing.")]
EVERYBODY = (401, 403, 421, 503)


def known(job_id: str, rig: Rig) -> Job:
    """The job of the address. Raises UnknownJob for whatever is no id, too."""
    if not (job_id.isascii() and job_id.isdigit() and len(job_id) <= LONGEST_ID):
        raise UnknownJob(job_id)
    return rig.store.get(job_id)


KnownJob = Annotated[Job, Depends(known)]


def held_here(job: KnownJob, rig: Rig) -> Job:
    """The job of the address, when its run folder is on this rig. Raises HeldElsewhere."""
    rig.require_here(job)
    return job


#: For routes that read the run folder: a call for one on another rig is answered by that rig.
HeldJob = Annotated[Job, Depends(held_here)]


def asked(
    request: Request,
    rig: Rig,
    state: Annotated[list[State], Query(description="Any of these")] = [],  # noqa: B006 - FastAPI's way to say none
    cause: Annotated[list[Cause], Query(description="What failed by any of these")] = [],  # noqa: B006
    kind: Annotated[str, Query(max_length=32)] = "",
    tag: Annotated[str, Query(max_length=64)] = "",
    sweep: Annotated[str, Query(max_length=18, description="Jobs of this sweep; `none`: of no sweep")] = "",
    since: Annotated[str, Query(max_length=40, description=f"What ended since: {MOMENTS}")] = "",
    until: Annotated[str, Query(max_length=40, description="What had ended by then")] = "",
    q: Annotated[str, Query(max_length=128, description="A part of the name, or an id")] = "",
) -> Filters:
    """The filters of the address, as the page reads them; the parameters here are for OpenAPI. Raises ApiError 422."""
    filters = Filters.of(request.url.query, rig.now(), rig.settings.zone)
    if filters.problem:
        raise ApiError(422, filters.problem)
    return filters


def body_of(schema: str) -> dict[str, Any]:
    """A request body for OpenAPI; the body itself is read by api.documents."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    "",
    operation_id="submitJob",
    status_code=201,
    response_model=JobView,
    responses={**documented(*EVERYBODY, 400, 409, 413, 415, 422), 200: {"model": JobView | Trial, "description": REPLAY}},
    openapi_extra=body_of("JobDocument"),
)  # fmt: skip
def submit_job(rig: Rig, body: Body, key: Key = None, dry_run: DryRun = False) -> Response:
    """Submit one job."""
    document = one(body)
    if dry_run:
        [admitted] = checked(document, rig)
        [reason] = would_wait_because([admitted], rig.facts())
        before = RanBefore.of(rig.store.alike([admitted.spec])[0])
        found, notes = glimpse(admitted.spec, rig), list(document.notes)
        trial = Trial(
            job=dump(admitted.spec),
            would_wait_because=reason,
            preflight=admitted.outlook.preflight,
            ran_before=before,
            preview=found,
            notes=notes,
        )
        return _json(trial)
    done = submit(document, body, rig, key=key)
    before = RanBefore.of(done.ran_before[0]) if done.ran_before else None
    job = JobView.of(done.jobs[0], rig.facts()).model_copy(update={"ran_before": before, "notes": document.notes})
    if done.replayed:
        return _json(job, headers={"Idempotency-Replayed": "true"})
    return _json(job, 201, {"Location": f"/api/v1/jobs/{job.id}"})


@router.post(
    "/batch",
    operation_id="submitBatch",
    status_code=201,
    response_model=Batch,
    responses={**documented(*EVERYBODY, 400, 409, 413, 415, 422), 200: {"model": Batch | TrialBatch, "description": REPLAY}},
    openapi_extra=body_of("BatchDocument"),
)  # fmt: skip
def submit_batch(rig: Rig, body: Body, key: Key = None, dry_run: DryRun = False) -> Response:
    """Submit many jobs, which may name each other, or a sweep: all or none."""
    documents = batch_of(body, csv_reader(rig.settings.inputs))
    if dry_run:
        admitted = checked(documents, rig)
        reasons = would_wait_because(admitted, rig.facts())
        trials = [
            Trial(job=dump(a.spec), would_wait_because=r, preflight=a.outlook.preflight)
            for a, r in zip(admitted, reasons, strict=True)
        ]
        return _json(TrialBatch(jobs=trials, notes=list(documents.notes)))
    done = submit(documents, body, rig, key=key)
    facts = rig.facts()
    found = [JobSummary.of(job, facts) for job in done.jobs]
    batch = Batch(sweep=done.jobs[0].sweep or None, jobs=found, notes=list(documents.notes))
    return _json(batch, headers={"Idempotency-Replayed": "true"}) if done.replayed else _json(batch, 201)


@router.get("", operation_id="listJobs", responses=documented(*EVERYBODY, 422))
def list_jobs(
    rig: Rig,
    filters: Annotated[Filters, Depends(asked)],
    order: Annotated[
        Literal["newest", "queue"], Query(description="queue: what waits, in the order in which it starts")
    ] = "newest",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,18}$")] = None,
) -> JobPage:
    """Jobs, newest first; with `order=queue` what waits, in the order in which it starts."""
    if order == "queue":
        if others := [state for state in filters.states if state is not State.QUEUED]:
            raise InvalidSpec([FieldError("order", f"queue lists what waits, not what is {others[0]}")])
        return _queue_page(rig.facts(), filters.wanted, limit, int(cursor or 0))
    page = rig.store.page(filters.wanted, limit=limit, cursor=cursor)
    facts = rig.facts()
    return JobPage(jobs=[JobView.of(job, facts) for job in page.jobs], next=page.next)


@router.post(
    "/move",
    operation_id="moveJobs",
    responses=documented(*EVERYBODY, 400, 404, 409, 413, 415, 422),
    openapi_extra=body_of("MoveDocument"),
)
def move_jobs(rig: Rig, body: Body) -> JobList:
    """Move waiting jobs within the queue, in the order in which they are named: all of them, or none."""
    jobs, facts = move(body, rig), rig.facts()
    return JobList(jobs=[JobView.of(job, facts) for job in jobs])


@router.get("/{job_id}", operation_id="getJob", responses=documented(*EVERYBODY, 404))
def get_job(job: KnownJob, rig: Rig) -> JobView:
    """One job."""
    return JobView.of(job, rig.facts())


@router.patch(
    "/{job_id}",
    operation_id="editJob",
    responses=documented(*EVERYBODY, 400, 404, 409, 412, 413, 415, 422),
    openapi_extra=body_of("JobChanges"),
)
def edit_job(job: KnownJob, rig: Rig, body: Body, revision: Revision = None) -> JobView:
    """Change a waiting job: fields of its document (a JSON merge patch: null means the default again), `held`, `position`.

    `position` is `first`, `last`, `before:139` or `after:139`, among the jobs of its priority.
    """
    return JobView.of(edit(job.id, body, rig, revision=revision), rig.facts())


@router.post("/{job_id}/cancel", operation_id="cancelJob", status_code=202, responses=documented(*EVERYBODY, 404, 409))
def cancel_job(job: KnownJob, rig: Rig, body: OptionalBody) -> JobView:
    """Ask it to stop for good. A waiting job is cancelled at once.

    The body may have a `reason`, and a state for `only_if`: in another one it is left alone (409).
    """
    return _wished(job, rig, WishKind.CANCEL, body)


@router.post(
    "/{job_id}/preempt", operation_id="preemptJob", status_code=202, responses=documented(*EVERYBODY, 404, 409)
)
def preempt_job(job: KnownJob, rig: Rig, body: OptionalBody) -> JobView:
    """Ask it to save its work, free its GPUs and wait again. The body is as for cancel."""
    return _wished(job, rig, WishKind.PREEMPT, body)


@router.post(
    "/{job_id}/retry",
    operation_id="retryJob",
    status_code=202,
    responses=documented(*EVERYBODY, 400, 404, 409, 415, 422),
)
def retry_job(job: KnownJob, rig: Rig, body: OptionalBody) -> JobView:
    """Queue a failed or cancelled job again. One that waits or runs again already stays as it is.

    The body may have changes of its document as for editing, and `held`.
    """
    return JobView.of(retry(job.id, body, rig), rig.facts())


@router.delete("/{job_id}", operation_id="deleteJob", status_code=204, responses=documented(*EVERYBODY, 404, 409, 502))
def delete_job(job_id: str, rig: Rig) -> None:
    """Forget an ended job and remove its run folder."""
    try:
        job = known(job_id, rig)
    except UnknownJob:
        # the record went first: a folder that was left by a crash in between goes now
        if not job_id.isdigit() or len(job_id) > LONGEST_ID or not run_dir(rig.settings.runs, job_id).path.is_dir():
            raise
    else:
        rig.require_here(job)
        _refuse_while_needed(job, rig)
        rig.store.delete(job.id)
    folder = run_dir(rig.settings.runs, job_id).path
    if folder.is_symlink():  # a job's doing: what it leads to is not ours
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _refuse_while_needed(job: Job, rig: Context) -> None:
    if not job.state.final:
        raise InvalidTransition(f"job {job.id} is {job.state}; cancel it first")
    if waiting := [other.id for other in rig.facts().jobs.values() if job.id in other.needs_ends_of]:
        raise InvalidTransition(f"job {waiting[0]} needs the result of job {job.id}; cancel that one first")


def _wished(job: Job, rig: Context, kind: WishKind, body: object) -> JobView:
    if not isinstance(body, dict) or set(body) - {"reason", "only_if"}:
        raise InvalidSpec([FieldError("", "has no other fields than reason and only_if")])
    reason, only_if = body.get("reason", BY_OWNER), body.get("only_if")
    if not isinstance(reason, str) or len(reason) > LONGEST_REASON:
        raise InvalidSpec([FieldError("reason", f"is a text of at most {LONGEST_REASON} characters")])
    if only_if is not None and only_if not in list(State):
        raise InvalidSpec([FieldError("only_if", f"is one of {', '.join(State)}")])
    wish = Wish(kind=kind, reason=reason, asked_at=rig.now())
    after = rig.store.wish(job.id, wish, only_if=State(only_if) if only_if else None)
    return JobView.of(after, rig.facts())


def _queue_page(facts: Facts, wanted: Wanted, limit: int, start: int) -> JobPage:
    found = [job for job in facts.queue if wanted.holds(job)]
    following = str(start + limit) if start + limit < len(found) else None
    return JobPage(jobs=[JobView.of(job, facts) for job in found[start : start + limit]], next=following)


def _json(
    view: JobView | Batch | Trial | TrialBatch, status: Literal[200, 201] = 200, headers: dict[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(view.model_dump(mode="json"), status, headers)
