"""The document of an export: an adapter merged into its model, a model as one GGUF file."""

from typing import Any, Literal

from pydantic import Field, model_validator

from jobs.spec.common import JOB_REFERENCE, ModelSpec, Text

#: merged: a folder of safetensors, base and adapter in one. gguf: one file in Q8_0, for llama.cpp and what is built on it.
ExportFormat = Literal["merged", "gguf"]
#: Kinds of models (`model_type` of config.json) that are written as GGUF without a converter of the rig's (jobs.gguf_file).
GGUF_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


class ExportSpec(ModelSpec):
    """A finished fine-tune, or a model, in a form that other programs load."""

    kind: Literal["export"] = "export"
    model: Text = Field("", description="A name in the models folder, an allowed path, a hub id, or job:N; an adapter of job:N brings its own.")  # fmt: skip
    to: tuple[ExportFormat, ...] = Field(("merged",), min_length=1, description="merged (base and adapter in one folder of safetensors), gguf (one file in Q8_0).")  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _job_brings_its_base(cls, document: Any) -> Any:
        """`adapter = "job:12"` alone is the whole of what that job has learnt: its base model with its adapter."""
        adapter = document.get("adapter") if isinstance(document, dict) else None
        if isinstance(adapter, str) and JOB_REFERENCE.fullmatch(adapter) and not document.get("model"):
            return {**document, "model": adapter, "adapter": None}
        return document

    @model_validator(mode="after")
    def _has_something_to_merge(self) -> "ExportSpec":
        if not self.model:
            raise ValueError("model: is missing: only an adapter of job:N brings its own")
        if "merged" in self.to and not self.adapter and not JOB_REFERENCE.fullmatch(self.model):
            raise ValueError("to: merged needs something to merge: an adapter, or a job:N as the model")
        return self
