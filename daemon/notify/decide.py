"""From what was seen to what is sent now. Pure: no clock, no queue, no network.

At once goes only what cannot wait (`Trouble`: the rig is held, a GPU is out of service, a process stays dead; a row of failures; a job
that failed in its preflight), and a job that asked for it. Everything else is in the report: at a fixed hour, or when nothing runs any more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Self
from zoneinfo import ZoneInfo

from daemon.notify.message import Kind, Message, line
from jobs.evaluation import STDERR
from jobs.model import Cause, Job, State

#: The queue must be at rest for so long: the next job of an evening, or of a pipeline, is on its way.
REST_S = 60.0
#: From one report at the queue's end to the next.
BETWEEN_REPORTS_S = 3_600.0
#: A trouble is over when it was not seen for so long; one that comes back within the hour is not told again.
OVER_S, AGAIN_S = 60.0, 3_600.0
#: So many failures in a row are no accident.
IN_A_ROW = 3
#: A report looks back so far at most.
LONGEST_REPORT_S = 7 * 86_400.0
STREAKS_KEPT = 200
QUEUE_END = "queue_end"


@dataclass(frozen=True)
class Trouble:
    """Something that holds now, and that a person must see to. `key` names it, the same one while it lasts."""

    key: str
    title: str
    text: str
    #: It must hold for so long.
    after_s: float = 0.0
    path: str = "/"


@dataclass(frozen=True)
class Rules:
    """How the owner wants it."""

    rig: str
    zone: ZoneInfo
    #: "07:00", "queue_end", or nothing.
    report: str = "07:00"
    #: For jobs that do not say: never, failure or end.
    jobs: str = "never"
    #: Before every title, where several rigs send.
    prefix: str = ""


@dataclass(frozen=True)
class Report:
    """What the night's report says in a message."""

    title: str
    text: str
    needs_you: bool = False
    long_text: str = ""
    bare_text: str = ""
    #: The date of its evening; "" when it has none.
    date: str = ""


#: From since when until when; None: nothing has happened.
Night = Callable[[float, float], Report | None]


@dataclass(frozen=True)
class Seen:
    """One look at the rig."""

    now: float
    troubles: tuple[Trouble, ...] = ()
    #: Jobs that ended since the last look, the oldest first.
    ended: tuple[Job, ...] = ()
    running: int = 0
    #: Nothing runs and nothing is about to; None: the queue does not answer.
    resting: bool | None = None


@dataclass(frozen=True)
class Told:
    """A trouble that was told."""

    title: str
    at: float
    #: Since when it is not seen any more, and whether its end was told.
    gone_since: float | None = None
    over: bool = False


@dataclass(frozen=True)
class Streak:
    """Failures in a row: of one sweep, or of jobs that belong to none."""

    jobs: tuple[str, ...] = ()
    cause: str = ""
    #: It was told, or there is nothing to tell: one of the sweep has succeeded.
    told: bool = False


@dataclass(frozen=True)
class Memory:
    """What must be remembered from one look to the next, over restarts too."""

    #: Since when a trouble that is not told yet holds.
    pending: Mapping[str, float] = field(default_factory=dict)
    told: Mapping[str, Told] = field(default_factory=dict)
    #: By sweep; "" is for jobs that belong to none.
    streaks: Mapping[str, Streak] = field(default_factory=dict)
    #: The end of what the last report was about, and when one was sent.
    reported_at: float = 0.0
    sent_at: float | None = None
    #: Whether something ended or ran since the last report.
    worked: bool = False
    rests_since: float | None = None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        values = dict(record)
        values["told"] = {key: Told(**told) for key, told in values["told"].items()}
        values["streaks"] = {
            key: Streak(**{**streak, "jobs": tuple(streak["jobs"])}) for key, streak in values["streaks"].items()
        }
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        parts = {name: {key: vars(one) for key, one in getattr(self, name).items()} for name in ("told", "streaks")}
        return {**vars(self), **parts}


def decide(seen: Seen, memory: Memory, rules: Rules, night: Night) -> tuple[list[Message], Memory]:
    """What is sent now, and what to remember."""
    memory = replace(memory, reported_at=memory.reported_at or seen.now)
    messages, memory = _troubles(seen, memory)
    for job in seen.ended:
        messages += _asked_for(job, rules)
        more, memory = _in_a_row(job, memory, seen.now)
        messages += more
    more, memory = _report(seen, memory, rules, night)
    prefixed = [
        replace(m, title=rules.prefix + m.title, bare_title=m.bare_title and rules.prefix + m.bare_title)
        for m in [*messages, *more]
    ]
    return prefixed, memory


