"""Runs that somebody named are fetched, compared, and put into the API's words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import redis
from pydantic import BaseModel

from api.comparison import FEWEST, MOST, Comparison, Judgement, Metric, Run, Unit, compare
from api.context import Context
from api.curves import Curve, Curves, curves_of
from api.problems import ApiError
from api.svg import thin
from daemon.store import UnknownJob, UnknownSweep
from jobs.differences import Difference
from jobs.direction import Direction
from jobs.metrics import last_values
from jobs.model import Job, State
from jobs.rundir import run_dir

JOB_ID = re.compile(r"[1-9][0-9]{0,17}")
#: Points of a curve that the API sends.
POINTS = 300

curves = Curves()


def named(ids: str, baseline: str = "") -> list[str]:
    """The runs, the baseline first; without one the first that was named is it. Raises ApiError."""
    found = list(dict.fromkeys(part.strip().removeprefix("#") for part in ids.split(",") if part.strip()))
    if not all(map(JOB_ID.fullmatch, found)) or (baseline and not JOB_ID.fullmatch(baseline)):
        raise ApiError(422, "Runs are named by their numbers, as in ids=141,142.")
    if baseline and baseline not in found:
        found.insert(0, baseline)
    if not FEWEST <= len(found) <= MOST:
        raise ApiError(422, f"{FEWEST} to {MOST} runs can be compared; these are {len(found)}.")
    return sorted(found, key=lambda job_id: job_id != (baseline or found[0]))


def fetched(ids: Sequence[str], rig: Context) -> Comparison:
    """The runs with these ids, compared with the first. Raises UnknownJob, redis.RedisError."""
    jobs = rig.store.get_many(ids)
    if missing := [job_id for job_id in ids if job_id not in jobs]:
        raise UnknownJob(missing[0])
    return compare([_run(jobs[job_id], rig) for job_id in ids], _goals(jobs.values(), rig))


def _run(job: Job, rig: Context) -> Run:
    holder = rig.elsewhere.holder(job)
    if holder is None:
        folder = run_dir(rig.settings.runs, job.id)
        return Run(job, curves.read(folder), _last(job, rig))
    answer = rig.elsewhere.ask(holder, f"/api/v1/jobs/{job.id}/metrics")
    rows: list[Any] = answer.json() if answer is not None and answer.status_code == 200 else []
    found = curves_of(rows)
    return Run(job, found, {name: points[-1][1] for name, points in found.items() if points})


def _last(job: Job, rig: Context) -> Mapping[str, float]:
    return last_values(run_dir(rig.settings.runs, job.id).metrics) or (job.progress.metrics if job.progress else {})


def _goals(jobs: Any, rig: Context) -> dict[str, Direction]:
    """Which way metrics are better, as the runs' sweeps say."""
    goals: dict[str, Direction] = {}
    for sweep_id in {job.sweep for job in jobs if job.sweep}:
        try:
            goal = rig.store.sweep(sweep_id).goal
        except (UnknownSweep, redis.RedisError):
            continue
        if goal is not None:
            goals[goal.metric] = "higher" if goal.maximize else "lower"
    return goals


# -- the API's words ----------------------------------------------------------------------------------------------------------


class RunView(BaseModel):
    """One of the runs."""

    id: str
    name: str
    kind: str
    state: State
    #: Whether its numbers are its last ones.
    is_final: bool
    sweep: str | None

    @classmethod
    def of(cls, run: Run) -> Self:
        job = run.job
        return cls(
            id=job.id, name=job.name, kind=job.kind, state=job.state, is_final=run.is_final, sweep=job.sweep or None
        )


class FieldView(BaseModel):
    """A field of the documents, with its value in each run."""

    name: str
    differs: bool
    values: list[Any]

    @classmethod
    def of(cls, field: Difference) -> Self:
        return cls(name=field.name, differs=field.differs, values=list(field.values))


class ValueView(BaseModel):
    """A metric in one run. `delta` and `judgement` stand against the baseline."""

    value: float | None
    delta: float | None
    judgement: Judgement | None
    words: str
    is_best: bool


class MetricView(BaseModel):
    """A metric, with its value in each run. `direction`: which way is better; null: its name does not tell."""

    name: str
    unit: Unit
    direction: Direction | None
    values: list[ValueView]

    @classmethod
    def of(cls, metric: Metric) -> Self:
        values = [
            ValueView(value=c.value, delta=c.delta, judgement=c.judgement, words=c.words, is_best=c.is_best)
            for c in metric.cells
        ]
        return cls(name=metric.name, unit=metric.unit, direction=metric.direction, values=values)


class ComparisonView(BaseModel):
    """Runs beside each other, the baseline first. Lists of values have one for each run, in that order."""

    baseline: str
    runs: list[RunView]
    fields: list[FieldView]
    metrics: list[MetricView]
    costs: list[MetricView]
    #: By metric, each run's points as [step, value].
    curves: dict[str, list[list[tuple[float, float]]]]

    @classmethod
    def of(cls, made: Comparison) -> Self:
        return cls(
            baseline=made.baseline.job.id,
            runs=[RunView.of(run) for run in made.runs],
            fields=[FieldView.of(field) for field in made.fields],
            metrics=[MetricView.of(metric) for metric in made.metrics],
            costs=[MetricView.of(metric) for metric in made.costs],
            curves={name: [_points(run.curves.get(name, ())) for run in made.runs] for name in made.charted},
        )


def _points(curve: Curve) -> list[tuple[float, float]]:
    return [(step, value) for step, value in thin(curve, POINTS)]
