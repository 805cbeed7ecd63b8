"""What fits this queue's largest GPU, or one of another size: a model's largest batches, or the usual models. Stores nothing."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.context import Rig
from api.fit_views import FitView, fit_of, fit_of_sizes
from api.problems import documented
from api.rig_views import memories_of
from api.routes_jobs import EVERYBODY
from daemon.fit import GIB, largest, model_of
from daemon.places import Places, Refused
from jobs.model import Job
from jobs.spec import FieldError, InvalidSpec
from jobs.spec.common import Text

Gib = Annotated[float | None, Query(gt=0, le=10_000, description="Memory of the GPU, GiB; of the largest one when left out.")]  # fmt: skip
ModelName = Annotated[Text | None, Query(description="As in a job document; the usual models when left out.")]  # fmt: skip

router = APIRouter(prefix="/api/v1", tags=["jobs"])


@router.get("/fit", operation_id="whatFits", responses=documented(*EVERYBODY, 422))
def what_fits(rig: Rig, model: ModelName = None, vram_gib: Gib = None) -> FitView:
    """The largest batch at each length, by method, on one GPU. Estimated (docs/fit.md), nothing is loaded."""
    memory_bytes = round(vram_gib * GIB) if vram_gib else largest(memories_of(rig.store.rigs()), 1)
    if not memory_bytes:
        raise InvalidSpec(
            [FieldError("vram_gib", "this queue has no GPU: say how much memory one would have (--vram 24)")]
        )
    if not model:
        return fit_of_sizes(memory_bytes)

    def find(job_id: str) -> Job | None:
        return rig.store.get_many([job_id]).get(job_id)

    try:
        paths = Places(rig.settings, rig.settings.runs, find).model(model)
    except Refused as refusal:
        raise InvalidSpec([FieldError("model", str(refusal))]) from None
    facts = model_of(model, paths)
    if isinstance(facts, str):
        raise InvalidSpec([FieldError("model", facts)])
    return fit_of(model, facts, memory_bytes)