# -- troubles ---------------------------------------------------------------------------------------------------------------


def _troubles(seen: Seen, memory: Memory) -> tuple[list[Message], Memory]:
    now, messages = seen.now, []
    pending, told = {}, dict(memory.told)
    for trouble in seen.troubles:
        before = told.get(trouble.key)
        if before is not None and (not before.over or now - before.at < AGAIN_S):
            told[trouble.key] = replace(before, gone_since=None)
            continue
        since = pending[trouble.key] = min(memory.pending.get(trouble.key, now), now)
        if now - since >= trouble.after_s:
            del pending[trouble.key]
            told[trouble.key] = Told(trouble.title, now)
            messages.append(_trouble_message(trouble, now))
    gone = told.keys() - {trouble.key for trouble in seen.troubles} if seen.resting is not None else ()
    for key in gone:  # while the queue does not answer, nobody knows
        one = told[key] if told[key].gone_since is not None else replace(told[key], gone_since=now)
        if not one.over and now - (one.gone_since or now) >= OVER_S:
            one = replace(one, over=True)
            messages.append(_over_message(key, one, now))
        told[key] = one
        if one.over and now - one.at >= AGAIN_S:
            del told[key]
    return messages, replace(memory, pending=pending, told=told)


def _trouble_message(trouble: Trouble, now: float) -> Message:
    return Message(
        key=f"trouble:{trouble.key}:{now:.3f}",
        kind=Kind.URGENT,
        title=trouble.title,
        text=trouble.text,
        at=now,
        priority=4,
        tags=("warning",),
        path=trouble.path,
        data={"trouble": trouble.key},
    )


def _over_message(key: str, told: Told, now: float) -> Message:
    return Message(
        key=f"over:{key}:{told.at:.3f}",
        kind=Kind.URGENT,
        title=f"Over: {told.title}",
        text="Nothing needs to be done about it any more.",
        at=now,
        priority=2,
        tags=("white_check_mark",),
        data={"over": key},
    )


# -- jobs -------------------------------------------------------------------------------------------------------------------


def wanted(job: Job, by_default: str) -> str:
    """When the owner wants to hear of this job: never, failure, end."""
    return str(job.spec.get("notify") or by_default)


def _asked_for(job: Job, rules: Rules) -> Iterator[Message]:
    when = wanted(job, rules.jobs)
    asked = when == "end" or (when == "failure" and job.state is State.FAILED)
    # its owner is still awake, and can mend it before the night
    if not asked and not (job.failed_preflight and job.spec.get("notify") != "never"):
        return
    word = {State.SUCCEEDED: "done", State.FAILED: "failed", State.CANCELLED: "cancelled"}[job.state]
    why = cause_in_words(job)
    yield Message(
        key=f"job:{job.id}:{job.finished_at or 0:.3f}",
        kind=Kind.JOB,
        title=f"{line(job.name) or f'Job {job.id}'} {word}{f' ({why})' if why else ''}",
        bare_title=f"Job {job.id} {word}{f' ({why})' if why else ''}",
        text="\n".join(filter(None, (f"Job {job.id}, {_took(job)}", _message_of(job), _metrics_of(job)))),
        bare_text=f"Job {job.id}, {_took(job)}",
        at=job.finished_at or 0.0,
        priority=4 if job.state is State.FAILED else 3,
        tags=("x",) if job.state is State.FAILED else ("white_check_mark",) if job.state is State.SUCCEEDED else (),
        path=f"/jobs/{job.id}",
        data={"job": job.id, "name": job.name, "state": str(job.state), "cause": cause_in_words(job) or None},
    )


def _in_a_row(job: Job, memory: Memory, now: float) -> tuple[list[Message], Memory]:
    """Failures in a row: of a sweep of which nothing has succeeded, or of other jobs for one cause."""
    group, before = job.sweep, memory.streaks.get(job.sweep, Streak())
    messages: list[Message] = []
    if job.state is State.SUCCEEDED:
        after = Streak(told=bool(group))
    elif job.state is State.FAILED and job.id not in before.jobs:
        goes_on = bool(group) or before.cause == cause_in_words(job)
        after = (
            replace(before, jobs=(*before.jobs, job.id)[-100:]) if goes_on else Streak((job.id,), cause_in_words(job))
        )
        if len(after.jobs) >= IN_A_ROW and not after.told:
            after = replace(after, told=True)
            messages.append(_row_message(job, after.jobs, now))
    else:  # somebody's wish is no failure
        return [], memory
    if after == before:
        return [], memory
    others = {key: streak for key, streak in memory.streaks.items() if key != group}
    return messages, replace(memory, streaks=dict([*others.items(), (group, after)][-STREAKS_KEPT:]))


