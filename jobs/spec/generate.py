"""The document of a batch generation."""

from typing import Literal

from pydantic import Field, PositiveInt

from jobs.spec.common import DataFields, ModelSpec, PreflightSpec, Text


class GenerateSpec(ModelSpec, PreflightSpec):
    """Batch generation from prompts in a JSONL or Parquet file."""

    kind: Literal["generate"] = "generate"
    data: Text = Field(
        description="JSONL, JSON, CSV, Parquet or Arrow with `prompt` or `messages`, and an optional `id`."
    )
    data_fields: DataFields = Field({}, description="The file's own names of columns: question=prompt.")
    chat_template: Text | None = Field(None, description="A Jinja file to use in place of the model's own template.")
    max_new_tokens: PositiveInt = Field(256, le=1_048_576)
    temperature: float = Field(0.0, ge=0, le=10, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1)
    batch_size: PositiveInt = Field(8, le=4096)
