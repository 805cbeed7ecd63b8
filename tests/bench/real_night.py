"""A small night on a real rig: what GET /plan says when all is submitted, beside what then happens."""

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from figures import Figures
from rig import Rig, rig

#: Programs of known length, s; each runs once before, so that history knows it.
LENGTHS_S = (2, 4, 7, 11)
#: What is submitted: length and GPUs.
EVENING = ((7, 1), (4, 1), (11, 1), (2, 2), (4, 1), (7, 2), (2, 1), (11, 1), (4, 1), (7, 1), (2, 1), (4, 2))


def foretold(*, quick: bool) -> Iterator[Figures]:
    """Two slots, a dozen jobs, three of them gangs: the error of the forecast's ends, and of the end of everything."""
    seconds, share = Figures("s"), Figures("%")
    with rig() as ours:
        for _ in range(1 if quick else 3):
            for length_s in LENGTHS_S:
                for gpus in (1, 2):
                    ours.wait_succeeded(ours.command("sleep", str(length_s), gpus=gpus))
            for name, error_s, ahead_s in _night(ours):
                seconds.add(name, error_s)
                share.add(name, 100 * error_s / ahead_s)
    yield seconds
    yield share


def _night(ours: Rig) -> Iterator[tuple[str, float, float]]:
    documents = [{"kind": "command", "argv": ["sleep", str(s)], "gpus": gpus} for s, gpus in EVENING]
    ids = [str(job["id"]) for job in ours.post("/api/v1/jobs/batch", {"jobs": documents})["jobs"]]
    began = time.time()
    # a what-if of the shortest job of the lowest priority: the plan of the night, asked by POST
    probe = {"kind": "command", "argv": ["sleep", "2"], "priority": "backlog"}
    told: dict[str, Any] = {job["id"]: job for job in ours.post("/api/v1/plan", probe)["jobs"]}
    ends = {name: ours.wait_succeeded(name).finished_at or 0.0 for name in ids}
    for name in ids:
        foretold_s = datetime.fromisoformat(told[name]["end_at"]).timestamp()
        yield "end of each job", abs(foretold_s - ends[name]), ends[name] - began
    last = max(datetime.fromisoformat(told[name]["end_at"]).timestamp() for name in ids)
    yield "end of the last one", abs(last - max(ends.values())), max(ends.values()) - began
