"""A job that had a GPU and never used it: told from what the sampler saw of its last run. Pure.

Often the program's framework does not see CUDA and computes on the CPU without a word, ten or a hundred times slower.
"""

from daemon.wording import duration
from jobs.model import Attempt, Job

#: Loading and preparing take minutes; and what the sampler did not see says nothing.
LEAST_S, LEAST_COVERAGE = 300.0, 0.9


def unused_gpu(job: Job) -> str:
    """What to tell its owner; "" when it used its GPUs, had none, was short, or nobody knows."""
    if not job.attempts or job.attempts[-1].ended_at is None or not _is_unused(job.attempts[-1]):
        return ""
    run = job.attempts[-1]
    which = "its GPU" if len(run.slots) == 1 else "any of its GPUs"
    return (
        f"It never used {which}: in {duration((run.ended_at or 0.0) - run.started_at)} there was no load, and none of the memory "
        "was this job's. Its program may not see CUDA: look at the beginning of its log."
    )


def _is_unused(run: Attempt) -> bool:
    usage, took_s = run.usage, (run.ended_at or 0.0) - run.started_at
    if run.slots[0].startswith("cpu:") or took_s < LEAST_S or usage.get("coverage", 0.0) < LEAST_COVERAGE:
        return False
    # a program that holds memory is about to compute; one whose memory the driver does not tell may be
    return usage.get("peak_own_vram_bytes") == 0 and usage.get("utilization_p95") == 0 and usage.get("utilization_mean", 1.0) < 0.001  # fmt: skip
