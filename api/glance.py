"""What a job's page shows of a run folder that is on another rig: asked of that rig, briefly, so that the page never hangs."""

from dataclasses import dataclass, field
from typing import Any

import httpx

from api.context import Context
from api.curves import TAIL_LINES, Curve, File, curves_of, lines_of, listed, times_of
from api.elsewhere import away
from api.files import Found
from jobs.model import Job


@dataclass(frozen=True)
class Glance:
    """The other rig's answer; `problem` when it did not come."""

    rig: str
    problem: str | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    times: Curve = ()
    log: list[str] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    more_files: bool = False


def glance(rig: Context, job: Job) -> Glance | None:
    """The end of the log, the curves and the files, from the rig that has them; None when this one has."""
    holder = rig.elsewhere.holder(job)
    if holder is None:
        return None
    base = f"/api/v1/jobs/{job.id}"
    log = rig.elsewhere.ask(holder, f"{base}/log?tail={TAIL_LINES}")
    if log is None:  # the others would not come either
        return Glance(holder, problem=away(job.id, holder))
    metrics, files = rig.elsewhere.ask(holder, f"{base}/metrics"), rig.elsewhere.ask(holder, f"{base}/files")
    if not (_came(log) and _came(metrics) and _came(files)):
        return Glance(holder, problem=f"Rig {holder}, which has the run folder, did not answer in full.")
    rows: list[Any] = metrics.json() if metrics is not None else []
    told: dict[str, Any] = files.json() if files is not None else {"files": [], "truncated": False}
    found = [Found(str(f["path"]), int(f["size_bytes"]), 0.0) for f in told["files"]]
    shown, more = listed(found, bool(told["truncated"]))
    return Glance(holder, None, curves_of(rows), times_of(rows), lines_of(log.text), shown, more)


def _came(answer: httpx.Response | None) -> bool:
    return answer is not None and answer.status_code == 200
