"""What a job would need and take, before it is submitted. Stores nothing."""

import os
from typing import Annotated, Any, Self

from fastapi import APIRouter, Query
from pydantic import BaseModel

from api.context import Context, Rig
from api.fit_views import CapacityView
from api.problems import documented
from api.rig_views import largest, memories_of
from api.routes_jobs import EVERYBODY, Body, body_of
from api.submission import is_elsewhere, one, parsed
from api.views import ParallelView
from daemon.admission import Examined, disk_refusal, examine
from daemon.dry_runs import NoDryRun, dry_parts
from daemon.facts import card
from daemon.fit import GIB, Fit, gather, judge, refusal
from daemon.history import History
from daemon.placement import fits
from daemon.rig import Slot
from daemon.situation import gib
from daemon.store import new_job
from jobs.capacity import capacity
from jobs.data import DataReport
from jobs.estimate import Facts, Part, estimate
from jobs.fitting import Change
from jobs.model import Job
from jobs.spec import INPUT_REFERENCE, FieldError, FinetuneSpec, InvalidSpec, Spec, dump

Gib = Annotated[float | None, Query(gt=0, le=10_000)]
Count = Annotated[int | None, Query(ge=1, le=2**50)]

router = APIRouter(prefix="/api/v1", tags=["jobs"])


class GpuFit(BaseModel):
    """A slot of this queue, whether the job would fit, and what it would take there; null when nobody knows."""

    id: str
    rig: str
    name: str
    memory_bytes: int
    fits: bool | None
    time_s: float | None
    energy_j: float | None


class ChangeView(BaseModel):
    """Fields that would make it fit. `changes_meaning`: the result would be another one."""

    fields: dict[str, Any]
    vram_bytes: int
    changes_meaning: bool

    @classmethod
    def of(cls, change: Change) -> Self:
        return cls(fields=dict(change.fields), vram_bytes=change.vram_bytes, changes_meaning=change.changes_meaning)


class EstimateView(BaseModel):
    """What a job would need on each GPU and take. `unknown` says why a field is null; `parallel` how several GPUs share it."""

    fits: bool | None
    message: str | None
    vram_bytes: int | None
    source: str | None
    parts: dict[str, int]
    parallel: ParallelView | None
    rows: int | None
    steps: int | None
    tokens: int | None
    disk_bytes: int | None
    time_s: float | None
    energy_j: float | None
    #: Whether it would be checked first by a few real steps.
    preflight: bool
    unknown: dict[str, str]
    gpus: list[GpuFit]
    would_fit: list[ChangeView]
    #: The most rows at each length on the largest GPU, whatever the data; null when nobody knows.
    capacity: CapacityView | None
    warnings: list[str]


@router.post(
    "/estimate",
    operation_id="estimateJob",
    responses=documented(*EVERYBODY, 400, 413, 415, 422),
    openapi_extra=body_of("JobDocument"),
)
def estimate_job(
    rig: Rig,
    body: Body,
    rows: Count = None,
    text_bytes: Count = None,
    longest_bytes: Count = None,
    vram_gib: Gib = None,
    dry_run: Annotated[
        bool, Query(description="Step through the model on fake tensors: exact, ten seconds or more.")
    ] = False,
) -> EstimateView:
    """Memory, time and energy that a job would need, whether it fits, and what would.

    A data file need not be uploaded for it: `rows`, `text_bytes` (of all rows) and `longest_bytes` (of the longest) describe it.
    `vram_gib`: as if the largest GPU had so much.
    """
    [spec] = parsed(one(body))
    rig.ledger.refresh()  # what earlier jobs needed and took
    seen = _examined(spec, rig)
    reports = dict(seen.reports)
    if rows is not None and "data" not in reports:
        all_bytes = text_bytes or 0
        longest = longest_bytes if longest_bytes is not None else all_bytes
        reports["data"] = DataReport(rows=rows, shape="text", sha256="", text_bytes=all_bytes, longest_bytes=longest)
    facts, unknown = gather(spec, seen.paths, reports)
    if unknown and facts.model is not None and facts.data is None:
        unknown = "its data is not on the rig yet"
    memories = [[round(vram_gib * GIB)] * spec.gpus] if vram_gib else memories_of(rig.store.rigs())
    stepped = _stepped(spec, seen, facts) if dry_run else None
    fit = judge(spec, facts, unknown, memories=memories, learned=rig.learned, stepped=stepped)
    return _view(spec, facts, fit, rig)


