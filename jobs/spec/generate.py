"""The document of a batch generation."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, StringConstraints, model_validator

from jobs.spec.common import DataFields, ModelSpec, PreflightSpec, Text

AdapterName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Stop = Annotated[Text, StringConstraints(min_length=1, max_length=256)]
Stops = Annotated[tuple[Stop, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class GenerateSpec(ModelSpec, PreflightSpec):
    """Batch generation: a file of prompts, chats or OpenAI batch requests in, a file of answers out."""

    kind: Literal["generate"] = "generate"
    data: Text = Field(
        description="JSONL, JSON, CSV, Parquet or Arrow with `prompt` or `messages`, and an optional `id`; or OpenAI batch lines."
    )
    data_fields: DataFields = Field({}, description="The file's own names of columns: question=prompt.")
    chat_template: Text | None = Field(None, description="A Jinja file to use in place of the model's own template.")
    adapters: dict[AdapterName, Text] = Field({}, max_length=32, description='Several adapters by name, each job:N or an allowed path, "" for the model itself: every row is answered by each, or by the one that its field `adapter` names.')  # fmt: skip
    bad_rows: Literal["refuse", "report"] = Field("refuse", description="Rows that are wrong in themselves: refuse the job when it is submitted, or report them in their answers and go on.")  # fmt: skip
    engine: Literal["auto", "transformers", "vllm"] = Field("auto", description="auto: vLLM where the rig has it and there are more than 500 rows.")  # fmt: skip
    output_format: Literal["auto", "jsonl", "openai"] = Field("auto", description="auto: openai for OpenAI batch lines, else jsonl.")  # fmt: skip
    max_new_tokens: PositiveInt = Field(256, le=1_048_576)
    temperature: float = Field(0.0, ge=0, le=10, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=2**31 - 1, description="0: all tokens.")
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: PositiveFloat = Field(1.0, le=10)
    stop: Stops = Field((), max_length=16, description="Texts that end an answer; they are not part of it.")
    n: PositiveInt = Field(1, le=128, description="Answers to each prompt.")
    batch_size: PositiveInt | None = Field(None, le=4096, description="Sequences at once; found from free memory when left out.")  # fmt: skip

    @property
    def references(self) -> Iterator[tuple[str, str]]:
        """Fields that name another job's result, with that job's id; of an adapter by its name `adapters.NAME`."""
        yield from super().references
        yield from self.referring((f"adapters.{name}", place) for name, place in self.adapters.items())

    @model_validator(mode="after")
    def _fits_together(self) -> "GenerateSpec":
        if self.adapter and self.adapters:
            raise ValueError("adapters: is instead of adapter; give one of them")
        if self.n > 1 and self.temperature == 0:
            raise ValueError("n: several answers to a prompt are all the same at temperature 0; set temperature")
        return self
