"""What one night was: frozen facts, and words only where they need the rig's zone. Moments are epoch seconds.

As JSON (`to_json`) moments are ISO 8601 in UTC; `from_json` reads that back.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter

from daemon.idle import Reason
from jobs.model import Cause, State


def _iso(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _epoch(value: object) -> object:
    return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else value


#: Epoch seconds; ISO 8601 as JSON.
At = Annotated[float, BeforeValidator(_epoch), PlainSerializer(_iso, return_type=datetime, when_used="json")]


class Colour(StrEnum):
    """Red: somebody is needed. Amber: not all of the rig can be trusted. Green: neither."""

    RED = "red"
    AMBER = "amber"
    GREEN = "green"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The night in a sentence, and why it is not green."""

    colour: Colour
    sentence: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Jobs that ended well or badly in the night, and those that run and wait at its end."""

    failed: int = 0
    done: int = 0
    running: int = 0
    queued: int = 0
    cancelled: int = 0

    @property
    def ended(self) -> int:
        return self.failed + self.done


@dataclass(frozen=True, kw_only=True)
class Block:
    """One run on one slot, cut to the night. Where many short ones follow each other, one stands for `jobs` of them."""

    job: str
    name: str
    kind: str
    #: How this run ended: succeeded, failed, cancelled, interrupted; or running.
    state: str
    start: At
    end: At
    attempt: int = 1
    attempts: int = 1
    cause: Cause | None = None
    jobs: int = 1


@dataclass(frozen=True, kw_only=True)
class IdleTime:
    """One stretch in which a slot did nothing."""

    start: At
    end: At
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One slot's night."""

    slot: str
    #: GPU 0, CPU slot 1.
    title: str
    name: str
    blocks: tuple[Block, ...] = ()
    idle: tuple[IdleTime, ...] = ()
    #: Of the time in which it could have worked; None when there was none.
    busy_ratio: float | None = None
    #: The lane in words: 96 % busy; idle 23:30 to 00:10 (no job).
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class Action:
    """What can safely be done for a whole group, as data. Verbs: retry (POST /jobs/{id}/retry with its changes)."""

    verb: str
    #: Retry both with half the batch.
    label: str
    jobs: tuple[str, ...]
    #: By job: fields of the document to change with it.
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Jobs that failed for one cause, of one sweep where they are of one."""

    cause: Cause | None
    #: The cause for people: out of GPU memory.
    words: str
    jobs: tuple[str, ...]
    names: tuple[str, ...]
    #: The decisive line, and whose it is.
    line: str
    line_of: str
    hint: str = ""
    sweep: str = ""
    sweep_name: str = ""
    action: Action | None = None
    #: Jobs that were cancelled because these failed.
    waited: tuple[str, ...] = ()
    #: Of the latest of them.
    failed_at: At = 0.0


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Something other than a job that needs a person. Kinds: gpu, disk, driver."""

    kind: str
    words: str
    hint: str = ""
    slot: str = ""


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """A failure that a retry has mended, or is about to."""

    job: str
    name: str
    cause: Cause | None
    words: str
    #: What was changed for the next attempt; empty: nothing.
    changed: str = ""
    #: It has succeeded since.
    done: bool = False
    failed_at: At = 0.0


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What a result is compared with."""

    job: str
    name: str
    value: float
    #: Why this one: tagged baseline, the base of the sweep, the model without the adapter...
    why: str


@dataclass(frozen=True, kw_only=True)
class Best:
    """The result to look at first."""

    job: str
    name: str
    kind: str
    metric: str
    value: float
    lower_is_better: bool
    sweep: str = ""
    baseline: Baseline | None = None
    #: (value - baseline) / |baseline|; None without one, or when it is 0.
    change: float | None = None
    #: Whether it is better than its baseline; None without one.
    better: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Hours:
    """GPU time: what there was, what was used, and why the rest was not."""

    available_s: float = 0.0
    used_s: float = 0.0
    #: By reason, the longest first.
    idle_s: dict[str, float] = field(default_factory=dict)

    @property
    def used_ratio(self) -> float | None:
        return self.used_s / self.available_s if self.available_s > 0 else None


@dataclass(frozen=True, kw_only=True)
class Energy:
    """The GPU boards' energy; `wall_j` is what the meter says, by the setting `wall_factor`. Cost and CO2 are of that."""

    joules: float | None = None
    wall_j: float | None = None
    cost: float | None = None
    currency: str = ""
    co2_g: float | None = None
    #: Share of the slots' time that was measured.
    coverage: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Heat:
    """How hot it became, and what was slowed down."""

    temperature_max_c: float | None = None
    slot: str = ""
    at: At | None = None
    #: Seconds by the reasons of `daemon.samples.THROTTLING`, over all slots.
    throttled_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that a GPU or the driver reported."""

    at: At
    slot: str | None
    kind: str
    code: int | None
    text: str


@dataclass(frozen=True, kw_only=True)
class Next:
    """A job that waits, and when it is expected."""

    job: str
    name: str
    start_at: At | None = None
    end_at: At | None = None
    sure: bool = True
    because: str = ""


@dataclass(frozen=True, kw_only=True)
class Waits:
    """What is left to do."""

    count: int = 0
    #: When the queue is empty; None: not known.
    drains_at: At | None = None
    #: That rests on no guess.
    sure: bool = True
    #: The first ones.
    jobs: tuple[Next, ...] = ()
    #: Jobs that will not start as things stand.
    never: int = 0


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """What was forecast in the evening against what came."""

    at: At
    #: Jobs that were to be done by the end of this report, and how many of these are.
    promised: int
    kept: int
    #: Those that were promised and are not done, or failed.
    missed: tuple[str, ...] = ()
    #: Jobs done that the forecast did not have: they came later.
    unforeseen: int = 0
    drains_at: At | None = None
    #: Median of (real end - forecast end) of jobs that succeeded; above 0: later than promised.
    median_late_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """When a part of the rig last said that it lives. Names: daemon, Redis, worker, sampler."""

    name: str
    age_s: float | None
    limit_s: float

    @property
    def stale(self) -> bool:
        return self.age_s is None or self.age_s > self.limit_s


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One job of the night."""

    job: str
    name: str
    kind: str
    state: State
    start: At | None
    end: At | None
    attempts: int
    metric: str = ""
    value: float | None = None
    cause: Cause | None = None
    sweep: str = ""
    energy_j: float | None = None
    #: Mean load of its GPUs, where it was low for a long time.
    low_use: float | None = None


