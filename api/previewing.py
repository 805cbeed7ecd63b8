"""From a document, or a run folder, to its preview, as routes and pages need it."""

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from api.context import Context
from api.files import NoSuchFile, open_beneath
from api.submission import is_elsewhere
from daemon.admission import examine
from daemon.previews import preview
from jobs.preview import Preview
from jobs.rundir import RunDir
from jobs.spec import INPUT_REFERENCE, FinetuneSpec, InvalidSpec, Spec

MOST_BYTES = 1 << 20
_reads: TypeAdapter[Preview] = TypeAdapter(Preview)


class Known(BaseModel):
    """What is known of a file of which only some rows are sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: Annotated[int, Field(ge=1, le=2**50)]
    source: Annotated[str, Field(max_length=100)] = ""
    format: Annotated[str, Field(max_length=100)] = ""
    conversions: Annotated[list[Annotated[str, Field(max_length=400)]], Field(max_length=40)] = []


def left_by(folder: RunDir) -> Preview | None:
    """What a job left in its run folder; None when it left nothing, or nothing that can be read."""
    try:
        with os.fdopen(open_beneath(folder.path, folder.preview.name), "rb") as file:
            return read_preview(file.read(MOST_BYTES))
    except (NoSuchFile, OSError):
        return None


def read_preview(body: bytes) -> Preview | None:
    """A preview from its JSON; None for what is none: a job may write what it likes."""
    try:
        return _reads.validate_json(body)
    except ValidationError:
        return None


def glimpse(spec: Spec, rig: Context) -> Preview | None:
    """The preview of a document that was found good; None when it has none here: another rig may have its files."""
    if not isinstance(spec, FinetuneSpec):
        return None
    try:
        return previewed(spec, rig)
    except InvalidSpec:
        return None


def previewed(
    spec: FinetuneSpec,
    rig: Context,
    *,
    rows: Sequence[tuple[int, Mapping[str, Any]]] | None = None,
    known: Known | None = None,
    template: str | None = None,
) -> Preview:
    """The preview of a document. Raises InvalidSpec for what is wrong with it, but for files that are still to be uploaded."""
    seen = examine(
        spec,
        rig.settings,
        slots=0,
        known_jobs=rig.store.get_many,
        uploaded_elsewhere=lambda digest: is_elsewhere(digest, rig),
    )
    if wrong := [error for error in seen.errors if not _is_to_come(spec, error.field, rig)]:
        raise InvalidSpec(wrong)
    report = seen.reports.get("data")
    if report is not None:
        return preview(spec, seen.paths, report, template=template)
    facts = known.model_dump() if known else {}
    return preview(spec, seen.paths, None, rows=rows, known=facts, template=template)


def _is_to_come(spec: Spec, field: str, rig: Context) -> bool:
    match = INPUT_REFERENCE.fullmatch(str(getattr(spec, field, "")))
    return match is not None and not (rig.settings.inputs / match[1]).exists()
