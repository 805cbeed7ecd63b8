"""The document of a fine-tune. Names as in transformers, TRL and PEFT."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from jobs.spec.common import DataFields, Document, Line, ModelSpec, Text


class LoraSpec(Document):
    """Low-rank adapter settings, as PEFT names them."""

    r: PositiveInt = Field(16, le=1024)
    lora_alpha: PositiveFloat = 32
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Line | tuple[Line, ...] = "all-linear"


class FinetuneSpec(ModelSpec):
    """Supervised fine-tuning with a LoRA adapter. Names as in transformers, TRL and PEFT."""

    kind: Literal["finetune"] = "finetune"
    data: Text = Field(description="JSONL, JSON, CSV, Parquet or Arrow: chats, prompt/completion, text, preferences.")
    eval_data: Text | None = None
    data_fields: DataFields = Field({}, description="The file's own names of columns: question=prompt.")
    chat_template: Text | None = Field(None, description="A Jinja file to use in place of the model's own template.")
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