def _row_message(job: Job, streak: Sequence[str], now: float) -> Message:
    cause = cause_in_words(job) or "failure"
    what = f"Sweep {job.sweep}: all of its first {len(streak)} jobs failed" if job.sweep else f"{len(streak)} jobs in a row failed ({cause})"  # fmt: skip
    ids = ", ".join(streak[-10:])
    last = f"The last one: {line(job.name)}. {_message_of(job)}"
    more = "The others go on. Cancel the sweep if it is of no use." if job.sweep else "The queue goes on."
    return Message(
        key=f"row:{job.sweep}:{streak[0]}",
        kind=Kind.URGENT,
        title=what,
        text=f"Jobs {ids}.\n{last}\n{more}",
        bare_text=f"Jobs {ids}.\n{more}",
        at=now,
        priority=4,
        tags=("warning",),
        path=f"/sweeps/{job.sweep}" if job.sweep else f"/jobs/{job.id}",
        data={"sweep": job.sweep or None, "jobs": list(streak[-10:]), "cause": cause},
    )


def cause_in_words(job: Job) -> str:
    """Why it failed, in a word or two; nothing when it did not."""
    cause = job.outcome.cause if job.outcome else None
    words = {Cause.OOM_GPU: "out of GPU memory", Cause.OOM_HOST: "out of memory", Cause.NAN: "NaN", Cause.TIMEOUT: "over its time"}  # fmt: skip
    return words.get(cause, str(cause).replace("_", " ")) if cause else ""


def _message_of(job: Job) -> str:
    return line(job.outcome.message)[:300] if job.outcome else ""


def _metrics_of(job: Job) -> str:
    metrics = job.outcome.metrics if job.outcome else {}
    told = [(n, v) for n, v in metrics.items() if _is_telling(n) and isinstance(v, int | float)]
    return ", ".join(f"{name} {value:.4g}" for name, value in told[:3])


def _is_telling(name: str) -> bool:
    """Losses, not their errors and not those of every token; and an evaluation's answers."""
    return name == "accuracy" or ("loss" in name and not name.endswith(STDERR) and not name.startswith("all_tokens"))


def _took(job: Job) -> str:
    if job.started_at is None or job.finished_at is None:
        return "never started"
    minutes = round((job.finished_at - job.started_at) / 60)
    return f"after {minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"after {minutes} min"


# -- the report -------------------------------------------------------------------------------------------------------------


def _report(seen: Seen, memory: Memory, rules: Rules, night: Night) -> tuple[list[Message], Memory]:
    now = seen.now
    rests_since = (memory.rests_since or now) if seen.resting else None
    memory = replace(memory, rests_since=rests_since, worked=memory.worked or bool(seen.running or seen.ended))
    if seen.resting is None or not _report_is_due(now, memory, rules):
        return [], memory
    since = max(memory.reported_at, now - LONGEST_REPORT_S)
    found = night(since, now) if memory.worked else None
    memory = replace(memory, reported_at=now, worked=bool(seen.running))
    if found is None:
        return [], memory
    return [_report_message(found, now)], replace(memory, sent_at=now)


def _report_is_due(now: float, memory: Memory, rules: Rules) -> bool:
    if rules.report == QUEUE_END:
        rested = memory.rests_since is not None and now - memory.rests_since >= REST_S
        early = memory.sent_at is not None and now - memory.sent_at < BETWEEN_REPORTS_S
        return rested and memory.worked and not early
    return bool(rules.report) and memory.reported_at < last_time(rules.report, now, rules.zone)


def last_time(clock: str, now: float, zone: ZoneInfo) -> float:
    """When a clock in the zone showed this time last, epoch seconds."""
    hour, minute = (int(part) for part in clock.split(":"))
    today = datetime.fromtimestamp(now, zone).replace(hour=hour, minute=minute, second=0, microsecond=0)
    return today.timestamp() if today.timestamp() <= now else (today - timedelta(days=1)).timestamp()


def _report_message(report: Report, now: float) -> Message:
    return Message(
        key=f"report:{now:.0f}",
        kind=Kind.REPORT,
        title=report.title,
        text=report.text,
        long_text=report.long_text,
        bare_text=report.bare_text,
        at=now,
        priority=4 if report.needs_you else 3,
        tags=("warning",) if report.needs_you else ("crescent_moon",),
        path=f"/nights/{report.date}" if report.date else "/",
        data={"night": report.date or None, "needs_you": report.needs_you},
    )
