"""What a job's page shows: the verdict, attempts, curves, telemetry, parameters, and the command that repeats it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.curves import Curve, charted
from api.panels import names
from api.svg import Chart, Series, chart, clock_ticks
from api.wording import CAUSE_WORDS, clock, count, duration, number, telling_metric, words
from daemon import telemetry
from daemon.explain import explain
from daemon.plan import Facts
from daemon.settings import Settings
from jobs.differences import defaults, flat
from jobs.metrics import is_finite
from jobs.model import Attempt, Cause, End, Job, Outcome, State

#: Flags that differ from their field's name (api.cli.flags); a test holds them together.
FLAGS = {"tags": "--tag", "max_runtime_s": "--max-runtime"}
#: A moment that has passed would not repeat anything.
NOT_REPEATED = ("kind", "argv", "not_before")
VERBS = {
    "finetune": "finetune",
    "generate": "generate",
    "evaluate": "evaluate",
    "benchmark": "benchmark",
    "export": "export",
    "command": "run",
}
TELEMETRY_POINTS = 150
#: A pause in the readings longer than so many of their steps is shown as one.
GAP_STEPS = 3


@dataclass(frozen=True)
class Panel:
    """One chart with its heading and what it says in words."""

    title: str
    unit: str
    chart: Chart
    alt: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parameter:
    """A field of the document: its value, what it was before an attempt changed it, and whether the owner set it."""

    name: str
    value: str
    was: str | None
    given: bool
    #: What it is in the base of the job's sweep, where that is something else.
    base: str = ""


def verdict(job: Job, facts: Facts | None, settings: Settings, now: float) -> str:
    """How it stands, in one sentence."""
    match job.state:
        case State.QUEUED:
            reason = explain(facts, job) if facts else None
            return _sentence(reason or "waits")
        case State.RUNNING:
            return _running(job, facts, settings, now)
        case State.SUCCEEDED:
            telling = telling_metric(job.outcome.metrics) if job.outcome else None
            found = f": {words(telling[0])} {number(telling[1])}" if telling else ""
            return f"Succeeded after {duration(_took_s(job, now))}{found}."
        case State.FAILED:
            where = " in its preflight" if job.failed_preflight else ""
            return f"Failed{where}: {_cause(job.outcome)}, after {duration(_took_s(job, now))}."
        case State.CANCELLED:
            return "Cancelled" + (f" after {duration(_took_s(job, now))}." if job.started_at else " before it ran.")


def other_panels(curves: Mapping[str, Curve]) -> list[Panel]:
    """A small chart for every other number that the job tells."""
    panels = []
    for name in charted(curves):
        drawn = chart([Series(name, curves[name])])
        if drawn:
            panels.append(Panel(words(name), "", drawn, told(words(name), curves[name]) + "."))
    return panels


def telemetry_panels(job: Job, facts: Facts | None, settings: Settings, now: float) -> list[Panel]:
    """What its slots did while it ran; nothing where nothing was sampled."""
    runs = measured_runs(job, settings.rig, now)
    if not runs:
        return []
    start, end = runs[0].started_at, runs[-1].ended_at or now
    rows = {
        slot: _while_it_ran(telemetry.series(settings.home, slot, start, end, points=TELEMETRY_POINTS), slot, runs, now)
        for slot in dict.fromkeys(slot for run in runs for slot in run.slots)
    }
    gap = GAP_STEPS * max(1.0, (end - start) / TELEMETRY_POINTS)
    ticks = clock_ticks(settings.zone, now)
    first = len(job.attempts) - len(runs) + 1
    bounds = [(run.started_at, f"run {first + at}") for at, run in enumerate(runs) if at]
    panels = []
    for title, unit, key, factor, bottom, top in (
        ("Utilisation", "%", "utilization_mean", 100.0, 0.0, 100.0),
        ("Power", "W", "power_mean_w", 1.0, 0.0, 10.0),
        ("Memory", "GiB", "memory_max_bytes", 2.0**-30, 0.0, 1.0),
        ("Temperature", "°C", "temperature_max_c", 1.0, 20.0, 90.0),
    ):
        series = [Series(names(facts, [slot]), _column(points, key, factor)) for slot, points in rows.items()]
        known = [one for one in series if len(one.points) > 1]
        highest = max((y for one in known for _, y in one.points), default=0.0)
        y_range = (bottom, max(top, highest))
        drawn = chart(known, x_range=(start, end), y_range=y_range, x_ticks=ticks, gap=gap, bounds=bounds)
        if drawn:
            alt = "; ".join(f"{one.label} {_mean_and_peak(one.points, unit)}" for one in known) + "."
            panels.append(Panel(title, unit, drawn, alt, tuple(one.label for one in known) if len(known) > 1 else ()))
    return panels


def measured_runs(job: Job, rig: str, now: float) -> list[Attempt]:
    """The runs to draw on one axis of time: all, unless it waited longer between them than it ran; then the last."""
    # each rig samples its own slots
    if not job.attempts or job.attempts[-1].rig != rig:
        return []
    last = job.attempts[-1]
    if (last.ended_at or now) - last.started_at < 1:
        return []
    runs = [run for run in job.attempts if run.rig == rig]
    whole_s = (last.ended_at or now) - runs[0].started_at
    ran_s = sum((run.ended_at or now) - run.started_at for run in runs)
    return runs if ran_s >= whole_s / 2 else [last]


def _while_it_ran(
    points: Sequence[Mapping[str, Any]], slot: str, runs: Sequence[Attempt], now: float
) -> list[Mapping[str, Any]]:
    """Between its runs the slot worked for others."""
    mine = [(run.started_at, run.ended_at or now) for run in runs if slot in run.slots]
    step = (mine[-1][1] - mine[0][0]) / TELEMETRY_POINTS
    return [point for point in points if any(start - step <= point["at"] <= end for start, end in mine)]


def command(job: Job) -> str:
    """The command line that submits the same document again."""
    usual = dict(flat(defaults(job.kind)))
    parts = ["submit", VERBS.get(job.kind, job.kind)]
    for name, value in flat(job.spec):
        if name not in NOT_REPEATED and value is not None and value != usual.get(name):
            parts += _flags(name, value)
    if argv := job.spec.get("argv"):
        parts += ["--", *map(str, argv)]
    return shlex.join(parts)


def metrics(job: Job) -> list[tuple[str, str]]:
    """The numbers of the result."""
    found = job.outcome.metrics if job.outcome else {}
    return [(words(name), number(value)) for name, value in found.items() if is_finite(value) or isinstance(value, str)]


def attempt_words(run: Attempt) -> str:
    """How an attempt ended."""
    end = "running" if run.end is None else f"failed: {CAUSE_WORDS[run.cause]}" if run.cause else run.end.value
    return f"preflight {'passed' if run.end is End.CHECKED else end}" if run.preflight else end


# -- inside -----------------------------------------------------------------------------------------------------------------


def _running(job: Job, facts: Facts | None, settings: Settings, now: float) -> str:
    if job.wish is not None:
        asked = "Being cancelled" if job.wish.kind == "cancel" else "Saving its work, then it waits again"
        return f"{asked}: {_sentence(job.wish.reason)}" if job.wish.reason else f"{asked}."
    where = f"{'Its preflight runs' if job.in_preflight else 'Running'} on {names(facts if job.rig == settings.rig else None, job.slots)}{of_rig(job.rig, settings)}"
    progress = job.progress
    if progress is None or not progress.total:
        return f"{where} for {duration(now - job.attempts[-1].started_at)}."
    end = f", done about {clock(now + progress.eta_s, now, settings.zone)}" if progress.eta_s is not None else ""
    return f"{where}: step {number(progress.step)} of {number(progress.total)}{end}."


def of_rig(rig: str, settings: Settings) -> str:
    """ " of rig b" for another rig than this one."""
    return "" if rig == settings.rig else f" of rig {rig}"


def _cause(outcome: Outcome | None) -> str:
    return CAUSE_WORDS[outcome.cause] if outcome and isinstance(outcome.cause, Cause) else "for a reason not known"


def _took_s(job: Job, now: float) -> float:
    """How long it ran, all attempts together."""
    return sum((run.ended_at or now) - run.started_at for run in job.attempts)


def took_s(job: Job, now: float) -> float | None:
    """How long it ran or has been running; None when it never did."""
    return _took_s(job, now) if job.attempts else None


def _sentence(text: str) -> str:
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}" if text else ""


def _column(points: Sequence[Mapping[str, Any]], key: str, factor: float) -> list[tuple[float, float]]:
    return [(float(p["at"]), float(p[key]) * factor) for p in points if p[key] is not None]


def told(label: str, points: Curve) -> str:
    """A curve in words."""
    (first, start), (last, end) = points[0], points[-1]
    if len(points) == 1:
        return f"{label} {number(end)} at step {number(last)}"
    return f"{label} from {number(start)} at step {number(first)} to {number(end)} at step {number(last)}"


def _mean_and_peak(points: Curve, unit: str) -> str:
    values = [y for _, y in points]
    return f"{number(round(sum(values) / len(values), 1))} {unit} on average, {number(round(max(values), 1))} {unit} at most"


def parameter_text(value: Any) -> str:
    """A field's value as a person reads it."""
    if value is None or value in ([], {}, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " ".join(shlex.quote(f"{name}={text}") for name, text in value.items())
    if isinstance(value, (list, tuple)):
        return shlex.join(map(str, value)) if value else "none"
    return number(value) if isinstance(value, float) else str(value)


def _flags(name: str, value: Any) -> list[str]:
    flag = FLAGS.get(name) or "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    if isinstance(value, Mapping):
        return [part for key, text in value.items() for part in (flag, f"{key}={text}")]
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in (flag, str(item))]
    return [flag, str(value)]


def summary(job: Job) -> str:
    """What kind of job it is, for the line under its name."""
    parts = [{"finetune": "fine-tune", "generate": "generation", "evaluate": "evaluation"}.get(job.kind, job.kind)]
    if model := job.spec.get("model"):
        parts.append(f"of {model}" if job.kind in ("finetune", "benchmark", "export") else f"with {model}")
    if job.gpus > 1:
        parts.append(f"on {count(job.gpus, 'GPU')}")
    if job.parallel:
        parts.append(f"by {job.parallel['way']} ({job.parallel['why']})")
    return " ".join(parts)


def ended_how(run: Attempt) -> str:
    """The state whose mark an attempt wears: one that was interrupted waits again."""
    if run.end is None:
        return "running"
    if run.end is End.CHECKED:
        return "succeeded"
    return "queued" if run.end is End.INTERRUPTED else run.end.value
