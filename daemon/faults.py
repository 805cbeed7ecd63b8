"""Which GPU events are the card's fault and not the job's. Pure.

The codes are those of NVIDIA's XID catalogue (docs.nvidia.com/deploy/xid-errors). Codes that a job's own mistakes cause (13,
31, 43) or that follow a plain kill (45) are left out: they say nothing about the card.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from daemon.telemetry import GpuEvent
from jobs.model import Cause, End, Outcome

#: XID -> what it means. After one of these the card gets no new job until somebody resumes it.
FATAL_XIDS = {
    46: "the GPU stopped answering",
    48: "a double-bit memory error",
    54: "the power cable is not connected",
    62: "an internal micro-controller halted",
    64: "a memory row could not be replaced",
    79: "the GPU has fallen off the bus",
    95: "an uncontained memory error",
    110: "a security fault",
    119: "the GPU's system processor timed out",
    120: "the GPU's system processor failed",
    140: "an unrecovered memory error",
    143: "the GPU could not be initialised",
    155: "an NVLink error",
}
#: Failures that a broken card explains better than their own words do.
EXPLAINED = frozenset({Cause.LOST, Cause.SIGNAL, Cause.USER_ERROR, Cause.HANG})


@dataclass(frozen=True)
class Fault:
    """A card that failed under a job."""

    slot: str
    words: str


def fault_of(events: Iterable[GpuEvent]) -> Fault | None:
    """The first event that is the card's fault."""
    for event in events:
        if event.slot is None:
            continue
        if event.kind == "xid" and event.code in FATAL_XIDS:
            return Fault(event.slot, f"XID {event.code}: {FATAL_XIDS[event.code]}")
        if event.kind == "lost":
            return Fault(event.slot, "the driver lost the GPU")
    return None


def explain(outcome: Outcome, fault: Fault | None) -> Outcome:
    """The outcome with the card's fault as its cause, where that explains it: the job moves to another card."""
    if fault is None or outcome.end is not End.FAILED or outcome.cause not in EXPLAINED:
        return outcome
    return replace(
        outcome,
        cause=Cause.GPU_FAULT,
        message=f"The GPU failed under it ({fault.words}).",
        hint=f"{fault.slot} gets no new job until `overnight resume {fault.slot}`. A reboot may help; check power and cooling.",
    )
