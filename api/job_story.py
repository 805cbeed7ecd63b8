"""What a job's page tells beyond its record: its runs and what changed between them, memory against what was asked, what its
document has that others have not, and what it can be compared with. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.comparison import MOST, compare_link
from api.curves import Curve
from api.job_panel import Panel, Parameter, parameter_text, told
from api.svg import Series, chart, usual_gap
from api.wording import number, size
from daemon.plan import Facts
from daemon.settings import Settings
from daemon.sweep_table import Table
from jobs.differences import NOT_ITS_WORK, defaults, differences, flat, same
from jobs.estimate import VRAM_RESERVE_BYTES
from jobs.model import Attempt, Job, State
from jobs.sweep import Sweep

#: Less room than this share of the GPU is called close.
CLOSE = 0.05


# -- curves -------------------------------------------------------------------------------------------------------------------


def loss_panel(curves: Mapping[str, Curve], times: Curve, job: Job) -> Panel | None:
    """The loss, and the evaluations as dots on a line of their own; where runs began, and the best evaluation."""
    loss, evals = curves.get("loss", ()), curves.get("eval_loss", ())
    series = [Series("loss", loss, usual_gap(loss)), Series("eval loss", evals, usual_gap(evals))]
    best = min(evals, key=lambda point: point[1]) if len(evals) > 1 else None
    drawn = chart(series, marks=evals[-100:], bounds=bounds(times, job.attempts), best=best)
    if drawn is None:
        return None
    parts = [told(one.label, one.points) for one in series if one.points]
    if best is not None:
        parts.append(f"best evaluation {number(best[1])} at step {number(best[0])}")
    parts += [f"{bound.label} began at {bound.percent:.0f} % of its width" for bound in drawn.bounds]
    return Panel("Loss", "", drawn, "; ".join(parts) + ".", tuple(one.label for one in series if one.points))


def bounds(times: Curve, attempts: Sequence[Attempt]) -> list[tuple[float, str]]:
    """The steps at which the second and later runs began, as far as the rows' moments tell."""
    found: list[tuple[float, str]] = []
    for at, run in enumerate(attempts[1:], 2):
        step = next((step for step, moment in times if moment >= run.started_at), None)
        later = [step for step, moment in times if moment < run.started_at]
        if step is not None and later:
            if found and found[-1][0] == step:
                found.pop()
            found.append((step, f"run {at}"))
    return found


# -- runs ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunLine:
    """One attempt, and how it changed the document for the next: field, before, after."""

    at: int
    run: Attempt
    changes: Sequence[tuple[str, str, str]] = ()


def runs(job: Job) -> list[RunLine]:
    """Its attempts, the first one first."""
    document = dict(flat(job.spec))
    lines: list[RunLine] = []
    for at, run in enumerate(job.attempts, 1):
        changed = [(name, value) for name, value in flat(run.changes) if not same(value, document.get(name))]
        lines.append(RunLine(at, run, [(n, parameter_text(document.get(n)), parameter_text(v)) for n, v in changed]))
        document |= dict(changed)
    return lines


# -- memory -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resources:
    """Memory of the fullest GPU at its peak, against what was asked for and what the GPU has; and what could be tried."""

    peak_bytes: float
    asked_bytes: int | None
    total_bytes: int | None
    #: "asked for" or "expected".
    asked_word: str
    hint: str = ""

    @property
    def of_total(self) -> float | None:
        return min(1.0, self.peak_bytes / self.total_bytes) if self.total_bytes else None

    @property
    def of_asked(self) -> float | None:
        return self.peak_bytes / self.asked_bytes if self.asked_bytes else None

    @property
    def asked_of_total(self) -> float | None:
        known = self.asked_bytes and self.total_bytes
        return min(1.0, self.asked_bytes / self.total_bytes) if known else None  # type: ignore[operator]


def resources(job: Job, facts: Facts | None, settings: Settings) -> Resources | None:
    """None while nothing was measured on a GPU."""
    measured = [run for run in job.attempts if run.usage.get("peak_vram_bytes")]
    if not measured:
        return None
    peak = max(float(run.usage["peak_vram_bytes"]) for run in measured)
    slots = {slot for run in job.attempts if run.rig == settings.rig for slot in run.slots}
    sizes = [s.slot.memory_bytes for s in facts.slots if s.slot.id in slots and s.slot.memory_bytes] if facts else []
    total = min(sizes, default=None)
    asked = job.vram_bytes
    word = "asked for" if job.spec.get("vram_gib") else "expected"
    hint = batch_hint(job.effective_spec, peak, total) if total and job.state is State.SUCCEEDED else ""
    return Resources(peak, asked, total, word, hint)


