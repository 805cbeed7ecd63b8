"""Telemetry over HTTP: Prometheus' /metrics, series of any slot and time, files to take away."""

import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, Response, StreamingResponse
from pydantic import Field
from starlette.background import BackgroundTask

from api import metrics
from api.context import Context, Rig
from api.files import attachment
from api.problems import ApiError, documented
from api.routes_jobs import EVERYBODY, KnownJob
from api.views import IdleStretch, IdleView, TelemetryPoint, TelemetryView, moment
from daemon import export, idle, quarantine, telemetry
from daemon.night.read import jobs_since, openings, outages, pauses

PARQUET_TIMEOUT_S = 120.0
LONGEST_EXPORT_S = 400 * 86_400.0
#: The end of the year 9999: later moments have no date.
LATEST_S = 253_402_300_799
#: The page of a night: what is asked for when nothing is said.
USUAL_S = 12 * 3600.0

router = APIRouter(prefix="/api/v1", tags=["telemetry"])
prometheus = APIRouter(tags=["telemetry"])

Format = Annotated[Literal["csv", "parquet"], Query(description="One row for each slot and second")]
SlotId = Annotated[str, Field(min_length=1)]
Slots = Annotated[list[SlotId] | None, Query(alias="slot", description="GPU UUIDs or CPU slots; all when left out")]
Start = Annotated[
    float | None, Query(ge=0, le=LATEST_S, description="Epoch seconds; twelve hours before the end when left out")
]
End = Annotated[float | None, Query(ge=0, le=LATEST_S, description="Epoch seconds; now when left out")]
FILE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {}, "application/vnd.apache.parquet": {}}}}


@prometheus.get(
    "/metrics",
    operation_id="getPrometheusMetrics",
    response_class=Response,
    responses={**documented(401, 403, 421, 503), 200: {"content": {"text/plain": {}}}},
)
def get_prometheus_metrics(rig: Rig) -> Response:
    """For Prometheus, which sends the token (`authorization: {credentials_file: ...}`). Never asks the driver."""
    return Response(metrics.render(_scene(rig)), headers={"Content-Type": metrics.CONTENT_TYPE})


@router.get("/telemetry", operation_id="getSlotTelemetry", responses=documented(*EVERYBODY, 422))
def get_slot_telemetry(
    rig: Rig,
    slot: Slots = None,
    start: Start = None,
    end: End = None,
    points: Annotated[int, Query(ge=10, le=2_000)] = 600,
) -> TelemetryView:
    """Averages and peaks of this rig's slots in any time."""
    slots, begin, until = _chosen(rig, slot, start, end)
    found = {name: telemetry.series(rig.settings.home, name, begin, until, points) for name in slots}
    shown = {name: [TelemetryPoint(**{**row, "at": moment(row["at"])}) for row in rows] for name, rows in found.items()}
    return TelemetryView(start=moment(begin), end=moment(until), slots=shown)


@router.get(
    "/telemetry/export",
    operation_id="exportTelemetry",
    response_class=Response,
    responses={**documented(*EVERYBODY, 422), **FILE},
)
def export_telemetry(
    rig: Rig, slot: Slots = None, start: Start = None, end: End = None, format: Format = "csv"
) -> Response:
    """Every second of these slots as a file."""
    slots, begin, until = _chosen(rig, slot, start, end)
    return _file(rig, slots, begin, until, format, "telemetry")


@router.get(
    "/jobs/{job_id}/telemetry/export",
    operation_id="exportJobTelemetry",
    response_class=Response,
    responses={**documented(*EVERYBODY, 404, 422), **FILE},
)
def export_job_telemetry(job: KnownJob, rig: Rig, format: Format = "csv") -> Response:
    """Every second of the job's slots, from its first start to its end, as a file."""
    runs = [run for run in job.attempts if run.rig == rig.settings.rig]
    if not runs:
        raise ApiError(404, f"Job {job.id} has not run on this rig: there is no telemetry of it.")
    slots = list(dict.fromkeys(slot for run in runs for slot in run.slots))
    return _file(rig, slots, int(runs[0].started_at), runs[-1].ended_at or rig.now(), format, f"job-{job.id}-telemetry")


