"""Where the first screen and the report lead: to the jobs that a number counts, and to the best result beside its baseline. Pure."""

import math
from collections.abc import Sequence
from urllib.parse import urlencode

from api.comparison import compare_link
from api.wording import count
from daemon.night.model import Best, Group, Night
from daemon.store import NO_SWEEP
from jobs.model import State


def jobs(*, since: float | None = None, until: float | None = None, **filters: str) -> str:
    """The list of jobs with these filters; of ends, whole seconds that leave none out."""
    ends = {
        "since": str(math.floor(since)) if since is not None else "",
        "until": str(math.ceil(until)) if until is not None else "",
    }
    return "/jobs?" + urlencode({name: value for name, value in {**filters, **ends}.items() if value})


def ended(night: Night, **filters: str) -> str:
    """The list of those that ended in the night; of one that goes on without an end, so that it stays true."""
    return jobs(since=night.since, until=night.until if night.over else None, **filters)


def state(night: Night, wanted: State) -> str:
    """Where a tile leads: what ended so in the night, or what runs or waits now; empty for what did so when it was over."""
    if wanted.final:
        return ended(night, state=wanted)
    return "" if night.over else jobs(state=wanted)


def group(night: Night, one: Group) -> tuple[str, str]:
    """Where a group's jobs are seen, and how the link is called."""
    if len(one.jobs) == 1:
        return f"/jobs/{one.jobs[0]}", f"Open job {one.jobs[0]}"
    cause = {"cause": str(one.cause)} if one.cause else {}
    return ended(night, state=State.FAILED, sweep=one.sweep or NO_SWEEP, **cause), f"Show {count(len(one.jobs), 'job')}"


def compare(best: Best) -> str:
    """The two runs side by side, the baseline first; empty where the baseline is no other run."""
    others: Sequence[str] = [best.job] if best.baseline and best.baseline.job != best.job else []
    return compare_link([best.baseline.job, *others]) if best.baseline and others else ""