def batch_hint(spec: Mapping[str, Any], peak_bytes: float, total_bytes: int) -> str:
    """What the next run's batch could be. It counts on all of the memory growing with the batch, so that it is safe."""
    if spec.get("kind") == "generate" and spec.get("batch_size") is None:
        return ""  # it takes what there is
    room = total_bytes - VRAM_RESERVE_BYTES
    times, left = int(room // peak_bytes), room - peak_bytes
    name = next((n for n in ("per_device_train_batch_size", "batch_size") if isinstance(spec.get(n), int)), None)
    if left < CLOSE * total_bytes:
        return "That is close to all that the GPU can give: a longer row may not fit."
    if name is None:
        return ""
    size_now = int(spec[name])
    if times < 2:
        return f"{size(left)} were left: a slightly larger {name} than {size_now} may fit; the command overnight fit tells beforehand."
    accumulation = spec.get("gradient_accumulation_steps") if name != "batch_size" else None
    if isinstance(accumulation, int) and (
        fitting := [n for n in range(2, min(times, accumulation) + 1) if not accumulation % n]
    ):
        factor = fitting[-1]
        return (
            f"Next time {name} = {size_now * factor} with gradient_accumulation_steps = {accumulation // factor} "
            "fits for certain, and learns the same."
        )
    return f"Next time {name} = {size_now * times} fits for certain."


# -- parameters ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameters:
    """The document's fields: what makes it another job than its sweep's others, what its owner set, what is usual."""

    point: Sequence[Parameter] = ()
    given: Sequence[Parameter] = ()
    usual: Sequence[Parameter] = ()


def parameters(job: Job, sweep: Sweep | None) -> Parameters:
    """As a difference: to the sweep's base for a job of a sweep, to the defaults for every job."""
    before, after = dict(flat(job.spec)), dict(flat(job.effective_spec))
    usual, base = dict(flat(defaults(job.kind))), dict(flat(sweep.base)) if sweep else {}
    before_name = f"{stage}." if sweep and (stage := sweep.stage_of(job.id)) else ""
    own = {axis.removeprefix(before_name) for axis in job.point if axis.startswith(before_name)}
    point: list[Parameter] = []
    given: list[Parameter] = []
    rest: list[Parameter] = []
    for name, value in after.items():
        if name in ("kind", "name", "tags") or (value is None and name not in usual):
            continue
        was = None if same(value, before.get(name)) else parameter_text(before.get(name))
        set_by_owner = not same(value, usual.get(name))
        of_point = name in own or name.partition(".")[0] in own
        there = base.get(before_name + name, usual.get(name)) if of_point and sweep else None
        shown = Parameter(name, parameter_text(value), was, set_by_owner, _base_text(there, value) if of_point else "")
        (point if of_point else given if set_by_owner or was is not None else rest).append(shown)
    return Parameters(point, given, rest)


def _base_text(there: Any, value: Any) -> str:
    return "" if there is None or same(there, value) else f"base {parameter_text(there)}"


# -- comparisons --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparable:
    """A comparison that suggests itself: with whom, why, and the runs, the baseline first."""

    title: str
    words: str
    ids: Sequence[str]

    @property
    def address(self) -> str:
        return compare_link(self.ids)


def comparable(job: Job, table: Table | None, parents: Iterable[Job], near: Iterable[Job]) -> list[Comparable]:
    """What to compare it with: the best of its sweep and those next to it, its parent, others of the same model and data."""
    if not job.attempts:
        return []
    found: list[Comparable] = []
    if table is not None:
        best = table.best.job if table.best else None
        if best is not None and best.id != job.id:
            found.append(_with(best, job, f"the best of sweep {job.sweep}"))
        ranked = [row.job.id for row in table.rows if row.value is not None and row.job.attempts]
        others = [other for other in ranked if other != job.id][: MOST - 1]
        if len(others) > 1:
            found.append(Comparable(f"The best {len(others)} others", f"of sweep {job.sweep}", [job.id, *others]))
    found += [_with(p, job, "it was made from this one") for p in parents if p.kind == job.kind and p.attempts]
    seen = {i for one in found for i in one.ids} | {job.id}
    alike = [
        other
        for other in near
        if other.id not in seen and other.attempts and other.sweep != (job.sweep or "-") and _alike(other, job)
    ]
    return [*found, *(_with(other, job, _how_alike(other, job)) for other in alike[:3])]


def _with(other: Job, job: Job, why: str) -> Comparable:
    return Comparable(f"#{other.id} {other.name}", why, [other.id, job.id])


def _alike(other: Job, job: Job) -> bool:
    if other.state in (State.FAILED, State.CANCELLED):
        return False  # it has no result to compare with
    return other.kind == job.kind and all(other.spec.get(name) == job.spec.get(name) for name in ("model", "data"))


def _how_alike(other: Job, job: Job) -> str:
    names = [field.name for field in differences([other.effective_spec, job.effective_spec], without=NOT_ITS_WORK)]
    if not names:
        return "the same document"
    shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
    return f"same model and data; other {shown}"
