"""The result to look at first, and what it is compared with. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from daemon.night.model import Baseline, Best
from daemon.night.records import Records
from daemon.wording import telling_metric
from jobs.direction import direction
from jobs.evaluation import basis
from jobs.metrics import is_finite
from jobs.model import Job, State

#: These count, they do not judge.
NO_RESULT = frozenset({"rows"})
BASELINE_TAG = "baseline"
#: What a recipe may say of the model before it was trained, beside its own number.
BEFORE = ("base_{}", "{}_before", "baseline_{}")


@dataclass(frozen=True)
class _Result:
    job: Job
    metric: str
    value: float
    lower: bool

    @property
    def goodness(self) -> float:
        return -self.value if self.lower else self.value


def best(records: Records) -> Best | None:
    """The result that improved most on its baseline; without any baseline, the best of the largest comparable group."""
    results = [found for job in records.ended(State.SUCCEEDED) if (found := _result(job, records)) is not None]
    leaders: list[tuple[int, Best]] = []
    for group in _comparable(results):
        first = max(group, key=lambda result: (result.goodness, -int(result.job.id)))
        leaders.append((len(group), _told(first, _baseline(first, results, records))))
    return max(leaders, key=_weight, default=(0, None))[1]


def _weight(leader: tuple[int, Best]) -> tuple[bool, float, int]:
    size, told = leader
    # from nothing to something has no share that could be told; it counts like twice as much
    gain = (abs(told.change) if told.change is not None else 1.0) if told.better else 0.0
    return told.metric != "tokens_per_s", gain, size


def of_goal(job: Job, records: Records) -> tuple[str, float] | None:
    """What it tells of its sweep's goal."""
    metrics = job.outcome.metrics if job.outcome else {}
    goal = records.sweeps[job.sweep].goal if job.sweep in records.sweeps else None
    return (goal.metric, float(metrics[goal.metric])) if goal and is_finite(metrics.get(goal.metric)) else None


def _result(job: Job, records: Records) -> _Result | None:
    metrics = job.outcome.metrics if job.outcome else {}
    if (told := of_goal(job, records)) is not None:
        goal = records.sweeps[job.sweep].goal
        return _Result(job, *told, lower=bool(goal and goal.minimize))
    telling = telling_metric({name: value for name, value in metrics.items() if name not in NO_RESULT})
    return _Result(job, *telling, direction(telling[0]) == "lower") if telling else None


def _comparable(results: Iterable[_Result]) -> Iterator[list[_Result]]:
    """Results of one kind, metric and data: other numbers cannot be held against each other."""
    groups: dict[tuple[object, ...], list[_Result]] = {}
    for result in results:
        groups.setdefault(_key(result.job, result.metric), []).append(result)
    yield from groups.values()


def _key(job: Job, metric: str) -> tuple[object, ...]:
    spec = job.spec
    data = [str(spec.get(name)) for name in ("eval_data", "data", "prompts", "suite", "tasks")]
    return job.kind, metric, *data, basis(job.outcome.metrics, metric) if job.outcome else None


def _told(result: _Result, baseline: Baseline | None) -> Best:
    change = better = None
    if baseline is not None:
        difference = result.value - baseline.value
        change = difference / abs(baseline.value) if baseline.value else None
        better = difference < 0 if result.lower else difference > 0
    return Best(
        job=result.job.id,
        name=result.job.name,
        kind=result.job.kind,
        metric=result.metric,
        value=result.value,
        lower_is_better=result.lower,
        sweep=result.job.sweep,
        baseline=baseline,
        change=change,
        better=better,
    )


def _baseline(result: _Result, results: Iterable[_Result], records: Records) -> Baseline | None:
    """The first that there is: tagged, its own word, the model without the adapter, the sweep's base."""
    job, metric = result.job, result.metric
    known = {other.id: other for other in (*records.baselines, *records.jobs) if other.state is State.SUCCEEDED}
    tagged = [
        other
        for other in sorted(known.values(), key=lambda one: -(one.finished_at or 0.0))
        if BASELINE_TAG in other.tags and other.id != job.id and _same(other, job, metric)
    ]
    if tagged:
        return _as_baseline(tagged[0], metric, "tagged baseline")
    if (before := _before(job, metric)) is not None:
        return Baseline(job=job.id, name=job.name, value=before, why="before training")
    bare = [other for other in known.values() if _is_bare(other, job) and _same(other, job, metric)]
    if job.spec.get("adapter") and bare:
        return _as_baseline(max(bare, key=lambda one: one.finished_at or 0.0), metric, "the model without the adapter")
    alike = {name: other for name, other in known.items() if _same(other, job, metric)}
    if job.sweep and (base := _base_of_sweep(job, alike, records)):
        return _as_baseline(base, metric, "the sweep's base" if _is_base(base, records) else "the sweep's first")
    return None


def _base_of_sweep(job: Job, known: Mapping[str, Job], records: Records) -> Job | None:
    members = [other for other in known.values() if other.sweep == job.sweep and other.id != job.id]
    same = [other for other in members if _is_base(other, records)]
    return next(iter(same), known.get(job.sweep) if job.sweep != job.id else None)


def _is_base(job: Job, records: Records) -> bool:
    """Whether its point says what the sweep's base says."""
    sweep = records.sweeps.get(job.sweep)
    return sweep is not None and sweep.is_base(job.point)


def _is_bare(other: Job, job: Job) -> bool:
    return not other.spec.get("adapter") and other.spec.get("model") == job.spec.get("model")


def _same(other: Job, job: Job, metric: str) -> bool:
    return _key(other, metric) == _key(job, metric) and _value(other, metric) is not None


def _before(job: Job, metric: str) -> float | None:
    metrics = job.outcome.metrics if job.outcome else {}
    return next((float(metrics[n]) for n in (form.format(metric) for form in BEFORE) if is_finite(metrics.get(n))), None)  # fmt: skip


def _value(job: Job, metric: str) -> float | None:
    value = job.outcome.metrics.get(metric) if job.outcome else None
    return float(value) if value is not None and is_finite(value) else None


def _as_baseline(job: Job, metric: str, why: str) -> Baseline | None:
    value = _value(job, metric)
    return None if value is None else Baseline(job=job.id, name=job.name, value=value, why=why)
