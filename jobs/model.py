"""One job's life: a frozen record, and the only steps that may change its state.

    queued ──claimed──▶ running ──ended──▶ succeeded | failed(cause) | cancelled
                          ├─ interrupted ─▶ queued, attempt not counted
                          ├─ checked (it was its preflight) ─▶ queued, attempt not counted
                          └─ a cause that can be mended ─▶ queued, next attempt, until `max_attempts`

"Offered", "asked to stop" and "held" are facts on a record, never states. Nothing here reads a clock or talks to anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

RECORD_VERSION = 4


class State(StrEnum):
    """Where a job stands. Nothing else is a state."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Cause(StrEnum):
    """Why an attempt ended badly. The list is closed: every cause has an action in `RETRIED` and a sentence for its owner."""

    LOST = "lost"
    OOM_GPU = "oom_gpu"
    OOM_HOST = "oom_host"
    NAN = "nan"
    HANG = "hang"
    TIMEOUT = "timeout"
    GPU_FAULT = "gpu_fault"
    DISK_FULL = "disk_full"
    BAD_INPUT = "bad_input"
    USER_ERROR = "user_error"
    SIGNAL = "signal"
    FETCH = "fetch"


class Priority(StrEnum):
    """Order in the queue: all `high` before all `normal` before all `backlog`."""

    HIGH = "high"
    NORMAL = "normal"
    BACKLOG = "backlog"


class WishKind(StrEnum):
    """What somebody asks of a running job."""

    CANCEL = "cancel"
    PREEMPT = "preempt"


class Condition(StrEnum):
    """How a job that another one waits for must end."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ENDED = "ended"
    #: Its preflight, which counts for the child's too, has not failed.
    CHECKED = "checked"

    def met_by(self, fate: State | None, *, unchecked: bool = False) -> bool:
        """Whether a parent that ended so (None: it has been forgotten since) lets its child start.

        `unchecked`: it ended before it had passed its preflight.
        """
        if self is Condition.CHECKED:
            return not (fate is State.FAILED and unchecked)
        return self is Condition.ENDED or (fate is not None and fate == self.value)


class End(StrEnum):
    """How one attempt ended, as its worker saw it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    #: It was the preflight, and it passed.
    CHECKED = "checked"


#: These causes send a job back to the queue while attempts are left. The others are final at once.
#: `oom_gpu` and `nan` go back only when the attempt proposed changes for the next one (`Outcome.next_fields`).
RETRIED = frozenset({Cause.LOST, Cause.SIGNAL, Cause.HANG, Cause.GPU_FAULT, Cause.FETCH, Cause.OOM_GPU, Cause.NAN})
MENDED_BY_CHANGE = frozenset({Cause.OOM_GPU, Cause.NAN})
#: Not the job's fault: the attempt is not counted.
UNCOUNTED = frozenset({Cause.DISK_FULL})

FETCH_BACKOFF_S = 30.0
DISK_FULL_BACKOFF_S = 60.0
#: Ranks of one priority stay below the next one's; a double holds integers exactly up to 2**53.
RANKS_PER_PRIORITY = 1e12


class InvalidTransition(Exception):
    """The step does not exist from the state that the job is in."""


