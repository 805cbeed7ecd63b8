"""Job documents: what may be submitted, field by field. The same names for HTTP, flags, TOML, YAML and JSON.

Knows nothing of the rig: whether a model, a file or enough GPUs exist is checked where the rig is (daemon.admission).
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from jobs.model import Priority

#: `org/name` on a hub, with an optional `@revision`.
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}(@[A-Za-z0-9._-]{1,64})?")
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
JOB_REFERENCE = re.compile(r"job:([1-9][0-9]{0,17})")
INPUT_REFERENCE = re.compile(r"sha256:([0-9a-f]{64})")
ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
#: A submission must not redirect the network, the loader, the interpreter or the pin of the rig.
REFUSED_ENVIRONMENT = re.compile(
    r"(LD_.*|DYLD_.*|PYTHON.*|.*_PROXY|OVERNIGHT_.*|CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|PATH|HOME|BASH_ENV|ENV|IFS)",
    re.IGNORECASE,
)


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


Text = Annotated[str, StringConstraints(max_length=4096), AfterValidator(_only_encodable)]
Line = Annotated[str, StringConstraints(max_length=128), AfterValidator(_only_encodable), AfterValidator(_no_control_characters)]  # fmt: skip
Tag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:=-]{0,63}$")]
#: "141" must succeed, "ended:141" only end, "failed:141" fail.
Dependency = Annotated[str, StringConstraints(pattern=r"^((succeeded|ended|failed):)?[1-9][0-9]{0,17}$"), BeforeValidator(lambda v: str(v) if isinstance(v, int) and not isinstance(v, bool) else v)]  # fmt: skip
Moment = Annotated[float, BeforeValidator(_epoch_seconds)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class JobSpec(_Document):
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
    max_attempts: int = Field(3, ge=1, le=100, description="How often it is tried when an attempt is lost.")

    @property
    def references(self) -> Iterator[tuple[str, str]]:
        """Fields that name another job's result, with that job's id."""
        for field_name in ("model", "adapter", "data", "eval_data"):
            if match := JOB_REFERENCE.fullmatch(str(getattr(self, field_name, None) or "")):
                yield field_name, match[1]

    @property
    def dependencies(self) -> tuple[str, ...]:
        """Every job to wait for, with its condition: `after` and the references."""
        return tuple(dict.fromkeys((*self.after, *(job_id for _, job_id in self.references))))


class LoraSpec(_Document):
    """Low-rank adapter settings, as PEFT names them."""

    r: PositiveInt = Field(16, le=1024)
    lora_alpha: PositiveFloat = 32
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Line | tuple[Line, ...] = "all-linear"


class _ModelSpec(JobSpec):
    model: Text = Field(description="A name in the models folder, an allowed path, a hub id, or job:N.")
    adapter: Text | None = Field(None, description="A LoRA adapter to put on the model: job:N or an allowed path.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = Field(42, ge=0, lt=2**32)
    trust_remote_code: bool = Field(False, description="Run code that comes with the model; the rig must allow it.")


class FinetuneSpec(_ModelSpec):
    """Supervised fine-tuning with a LoRA adapter. Names as in transformers, TRL and PEFT."""

    kind: Literal["finetune"] = "finetune"
    data: Text = Field(description="JSONL or Parquet: messages, prompt/completion, or text.")
    eval_data: Text | None = None
    method: Literal["lora"] = "lora"
    learning_rate: PositiveFloat = 2e-4
    num_train_epochs: PositiveFloat = Field(1.0, le=10_000)
    max_steps: PositiveInt | None = Field(None, description="Stop after this many optimizer steps; overrides epochs.")
    per_device_train_batch_size: PositiveInt = Field(4, le=4096)
    per_device_eval_batch_size: PositiveInt = Field(4, le=4096)
    gradient_accumulation_steps: PositiveInt = Field(4, le=65_536)
    max_length: int = Field(1024, ge=8, le=1_048_576)
    packing: bool = False
    assistant_only_loss: bool = Field(True, description="Learn the assistant's words only (messages).")
    gradient_checkpointing: bool = False
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    logging_steps: PositiveInt = 1
    save_steps: PositiveInt | None = Field(None, description="Steps between checkpoints; about ten per run when left out.")  # fmt: skip
    eval_steps: PositiveInt | None = None
    lora: LoraSpec = LoraSpec()


class GenerateSpec(_ModelSpec):
    """Batch generation from prompts in a JSONL or Parquet file."""

    kind: Literal["generate"] = "generate"
    data: Text = Field(description="JSONL or Parquet with `prompt` or `messages`, and an optional `id`.")
    max_new_tokens: PositiveInt = Field(256, le=1_048_576)
    temperature: float = Field(0.0, ge=0, le=10, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1)
    batch_size: PositiveInt = Field(8, le=4096)


class CommandSpec(JobSpec):
    """Any program of the owner's, as a list of arguments. No shell."""

    kind: Literal["command"] = "command"
    argv: tuple[Text, ...] = Field(min_length=1, max_length=1024)
    cwd: Text | None = Field(
        None, description="Folder to run in, below an allowed path; the run folder's output/ else."
    )
    env: dict[str, Text] = Field({}, max_length=256)
    secrets: tuple[str, ...] = Field((), max_length=32, description="Names of the rig's secrets to put into its environment.")  # fmt: skip
    retries: NonNegativeInt = Field(0, le=100, description="Tries after a non-zero exit; 0: a bug does not eat the night.")  # fmt: skip

    @model_validator(mode="after")
    def _environment_is_harmless(self) -> "CommandSpec":
        for name in (*self.env, *self.secrets):
            if not ENVIRONMENT_NAME.fullmatch(name):
                raise ValueError(f"env: {name!r} is not the name of an environment variable")
            if REFUSED_ENVIRONMENT.fullmatch(name):
                raise ValueError(f"env: {name} cannot be set by a job; it belongs to the rig")
        if not self.argv[0]:
            raise ValueError("argv: the command itself is empty")
        return self


