"""How soon a job's process runs: on an idle rig, and right after the job before it. Beside plain RQ."""

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from figures import Figures
from plain import Plain, plain_rq
from rig import Rig, rig, until

#: What RQ runs, and whether that is one program.
FUNCTION, PROGRAM = "plain_functions.mark", "plain_functions.program"
#: A job of `next_job` runs this long, so that the queue behind it is never empty and never a rush.
JOB_S = 0.15
JOBS_PER_ROUND = 6
#: The rig comes to rest between two jobs.
REST_S = 0.4


def both_rigs(stack: ExitStack, slots: str) -> dict[str, Rig]:
    """One rig that does not preload and one that has done so."""
    rigs = {"not preloaded": stack.enter_context(rig(slots=slots))}
    rigs["preloaded"] = stack.enter_context(rig(slots=slots, warm_start=True))
    rigs["preloaded"].wait_preloaded()
    time.sleep(3)  # what has just been started settles
    return rigs


def start(*, quick: bool) -> Iterator[Figures]:
    """POST -> the job's process runs, on an idle rig with two slots."""
    figures = Figures("ms")
    with ExitStack() as stack:
        rigs = both_rigs(stack, "cpu:2")
        plain = stack.enter_context(plain_rq(2))
        for number in range(8 if quick else 30):
            for name, each in rigs.items():
                _one_start(figures, name, each, each.settings.home / f"mark-{number}")
            for name, function in (("function", FUNCTION), ("function + subprocess", PROGRAM)):
                path = plain.home / f"{function}-{number}"
                began = time.time()
                plain.queue.enqueue(function, str(path) if function == FUNCTION else _note(path))
                time.sleep(REST_S)
                figures.add(f"plain RQ: {name}", _first(path) - began)
    yield figures


def _one_start(figures: Figures, name: str, rig: Rig, path: Path) -> None:
    began = time.time()
    job_id = rig.command(*_note(path))
    answered = time.time()
    time.sleep(REST_S + random.random() / 10)  # no polling while it starts; and never in step with a clock
    job = rig.wait_succeeded(job_id)
    figures.add(f"{name}: answered", answered - began)
    figures.add(f"{name}: claimed", (job.attempts[-1].started_at or 0.0) - began)
    figures.add(f"{name}: its first line", _first(path) - began)


def next_job(*, quick: bool) -> Iterator[Figures]:
    """End of one job's process -> start of the next one's on the same slot, while more wait."""
    figures = Figures("ms")
    with ExitStack() as stack:
        rigs = both_rigs(stack, "cpu:1")
        plain = stack.enter_context(plain_rq(1))
        for number in range(2 if quick else 6):
            for name, each in rigs.items():
                path = each.settings.home / f"marks-{number}"
                document = {"kind": "command", "argv": _note_twice(path)}
                jobs = each.post("/api/v1/jobs/batch", {"jobs": [document] * JOBS_PER_ROUND})["jobs"]
                each.wait_succeeded(str(jobs[-1]["id"]))
                figures.add(name, *_gaps(path))
            path = plain.home / f"function-{number}"
            _rush(plain, "plain_functions.mark_twice", str(path), JOB_S)
            figures.add("plain RQ: function", *_gaps(path))
            path = plain.home / f"program-{number}"
            _rush(plain, PROGRAM, _note_twice(path))
            figures.add("plain RQ: function + subprocess", *_gaps(path))
    yield figures


def _rush(plain: Plain, function: str, *arguments: object) -> None:
    jobs = [plain.queue.enqueue(function, *arguments) for _ in range(JOBS_PER_ROUND)]
    until(lambda: jobs[-1].get_status() == "finished", within_s=60, what="the end of RQ's jobs")


def _note(path: Path) -> list[str]:
    return ["sh", "-c", f"date +%s.%N >> {path}"]


def _note_twice(path: Path) -> list[str]:
    return ["sh", "-c", f"date +%s.%N >> {path}; sleep {JOB_S}; date +%s.%N >> {path}"]


def _first(path: Path) -> float:
    until(lambda: path.exists() and path.read_text().endswith("\n"), within_s=30, what="the job's first line")
    return float(path.read_text().split()[0])


def _gaps(path: Path) -> list[float]:
    """From the second line of each job to the first line of the next."""
    moments = [float(word) for word in path.read_text().split()]
    return [moments[at + 1] - moments[at] for at in range(1, len(moments) - 1, 2)]