def _stepped(spec: Spec, seen: Examined, facts: Facts) -> dict[Part, int]:
    if not isinstance(spec, FinetuneSpec):
        raise InvalidSpec([FieldError("kind", "only a fine-tune's step can be run dry")])
    try:
        return dry_parts(spec, seen.paths, facts.data)
    except NoDryRun as error:
        raise InvalidSpec([FieldError("model", f"there is no dry run: {error}")]) from None


def _examined(spec: Spec, rig: Context) -> Examined:
    """Paths and rows. Raises InvalidSpec for what is wrong, but for files that are still to be uploaded."""
    seen = examine(
        spec,
        rig.settings,
        slots=largest(rig.store.rigs()),
        known_jobs=rig.store.get_many,
        uploaded_elsewhere=lambda digest: is_elsewhere(digest, rig),
    )
    if wrong := [error for error in seen.errors if not _is_to_come(spec, error.field, rig)]:
        raise InvalidSpec(wrong)
    return seen


def _is_to_come(spec: Spec, field: str, rig: Context) -> bool:
    match = INPUT_REFERENCE.fullmatch(str(getattr(spec, field, "")))
    return match is not None and not (rig.settings.inputs / match[1]).exists()


def _view(spec: Spec, facts: Facts, fit: Fit, rig: Context) -> EstimateView:
    slots = [
        (name, Slot.from_json(record)) for name, facts in rig.store.rigs().items() for record in facts.get("slots", ())
    ]
    job = new_job(spec, 1, rig.now(), fit.outlook)
    gpus = [_gpu(name, slot, fit, job, rig.ledger.history) for name, slot in slots]
    possible = [gpu for gpu in gpus if gpu.fits is not False and gpu.time_s is not None]
    best = min(possible, key=lambda gpu: gpu.time_s or 0.0, default=None)
    problem = refusal(spec, fit) or disk_refusal(fit.estimate.disk_bytes, rig.settings)
    made = fit.estimate
    return EstimateView(
        fits=False if problem else fit.fits,
        message=problem.message if problem else None,
        vram_bytes=fit.vram_bytes,
        source=fit.source,
        parts={str(part): size for part, size in made.parts.items()},
        parallel=ParallelView.of(fit.outlook.parallel),
        rows=made.rows,
        steps=made.steps,
        tokens=made.tokens,
        disk_bytes=made.disk_bytes,
        time_s=best.time_s if best else None,
        energy_j=best.energy_j if best else None,
        preflight=rig.outlook(spec, fit.outlook).preflight,
        unknown=_unknown(fit, best),
        gpus=gpus,
        would_fit=[ChangeView.of(change) for change in fit.changes],
        capacity=_capacity(spec, facts, fit),
        warnings=_warnings(spec, facts, [slot for _, slot in slots]),
    )


def _gpu(rig: str, slot: Slot, fit: Fit, job: Job, history: History) -> GpuFit:
    return GpuFit(
        id=slot.id,
        rig=rig,
        name=slot.name,
        memory_bytes=slot.memory_bytes,
        fits=None if fit.vram_bytes is None else fits(fit.vram_bytes, slot.memory_bytes),
        time_s=history.expected_s(job, card(slot)),
        energy_j=history.expected_j(job, card(slot)),
    )


def _capacity(spec: Spec, facts: Facts, fit: Fit) -> CapacityView | None:
    found = capacity(dump(spec), facts.model, fit.memory_bytes) if facts.model and fit.memory_bytes else None
    return CapacityView.of(found) if found else None


def _unknown(fit: Fit, best: GpuFit | None) -> dict[str, str]:
    why = {
        "vram_bytes": fit.unknown if fit.vram_bytes is None else "",
        "time_s": "" if best else "no job like it has ended on this queue yet",
        "energy_j": "" if best and best.energy_j is not None else "no job like it has had its energy measured yet",
    }
    return {name: words for name, words in why.items() if words}


def _warnings(spec: Spec, facts: Facts, slots: list[Slot]) -> list[str]:
    """On CPU slots nothing is refused: the machine's memory is shared, and may swap."""
    if not slots or any(slot.is_gpu for slot in slots):
        return []
    needs = estimate(dump(spec), facts, on_gpu=False).vram_bytes
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needs is None or needs <= there:
        return []
    return [f"On a CPU slot it needs about {gib(needs)} of the machine's memory, which has {gib(there)}."]
