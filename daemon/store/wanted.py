"""Which jobs somebody asks for."""

from dataclasses import dataclass

from jobs.model import Cause, Job, State

#: As a sweep: jobs of none.
NO_SWEEP = "none"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Conditions that all hold. What is empty is no condition. Jobs that have not ended are in no time of ends."""

    states: tuple[State, ...] = ()
    causes: tuple[Cause, ...] = ()
    kind: str = ""
    tag: str = ""
    sweep: str = ""
    text: str = ""
    ended_since: float | None = None
    ended_until: float | None = None

    def holds(self, job: Job) -> bool:
        """Whether a job is one of those."""
        return (
            (not self.states or job.state in self.states)
            and (not self.causes or (job.outcome is not None and job.outcome.cause in self.causes))
            and (not self.kind or job.kind == self.kind)
            and (not self.tag or self.tag in job.tags)
            and (not self.sweep or job.sweep == ("" if self.sweep == NO_SWEEP else self.sweep))
            and (not self.text or self.text.lower() in job.name.lower() or self.text == job.id)
            and (self.ended_since is None or (job.finished_at or 0.0) >= self.ended_since)
            and (self.ended_until is None or (job.finished_at is not None and job.finished_at <= self.ended_until))
        )
