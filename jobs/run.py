"""What a recipe sees of its attempt: what to do, whether to resume or stop, and where to tell how it goes."""

import faulthandler
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, Self

from jobs.model import Cause
from jobs.ranks import ALONE, Ranks
from jobs.rundir import RunDir, append_json_line, read_json, write_json
from jobs.tensorboard import EventFile

#: "Saved, run me again": EX_TEMPFAIL of sysexits.h.
EXIT_INTERRUPTED = 75
EXIT_FAILED = 1


class JobError(Exception):
    """The attempt cannot succeed, for a known cause, in words for its owner."""

    def __init__(
        self,
        cause: Cause,
        message: str,
        hint: str = "",
        *,
        next_fields: Mapping[str, Any] | None = None,
        learned: Mapping[str, float] | None = None,
    ):
        super().__init__(message)
        self.cause, self.message, self.hint = cause, message, hint
        self.next_fields, self.learned = dict(next_fields or {}), dict(learned or {})


class Interrupted(Exception):
    """The attempt was asked to stop; what it did is saved and it can go on later."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The content of spec.json: one attempt's orders. Paths are absolute and were allowed by the rig."""

    job_id: str
    attempt: int
    fence: int
    resume: bool
    spec: Mapping[str, Any]
    #: Where the fields that name files lead: model, adapter, cwd, and those of jobs.spec.FILE_FIELDS.
    paths: Mapping[str, str] = field(default_factory=dict)
    allow_remote_code: bool = False
    #: Only see whether the job will work, and measure (jobs.preflight).
    preflight: bool = False
    #: What of the rig's settings a recipe needs (daemon.for_recipes).
    rig: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: RunDir) -> None:
        """Leave the orders in the run folder."""
        write_json(folder.spec, asdict(self), durable=False)  # a power cut starts the attempt anew

    @classmethod
    def read(cls, folder: RunDir) -> Self:
        """The orders of this folder. Raises JobError(bad_input) when there are none."""
        record = read_json(folder.spec)
        if record is None:
            raise JobError(Cause.BAD_INPUT, f"{folder.spec} is missing or not JSON", "Give the path of a run folder.")
        return cls(**record)


class Run:
    """One attempt, seen from inside. Where it has several processes, the first one's word is the attempt's."""

    def __init__(self, folder: RunDir, order: Order, ranks: Ranks = ALONE, *, now: Callable[[], float] = time.time):
        self.folder, self.order, self.ranks = folder, order, ranks
        self.stop_requested = False
        self._now = now
        self.began = time.monotonic()
        self._told: dict[str, Any] = {}
        self._events: EventFile | None = None

    def stop_on_sigterm(self) -> None:
        """From now on SIGTERM only sets `stop_requested`; the recipe acts on it at the end of a step."""
        signal.signal(signal.SIGTERM, self._ask_to_stop)

    def dump_stacks_on_sigusr1(self) -> None:
        """From now on SIGUSR1 writes every thread's stack to stacks.txt, even from inside a call into C."""
        self._stacks = self.folder.rank_stacks(self.ranks.number).open("w")
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)

    def stops_here(self) -> bool:
        """Whether to stop at this step, because any of its processes was asked to: they must do it at the same one."""
        return self.ranks.any(self.stop_requested)

    def _ask_to_stop(self, _signal: int, _frame: FrameType | None) -> None:
        self.stop_requested = True

    def now(self) -> float:
        """Epoch seconds, by the clock that this attempt's files are written with."""
        return self._now()

    def phase(self, name: str, *, step: int = 0, total: int = 0) -> None:
        """A new part of the work begins: loading, training, saving, evaluating, generating."""
        self.progress(step=step, total=total, phase=name)

    def progress(
        self,
        *,
        step: int,
        total: int,
        phase: str | None = None,
        eta_s: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Tell how far it is. A beat for the watchdog, too: call it at every step."""
        if not self.ranks.is_first:
            return
        self._told = {
            "fence": self.order.fence,
            "phase": phase if phase is not None else self._told.get("phase", ""),
            "step": step,
            "total": total,
            "eta_s": eta_s,
            "metrics": dict(metrics or {}),
            "at": self._now(),
        }
        write_json(self.folder.progress, self._told, durable=False)

    def beat(self) -> None:
        """Alive, in the middle of a long step."""
        if self._told:
            self._told["at"] = self._now()
            write_json(self.folder.progress, self._told, durable=False)

    def metrics(self, step: int, **values: float | None) -> None:
        """Add a line to metrics.jsonl, and to TensorBoard's file."""
        if not self.ranks.is_first:
            return
        line = {"step": step, **values, "time": self._now()}
        if self._events is None:
            self._events = EventFile.of(self.folder, self.order.attempt)
        append_json_line(self.folder.metrics, line)
        self._events.add(line)