Spec = FinetuneSpec | GenerateSpec | CommandSpec
KINDS: Mapping[str, type[Spec]] = {"finetune": FinetuneSpec, "generate": GenerateSpec, "command": CommandSpec}
#: Kinds whose process needs torch: they start from the preloaded worker.
RECIPES = frozenset({"finetune", "generate"})


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one field, and what to do about it."""

    field: str
    message: str


class InvalidSpec(ValueError):
    """The document cannot be accepted. Carries one error per field."""

    def __init__(self, errors: list[FieldError]):
        self.errors = errors
        super().__init__("; ".join(f"{e.field}: {e.message}" if e.field else e.message for e in errors))


def parse(document: object) -> Spec:
    """The document as its kind's spec. Raises InvalidSpec with every wrong field."""
    if not isinstance(document, Mapping):
        raise InvalidSpec([FieldError("", "a job document is an object with fields")])
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        return _refuse_kind(kind)
    try:
        return TypeAdapter(KINDS[kind]).validate_python(dict(document))
    except ValidationError as error:
        raise InvalidSpec([_field_error(dict(e), KINDS[kind]) for e in error.errors(include_url=False)]) from None


def dump(spec: Spec) -> dict[str, Any]:
    """The spec as a plain document with every field filled in."""
    return spec.model_dump(mode="json")


def nearest(word: str, known: list[str]) -> str:
    """'; did you mean …?' for a misspelt word, or nothing."""
    close = difflib.get_close_matches(word.replace("-", "_"), known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _refuse_kind(kind: object) -> Spec:
    known = ", ".join(KINDS)
    if kind is None:
        raise InvalidSpec([FieldError("kind", f"is missing: one of {known}")])
    raise InvalidSpec([FieldError("kind", f"{str(kind)[:40]!r} is not known: one of {known}{nearest(str(kind), list(KINDS))}")])  # fmt: skip


def _field_error(error: dict[str, Any], model: type[BaseModel]) -> FieldError:
    path = [str(part) for part in error["loc"]]
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        owner = LoraSpec if path[:-1] == ["lora"] else model
        return FieldError(name, f"is not a field of this document{nearest(path[-1], list(owner.model_fields))}")
    message = str(error["msg"]).removeprefix("Value error, ")
    if not name and ": " in message:
        name, _, message = message.partition(": ")
    given = error.get("input")
    shown = (
        f" (got {given!r})" if isinstance(given, (int, float, str)) and len(repr(given)) < 60 and _finite(given) else ""
    )
    return FieldError(name, _as_clause(message) + shown)


def _as_clause(message: str) -> str:
    first, _, rest = message.partition(" ")
    return f"{first.lower()} {rest}" if first.istitle() else message


def _finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
