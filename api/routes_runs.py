"""What a job has left in its run folder, and what its slots did meanwhile."""

import os
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response, StreamingResponse

from api.context import Context, Rig
from api.files import NoSuchFile, attachment, json_lines, list_files, open_beneath, serve, tail_of, tar_of
from api.previewing import left_by
from api.problems import ApiError, documented
from api.routes_jobs import EVERYBODY, HeldJob
from api.views import FileList, FileView, TelemetryPoint, TelemetryView, moment, moment_or_none
from daemon import telemetry
from jobs.model import Job
from jobs.preview import Preview
from jobs.rundir import RunDir, run_dir

MAX_TAIL_LINES = 100_000
MAX_ROWS = 10_000
MAX_POINTS = 2_000
#: Where a log ends, so that its events can go on from there (`?log_from=`).
LOG_END = "Overnight-Log-End"
OCTETS = "application/octet-stream"

router = APIRouter(prefix="/api/v1/jobs/{job_id}", tags=["results"])

Range = Annotated[str | None, Header(alias="Range", max_length=100)]


@router.get(
    "/log",
    operation_id="getLog",
    response_class=Response,
    responses={
        **documented(*EVERYBODY, 404, 502, 416, 422),
        200: {"content": {"text/plain": {}}},
        206: {"content": {"text/plain": {}}, "description": "A part of it"},
    },
)
def get_log(
    job: HeldJob,
    rig: Rig,
    range: Range = None,
    tail: Annotated[int | None, Query(ge=1, le=MAX_TAIL_LINES, description="Only its last lines")] = None,
) -> Response:
    """What the job printed. Empty until it has begun."""
    folder = _folder(job, rig)
    try:
        descriptor = open_beneath(folder.path, folder.log.name)
    except NoSuchFile:
        return Response(b"", media_type="text/plain", headers={LOG_END: "0"})
    headers = {LOG_END: str(os.fstat(descriptor).st_size)}
    if tail is None:
        return serve(descriptor, range, media_type="text/plain; charset=utf-8", headers=headers)
    try:
        return Response(tail_of(descriptor, tail), media_type="text/plain", headers=headers)
    finally:
        os.close(descriptor)


@router.get("/preview", operation_id="getJobPreview", responses=documented(*EVERYBODY, 404, 502))
def get_preview(job: HeldJob, rig: Rig) -> Preview:
    """What a fine-tune that has begun learns from, found by the tokenizer that it learns with."""
    if (found := left_by(_folder(job, rig))) is None:
        raise ApiError(404, f"Job {job.id} has left no preview: a fine-tune does, once it has read its data.")
    return found


@router.get("/metrics", operation_id="getMetrics", responses=documented(*EVERYBODY, 404, 502, 422))
def get_metrics(
    job: HeldJob,
    rig: Rig,
    since_step: Annotated[int | None, Query(description="Only rows of later steps")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = MAX_ROWS,
) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, oldest first. Ask again with the last row's step for those that follow."""
    folder = _folder(job, rig)
    try:
        descriptor = open_beneath(folder.path, folder.metrics.name)
    except NoSuchFile:
        return []
    rows = (row for row in json_lines(descriptor) if since_step is None or _step(row) > since_step)
    return list(islice(rows, limit))


@router.get("/telemetry", operation_id="getTelemetry", responses=documented(*EVERYBODY, 404, 502, 422))
def get_telemetry(job: HeldJob, rig: Rig, points: Annotated[int, Query(ge=10, le=MAX_POINTS)] = 600) -> TelemetryView:
    """Utilisation, memory, temperature and power of the job's slots, from its first start to its end."""
    runs = [run for run in job.attempts if run.rig == rig.settings.rig]
    if not runs:
        return TelemetryView(start=None, end=None, slots={})
    start, end = runs[0].started_at, runs[-1].ended_at or rig.now()
    slots = dict.fromkeys(slot for run in runs for slot in run.slots)
    series = {slot: telemetry.series(rig.settings.home, slot, start, end, points) for slot in slots}
    found = {
        slot: [TelemetryPoint(**{**row, "at": moment(row["at"])}) for row in rows] for slot, rows in series.items()
    }
    return TelemetryView(start=moment(start), end=moment_or_none(end), slots=found)


@router.get("/files", operation_id="listFiles", responses=documented(*EVERYBODY, 404, 502))
def get_files(job: HeldJob, rig: Rig) -> FileList:
    """Every file of the run folder."""
    found, truncated = list_files(_folder(job, rig).path)
    files = [FileView(path=f.path, size_bytes=f.size_bytes, modified_at=moment(f.changed_at)) for f in found]
    return FileList(files=files, truncated=truncated)


@router.get(
    "/files/{path:path}",
    operation_id="getFile",
    response_class=Response,
    responses={
        **documented(*EVERYBODY, 404, 502, 416),
        200: {"content": {OCTETS: {}}},
        206: {"content": {OCTETS: {}}, "description": "A part of it"},
    },
)
def get_file(job: HeldJob, rig: Rig, path: str, range: Range = None) -> Response:
    """One file, to be saved: whatever it says it is, a browser never shows it."""
    try:
        descriptor = open_beneath(_folder(job, rig).path, path)
    except NoSuchFile:
        raise ApiError(404, f"Job {job.id} has no such file.") from None
    return serve(descriptor, range, media_type=OCTETS, headers=attachment(path))


@router.get(
    "/archive",
    operation_id="getArchive",
    response_class=StreamingResponse,
    responses={**documented(*EVERYBODY, 404, 502), 200: {"content": {"application/x-tar": {}}}},
)
def get_archive(job: HeldJob, rig: Rig) -> StreamingResponse:
    """The whole run folder as a tar archive, without links."""
    name = f"job-{job.id}"
    content = tar_of(_folder(job, rig).path, name)
    return StreamingResponse(content, media_type="application/x-tar", headers=attachment(f"{name}.tar"))


def _folder(job: Job, rig: Context) -> RunDir:
    return run_dir(rig.settings.runs, job.id)


def _step(row: dict[str, Any]) -> float:
    step = row.get("step")
    return step if isinstance(step, (int, float)) else -1
