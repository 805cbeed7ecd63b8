"""A card that fails under a job is told from a job that fails by itself."""

import pytest

from daemon.faults import explain, fault_of
from daemon.telemetry import GpuEvent
from jobs.model import Cause, End, Outcome


def event(kind: str, code: int | None = None, slot: str | None = "GPU-a") -> GpuEvent:
    return GpuEvent(1.0, slot, "nvml", kind, code, "")


@pytest.mark.parametrize("code", [13, 31, 43, 45, 999])
def test_a_jobs_own_mistake_is_not_the_cards(code: int) -> None:
    assert fault_of([event("xid", code)]) is None


def test_a_card_off_the_bus_explains_what_its_job_died_of() -> None:
    fault = fault_of([event("xid", 43), event("xid", 79)])
    assert fault is not None and "fallen off the bus" in fault.words
    died = Outcome(end=End.FAILED, cause=Cause.USER_ERROR, message="CUDA error: unspecified launch failure")
    assert explain(died, fault).cause is Cause.GPU_FAULT


def test_what_a_card_does_not_explain_keeps_its_cause() -> None:
    fault = fault_of([event("lost")])
    for kept in (
        Outcome(end=End.SUCCEEDED),
        Outcome(end=End.FAILED, cause=Cause.BAD_INPUT),
        Outcome(end=End.FAILED, cause=Cause.TIMEOUT),
    ):
        assert explain(kept, fault) is kept
