"""The result of a sweep: its jobs with what made each different and what came out, the best first. Pure.

Metrics are what a job's outcome says; for a job that has none (it runs, or was stopped early) the last that it wrote.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.halving import STOPPED_EARLY
from jobs.metrics import is_finite
from jobs.model import Job, State
from jobs.sweep import Goal, Sweep

#: What jobs are compared by when the sweep does not say: the first of these that any of them has.
USUAL_GOALS = (
    Goal(minimize="eval_loss"),
    Goal(minimize="loss"),
    Goal(minimize="train_loss"),
    Goal(maximize="accuracy"),
    Goal(maximize="score"),
)
#: Ended well, still going, ended otherwise, not begun: final numbers and those on the way are no fair comparison.
ORDER = {State.SUCCEEDED: 0, State.RUNNING: 1, State.FAILED: 2, State.CANCELLED: 2, State.QUEUED: 3}
#: Numbers of an outcome that say nothing about which point is better.
NOT_RESULTS = frozenset({"exit_code", "rows", "resumed_from_step", "cut_rows", "dropped_rows", "tokens", "trained_tokens"})  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One job of a sweep."""

    job: Job
    metrics: Mapping[str, float]
    #: The goal's metric; None when the job has not said it.
    value: float | None
    stopped_early: bool


@dataclass(frozen=True)
class Table:
    """A sweep's jobs, the best first."""

    sweep: Sweep
    goal: Goal
    rows: Sequence[Row]
    #: The metrics' names, the goal's first.
    metrics: Sequence[str]

    @property
    def best(self) -> Row | None:
        """The best of the jobs that succeeded."""
        first = self.rows[0] if self.rows else None
        return first if first and first.value is not None and first.job.state is State.SUCCEEDED else None

    @property
    def baseline(self) -> Row | None:
        """What the others are measured by: the job with the base's own values, else the first; None without a result."""
        known = [row for row in self.rows if row.value is not None and row.job.state is State.SUCCEEDED]
        base = next((row for row in known if self.sweep.is_base(row.job.point)), None)
        return base or next((row for row in known if row.job.id == self.sweep.id), None)

    @property
    def counts(self) -> dict[str, int]:
        """How many stand in each state; those that were stopped early are among the cancelled, too."""
        counts = {str(state): sum(row.job.state is state for row in self.rows) for state in State}
        return {**counts, "stopped_early": sum(row.stopped_early for row in self.rows)}


def table(sweep: Sweep, jobs: Sequence[Job], last_metrics: Callable[[Job], Mapping[str, float]]) -> Table:
    """The table of a sweep's jobs. `last_metrics` reads what a job wrote; it is asked only for jobs that began."""
    found = [(job, metrics_of(job, last_metrics)) for job in jobs]
    told = {name for _, metrics in found for name in metrics}
    goal = sweep.goal or next((usual for usual in USUAL_GOALS if usual.metric in told), USUAL_GOALS[0])
    rows = [Row(job, metrics, metrics.get(goal.metric), is_stopped_early(job)) for job, metrics in found]
    rows.sort(key=lambda row: (ORDER[row.job.state], *_by_value(goal, row.value), int(row.job.id)))
    names = sorted(told - {goal.metric})
    return Table(sweep, goal, rows, [goal.metric, *names] if goal.metric in told else names)


def is_stopped_early(job: Job) -> bool:
    """Whether halving ended it."""
    return job.state is State.CANCELLED and job.outcome is not None and job.outcome.message.startswith(STOPPED_EARLY)


def metrics_of(job: Job, last_metrics: Callable[[Job], Mapping[str, float]]) -> dict[str, float]:
    """The numbers of a job's outcome that can be compared; of one that has none, the last that it wrote."""
    told: Mapping[str, Any] = job.outcome.metrics if job.outcome else {}
    found = {name: value for name, value in told.items() if name not in NOT_RESULTS and is_finite(value)}
    if not found and job.attempts:
        found = dict(last_metrics(job))
    return found


def _by_value(goal: Goal, value: float | None) -> tuple[bool, float]:
    return (value is None, 0.0 if value is None else goal.key(value))
