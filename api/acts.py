"""What the owner may do from the page: a button for each thing that a job's, a slot's or the rig's state allows. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from daemon.plan import SlotFacts
from daemon.quarantine import OUT_OF_SERVICE
from jobs.model import Job, Priority, State, WishKind

CANCEL_WAITING = "It leaves the queue; it can be retried later."
CANCEL_RUNNING = "It stops; its run folder stays."


@dataclass(frozen=True)
class Act:
    """One button: where its form goes, and what is asked first. One that asks nothing is easily taken back."""

    path: str
    label: str
    #: Ends the button's id: the focus stays on it when its part of the page is replaced.
    key: str
    question: str = ""
    danger: bool = False
    #: A field that goes along.
    name: str = ""
    value: str = ""
    #: The label where nothing stands around it.
    title: str = ""

    @property
    def full_label(self) -> str:
        return self.title or self.label


def of_job(job: Job, *, earlier: str | None = None, later: str | None = None) -> list[Act]:
    """For a job. `earlier`, `later`: its neighbours in the queue; "" where there is none, None where nobody knows."""
    return [*_of_job(job, earlier, later)]


def _of_job(job: Job, earlier: str | None, later: str | None) -> Iterator[Act]:
    at = f"/do/jobs/{job.id}"
    if job.state is State.QUEUED:
        if job.offer is None:
            yield Act(f"{at}/release", "Release", "release") if job.held else Act(f"{at}/hold", "Hold", "hold")
            if earlier != "":
                yield Act(f"{at}/move", "Move first", "first", name="position", value="first")
            if earlier:
                yield Act(f"{at}/move", "Move up", "up", name="position", value=f"before:{earlier}")
            if later:
                yield Act(f"{at}/move", "Move down", "down", name="position", value=f"after:{later}")
            if later != "":
                yield Act(f"{at}/move", "Move last", "last", name="position", value="last")
            for priority in Priority:
                if priority is not job.priority:
                    label = f"Priority {priority}"
                    yield Act(f"{at}/priority", label, str(priority), name="priority", value=str(priority))
        yield Act(f"{at}/cancel", "Cancel job", "cancel", CANCEL_WAITING, danger=True, title=f"Cancel job {job.id}")
    elif job.state is State.RUNNING:
        if job.wish is None:
            question = "It saves its work, goes back to the queue, and goes on from there later."
            yield Act(f"{at}/preempt", "Save and requeue", "preempt", question, title=f"Save and requeue job {job.id}")
        if job.wish is None or job.wish.kind is not WishKind.CANCEL:
            yield Act(f"{at}/cancel", "Cancel job", "cancel", CANCEL_RUNNING, danger=True, title=f"Cancel job {job.id}")
    elif job.state in (State.FAILED, State.CANCELLED):
        question = "It goes to the end of the queue and resumes from its last checkpoint, if there is one."
        yield Act(f"{at}/retry", "Retry job", "retry", question, title=f"Retry job {job.id}")


def of_slot(slot: SlotFacts, title: str, at: str, job: Job | None) -> list[Act]:
    """For a slot, whose forms go below the address `at`."""
    found = []
    if slot.problem and slot.problem.startswith(OUT_OF_SERVICE):
        question = "It had a fault and takes no job. Release it when you trust it again."
        found.append(Act(f"{at}/release", "Release", "release", question, title=f"Release {title}"))
        question = "The daemon computes on it; when that goes well, it takes jobs again."
        found.append(Act(f"{at}/check", "Check", "check", question, title=f"Check {title}"))
    if slot.paused:
        found.append(Act(f"{at}/resume", "Resume", "resume", "It takes jobs again.", title=f"Resume {title}"))
    else:
        question = "What runs on it goes on; then it stays free for you."
        found.append(Act(f"{at}/pause", "Pause", "pause", question, title=f"Pause {title}"))
    if job is not None and job.state is State.RUNNING and job.wish is None:
        question = f"It takes no new job, and job {job.id} saves its work and goes back to the queue."
        found.append(Act(f"{at}/free", "Free now", "free", question, title=f"Free {title} now"))
    return found


def of_rig(paused: bool) -> list[Act]:
    """For the rig."""
    if paused:
        return [Act("/do/rig/resume", "Resume rig", "resume", "Waiting jobs start again.")]
    return [Act("/do/rig/pause", "Pause rig", "pause", "Running jobs go on, no new one starts until it is resumed.")]