@dataclass(frozen=True, kw_only=True)
class Night:
    """Everything that the morning's page, report and message say."""

    #: The evening's date: 2026-11-21.
    date: str
    rig: str
    zone: str
    since: At
    until: At
    made_at: At
    #: The night is over: nothing will be added to it.
    over: bool
    #: What `since` is: window, start, visit, given, evening.
    began_by: str
    verdict: Verdict
    counts: Counts
    lanes: tuple[Lane, ...] = ()
    #: The lanes and the energy in words.
    timeline: str = ""
    energy: Energy = Energy()
    hours: Hours = Hours()
    heat: Heat = Heat()
    events: tuple[Event, ...] = ()
    needs_you: tuple[Group, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    repaired: tuple[Repaired, ...] = ()
    best: Best | None = None
    waits: Waits = Waits()
    foretold: Foretold | None = None
    #: Empty for a night that is over: nobody knows any more.
    heartbeats: tuple[Heartbeat, ...] = ()
    disk_free_ratio: float | None = None
    disk_free_bytes: int | None = None
    #: What ran, the latest end first; `more` did besides.
    ran: tuple[Ran, ...] = ()
    more: int = 0

    @property
    def need_you(self) -> int:
        """How many jobs and other things need a person."""
        return sum(len(group.jobs) for group in self.needs_you) + len(self.troubles)

    @property
    def empty(self) -> bool:
        """Nothing ran."""
        return not (self.counts.ended or self.counts.running or self.counts.cancelled or self.ran)

    def to_json(self) -> dict[str, Any]:
        """As the API and the kept file say it."""
        value: dict[str, Any] = ADAPTER.dump_python(self, mode="json")
        return value

    @staticmethod
    def from_json(record: object) -> "Night":
        """Read what `to_json` wrote. Raises pydantic.ValidationError."""
        return ADAPTER.validate_python(record)


ADAPTER = TypeAdapter(Night)
