"""What the page of the plan shows: a lane for each slot, and the same in words. Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from api.panels import title_of
from api.plan_views import GiveWayView, LaneView, PlannedJob, PlanView, RunView
from api.svg import Tick, clock_ticks
from api.wording import clock, count, duration
from daemon.forecast import Basis
from daemon.plan import Facts
from jobs.model import Priority, State

#: Lanes are drawn for so long.
SHORTEST_S, LONGEST_S = 600.0, 36 * 3600.0
#: So many jobs are told one by one; the rest is counted.
LISTED = 60
#: On the axis; a phone has room for them.
TICKS = 6
#: A start within this is "now".
NOW_S = 60.0


@dataclass(frozen=True)
class Stretch:
    """A run on a lane, in percent of its length."""

    x: float
    width: float
    job: str
    name: str
    #: running, waiting
    state: str
    late: bool
    #: Its length is known from its progress or from history.
    known: bool
    #: It is interrupted there and goes on later.
    cut: bool
    text: str


@dataclass(frozen=True)
class Lane:
    """One slot's night."""

    title: str
    name: str
    stretches: tuple[Stretch, ...]
    alt: str


@dataclass(frozen=True)
class Line:
    """One job of the list."""

    job: PlannedJob
    #: "starts about 23:10, done about 01:20"
    times: str
    #: Where that comes from, and why it waits.
    why: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Jobs of one fate."""

    key: str
    title: str
    note: str
    lines: tuple[Line, ...]
    more: int = 0


@dataclass(frozen=True)
class Drawing:
    """The lanes over one axis."""

    start: float
    end: float
    lanes: tuple[Lane, ...]
    ticks: tuple[Tick, ...]
    #: Where the window, or the time that was asked for, ends; in percent.
    deadline: float | None
    deadline_text: str
    #: When nothing may start, in percent: (x, width).
    closed: tuple[tuple[float, float], ...]
    beyond: bool


def drawing(plan: PlanView, facts: Facts) -> Drawing:
    """Lanes from now to the deadline, or to the last end where that is sooner or there is none."""
    start, end = _extent(plan)
    zone, at = facts.zone, facts.now
    jobs = {job.id: job for job in plan.jobs}
    is_gpu = {each.slot.id: each.slot.is_gpu for each in facts.slots}
    late = set(plan.late)

    def place(moment: float) -> float:
        return round((min(end, max(start, moment)) - start) / (end - start) * 100, 2)

    def lane(view: LaneView) -> Lane:
        title = title_of(is_gpu.get(view.slot, True), view.index)
        runs = [run for run in view.runs if run.start_at.timestamp() < end]
        stretches = tuple(_stretch(run, jobs.get(run.job), run.job in late, place, at, zone) for run in runs)
        return Lane(title, view.name, stretches, _lane_words(title, runs, jobs, late, at, zone))

    deadline = plan.deadline.timestamp() if plan.deadline else None
    word = "window closes" if plan.deadline == plan.window_ends_at else "deadline"
    shown = deadline is not None and start < deadline <= end
    closed = ((0.0, place(facts.window_opens_at)),) if facts.window_opens_at and facts.window_opens_at > start else ()
    last = max((run.end_at.timestamp() for view in plan.lanes for run in view.runs), default=start)
    return Drawing(
        start=start,
        end=end,
        lanes=tuple(lane(view) for view in plan.lanes),
        ticks=clock_ticks(zone, at, most=TICKS)(start, end),
        deadline=place(deadline) if shown and deadline is not None else None,
        deadline_text=f"{word} {clock(deadline, at, zone)}" if shown and deadline is not None else "",
        closed=closed,
        beyond=last > end,
    )


def headline(plan: PlanView, facts: Facts) -> str:
    """The night in one sentence."""
    if not plan.jobs:
        return "Nothing runs and nothing waits"
    late = [job for job in plan.jobs if job.late]
    if plan.late:
        deadline = clock(plan.deadline.timestamp(), facts.now, facts.zone) if plan.deadline else "then"
        return f"{count(max(len(late), len(plan.late)), 'job')} will not be done by {deadline}"
    ends = [job.end_at for job in plan.jobs]
    if facts.paused:
        return "The rig is paused: nothing more will start"
    going = [end for end in ends if end is not None]
    if not going:
        return "When it will be done, nobody knows yet"
    end = clock(max(going).timestamp(), facts.now, facts.zone)
    if stuck := sum(end is None for end in ends):
        return f"All but {count(stuck, 'job')} done about {end}"
    return f"All done about {end}"


def subline(plan: PlanView, facts: Facts) -> str:
    """What it rests on."""
    unknown = sum(job.basis is Basis.UNKNOWN for job in plan.jobs)
    guessed = sum(job.basis is Basis.GUESS for job in plan.jobs)
    parts = []
    if unknown:
        parts.append(f"{_of_length(unknown)} unknown length: an hour is assumed")
    if guessed:
        parts.append(f"{count(guessed, 'job')} {'is' if guessed == 1 else 'are'} guessed from others of their kind")
    if plan.cut:
        parts.append("the queue is too long to foresee all of it")
    return "; ".join(parts).capitalize() + "." if parts else ""


def _of_length(amount: int) -> str:
    return f"{count(amount, 'job')} {'is' if amount == 1 else 'are'} of"


def groups(plan: PlanView, facts: Facts) -> list[Group]:
    """The jobs in words, by what becomes of them."""
    stuck = [job for job in plan.jobs if job.never or (job.state is State.QUEUED and not job.runs)]
    stuck_ids = {job.id for job in stuck}
    running = [job for job in plan.jobs if job.state is State.RUNNING]
    late = [job for job in plan.jobs if job.late and job.state is State.QUEUED and job.id not in stuck_ids]
    late_ids = {job.id for job in late}
    waiting = [
        job for job in plan.jobs if job.state is State.QUEUED and job.id not in late_ids and job.id not in stuck_ids
    ]
    waiting.sort(key=lambda job: (job.start_at.timestamp() if job.start_at else 0.0, int(job.id)))
    deadline = clock(plan.deadline.timestamp(), facts.now, facts.zone) if plan.deadline else ""
    wanted = (
        ("running", "Running", "", running),
        ("late", f"Not done by {deadline}" if deadline else "Late", "", late),
        ("waiting", "In time" if late else "Waiting", "in the order in which they start", waiting),
        ("stuck", "Not in sight", "they wait for somebody, or for a time beyond the forecast", stuck),
    )
    return [
        Group(key, title, note, tuple(_line(job, facts) for job in jobs[:LISTED]), max(0, len(jobs) - LISTED))
        for key, title, note, jobs in wanted
        if jobs
    ]


def give_way_words(gives: GiveWayView | None, plan: PlanView, facts: Facts) -> str:
    """What would have to give for the first late job."""
    if gives is None or plan.deadline is None:
        return ""
    deadline = clock(plan.deadline.timestamp(), facts.now, facts.zone)
    if not gives.hold:
        return f"Job {gives.job} would be late even if nothing ran before it."
    held = _listed([f"job {name}" for name in gives.hold])
    end = f": it would be done about {clock(gives.end_at.timestamp(), facts.now, facts.zone)}" if gives.end_at else ""
    return f"For job {gives.job} to be done by {deadline}, {held} would have to wait{end}."


def deadline_of(text: str, now: float, zone: ZoneInfo) -> datetime | None:
    """The next such time of day; None when the text is no time."""
    try:
        wanted = datetime.strptime(text.strip(), "%H:%M").time()
    except ValueError:
        return None
    today = datetime.fromtimestamp(now, zone)
    then = datetime.combine(today.date(), wanted, zone)
    return then if then > today else datetime.combine(today.date() + timedelta(days=1), wanted, zone)


# -- inside -----------------------------------------------------------------------------------------------------------------


def _extent(plan: PlanView) -> tuple[float, float]:
    start = plan.at.timestamp()
    last = max((run.end_at.timestamp() for lane in plan.lanes for run in lane.runs), default=start)
    if plan.deadline is not None and start < (deadline := plan.deadline.timestamp()):
        # a little beyond it, so that what is late can be seen to be
        beyond = deadline + 0.12 * (deadline - start) if last > deadline else deadline
        last = beyond if last > deadline or deadline - start < 3 * (last - start) else last
    return start, start + max(SHORTEST_S, min(last - start, LONGEST_S))


def _stretch(run: RunView, job: PlannedJob | None, late: bool, place: Callable[[float], float], at: float, zone: ZoneInfo) -> Stretch:  # fmt: skip
    start, end = run.start_at.timestamp(), run.end_at.timestamp()
    x, name = place(start), job.name if job else f"job {run.job}"
    is_running = job is not None and job.state is State.RUNNING and start <= at
    known = job is None or job.basis in (Basis.PROGRESS, Basis.HISTORY)
    told = f"{name} (#{run.job}), {clock(start, at, zone)} to {clock(end, at, zone)}"
    told += "" if run.done else ", interrupted there"
    told += ", late" if late else ""
    return Stretch(x, max(0.3, place(end) - x), run.job, name, "running" if is_running else "waiting", late, known, not run.done, told)  # fmt: skip


def _lane_words(title: str, runs: Sequence[RunView], jobs: Mapping[str, PlannedJob], late: set[str], at: float, zone: ZoneInfo) -> str:  # fmt: skip
    if not runs:
        return f"{title}: nothing is expected on it."
    told = []
    for run in runs[:8]:
        name = jobs[run.job].name if run.job in jobs else f"job {run.job}"
        span = f"{clock(run.start_at.timestamp(), at, zone)} to {clock(run.end_at.timestamp(), at, zone)}"
        told.append(f"{name} {span}{' (late)' if run.job in late else ''}")
    more = f"; and {count(len(runs) - 8, 'more run')}" if len(runs) > 8 else ""
    return f"{title}: {'; '.join(told)}{more}."


def _line(job: PlannedJob, facts: Facts) -> Line:
    return Line(job, _times(job, facts), tuple(_why(job, facts)))


def _times(job: PlannedJob, facts: Facts) -> str:
    now, zone = facts.now, facts.zone
    start = job.start_at.timestamp() if job.start_at else None
    end = job.end_at.timestamp() if job.end_at else None
    if job.state is State.RUNNING:
        began = f"since {clock(start, now, zone)}" if start is not None else "running"
        return (
            f"{began}, done about {clock(end, now, zone)}" if end is not None else f"{began}, its end is not in sight"
        )
    if start is None:
        return "no start in sight"
    starts = "starts now" if start <= now + NOW_S else f"starts about {clock(start, now, zone)}"
    if end is None:
        return f"{starts}, its end is beyond the forecast"
    length = f" ({duration(round((end - start) / 60) * 60)})" if len(job.runs) == 1 else ""
    return f"{starts}, done about {clock(end, now, zone)}{length}"


def _why(job: PlannedJob, facts: Facts) -> Iterator[str]:
    if job.never:
        yield job.never
    elif job.waiting_because:
        yield job.waiting_because
    if job.priority is not Priority.NORMAL and job.state is State.QUEUED:
        yield f"{job.priority} priority"
    if job.gpus > 1:
        yield f"{job.gpus} GPUs at once"
    if len(job.runs) > 1:
        breaks = len(job.runs) - 1
        yield f"interrupted {'once' if breaks == 1 else f'{breaks} times'} on the way"
    if job.basis is Basis.GUESS:
        yield "a guess: nothing like it has run yet"
    elif job.basis is Basis.UNKNOWN:
        yield "its kind has never run here: an hour is assumed"
    elif not job.sure:
        yield "jobs before it are of unknown length"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
