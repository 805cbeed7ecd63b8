"""Which jobs have a preflight, and whose counts for others. Pure. How one is carried out: jobs.preflight; when: daemon.situation.

A preflight is the first run of a job and no job of its own: it has the job's id, its log, its causes and its tries, and a job
that fails in it has failed. What passes goes back to its place in the queue.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from daemon.history import History, shapes
from daemon.situation import gib
from daemon.wording import duration, energy, number
from jobs.model import Condition, Job, State

#: What a card does in a second of training, where nothing like the job has run yet: a 3090 at half of its dense bfloat16
#: peak of 71e12 (a guess), and a core or two in float32 (one core: 4e10, measured). They decide who is checked, nothing else.
GPU_FLOPS_PER_S, CPU_FLOPS_PER_S = 35e12, 5e10


def is_wanted(job: Job, history: History, *, over_s: float, on_gpu: bool) -> bool:
    """Whether a job that comes into the queue is to be checked first: as it says, or, with auto, as it is long and new."""
    asked = job.spec.get("preflight", False)
    if asked != "auto":
        return bool(asked)
    if job.kind != "finetune" or history.has_run(job):
        return False
    seconds = expected_s(job, history, on_gpu=on_gpu)
    return seconds is not None and seconds > over_s


def expected_s(job: Job, history: History, *, on_gpu: bool) -> float | None:
    """What jobs like it have taken; else a rough guess from its arithmetic; None when that is not known either."""
    expected = history.expected(job)
    if expected is not None:
        return expected.median_s
    flops = job.estimate.get("flops")
    return flops / (GPU_FLOPS_PER_S if on_gpu else CPU_FLOPS_PER_S) / max(1, job.gpus) if flops else None


def shared(jobs: Iterable[Job]) -> list[Job]:
    """Of the jobs that come in together and are alike the first one is checked for all; the others wait for it.

    One that waits for another job may wait for hours, so it is checked for itself only; and nobody waits for one that is
    less urgent, or has other hours.
    """
    first: dict[object, str] = {}
    found: list[Job] = []
    for job in jobs:
        if not job.preflight_due:
            found.append(job)
            continue
        alike = (shapes(job)[0], job.priority, job.window, job.not_before)
        leader = job.id if job.after else first.setdefault(alike, job.id)
        if leader == job.id:
            found.append(job)
        else:
            found.append(replace(job, preflight_due=False, after=(*job.after, f"{Condition.CHECKED}:{leader}")))
    return found


def told(job: Job) -> str:
    """How its preflight stands, in a sentence; "" for a job that has none."""
    leader = next((parent for parent, condition in job.parents if condition is Condition.CHECKED), "")
    if job.state is State.RUNNING and job.in_preflight:
        return "It runs now: a few real steps, a checkpoint, an answer."
    if job.failed_preflight:
        return "It failed; the job itself has not run."
    if job.preflight_due:
        return "" if job.state.final else "It comes first, as soon as there is a place for it."
    if leader and not job.measured:
        return f"That of job {leader}, which is like this one, counts for it, too."
    return _passed(job.measured) if job.measured else ""


def _passed(measured: Mapping[str, float]) -> str:
    peak = measured.get("peak_vram_bytes") or measured.get("peak_rss_bytes")
    parts = [
        f"{gib(peak)} of {'GPU' if 'peak_vram_bytes' in measured else 'main'} memory at its peak" if peak else "",
        f"{number(round(measured['step_s'], 2))} s a step" if "step_s" in measured else "",
        f"about {duration(measured['expected_s'])} for the whole job" if "expected_s" in measured else "",
        f"about {energy(measured['expected_j'])}" if "expected_j" in measured else "",
    ]
    return f"It passed: {', '.join(filter(None, parts))}."
