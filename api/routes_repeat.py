"""What has changed since a job ran: whether the same document would compute the same again."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter

from api.context import Context, Rig
from api.problems import documented
from api.recorded import environment_of
from api.routes_jobs import EVERYBODY, HeldJob
from api.views import Changes
from daemon.places import Places
from daemon.rig import Slot
from jobs import environment
from jobs.model import Job
from jobs.repeat import changes, limits

#: What a repetition does not wait for again.
NOT_AGAIN = ("after", "not_before")

router = APIRouter(prefix="/api/v1/jobs/{job_id}", tags=["jobs"])


@router.get("/changes", operation_id="getChanges", responses=documented(*EVERYBODY, 404, 502))
def get_changes(job: HeldJob, rig: Rig) -> Changes:
    """The document to submit for the same work again, and what is not as it was when the job ran: versions, GPU, driver, data, code."""
    document = {name: value for name, value in job.spec.items() if name not in NOT_AGAIN}
    recorded = environment_of(job, rig)
    cannot = [*limits(job.spec, recorded or {})]
    if recorded is None:
        return Changes(document=document, known=False, changes=[], limits=cannot)
    return Changes(document=document, known=True, changes=[*changes(recorded, _present(job, rig))], limits=cannot)


def _present(job: Job, rig: Context) -> dict[str, Any]:
    paths, _ = Places(rig.settings, rig.settings.runs, lambda job_id: rig.store.get_many([job_id]).get(job_id)).locate(
        job.spec
    )
    facts = environment.comparable(job.spec, paths)
    slots = [Slot.from_json(record) for record in rig.store.rigs().get(rig.settings.rig, {}).get("slots", ())]
    facts["gpu"] = {"driver": environment.driver(), "devices": [slot.name for slot in slots if slot.is_gpu] or None}
    if "cwd" in paths:
        facts["git"] = environment.git(Path(paths["cwd"]))
    return facts
