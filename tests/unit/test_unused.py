"""A job that never used its GPU is told so, and nobody else is."""

from typing import Any

import pytest

from daemon.unused import unused_gpu
from jobs.model import Attempt, End, Job

IDLE = {"coverage": 1.0, "utilization_mean": 0.0, "utilization_p95": 0.0, "peak_own_vram_bytes": 0}


def job(*, slots: tuple[str, ...] = ("GPU-0",), took_s: float | None = 2520.0, **usage: Any) -> Job:
    run = Attempt(
        number=1, fence=1, rig="rig", slots=slots, started_at=0.0, ended_at=took_s, end=End.SUCCEEDED if took_s else None, usage={**IDLE, **usage}
    )  # fmt: skip
    return Job(id="1", kind="command", name="", spec={}, created_at=0.0, rank=0.0, attempts=(run,))


def test_a_gpu_that_was_never_used_is_told() -> None:
    said = unused_gpu(job())
    assert said.startswith("It never used its GPU: in 42\u202fmin there was no load")
    assert unused_gpu(job(slots=("GPU-0", "GPU-1"))).startswith("It never used any of its GPUs")


@pytest.mark.parametrize(
    "more",
    [
        {"slots": ("cpu:0",)},
        {"took_s": 200.0},
        {"took_s": None},
        {"coverage": 0.5},
        {"utilization_p95": 0.03},
        {"utilization_mean": 0.01},
        {"peak_own_vram_bytes": 2**20},
        {"peak_own_vram_bytes": None},
    ],
    ids=str,
)
def test_what_used_it_or_is_not_known_is_not_accused(more: dict[str, Any]) -> None:
    assert unused_gpu(job(**more)) == ""


def test_a_job_that_never_ran_is_not_accused() -> None:
    assert unused_gpu(Job(id="1", kind="command", name="", spec={}, created_at=0.0, rank=0.0)) == ""
