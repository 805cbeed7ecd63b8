"""What the forecast tells: of each job when it starts and ends and how sure that is, of the night what will be late. Plain records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from jobs.model import Job


class Basis(StrEnum):
    """Where the length of a job comes from."""

    PROGRESS = "progress"
    HISTORY = "history"
    #: The median of its kind: nothing like it has run.
    GUESS = "guess"
    #: Not even its kind has run.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Run:
    """One stay of a job on its slots. `done`: the job ends with it; else it is interrupted and goes on later."""

    job: str
    slots: tuple[str, ...]
    start_at: float
    end_at: float
    done: bool = True


@dataclass(frozen=True)
class Outlook:
    """What is expected of one job."""

    job: Job
    basis: Basis
    runs: tuple[Run, ...] = ()
    #: Start and end rest on known durations only, those of the jobs before it included.
    sure: bool = True
    waiting_because: str | None = None
    #: Why it will not start at all as things stand.
    never: str | None = None

    @property
    def start_at(self) -> float | None:
        """When it starts, or has started this time; None when that is beyond the horizon."""
        return self.runs[0].start_at if self.runs else None

    @property
    def end_at(self) -> float | None:
        """When it is done; None when that is beyond the horizon."""
        return self.runs[-1].end_at if self.runs and self.runs[-1].done else None

    @property
    def slots(self) -> tuple[str, ...]:
        return self.runs[0].slots if self.runs else ()


@dataclass(frozen=True)
class Forecast:
    """The night as it will go."""

    at: float
    #: When the window closes that is open now or opens next; None without one.
    window_ends_at: float | None
    #: What `late` is measured by: the end of the window, or the moment that was asked for.
    deadline: float | None
    jobs: Mapping[str, Outlook] = field(default_factory=dict)
    #: The forecast stopped here: at its horizon, at its bound, or as nothing was left to happen.
    until: float = 0.0
    #: It stopped at its bound of work; jobs further back have no times.
    cut: bool = False

    @property
    def late(self) -> tuple[str, ...]:
        """Jobs that could run before the deadline and are not done by then, in the order of the queue."""
        return tuple(name for name, outlook in self.jobs.items() if _is_late(outlook, self.deadline))

    def lane(self, slot: str) -> list[Run]:
        """What runs on a slot, in order of time."""
        runs = (run for outlook in self.jobs.values() for run in outlook.runs if slot in run.slots)
        return sorted(runs, key=lambda run: run.start_at)


def _is_late(outlook: Outlook, deadline: float | None) -> bool:
    job = outlook.job
    if deadline is None or job.held or outlook.never or (job.not_before or 0.0) >= deadline:
        return False
    return outlook.end_at is None or outlook.end_at > deadline
