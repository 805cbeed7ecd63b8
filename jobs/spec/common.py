"""Words that every kind of job document shares: names, references, types of fields, the fields of every job."""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from jobs.data.shapes import KNOWN_FIELDS
from jobs.model import Priority

#: `org/name` on a hub, with an optional `@revision`.
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}(@[A-Za-z0-9._-]{1,64})?")
#: Fields that may name an uploaded file.
FILE_FIELDS = ("data", "eval_data", "chat_template", "workdir")
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
JOB_REFERENCE = re.compile(r"job:([1-9][0-9]{0,17})")
INPUT_REFERENCE = re.compile(r"sha256:([0-9a-f]{64})")


def _no_control_characters(text: str) -> str:
    if any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u2029" for c in text):
        raise ValueError("must not contain control characters or line breaks")
    return text


def _only_encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode text (a lone surrogate is not)") from None
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


def _epoch_seconds(value: object) -> object:
    """ISO 8601 with an offset, or epoch seconds."""
    if isinstance(value, str):
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError("needs a UTC offset, as in 2026-11-24T22:00:00+01:00")
        return moment.timestamp()
    return value


def _known_fields(fields: dict[str, str]) -> dict[str, str]:
    for own, known in fields.items():
        if known not in KNOWN_FIELDS:
            raise ValueError(f"{own[:60]!r} is read as {known[:60]!r}, which is not one of {', '.join(KNOWN_FIELDS)}")
    if len(set(fields.values())) < len(fields):
        raise ValueError("two columns are read as the same field")
    return fields


Text = Annotated[str, StringConstraints(max_length=4096), AfterValidator(_only_encodable)]
Line = Annotated[str, StringConstraints(max_length=128), AfterValidator(_only_encodable), AfterValidator(_no_control_characters)]  # fmt: skip
#: A file's own names of columns, and the known fields that they are read as.
DataFields = Annotated[dict[Line, Line], Field(max_length=32), AfterValidator(_known_fields)]
Tag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:=-]{0,63}$")]
#: "141" must succeed, "ended:141" only end, "failed:141" fail.
Dependency = Annotated[str, StringConstraints(pattern=r"^((succeeded|ended|failed):)?[1-9][0-9]{0,17}$"), BeforeValidator(lambda v: str(v) if isinstance(v, int) and not isinstance(v, bool) else v)]  # fmt: skip
Moment = Annotated[float, BeforeValidator(_epoch_seconds)]
DType = Literal["auto", "float32", "bfloat16", "float16"]


class Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_no_switches(cls, value: object, info: ValidationInfo) -> object:
        """Python takes true for 1: a learning rate of `true` would train, at 1.0."""
        if _has_switch(value) and _is_number(cls, info.field_name or ""):
            raise ValueError("is a number here, not true or false")
        return value


def _is_number(model: type[BaseModel], field: str) -> bool:
    """Whether a field takes numbers, and neither true and false nor what it likes."""
    leaves = list(_leaves(model.model_fields[field].annotation))
    return (int in leaves or float in leaves) and bool not in leaves and Any not in leaves


def _leaves(annotation: object) -> Iterator[object]:
    """The types that an annotation is made of."""
    inner = get_args(annotation)
    if not inner:
        yield annotation
    for each in inner[:1] if get_origin(annotation) is Annotated else inner:
        yield from _leaves(each)


def _has_switch(value: object) -> bool:
    """Whether it is true or false, or a list or table with one of them."""
    if isinstance(value, Mapping):
        return any(_has_switch(each) for each in value.values())
    if isinstance(value, list | tuple):
        return any(_has_switch(each) for each in value)
    return isinstance(value, bool)


class JobSpec(Document):
    """Fields that every kind of job has."""

    name: Line = Field("", description="A name for people; the kind and the model when left out.")
    tags: tuple[Tag, ...] = Field((), max_length=16, description="Labels to filter by.")
    gpus: int = Field(1, ge=1, le=64, description="How many GPUs of one rig it needs at once.")
    vram_gib: PositiveFloat | None = Field(None, le=10_000, description="Memory that it needs on each GPU, GiB; estimated or learned when left out.")  # fmt: skip
    rig: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Run on this rig only, where several share a queue.")  # fmt: skip
    priority: Priority = Field(Priority.NORMAL, description="high, normal or backlog.")
    after: tuple[Dependency, ...] = Field((), max_length=64, description='Jobs to wait for: "141" must succeed, "ended:141" only end, "failed:141" fail.')  # fmt: skip
    not_before: Moment | None = Field(None, description="Not before this moment (ISO 8601 with offset).")
    window: Literal["night", "any"] = Field("night", description="night: only inside the rig's window; any: always.")
    max_runtime_s: PositiveFloat | None = Field(None, description="Longest time that one attempt may take, seconds.")
    notify: Literal["never", "failure", "end"] | None = Field(None, description="A message when it has failed, or at any end; as the rig is set when left out.")  # fmt: skip
    max_attempts: int = Field(3, ge=1, le=100, description="How often it is tried when an attempt is lost.")

    @property
    def references(self) -> Iterator[tuple[str, str]]:
        """Fields that name another job's result, with that job's id."""
        yield from self.referring(
            (name, getattr(self, name, None)) for name in ("model", "adapter", "data", "eval_data")
        )

    @staticmethod
    def referring(fields: Iterable[tuple[str, object]]) -> Iterator[tuple[str, str]]:
        """Those of these fields that name a job, with its id."""
        for name, value in fields:
            if match := JOB_REFERENCE.fullmatch(str(value or "")):
                yield name, match[1]

    @property
    def dependencies(self) -> tuple[str, ...]:
        """Every job to wait for, with its condition: `after` and the references."""
        return tuple(dict.fromkeys((*self.after, *(job_id for _, job_id in self.references))))


class PreflightSpec(JobSpec):
    """Of kinds that can be checked ahead (jobs.preflight)."""

    preflight: bool | Literal["auto"] = Field("auto", description="Check it ahead of the queue by a few real steps; auto: fine-tunes that take over an hour.")  # fmt: skip


class WithModel(JobSpec):
    """Fields of every kind that loads a model."""

    model: Text = Field(description="A name in the models folder, an allowed path, a hub id, or job:N.")
    adapter: Text | None = Field(None, description="A LoRA adapter to put on the model: job:N or an allowed path.")
    seed: int = Field(42, ge=0, lt=2**32)
    trust_remote_code: bool = Field(False, description="Run code that comes with the model; the rig must allow it.")


class ModelSpec(WithModel):
    """The same, of those that compute in one precision."""

    dtype: DType = "auto"
