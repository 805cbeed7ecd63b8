"""The rigs of this queue: who lives, and forgetting one that will not come back."""

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel

from api.context import Context, Rig
from api.problems import ApiError, documented
from api.routes_jobs import EVERYBODY
from api.views import moment_or_none
from daemon import peers

router = APIRouter(prefix="/api/v1/rigs", tags=["rig"])


class RigSummary(BaseModel):
    """One rig of this queue."""

    name: str
    #: `alive`, `away` (silent: what ran there is given back), or `stopped` (in order: its jobs wait for it).
    state: str
    is_this: bool
    paused: bool
    silent_s: float | None
    stopped_at: datetime | None
    url: str
    slots: list[str]
    jobs: list[str]


class RigList(BaseModel):
    """Every rig of this queue."""

    rigs: list[RigSummary]


@router.get("", operation_id="listRigs", responses=documented(*EVERYBODY))
def list_rigs(rig: Rig) -> RigList:
    """Every rig that takes part in this queue, and whether it lives."""
    return RigList(rigs=_summaries(rig))


@router.delete("/{name}", operation_id="forgetRig", status_code=204, responses=documented(*EVERYBODY, 404, 409))
def forget_rig(name: str, rig: Rig) -> None:
    """Forget a rig that will not come back: jobs that had begun there start anew on another one."""
    found = next((one for one in _summaries(rig) if one.name == name), None)
    if found is None:
        raise ApiError(404, "No rig of this queue has this name. GET /api/v1/rigs lists them.")
    if found.state == "alive":
        raise ApiError(409, f"Rig {name} lives. Stop it first.")
    if found.jobs:
        raise ApiError(409, f"Job {found.jobs[0]} still runs there as far as its lease tells. Try again in a minute.")
    rig.store.forget_rig(name)


def _summaries(rig: Context) -> list[RigSummary]:
    records, silences, paused = rig.store.rigs(), rig.store.silences(), rig.store.paused()
    living = {*peers.living_peers(rig.store, rig.settings), rig.settings.rig}
    beats = rig.store.beats(living)
    jobs = rig.facts().jobs.values()
    return [
        RigSummary(
            name=name,
            state="stopped" if record.get("stopped_at") else "alive" if name in living else "away",
            is_this=name == rig.settings.rig,
            paused=name in paused,
            silent_s=silences.get(name),
            stopped_at=moment_or_none(record.get("stopped_at")),
            url=str(beats.get(name, {}).get("url", "")),
            slots=[slot["id"] for slot in record.get("slots", ())],
            jobs=[job.id for job in jobs if job.rig == name],
        )
        for name, record in records.items()
    ]
