"""What a fine-tune would learn from, before it is submitted. Stores nothing."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from api.context import Rig
from api.previewing import Known, previewed
from api.problems import documented
from api.routes_jobs import EVERYBODY, Body, body_of
from api.submission import one, parsed
from jobs.preview import Preview
from jobs.spec import FieldError, FinetuneSpec, InvalidSpec

MOST_ROWS = 2_000

router = APIRouter(prefix="/api/v1", tags=["jobs"])


class PreviewDocument(BaseModel):
    """A fine-tune, and rows of its data where that is not uploaded: `[[line, {...}], ...]`. `template`: a chat template's text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: dict[str, Any]
    rows: Annotated[list[tuple[int, dict[str, Any]]], Field(max_length=MOST_ROWS)] | None = None
    known: Known | None = None
    template: Annotated[str, Field(max_length=2**20)] | None = None


_reads: TypeAdapter[PreviewDocument] = TypeAdapter(PreviewDocument)


@router.post(
    "/preview",
    operation_id="previewJob",
    responses=documented(*EVERYBODY, 400, 413, 415, 422),
    openapi_extra=body_of("PreviewDocument"),
)
def preview_job(rig: Rig, body: Body) -> Preview:
    """The first row of a fine-tune's data as its model sees it, what is learnt of it, lengths, and what is cut.

    Computed with the model's own tokenizer and chat template, bounded in time; of a large file some rows are measured.
    """
    try:
        asked = _reads.validate_python(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidSpec([FieldError(".".join(map(str, first["loc"])), str(first["msg"]))]) from None
    [spec] = parsed(one(asked.job))
    if not isinstance(spec, FinetuneSpec):
        raise InvalidSpec([FieldError("job.kind", "only a fine-tune has a preview")])
    return previewed(spec, rig, rows=asked.rows, known=asked.known, template=asked.template)
