"""The rig: its slots, its settings and its health."""

import logging
import platform
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata
from typing import Any

import redis
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from api.context import Context, Rig
from api.problems import ApiError, documented, problem
from api.rig_views import GpuList, GpuView, RigView, WindowView, occupied
from api.routes_jobs import EVERYBODY, OptionalBody
from api.views import moment_or_none
from daemon import quarantine, telemetry
from daemon.rig import Slot
from daemon.store import UnknownJob
from jobs.model import InvalidTransition, Wish, WishKind
from jobs.spec import FieldError, InvalidSpec

log = logging.getLogger(__name__)

#: Their versions explain most surprises.
PACKAGES = ("overnight", "torch", "transformers", "trl", "peft", "rq", "redis", "fastapi", "pydantic")
PASSWORD = re.compile(r"(?<=://)[^/]*@")

router = APIRouter(prefix="/api/v1", tags=["rig"])
health = APIRouter(tags=["health"])


@health.get("/healthz", operation_id="isAlive")
def is_alive() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@health.get("/readyz", operation_id="isReady", responses=documented(503))
def is_ready(rig: Rig) -> Response:
    """Jobs can be accepted and run. Says no more than that: everybody may ask."""
    try:
        beat = rig.store.last_beat(rig.settings.rig)
    except redis.RedisError:
        return problem(503, "The queue is not reachable.")
    if beat is None:
        return problem(503, "The daemon is silent.")
    return JSONResponse({"status": "ready"})


@router.get("/gpus", operation_id="listGpus", responses=documented(*EVERYBODY))
def list_gpus(rig: Rig) -> GpuList:
    """Every slot with its latest sample and what it does."""
    return GpuList(gpus=_gpus(rig))


@router.post("/gpus/{slot_id}/pause", operation_id="pauseGpu", responses=documented(*EVERYBODY, 400, 404, 415, 422))
def pause_gpu(slot_id: str, rig: Rig, body: OptionalBody) -> GpuView:
    """No new job starts on it, also after a restart. What runs goes on; with `{"now": true}` it saves and waits again."""
    now = _is_now(body)
    view = _set_paused(slot_id, rig, rig.store.pause)
    if now and view.job is not None:
        _preempt(rig, [view.job])
    return view


@router.post("/gpus/{slot_id}/resume", operation_id="resumeGpu", responses=documented(*EVERYBODY, 404))
def resume_gpu(slot_id: str, rig: Rig) -> GpuView:
    """It takes jobs again."""
    return _set_paused(slot_id, rig, rig.store.resume)


@router.post("/gpus/{slot_id}/release", operation_id="releaseGpu", responses=documented(*EVERYBODY, 404))
def release_gpu(slot_id: str, rig: Rig) -> GpuView:
    """Put a GPU that had a fault back into service. Does nothing to one that is in service."""

    def put_back(name: str, slot: str) -> None:
        quarantine.release(rig.store, name, slot, by=quarantine.BY_HAND, now=rig.now())

    return _set_paused(slot_id, rig, put_back)


@router.post(
    "/gpus/{slot_id}/check", operation_id="checkGpu", status_code=202, responses=documented(*EVERYBODY, 404, 409)
)
def check_gpu(slot_id: str, rig: Rig) -> GpuView:
    """Let the daemon compute on a GPU that is out of service; when that goes well, it is put back."""

    def ask(name: str, slot: str) -> None:
        if not quarantine.ask_for_check(rig.store, name, slot):
            raise ApiError(409, "This GPU is in service: only one that had a fault is checked.")

    return _set_paused(slot_id, rig, ask)


@router.get("/rig", operation_id="getRig", responses=documented(*EVERYBODY))
def get_rig(rig: Rig) -> RigView:
    """Settings in force, window, versions and health."""
    settings, now = rig.settings, rig.now()
    windows, zone = settings.windows, settings.zone
    rigs = rig.store.rigs()
    return RigView(
        name=settings.rig,
        paused=settings.rig in rig.store.paused(),
        window=WindowView(
            setting=settings.window,
            timezone=zone.key,
            end=settings.window_end,
            open=windows.is_open(now, zone),
            closes_at=moment_or_none(windows.closes_at(now, zone)),
            opens_at=moment_or_none(windows.opens_at(now, zone)),
        ),
        jobs=rig.store.counts(),
        health=_health(rig, rigs.get(settings.rig, {}), now),
        versions=versions(),
        settings=_settings(rig),
        rigs=list(rigs),
    )


