"""What a night is told from: everything that was read, and how a job stood at the night's end. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from zoneinfo import ZoneInfo

from daemon.forecast import Forecast
from daemon.idle import Interval
from daemon.night.foretold import Promise
from daemon.night.model import Energy, Heartbeat, Heat
from daemon.night.span import Span
from daemon.quarantine import Quarantine
from daemon.rig import Slot
from daemon.telemetry import GpuEvent
from jobs.model import Attempt, Job, State
from jobs.sweep import Sweep


@dataclass(frozen=True, kw_only=True)
class Records:
    """One look at the queue, the telemetry and the files of a rig."""

    now: float
    rig: str
    zone: ZoneInfo
    span: Span
    slots: Sequence[Slot] = ()
    #: Jobs that ended, ran or waited in the night.
    jobs: Sequence[Job] = ()
    #: How many wait now; of a long queue `jobs` has only a part.
    queued: int = 0
    sweeps: Mapping[str, Sweep] = field(default_factory=dict)
    #: Jobs of any time that results may be compared with: tagged `baseline`, or the first of a sweep.
    baselines: Sequence[Job] = ()
    #: When the window was open; None: always.
    open: Sequence[Interval] | None = None
    #: By slot: lost, silent or in quarantine; and paused.
    out: Mapping[str, Sequence[Interval]] = field(default_factory=dict)
    paused: Mapping[str, Sequence[Interval]] = field(default_factory=dict)
    energy: Energy = field(default_factory=Energy)
    heat: Heat = field(default_factory=Heat)
    events: Sequence[GpuEvent] = ()
    quarantined: Sequence[Quarantine] = ()
    heartbeats: Sequence[Heartbeat] = ()
    disk_free_bytes: int | None = None
    disk_bytes: int | None = None
    #: Why nothing may start on the whole rig: a full disk, a replaced driver.
    hold: str | None = None
    hold_kind: str = "disk"
    #: The decisive line of a job's log, where its outcome does not say it.
    lines: Mapping[str, str] = field(default_factory=dict)
    forecast: Forecast | None = None
    promise: Promise | None = None

    def runs(self) -> Iterator[tuple[Job, Attempt]]:
        """Every run that the night saw a part of."""
        for job in self.jobs:
            for run in job.attempts:
                if run.started_at < self.span.until and (run.ended_at is None or run.ended_at > self.span.since):
                    yield job, run

    def state_of(self, job: Job) -> State | None:
        """How it stood at the night's end; None: it was not there yet."""
        until = self.span.until
        if job.finished_at is not None and job.finished_at <= until:
            return job.state
        if job.created_at > until:
            return None
        if any(run.started_at <= until and (run.ended_at is None or run.ended_at > until) for run in job.attempts):
            return State.RUNNING
        return State.QUEUED

    def ended(self, *states: State) -> list[Job]:
        """Jobs that ended so in the night."""
        return [job for job in self.jobs if job.state in states and self.ended_in(job)]

    def ended_in(self, job: Job) -> bool:
        """Whether its end lies in the night."""
        return job.finished_at is not None and self.span.since <= job.finished_at <= self.span.until

    def sweep_name(self, sweep_id: str) -> str:
        """For people."""
        known = self.sweeps.get(sweep_id)
        return known.name if known else f"sweep {sweep_id}" if sweep_id else ""
