"""What the API says about jobs: the shapes of its answers, and how they are made from records."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from api.documents import hash_of
from daemon.explain import explain
from daemon.idle import Idle
from daemon.plan import Facts
from daemon.preflights import told
from daemon.tariff import tokens_of
from daemon.unused import unused_gpu
from jobs.model import (
    Attempt,
    Cause,
    Condition,
    End,
    Job,
    Outcome,
    Priority,
    Progress,
    State,
    Wish,
    WishKind,
    dependency,
)
from jobs.preview import Preview

#: These belong together: the moment and the place of the highest temperature.
HOTTEST = ("temperature_max_at", "temperature_max_slot")


class AttemptView(BaseModel):
    """One run of a job."""

    number: int
    rig: str
    slots: list[str]
    started_at: datetime
    ended_at: datetime | None
    end: End | None
    cause: Cause | None
    message: str
    usage: dict[str, Any]
    changes: dict[str, Any]
    #: Not the job itself, but its preflight.
    preflight: bool

    @classmethod
    def of(cls, run: Attempt) -> Self:
        return cls(
            number=run.number,
            rig=run.rig,
            slots=list(run.slots),
            started_at=moment(run.started_at),
            ended_at=moment_or_none(run.ended_at),
            end=run.end,
            cause=run.cause,
            message=run.message,
            usage=dict(run.usage),
            changes=dict(run.changes),
            preflight=run.preflight,
        )


class PreflightView(BaseModel):
    """How a job's preflight stands: in words, and what it measured."""

    due: bool
    words: str
    measured: dict[str, float]

    @classmethod
    def of(cls, job: Job) -> Self | None:
        words = told(job)
        return cls(due=job.preflight_due, words=words, measured=dict(job.measured)) if words else None


class WishView(BaseModel):
    """What somebody asked of a running job."""

    kind: WishKind
    reason: str
    asked_at: datetime

    @classmethod
    def of(cls, wish: Wish | None) -> Self | None:
        return cls(kind=wish.kind, reason=wish.reason, asked_at=moment(wish.asked_at)) if wish else None


class ProgressView(BaseModel):
    """How far the running attempt is."""

    phase: str
    step: int
    total: int
    fraction: float
    eta_s: float | None
    metrics: dict[str, Any]

    @classmethod
    def of(cls, progress: Progress | None) -> Self | None:
        return cls(**asdict(progress), fraction=progress.fraction) if progress else None


class OutcomeView(BaseModel):
    """How the job ended, in words for its owner."""

    end: End
    cause: Cause | None
    message: str
    hint: str

    @classmethod
    def of(cls, outcome: Outcome | None) -> Self | None:
        if outcome is None:
            return None
        return cls(end=outcome.end, cause=outcome.cause, message=outcome.message, hint=outcome.hint)


class UsageView(BaseModel):
    """What all attempts used together; further names as telemetry knows them."""

    model_config = ConfigDict(extra="allow")

    gpu_s: float | None = None
    energy_j: float | None = None
    peak_vram_bytes: int | None = None
    utilization_mean: float | None = None
    utilization_p95: float | None = None
    #: Seconds slowed down, by reason: power_cap, sw_thermal, hw_thermal, power_brake.
    throttled_s: dict[str, float] | None = None
    temperature_max_c: float | None = None
    temperature_max_at: datetime | None = None
    temperature_max_slot: str | None = None
    tokens_per_j: float | None = None
    cost: float | None = None
    co2_g: float | None = None
    peak_own_vram_bytes: int | None = None
    #: How long others used its GPUs beside it, and who held most.
    contended_s: float | None = None
    contended_by: str | None = None


class JobSummary(BaseModel):
    """The least about a job."""

    id: str
    kind: str
    name: str
    tags: list[str]
    state: State
    waiting_because: str | None

    @classmethod
    def of(cls, job: Job, facts: Facts) -> Self:
        return cls(
            id=job.id,
            kind=job.kind,
            name=job.name,
            tags=list(job.tags),
            state=job.state,
            waiting_because=explain(facts, job),
        )