@router.post("/rig/pause", operation_id="pauseRig", responses=documented(*EVERYBODY, 400, 415, 422))
def pause_rig(rig: Rig, body: OptionalBody) -> RigView:
    """No new job starts on this rig, also after a restart. What runs goes on; with `{"now": true}` it saves and waits again."""
    now = _is_now(body)
    rig.store.pause(rig.settings.rig)
    if now:
        _preempt(rig, [job.id for job in rig.facts().here])
    return get_rig(rig)


@router.post("/rig/resume", operation_id="resumeRig", responses=documented(*EVERYBODY))
def resume_rig(rig: Rig) -> RigView:
    """The rig takes jobs again."""
    rig.store.resume(rig.settings.rig)
    return get_rig(rig)


def _gpus(rig: Context) -> list[GpuView]:
    """Samples are known for this rig's slots only."""
    live = telemetry.latest(rig.settings.home, now=rig.now())
    planned = rig.facts()
    paused, jobs = rig.store.paused(), occupied(planned.jobs)
    unfit = {s.slot.id: s.problem or s.resting for s in planned.slots}
    views = []
    rigs = rig.store.rigs()
    held = {name: quarantine.read(rig.store, name) for name in rigs}
    for name, facts in rigs.items():
        for slot in map(Slot.from_json, facts.get("slots", ())):
            sample = live.slots.get(slot.id) if name == rig.settings.rig else None
            is_paused = f"{name}:{slot.id}" in paused
            one = held[name].get(slot.id)
            job = jobs.get((name, slot.id))
            problem = unfit.get(slot.id) if name == rig.settings.rig else None
            views.append(
                GpuView.of(
                    slot,
                    name,
                    paused=is_paused,
                    job=job,
                    sample=sample,
                    age_s=live.age_s,
                    problem=problem,
                    held=one if one and one.active else None,
                )
            )
    return views


def _is_now(body: object) -> bool:
    if not isinstance(body, dict) or set(body) - {"now"} or not isinstance(body.get("now", False), bool):
        raise InvalidSpec([FieldError("now", "is true or false, the only field")])
    return bool(body.get("now"))


def _preempt(rig: Context, ids: Sequence[str]) -> None:
    """Ask what runs to give way. A job that ended or was cancelled by now has done so."""
    wish = Wish(kind=WishKind.PREEMPT, reason="Its owner wants the GPU.", asked_at=rig.now())
    for job_id in ids:
        try:
            rig.store.wish(job_id, wish)
        except (InvalidTransition, UnknownJob) as error:
            log.info("job %s needed not be asked: %s", job_id, error)


def _set_paused(slot_id: str, rig: Context, change: Callable[[str, str], None]) -> GpuView:
    """On this rig where it has such a slot, else on the one that has it."""
    found = [view for view in _gpus(rig) if view.id == slot_id]
    if not found:
        raise ApiError(404, "No rig of this queue has such a slot. GET /api/v1/gpus lists them.")
    mine = next((view for view in found if view.rig == rig.settings.rig), found[0])
    change(mine.rig, slot_id)
    return next(view for view in _gpus(rig) if (view.rig, view.id) == (mine.rig, slot_id))


def _health(rig: Context, facts: dict[str, Any], now: float) -> dict[str, Any]:
    """What lives, and what is wrong."""
    beat = rig.store.last_beat(rig.settings.rig)
    live = telemetry.latest(rig.settings.home, now=now)
    return {
        "redis": rig.store.ping(),
        "daemon": {"alive": beat is not None, "age_s": max(0.0, now - beat["at"]) if beat else None},
        "processes": beat.get("processes", {}) if beat else {},
        "sampler": {"source": live.source, "age_s": live.age_s, "problem": live.problem},
        "gpus": facts.get("problem"),
        "started_at": moment_or_none(facts.get("started_at")),
    }


def _settings(rig: Context) -> dict[str, Any]:
    """As they are in force. A password in an address is left out; secrets are no settings."""
    shown = rig.settings.model_dump(mode="json")
    if shown["redis_url"]:
        shown["redis_url"] = PASSWORD.sub("…@", shown["redis_url"])
    variables = shown["tracker_variables"]
    shown["tracker_variables"] = {name: PASSWORD.sub("…@", text) for name, text in variables.items()}
    return shown


@cache
def versions() -> dict[str, str | None]:
    """What is installed; None: it is not."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
