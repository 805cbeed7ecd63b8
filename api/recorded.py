"""What a job's last attempt ran on, as it wrote it down itself (jobs.environment). A job may have written there: anything goes."""

import json
import os
from typing import Any

from api.context import Context
from api.files import NoSuchFile, open_beneath
from jobs.model import Job
from jobs.rundir import run_dir

MAX_BYTES = 4 << 20


def environment_of(job: Job, rig: Context) -> dict[str, Any] | None:
    """From this rig's run folder, or from the rig that has it; None when there is no readable word of it."""
    folder = run_dir(rig.settings.runs, job.id)
    holder = rig.elsewhere.holder(job)
    if holder is not None:
        answer = rig.elsewhere.ask(holder, f"/api/v1/jobs/{job.id}/files/{folder.environment.name}")
        return _read(answer.content) if answer is not None and answer.status_code == 200 else None
    try:
        descriptor = open_beneath(folder.path, folder.environment.name)
    except NoSuchFile:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return _read(file.read(MAX_BYTES))


def _read(content: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(content)
        # halves of characters could not be sent on
        told = json.loads(json.dumps(told, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None
