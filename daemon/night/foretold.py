"""What was promised in the evening: the forecast as it was kept, and what came of it. Pure."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from daemon.forecast import Forecast
from daemon.night.model import Foretold
from jobs.model import Job, State


@dataclass(frozen=True, kw_only=True)
class Promise:
    """A forecast, as far as a morning asks for it."""

    at: float
    #: When each job was to be done.
    ends: Mapping[str, float] = field(default_factory=dict)
    drains_at: float | None = None
    window_ends_at: float | None = None

    @classmethod
    def of(cls, found: Forecast) -> Self:
        """From a forecast that was just made."""
        ends = {name: outlook.end_at for name, outlook in found.jobs.items() if outlook.end_at is not None}
        return cls(at=found.at, ends=ends, drains_at=drains_at(found), window_ends_at=found.window_ends_at)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises TypeError, KeyError, ValueError on anything else."""
        ends = {str(name): float(end) for name, end in record["ends"].items()}
        return cls(at=float(record["at"]), ends=ends, drains_at=record["drains_at"], window_ends_at=record["window_ends_at"])  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return {
            "at": self.at,
            "ends": dict(self.ends),
            "drains_at": self.drains_at,
            "window_ends_at": self.window_ends_at,
        }


def drains_at(found: Forecast) -> float | None:
    """When the queue is empty: the last end; None when some end is not known. Jobs that never start do not count."""
    if found.cut:
        return None
    ends = [outlook.end_at for outlook in found.jobs.values() if outlook.never is None]
    known = [end for end in ends if end is not None]
    return max(known) if known and len(known) == len(ends) else None


def foretold(promise: Promise, jobs: Mapping[str, Job], until: float) -> Foretold:
    """The promise against what came by `until`."""
    promised = {name: end for name, end in promise.ends.items() if end <= until}
    done = {name for name, job in jobs.items() if _done(job, until)}
    late = [(jobs[name].finished_at or 0.0) - end for name, end in promise.ends.items() if name in done]
    came = {name for name in done if (jobs[name].finished_at or 0.0) > promise.at}
    return Foretold(
        at=promise.at,
        promised=len(promised),
        kept=sum(name in done for name in promised),
        missed=tuple(sorted((name for name in promised if name not in done), key=int)),
        unforeseen=len(came - promise.ends.keys()),
        drains_at=promise.drains_at,
        median_late_s=statistics.median(late) if late else None,
    )


def _done(job: Job, until: float) -> bool:
    return job.state is State.SUCCEEDED and job.finished_at is not None and job.finished_at <= until