class RanBefore(BaseModel):
    """An earlier job that was submitted for the same work."""

    id: str
    state: State
    finished_at: datetime | None
    metrics: dict[str, Any]

    @classmethod
    def of(cls, job: Job | None) -> Self | None:
        if job is None:
            return None
        metrics = dict(job.outcome.metrics) if job.outcome else {}
        return cls(id=job.id, state=job.state, finished_at=moment_or_none(job.finished_at), metrics=metrics)


class ParallelView(BaseModel):
    """How several GPUs share a training (ddp, fsdp, device_map), and why so."""

    way: str
    why: str

    @classmethod
    def of(cls, parallel: Mapping[str, str]) -> Self | None:
        return cls(**parallel) if parallel else None


class JobView(JobSummary):
    """A job in full. Secrets appear by name only: their values are never in a record.

    `position`: where it stands in the queue, from 1. `revision`: for `If-Match`; changes with every edit. `ran_before`
    and `notes` (names of other tools that were read as ours): told when it is submitted only. `warnings`: what
    nobody would see from its state, as a GPU that it never used.
    """

    priority: Priority
    position: int | None
    revision: str
    gpus: int
    vram_bytes: int | None
    estimate: dict[str, float]
    parallel: ParallelView | None
    held: bool
    after: list[str]
    not_before: datetime | None
    window: str
    attempt: int
    max_attempts: int
    attempts: list[AttemptView]
    preflight: PreflightView | None
    slots: list[str]
    wish: WishView | None
    progress: ProgressView | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    outcome: OutcomeView | None
    usage: UsageView
    metrics: dict[str, Any]
    spec: dict[str, Any]
    next_fields: dict[str, Any]
    sweep: str | None
    point: dict[str, Any]
    because_of: str | None
    ran_before: RanBefore | None = None
    notes: list[str] = []
    warnings: list[str] = []

    @classmethod
    def of(cls, job: Job, facts: Facts) -> Self:
        return cls(
            **JobSummary.of(job, facts).model_dump(),
            priority=job.priority,
            position=facts.place.get(job.id),
            revision=revision_of(job),
            gpus=job.gpus,
            vram_bytes=job.vram_bytes,
            estimate=dict(job.estimate),
            parallel=ParallelView.of(job.parallel),
            held=job.held,
            after=[
                text for text in job.after if dependency(text)[1] is not Condition.CHECKED
            ],  # that one is the queue's own
            not_before=moment_or_none(job.not_before),
            window=job.window,
            attempt=job.attempt,
            max_attempts=job.max_attempts,
            attempts=[AttemptView.of(run) for run in job.attempts],
            preflight=PreflightView.of(job),
            slots=list(job.slots),
            wish=WishView.of(job.wish),
            progress=ProgressView.of(job.progress),
            created_at=moment(job.created_at),
            started_at=moment_or_none(job.started_at),
            finished_at=moment_or_none(job.finished_at),
            outcome=OutcomeView.of(job.outcome),
            usage=UsageView(**usage_of(job)),
            metrics=dict(job.outcome.metrics if job.outcome else job.progress.metrics if job.progress else {}),
            spec=dict(job.spec),
            next_fields=dict(job.next_fields),
            sweep=job.sweep or None,
            point=dict(job.point),
            because_of=job.because_of or None,
            warnings=list(filter(None, (unused_gpu(job),))),
        )


class JobPage(BaseModel):
    """Jobs, newest first, or in the order of the queue."""

    jobs: list[JobView]
    next: str | None


class JobList(BaseModel):
    """Some jobs, in the order in which they were named."""

    jobs: list[JobView]


class Batch(BaseModel):
    """The jobs of one batch, in its order; and the sweep that they are."""

    sweep: str | None = None
    jobs: list[JobSummary]
    notes: list[str] = []