class StaleFence(InvalidTransition):
    """The writer holds an old offer: another one has been made since. Its work no longer counts."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A request to a running job; the worker carries it out."""

    kind: WishKind
    reason: str
    asked_at: float
    #: The job whose end is the reason: when that one is tried again, this one comes back.
    because_of: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended, in words for a person and in facts for the next attempt."""

    end: End
    cause: Cause | None = None
    message: str = ""
    hint: str = ""
    #: Field changes of the document for the next attempt (a halved micro-batch, say).
    next_fields: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    usage: Mapping[str, Any] = field(default_factory=dict)
    #: What the attempt found out about the job, for its record's `estimate` (`disk_bytes`: the space that it still needs).
    learned: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.end is End.FAILED) != (self.cause is not None):
            raise ValueError(f"an attempt has a cause exactly when it failed, not {self.end} with {self.cause}")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run of a job. `number` repeats after an interruption, the fence never does."""

    number: int
    fence: int
    rig: str
    slots: tuple[str, ...]
    started_at: float
    ended_at: float | None = None
    end: End | None = None
    cause: Cause | None = None
    message: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    #: Fields of the document that are different from then on, because of how it ended.
    changes: Mapping[str, Any] = field(default_factory=dict)
    #: Not the job itself, but its preflight.
    preflight: bool = False


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the running attempt is, as its process tells it."""

    phase: str = ""
    step: int = 0
    total: int = 0
    eta_s: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        return min(1.0, self.step / self.total) if self.total else 0.0


@dataclass(frozen=True, kw_only=True)
class Offer:
    """The planner's word that these slots are this job's to claim."""

    rig: str
    slots: tuple[str, ...]
    at: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """The record of one job. Change it by its steps only."""

    id: str
    kind: str
    name: str
    #: The job document as it was accepted (jobs.spec).
    spec: Mapping[str, Any]
    created_at: float
    rank: float
    tags: tuple[str, ...] = ()
    priority: Priority = Priority.NORMAL
    gpus: int = 1
    #: Memory that it needs on each GPU: declared, estimated or learned; None when nobody knows.
    vram_bytes: int | None = None
    #: Jobs that it waits for: "141" must succeed, "ended:141" only end, "failed:141" fail.
    after: tuple[str, ...] = ()
    not_before: float | None = None
    window: str = "night"
    max_runtime_s: float | None = None
    max_attempts: int = 3
    #: What could be told before it runs: `steps`, `rows`, `tokens`... (jobs.estimate).
    estimate: Mapping[str, float] = field(default_factory=dict)
    #: How its GPUs share a training, as it was chosen when it was accepted: `way`, `why` (jobs.fitting.sharing).
    parallel: Mapping[str, str] = field(default_factory=dict)
    #: The sweep that it belongs to, by the id of the sweep's first job; what makes it different there; how many run at once.
    sweep: str = ""
    point: Mapping[str, Any] = field(default_factory=dict)
    max_concurrent: int | None = None
    #: Its next run is its preflight: a few steps of it, to see whether it will work.
    preflight_due: bool = False
    #: Its preflight counts for those that wait for it: not once it is other work than theirs, or was changed after it had passed.
    vouches: bool = True
    #: What its preflight measured: `expected_s`, `step_s`, `peak_vram_bytes`... (jobs.preflight).
    measured: Mapping[str, float] = field(default_factory=dict)

    state: State = State.QUEUED
    held: bool = False
    #: Rises with every offer; every later write names it and is refused when it is old.
    fence: int = 0
    #: Attempts that counted, the running one included.
    attempt: int = 0
    offer: Offer | None = None
    owner: str = ""
    wish: Wish | None = None
    progress: Progress | None = None
    attempts: tuple[Attempt, ...] = ()
    next_fields: Mapping[str, Any] = field(default_factory=dict)
    started_at: float | None = None
    finished_at: float | None = None
    outcome: Outcome | None = None
    #: The job whose end cancelled this one, which waited for it.
    because_of: str = ""
    version: int = RECORD_VERSION

    # -- what can be read off ---------------------------------------------------------------------------------------

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots that this job occupies now: offered or running, else none. The first one leads."""
        if self.state is State.RUNNING:
            return self.attempts[-1].slots
        return self.offer.slots if self.offer else ()

    @property
    def rig(self) -> str:
        """The rig whose slots it occupies now, or ""."""
        if self.state is State.RUNNING:
            return self.attempts[-1].rig
        return self.offer.rig if self.offer else ""

    @property
    def parents(self) -> tuple[tuple[str, Condition], ...]:
        """The jobs that it waits for, and how each one must end."""
        return tuple(dependency(text) for text in self.after)

    @property
    def needs_ends_of(self) -> tuple[str, ...]:
        """The jobs whose end it waits for; of others it only awaits the preflight."""
        return tuple(parent for parent, condition in self.parents if condition is not Condition.CHECKED)

    @property
    def in_preflight(self) -> bool:
        """Whether what runs, or has been offered, is its preflight."""
        return (
            self.attempts[-1].preflight
            if self.state is State.RUNNING
            else self.preflight_due and self.offer is not None
        )

    @property
    def owes_check(self) -> bool:
        """Whether those that are like it wait for its preflight, and go the way of it when it fails."""
        return self.preflight_due and self.vouches

    @property
    def was_checked(self) -> bool:
        """Whether a preflight of it has passed, of whatever its work was then."""
        return any(run.end is End.CHECKED for run in self.attempts)

    @property
    def failed_preflight(self) -> bool:
        return self.state is State.FAILED and self.preflight_due

    @property
    def effective_spec(self) -> dict[str, Any]:
        """The document with what earlier attempts taught us (a smaller micro-batch, say)."""
        return {**self.spec, **self.next_fields}

    # -- steps --------------------------------------------------------------------------------------------------------

    def offered(self, *, rig: str, slots: tuple[str, ...], now: float) -> Self:
        """The planner gives it these slots. The fence rises."""
        self._need(State.QUEUED, "offered")
        if self.offer is not None:
            raise InvalidTransition(f"job {self.id} already has an offer")
        if not slots:
            raise ValueError("an offer names at least one slot")
        return replace(self, offer=Offer(rig=rig, slots=slots, at=now), fence=self.fence + 1)

    def withdrawn(self, *, fence: int) -> Self:
        """An offer that nobody claimed is taken back."""
        self._need_fence(fence)
        self._need(State.QUEUED, "withdrawn")
        return replace(self, offer=None)

    def claimed(self, *, fence: int, owner: str, now: float) -> Self:
        """A worker takes the offer: queued → running. The same owner may repeat it (its reply was lost)."""
        self._need_fence(fence)
        if self.state is State.RUNNING and self.owner == owner:
            return self
        self._need(State.QUEUED, "running")
        if self.offer is None:
            raise InvalidTransition(f"job {self.id} has no offer to claim")
        run = Attempt(
            number=self.attempt + 1,
            fence=fence,
            rig=self.offer.rig,
            slots=self.offer.slots,
            started_at=now,
            preflight=self.preflight_due,
        )
        return replace(
            self,
            state=State.RUNNING,
            attempt=run.number,
            attempts=(*self.attempts, run),
            owner=owner,
            offer=None,
            progress=None,
            # what it has written since counts, too: an attempt that lacks space says so anew
            estimate={name: value for name, value in self.estimate.items() if name != "disk_bytes"},
            started_at=self.started_at or now,
        )

    def progressed(self, *, fence: int, progress: Progress) -> Self:
        """The running attempt tells how far it is."""
        self._need_fence(fence)
        self._need(State.RUNNING, "progressed")
        return replace(self, progress=progress)

    def ended(self, *, fence: int, outcome: Outcome, now: float) -> Self:
        """The attempt is over and none of its processes is left: final, or back to the queue. May be repeated."""
        self._need_fence(fence)
        if self.attempts and self.attempts[-1].fence == fence and self.attempts[-1].end is outcome.end:
            return self  # our own call again: its reply was lost
        self._need(State.RUNNING, outcome.end.value)
        closed = self._closed(outcome, now)
        if outcome.end is End.INTERRUPTED:
            # who asked for a cancellation gets it, whatever else stopped the attempt first
            if self.wish is not None and self.wish.kind is WishKind.CANCEL:
                return closed._final(State.CANCELLED, replace(outcome, end=End.CANCELLED), now)
            return closed._back(attempt=self.attempt - 1)
        if outcome.end is End.CHECKED:
            if self.wish is not None and self.wish.kind is WishKind.CANCEL:  # it came too late for the preflight only
                return closed._final(State.CANCELLED, Outcome(end=End.CANCELLED, message=self.wish.reason), now)
            return closed._checked(outcome.learned)
        if outcome.end is End.FAILED and outcome.cause is not None and self._has_another_try(outcome):
            return closed._back_after(outcome.cause, outcome, now, attempt=self.attempt)
        return closed._final(State(outcome.end.value), outcome, now)

    def asked(self, wish: Wish) -> Self:
        """Somebody wishes it to stop. A waiting job is cancelled at once; a cancellation outweighs a preemption."""
        if self.state is State.QUEUED:
            if wish.kind is WishKind.PREEMPT:
                return self
            outcome = Outcome(end=End.CANCELLED, message=wish.reason)
            return replace(self._final(State.CANCELLED, outcome, wish.asked_at), because_of=wish.because_of)
        if self.state is State.CANCELLED and wish.kind is WishKind.CANCEL:
            return self
        if self.state.final:
            raise InvalidTransition(f"job {self.id} has ended already ({self.state}); there is nothing to stop")
        if self.wish is not None and (self.wish.kind is WishKind.CANCEL or self.wish.kind is wish.kind):
            return self
        return replace(self, wish=wish)

    def retried(self, *, rank: float) -> Self:
        """An ended job goes back to the end of the queue, with all its attempts before it."""
        if self.state not in (State.FAILED, State.CANCELLED):
            raise InvalidTransition(f"job {self.id} is {self.state}; only a failed or cancelled job can be retried")
        fresh = replace(self, state=State.QUEUED, attempt=0, rank=rank, outcome=None, finished_at=None, because_of="")
        return replace(fresh, progress=None, held=False)

    def revived(self) -> Self:
        """Cancelled only because of a job that is tried again now: it waits again, where it stood."""
        if self.state is not State.CANCELLED or not self.because_of:
            raise InvalidTransition(f"job {self.id} was not cancelled because of another job")
        return replace(self, state=State.QUEUED, outcome=None, finished_at=None, because_of="")

    def edited(self, **changes: Any) -> Self:
        """A waiting job's plan facts or its document change (priority, window, held, spec...)."""
        self._need(State.QUEUED, "edited")
        allowed = {"name", "tags", "priority", "rank", "gpus", "after", "not_before", "window", "held",
                   "max_runtime_s", "max_attempts", "spec", "next_fields", "vram_bytes", "estimate",
                   "preflight_due", "vouches", "measured", "parallel"}  # fmt: skip
        if unknown := set(changes) - allowed:
            raise ValueError(f"no step changes {sorted(unknown)}")
        return replace(self, **changes)

    def moved(self, *, rank: float) -> Self:
        """Another rank: where it stands in the queue, or will stand when it comes back to it."""
        if self.state.final:
            raise InvalidTransition(f"job {self.id} is {self.state}, it has no place in the queue")
        return replace(self, rank=rank)

    # -- inside ---------------------------------------------------------------------------------------------------------

    def _need(self, source: State, target: str) -> None:
        if self.state is not source:
            raise InvalidTransition(f"job {self.id} is {self.state}, it cannot become {target}")

    def _need_fence(self, fence: int) -> None:
        if fence != self.fence:
            raise StaleFence(f"job {self.id} was offered again since (fence {self.fence}, not {fence})")

    def _has_another_try(self, outcome: Outcome) -> bool:
        if outcome.cause in UNCOUNTED:
            return True
        if outcome.cause in MENDED_BY_CHANGE and not outcome.next_fields:
            return False
        retries_asked = outcome.cause is Cause.USER_ERROR and bool(self.spec.get("retries"))
        limit = 1 + int(self.spec["retries"]) if retries_asked else self.max_attempts
        return (outcome.cause in RETRIED or retries_asked) and self.attempt < limit

    def _closed(self, outcome: Outcome, now: float) -> Self:
        run = replace(
            self.attempts[-1],
            ended_at=now,
            end=outcome.end,
            cause=outcome.cause,
            message=outcome.message,
            usage=outcome.usage,
        )
        return replace(self, attempts=(*self.attempts[:-1], run), owner="")

    def _back(self, *, attempt: int) -> Self:
        return replace(self, state=State.QUEUED, attempt=attempt, wish=None, offer=None)

    def _checked(self, measured: Mapping[str, float]) -> Self:
        """Back to its place in the queue, with what its preflight measured in place of what was estimated."""
        peak = measured.get("peak_vram_bytes")
        declared = self.spec.get("vram_gib") is not None
        return replace(
            self._back(attempt=0),
            preflight_due=False,
            measured=measured,
            progress=None,
            started_at=None,  # the job itself has not
            not_before=self.spec.get("not_before"),  # the preflight may have waited by itself, for a download
            vram_bytes=round(peak) if peak and not declared else self.vram_bytes,
        )

    def _back_after(self, cause: Cause, outcome: Outcome, now: float, *, attempt: int) -> Self:
        if self.wish is not None and self.wish.kind is WishKind.CANCEL:
            return self._final(State.CANCELLED, replace(outcome, end=End.CANCELLED, cause=None), now)
        waits_s = {Cause.FETCH: FETCH_BACKOFF_S * 2 ** (attempt - 1), Cause.DISK_FULL: DISK_FULL_BACKOFF_S}.get(cause)
        back = self._back(attempt=attempt - 1 if cause in UNCOUNTED else attempt)
        return replace(
            back,
            attempts=(*back.attempts[:-1], replace(back.attempts[-1], changes=outcome.next_fields)),
            next_fields={**self.next_fields, **outcome.next_fields},
            estimate={**self.estimate, **outcome.learned},
            not_before=now + waits_s if waits_s else self.not_before,
        )

    def _final(self, state: State, outcome: Outcome, now: float) -> Self:
        return replace(self, state=state, outcome=outcome, finished_at=now, wish=None, offer=None, owner="")

    # -- on disk and on the wire ----------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """A dictionary for `json.dumps`, which `from_json` reads back. Its parts are this record's own: not to be changed."""
        parts = {
            name: part and vars(part)
            for name in ("offer", "wish", "progress", "outcome")
            for part in [getattr(self, name)]
        }
        return {**vars(self), **parts, "attempts": [vars(run) for run in self.attempts]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read a record of this or an earlier version."""
        values = dict(record)
        values["version"] = RECORD_VERSION
        values["state"] = State(values["state"])
        values["priority"] = Priority(values["priority"])
        values["tags"] = tuple(values["tags"])
        values["after"] = tuple(values["after"])
        if offer := values["offer"]:
            values["offer"] = Offer(**{**offer, "slots": tuple(offer["slots"])})
        if wish := values["wish"]:
            values["wish"] = Wish(**{**wish, "kind": WishKind(wish["kind"])})
        if progress := values["progress"]:
            values["progress"] = Progress(**progress)
        if outcome := values["outcome"]:
            values["outcome"] = outcome_from_json(outcome)
        values["attempts"] = tuple(_attempt_from_json(run) for run in values["attempts"])
        return cls(**values)


def dependency(text: str) -> tuple[str, Condition]:
    """A job's id and how it must end, from "141", "ended:141", "failed:141"; "checked:141" is the queue's own."""
    condition, _, job_id = text.rpartition(":")
    return job_id, Condition(condition or Condition.SUCCEEDED)


def rank_of(priority: Priority, sequence: int) -> float:
    """Where a new job stands in the queue: by priority, then first come."""
    return list(Priority).index(priority) * RANKS_PER_PRIORITY + sequence


def priority_of(rank: float) -> Priority:
    """Whose rank this is: those of one priority lie around `rank_of(priority, 0)`, on both sides of it."""
    at = round(rank / RANKS_PER_PRIORITY)
    return list(Priority)[min(max(at, 0), len(Priority) - 1)]


def outcome_from_json(record: Mapping[str, Any]) -> Outcome:
    """Read an outcome that `asdict` wrote."""
    return Outcome(**{**record, "end": End(record["end"]), "cause": _cause(record["cause"])})


def _attempt_from_json(record: Mapping[str, Any]) -> Attempt:
    end = record["end"]
    facts = {"slots": tuple(record["slots"]), "end": End(end) if end else None, "cause": _cause(record["cause"])}
    return Attempt(**{**record, **facts})


def _cause(value: str | None) -> Cause | None:
    return Cause(value) if value else None
