"""Runs beside each other: what differs in their documents, what came out, by how much, and whether that is better. Pure.

The first run is the baseline; the page, the API and `overnight compare` show the same `Comparison`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from api.curves import Curve
from api.wording import duration, energy, number, size
from daemon.sweep_table import metrics_of
from daemon.wording import TELLING_METRICS
from jobs.differences import NOT_ITS_WORK, Difference, compared
from jobs.direction import Direction, direction
from jobs.model import Job, State

FEWEST, MOST = 2, 5
#: Values that are closer than this share of each other are called the same.
SAME = 1e-9

Unit = Literal["", "s", "j", "bytes"]
Judgement = Literal["better", "worse", "same"]

_TEXTS: Mapping[Unit, Callable[[float], str]] = {"": number, "s": duration, "j": energy, "bytes": size}
#: What a run cost, by its name in usage: less of it is better.
_COSTS: tuple[tuple[str, str, Unit], ...] = (
    ("energy_j", "energy", "j"),
    ("gpu_s", "GPU time", "s"),
    ("peak_vram_bytes", "peak GPU memory", "bytes"),
    ("peak_memory_bytes", "peak memory", "bytes"),
)


@dataclass(frozen=True)
class Run:
    """One of the runs: its record, its curves by metric, and the last it wrote (for one that has not ended)."""

    job: Job
    curves: Mapping[str, Curve] = field(default_factory=dict)
    last: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Whether its numbers are its last ones."""
        return self.job.state is State.SUCCEEDED


@dataclass(frozen=True)
class Cell:
    """A run's value of a metric, and how it stands to the baseline's."""

    value: float | None
    text: str = ""
    delta: float | None = None
    judgement: Judgement | None = None
    #: "0.12 lower, better"; empty for the baseline and where a value lacks.
    words: str = ""
    is_best: bool = False


@dataclass(frozen=True)
class Metric:
    """A metric with its value in each run. `direction`: which way is better; None: its name does not tell."""

    name: str
    unit: Unit
    direction: Direction | None
    cells: tuple[Cell, ...]

    @property
    def told(self) -> int:
        """How many of the runs have a value."""
        return sum(cell.value is not None for cell in self.cells)


@dataclass(frozen=True)
class Comparison:
    """Runs, the baseline first; their fields, metrics and costs, each with one value for each run in that order."""

    runs: tuple[Run, ...]
    fields: tuple[Difference, ...]
    metrics: tuple[Metric, ...]
    costs: tuple[Metric, ...]

    @property
    def baseline(self) -> Run:
        return self.runs[0]

    @property
    def differing(self) -> tuple[Difference, ...]:
        """The fields that are not the same in all."""
        return tuple(one for one in self.fields if one.differs)

    @property
    def shared(self) -> tuple[Metric, ...]:
        """The metrics that two or more of the runs tell."""
        return tuple(metric for metric in self.metrics if metric.told > 1)

    @property
    def single(self) -> tuple[Metric, ...]:
        """Those that only one tells: there is nothing to compare them with."""
        return tuple(metric for metric in self.metrics if metric.told == 1)

    @property
    def charted(self) -> tuple[str, ...]:
        """Metrics of which two of the runs have a curve, those that tell most first; then those that only one has."""
        count: dict[str, int] = {}
        for run in self.runs:
            for name, points in run.curves.items():
                count[name] = count.get(name, 0) + (len(points) > 1)
        told = [name for name, amount in count.items() if amount]
        return tuple(sorted(told, key=lambda name: (count[name] < 2, _telling(name))))


def compare_link(job_ids: Sequence[str]) -> str:
    """Where these runs stand beside each other. The first one is the baseline; more than fit are left out."""
    return f"/compare?ids={','.join(list(dict.fromkeys(job_ids))[:MOST])}"


def compare(runs: Sequence[Run], goals: Mapping[str, Direction] | None = None) -> Comparison:
    """Compare runs with the first one. `goals`: which way metrics are better, where somebody has said so."""
    values = [metrics_of(run.job, lambda job, run=run: run.last) for run in runs]  # type: ignore[misc]
    names = sorted({name for told in values for name in told}, key=_telling)
    better = goals or {}
    metrics = (
        _metric(name, "", better.get(name) or direction(name), [told.get(name) for told in values]) for name in names
    )
    documents = [run.job.effective_spec for run in runs]
    return Comparison(
        runs=tuple(runs),
        fields=tuple(compared(documents, without=NOT_ITS_WORK)),
        metrics=tuple(metrics),
        costs=tuple(_costs([run.job for run in runs])),
    )


def ran_s(job: Job) -> float | None:
    """How long its attempts took together; None while it runs, or when it never did."""
    ends = [(run.started_at, run.ended_at) for run in job.attempts]
    return sum(end - start for start, end in ends if end is not None) if ends and job.state.final else None


def delta_words(delta: float, judgement: Judgement | None, unit: Unit = "") -> str:
    """0.12 lower, better."""
    if judgement == "same":
        return "the same"
    way = ("less" if delta < 0 else "more") if unit else ("lower" if delta < 0 else "higher")
    amount = _TEXTS[unit](abs(delta)) if unit else number(float(f"{abs(delta):.3g}"))
    return f"{amount} {way}" + (f", {judgement}" if judgement else "")


def _costs(jobs: Sequence[Job]) -> list[Metric]:
    found = [_metric("run time", "s", "lower", [ran_s(job) for job in jobs])]
    found += [_metric(name, unit, "lower", [_used(job, key) for job in jobs]) for key, name, unit in _COSTS]
    return [metric for metric in found if any(cell.value is not None for cell in metric.cells)]


def _used(job: Job, key: str) -> float | None:
    known = [float(run.usage[key]) for run in job.attempts if run.usage.get(key) is not None]
    if not known:
        return None
    return max(known) if key.startswith("peak") else sum(known)


def _metric(name: str, unit: Unit, better: Direction | None, values: Sequence[float | None]) -> Metric:
    base, known = values[0], [value for value in values if value is not None]
    best = (min if better == "lower" else max)(known) if better and len(set(known)) > 1 else None
    cells = tuple(
        _cell(value, base if at else None, unit, better, is_best=best is not None and value == best)
        for at, value in enumerate(values)
    )
    return Metric(name, unit, better, cells)


def _cell(value: float | None, base: float | None, unit: Unit, better: Direction | None, *, is_best: bool) -> Cell:
    if value is None:
        return Cell(None)
    text = _TEXTS[unit](value)
    if base is None:
        return Cell(value, text, is_best=is_best)
    delta = value - base
    judgement: Judgement | None = None
    if abs(delta) <= SAME * max(abs(value), abs(base)):
        judgement = "same"
    elif better:
        judgement = "better" if (delta < 0) == (better == "lower") else "worse"
    return Cell(value, text, delta, judgement, delta_words(delta, judgement, unit), is_best)


def _telling(name: str) -> tuple[int, str]:
    return (TELLING_METRICS.index(name) if name in TELLING_METRICS else len(TELLING_METRICS), name)