class Changes(BaseModel):
    """What to submit for the same work again, and what is not as it was. `known`: whether the job left word of what it ran on.

    `limits`: what no repetition can promise to be the same.
    """

    document: dict[str, Any]
    known: bool
    changes: list[str]
    limits: list[str] = []


class Trial(BaseModel):
    """A document that would be accepted, with every field filled in."""

    job: dict[str, Any]
    would_wait_because: str | None
    #: Whether it would be checked first.
    preflight: bool = False
    ran_before: RanBefore | None = None
    #: Of a fine-tune whose data is on the rig.
    preview: Preview | None = None
    notes: list[str] = []


class TrialBatch(BaseModel):
    """The same for a batch."""

    jobs: list[Trial]
    notes: list[str] = []


class FileView(BaseModel):
    """One file of a run folder."""

    path: str
    size_bytes: int
    modified_at: datetime


class FileList(BaseModel):
    """The files of a run folder. `truncated`: there are more; the archive has all."""

    files: list[FileView]
    truncated: bool


class TelemetryPoint(BaseModel):
    """Averages and peaks of one slot over one step of time."""

    model_config = ConfigDict(extra="allow")

    at: datetime


class TelemetryView(BaseModel):
    """What a job's slots did while it ran."""

    start: datetime | None
    end: datetime | None
    slots: dict[str, list[TelemetryPoint]]


def revision_of(job: Job) -> str:
    """Stands for what can be edited of a job: another one means that somebody changed it."""
    return hash_of([job.spec, job.held])[:16]


class IdleStretch(BaseModel):
    """One time in which a slot did nothing."""

    start: datetime
    end: datetime
    seconds: float
    reason: str

    @classmethod
    def of(cls, found: Idle) -> Self:
        return cls(start=moment(found.start), end=moment(found.end), seconds=found.seconds, reason=found.reason)


class IdleView(BaseModel):
    """Idle time of each slot, and its sums by reason."""

    start: datetime
    end: datetime
    slots: dict[str, list[IdleStretch]]
    idle_s: dict[str, float]


def moment(epoch_s: float) -> datetime:
    """As JSON shows it: ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(round(epoch_s, 3), UTC)


def moment_or_none(epoch_s: float | None) -> datetime | None:
    return None if epoch_s is None else moment(epoch_s)


def usage_of(job: Job) -> dict[str, Any]:
    """What all attempts of a job used, and how many tokens came of each joule."""
    total = total_usage(job.attempts)
    tokens = tokens_of(job.outcome.metrics) if job.outcome else None
    energy_j = _number(total.get("energy_j"))
    return {**total, "tokens_per_j": tokens / energy_j} if tokens and energy_j else total


def total_usage(attempts: Iterable[Attempt]) -> dict[str, Any]:
    """What the attempts used together: sums of seconds and joules, the highest of peaks, means by time."""
    total: dict[str, Any] = {}
    weight_s = 0.0
    for run in attempts:
        run_s = _number(run.usage.get("gpu_s")) or 0.0
        hotter = (run.usage.get("temperature_max_c") or 0) > (total.get("temperature_max_c") or 0)
        for name, value in run.usage.items():
            if name in HOTTEST:
                total[name] = value if hotter else total.get(name, value)
            else:
                total[name] = _together(name, total.get(name), value, weight_s, run_s)
        weight_s += run_s
    return total


def _together(name: str, before: Any, value: Any, before_s: float, value_s: float) -> Any:
    if isinstance(before, Mapping) and isinstance(value, Mapping):
        return {key: before.get(key, 0.0) + value.get(key, 0.0) for key in {**before, **value}}
    if _number(value) is None or _number(before) is None:
        return before if value is None else value
    if name.endswith(("_s", "_j")) or name in ("cost", "co2_g"):
        return before + value
    if name.endswith(("_mean", "_p95")) or name == "coverage":
        return (before * before_s + value * value_s) / (before_s + value_s) if before_s + value_s else value
    return max(before, value)


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
