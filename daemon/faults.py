"""Which GPU events are the card's fault and not the job's, and what follows from each. Pure.

The codes and their meanings are those of NVIDIA's XID catalogue (docs.nvidia.com/deploy/xid-errors) and of nverror.h in
NVIDIA's open kernel modules; what follows from them here is ours.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from daemon.telemetry import GpuEvent
from jobs.model import Cause, End, Outcome


class Policy(Enum):
    """What an XID leads to."""

    NOTE = "note"  # it stands in the record, and nothing follows
    JOB = "job"  # a job's own mistake; several different jobs on one GPU make the GPU suspect
    RETRY = "retry"  # the job is not to blame: it is tried again, the GPU stays in service
    SUSPECT = "suspect"  # no new job until a check has passed
    QUARANTINE = "quarantine"  # out of service until somebody, or a check after a reboot, puts it back


@dataclass(frozen=True)
class Xid:
    """What a code means."""

    words: str
    policy: Policy


XIDS = {
    8: Xid("the GPU stopped processing", Policy.RETRY),
    13: Xid("a kernel failed: an illegal address or instruction", Policy.JOB),
    31: Xid("a kernel touched memory that is not its own", Policy.JOB),
    32: Xid("a corrupted command stream", Policy.RETRY),
    43: Xid("the GPU stopped a process's work", Policy.JOB),
    45: Xid("work was swept away after another error or a kill", Policy.NOTE),
    46: Xid("the GPU stopped answering", Policy.QUARANTINE),
    48: Xid("a double-bit memory error", Policy.QUARANTINE),
    54: Xid("the power cable is not connected", Policy.QUARANTINE),
    62: Xid("an internal micro-controller halted", Policy.QUARANTINE),
    63: Xid("a memory row was replaced", Policy.NOTE),
    64: Xid("a memory row could not be replaced", Policy.QUARANTINE),
    68: Xid("the video decoder failed", Policy.RETRY),
    69: Xid("a graphics engine error", Policy.RETRY),
    74: Xid("an NVLink error", Policy.JOB),
    79: Xid("the GPU has fallen off the bus", Policy.QUARANTINE),
    92: Xid("many single-bit memory errors", Policy.NOTE),
    94: Xid("a contained memory error", Policy.RETRY),
    95: Xid("an uncontained memory error", Policy.QUARANTINE),
    109: Xid("a context switch took too long", Policy.SUSPECT),
    110: Xid("a security fault", Policy.QUARANTINE),
    119: Xid("the GPU's system processor timed out", Policy.QUARANTINE),
    120: Xid("the GPU's system processor failed", Policy.QUARANTINE),
    140: Xid("an unrecovered memory error", Policy.QUARANTINE),
    143: Xid("the GPU could not be initialised", Policy.QUARANTINE),
    154: Xid("the driver asks for a recovery", Policy.NOTE),  # what it asks for is read each second (field 230)
    155: Xid("an NVLink error", Policy.QUARANTINE),
}
UNKNOWN = Xid("an error that NVIDIA's catalogue does not explain", Policy.SUSPECT)
#: What is said of a card that is gone; its XID, which says why, may come a moment later.
LOST = "the driver lost the GPU"
#: So many different jobs with an XID of policy JOB within this time make their GPU suspect.
DIFFERENT_JOBS, DIFFERENT_WITHIN_S = 3, 86_400.0
#: Failures that a broken card explains better than their own words do.
EXPLAINED = frozenset({Cause.LOST, Cause.SIGNAL, Cause.USER_ERROR, Cause.HANG})
#: NVML field 230: what the driver asks for.
RECOVERY = {
    1: "a reset of the GPU", 2: "a reboot", 3: "its peer traffic drained", 4: "a drain and a reset",
    5: "the IMEX domain restarted", 6: "a reset of the bus", 7: "a reboot",
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A card that failed."""

    slot: str
    words: str
    policy: Policy
    at: float = 0.0
    code: int | None = None
    #: The line that told it.
    evidence: str = ""


def xid_of(code: int) -> Xid:
    """What a code means; one that nobody knows makes its GPU suspect."""
    return XIDS.get(code, UNKNOWN)


def fault_in(event: GpuEvent) -> Fault | None:
    """What an event says about its card; None: nothing that outlives it."""
    if event.slot is None:
        return None
    if event.kind == "lost":
        return Fault(event.slot, LOST, Policy.QUARANTINE, event.at, None, event.text)
    if event.kind != "xid" or event.code is None:
        return None
    xid = xid_of(event.code)
    return Fault(event.slot, f"XID {event.code}: {xid.words}", xid.policy, event.at, event.code, event.text)


def fault_of(events: Iterable[GpuEvent]) -> Fault | None:
    """The gravest event that is the card's fault and not the job's; of equals, the first."""
    order = (Policy.QUARANTINE, Policy.RETRY, Policy.SUSPECT)
    known = [fault for event in events if (fault := fault_in(event)) and fault.policy in order]
    # a code that nobody knows is no proof that the job is innocent
    known = [fault for fault in known if fault.policy is not Policy.SUSPECT or fault.code in XIDS]
    return min(known, key=lambda fault: order.index(fault.policy), default=None)


def explain(outcome: Outcome, fault: Fault | None) -> Outcome:
    """The outcome with the card's fault as its cause, where that explains it: the job moves to another card."""
    if fault is None or outcome.end is not End.FAILED or outcome.cause not in EXPLAINED:
        return outcome
    release = f"`overnight gpus release {fault.slot}`"
    held = f"{fault.slot} gets no new job until {release}. A reboot may help; check power and cooling."
    return replace(
        outcome,
        cause=Cause.GPU_FAULT,
        message=f"The GPU failed under it ({fault.words}).",
        hint=held if fault.policy is Policy.QUARANTINE else "It is tried again; the GPU stays in service.",
    )


def suspects(marks: Iterable[tuple[float, str, str]], *, now: float) -> dict[str, list[str]]:
    """GPUs on which several different jobs had an XID of their own lately: what is common to them is the card.

    `marks` are (when, slot, job). Returns the jobs by slot.
    """
    jobs: dict[str, dict[str, None]] = {}
    for at, slot, job in marks:
        if now - at <= DIFFERENT_WITHIN_S:
            jobs.setdefault(slot, {})[job] = None
    return {slot: list(found) for slot, found in jobs.items() if len(found) >= DIFFERENT_JOBS}