def _file(rig: Context, slots: list[str], start: float, end: float, format: str, name: str) -> Response:
    headers = attachment(f"{name}.{format}")
    if format == "parquet":
        return _parquet(rig, slots, start, end, headers)
    found = export.rows(rig.settings.home, slots, start, end)
    try:
        first = list(_first(found))  # a database that cannot be read is told now, not in the middle of the file
    except sqlite3.Error as error:
        raise ApiError(503, f"The telemetry database cannot be read ({error}).") from None
    return StreamingResponse(
        export.csv_chunks(chain(first, found)), media_type="text/csv; charset=utf-8", headers=headers
    )


def _first(found: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    for row in found:
        yield row
        return


def _parquet(rig: Context, slots: list[str], start: float, end: float, headers: dict[str, str]) -> Response:
    folder = tempfile.mkdtemp(prefix="overnight-export-")
    path = Path(folder) / "telemetry.parquet"
    argv = [sys.executable, "-m", "daemon.export", "--home", str(rig.settings.home), "--out", str(path)]
    argv += ["--start", str(start), "--end", str(end), *(part for slot in slots for part in ("--slot", slot))]
    try:
        child = subprocess.run(argv, capture_output=True, text=True, timeout=PARQUET_TIMEOUT_S)
        problem = None if child.returncode == 0 else (child.stdout + child.stderr).strip().splitlines()[-1:]
    except subprocess.TimeoutExpired:
        problem = [f"it took longer than {PARQUET_TIMEOUT_S:g} s"]
    if problem is not None:
        shutil.rmtree(folder, ignore_errors=True)
        raise ApiError(503, f"The file could not be made ({''.join(problem)}). CSV needs less.")
    return FileResponse(
        path,
        media_type="application/vnd.apache.parquet",
        headers=headers,
        background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
    )


def _chosen(
    rig: Context, slot: list[str] | None, start: float | None, end: float | None
) -> tuple[list[str], float, float]:
    until = end if end is not None else rig.now()
    begin = start if start is not None else until - USUAL_S
    if not 0 <= begin < until or until - begin > LONGEST_EXPORT_S:
        raise ApiError(422, "start lies before end, and both within 400 days.")
    known = [facts.slot.id for facts in rig.facts().slots]
    return list(dict.fromkeys(slot)) if slot else known, begin, until


def _scene(rig: Context) -> metrics.Scene:
    settings, now = rig.settings, rig.now()
    return metrics.Scene(
        facts=rig.facts(),
        counts=rig.store.counts(),
        live=telemetry.latest(settings.home, now=now),
        beat=rig.store.last_beat(settings.rig),
        xids=telemetry.xid_counts(settings.home),
        quarantined={s: one for s, one in quarantine.read(rig.store, settings.rig).items() if one.active},
        disk_free_bytes=_free_bytes(settings.home),
        disk_floor_bytes=settings.disk_floor_bytes,
        version=_version(),
        dcgm=settings.metrics_dcgm,
        host=socket.gethostname(),
    )


def _free_bytes(home: Path) -> int | None:
    try:
        return shutil.disk_usage(home).free
    except OSError:
        return None


def _version() -> str:
    try:
        return metadata.version("overnight")
    except metadata.PackageNotFoundError:
        return "0"


@router.get("/telemetry/idle", operation_id="getIdleTime", responses=documented(*EVERYBODY, 422))
def get_idle_time(rig: Rig, start: Start = None, end: End = None) -> IdleView:
    """How long each slot of this rig stood idle, and why."""
    slots, begin, until = _chosen(rig, None, start, end)
    found = idle.idle(_night(rig, slots, begin, min(until, rig.now())))
    stretches = {slot: [IdleStretch.of(one) for one in found if one.slot == slot] for slot in slots}
    return IdleView(start=moment(begin), end=moment(until), slots=stretches, idle_s=idle.seconds_by_reason(found))


def _night(rig: Context, slots: list[str], start: float, end: float) -> idle.Night:
    settings = rig.settings
    jobs, out = jobs_since(rig.store, rig.facts(), start, end), outages(rig.store, settings, start, end)
    paused = pauses(rig.store, settings, slots, end)
    return idle.Night(start, end, slots, jobs, open=openings(settings, start, end), out=out, paused=paused)
