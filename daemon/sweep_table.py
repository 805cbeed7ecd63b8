"""The result of a sweep: its jobs with what made each different and what came out, the best first. Pure.

Metrics are what a job's outcome says; for a job that has none (it runs, or was stopped early) the last that it wrote.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daemon.halving import STOPPED_EARLY
from jobs.evaluation import STDERR
from jobs.metrics import is_finite
from jobs.model import Job, State
from jobs.sweep import Goal, Sweep

#: A job and its numbers.
Told = tuple[Job, Mapping[str, float]]

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
NOT_RESULTS = frozenset({"exit_code", "rows", "resumed_from_step", "cut_rows", "dropped_rows", "tokens", "trained_tokens", "resumed_rows"})  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One job of a sweep; or one point's jobs, of a sweep over a pipeline."""

    #: The one that says most about the point: that tells the goal's metric, else that is not through yet.
    job: Job
    metrics: Mapping[str, float]
    #: The goal's metric; None when the job has not said it.
    value: float | None
    stopped_early: bool
    #: All jobs of the point by stage, where it has several.
    stages: Mapping[str, Job] = field(default_factory=dict)

    @property
    def jobs(self) -> Sequence[Job]:
        return tuple(self.stages.values()) or (self.job,)


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
        """What the others are measured by: what is there once beside all points, the job with the base's own values, else the first.

        None without a result.
        """
        known = [row for row in self.rows if row.value is not None and row.job.state is State.SUCCEEDED]
        if once := [row for row in known if self.sweep.stages and not row.stages]:
            return once[0]
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
    tells = {sweep.stage_of(job.id) for job, metrics in found if goal.metric in metrics}
    teller = next((stage for stage in reversed(sweep.stages) if stage in tells), "")
    rows = [_row(sweep, goal, members, teller) for members in _together(sweep, found)]
    rows.sort(key=lambda row: (ORDER[row.job.state], *_by_value(goal, row.value), int(row.job.id)))
    names = sorted(told - {goal.metric})
    return Table(sweep, goal, rows, [goal.metric, *names] if goal.metric in told else names)


def _together(sweep: Sweep, found: Sequence[Told]) -> list[list[Told]]:
    """The jobs of each row with what they tell."""
    rows: dict[int, list[Told]] = {}
    for job, metrics in found:
        rows.setdefault(sweep.number_of(job.id), []).append((job, metrics))
    return list(rows.values())


def _row(sweep: Sweep, goal: Goal, members: Sequence[Told], teller: str) -> Row:
    """`teller`: the stage whose word on the goal's metric counts."""
    stages = {stage: job for job, _ in members if (stage := sweep.stage_of(job.id))}
    metrics = {name: value for _, each in members for name, value in each.items()}
    told = [job for job, each in members if goal.metric in each and sweep.stage_of(job.id) in ("", teller)]
    if not told:
        metrics.pop(goal.metric, None)
    open_ = [job for job, _ in members if job.state is not State.SUCCEEDED]
    main = [*told, *open_, members[-1][0]][0]
    return Row(main, metrics, metrics.get(goal.metric), any(is_stopped_early(job) for job, _ in members), stages)


def is_stopped_early(job: Job) -> bool:
    """Whether halving ended it."""
    return job.state is State.CANCELLED and job.outcome is not None and job.outcome.message.startswith(STOPPED_EARLY)


def metrics_of(job: Job, last_metrics: Callable[[Job], Mapping[str, float]]) -> dict[str, float]:
    """The numbers of a job's outcome that can be compared; of one that has none, the last that it wrote."""
    told: Mapping[str, Any] = job.outcome.metrics if job.outcome else {}
    found = {name: value for name, value in told.items() if not is_beside(name) and is_finite(value)}
    if not found and job.attempts:
        found = dict(last_metrics(job))
    return found


def is_beside(name: str) -> bool:
    """Whether a number of an outcome says nothing about which job is better: counts, and standard errors."""
    return name in NOT_RESULTS or name.endswith(STDERR)


def _by_value(goal: Goal, value: float | None) -> tuple[bool, float]:
    return (value is None, 0.0 if value is None else goal.key(value))
