"""The document of an evaluation: a model measured on rows, on lm-eval's tasks, or on both."""

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, StringConstraints, model_validator

from jobs.spec.common import DataFields, ModelSpec, Text

#: A task, a group or a tag of lm-eval; `*` stands for many.
Task = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_*][A-Za-z0-9_.*-]{0,127}$")]
#: Fields that only tasks of lm-eval have.
OF_TASKS = ("num_fewshot", "apply_chat_template", "task_path", "workdir")


class EvaluateSpec(ModelSpec):
    """Evaluation: perplexity and accuracy on rows of a file, and tasks of lm-eval."""

    kind: Literal["evaluate"] = "evaluate"
    data: Text | None = Field(None, description="JSONL, JSON, CSV, Parquet or Arrow: chats, prompt/completion, text.")
    data_fields: DataFields = Field({}, description="The file's own names of columns: question=prompt.")
    chat_template: Text | None = Field(None, description="A Jinja file to use in place of the model's own template.")
    assistant_only_loss: bool = Field(True, description="Measure the assistant's words only (messages).")
    max_length: int = Field(1024, ge=8, le=1_048_576, description="Longer rows are cut, as in a fine-tune.")
    max_new_tokens: int = Field(256, ge=0, le=1_048_576, description="Of an answer that is compared with the expected one; 0: none is asked for.")  # fmt: skip
    batch_size: PositiveInt = Field(8, le=4096)
    limit: PositiveInt | None = Field(None, description="Only so many rows of the file, and of each task.")
    tasks: tuple[Task, ...] = Field((), max_length=64, description="Tasks, groups or tags of lm-eval: arc_easy, hellaswag.")  # fmt: skip
    num_fewshot: int | None = Field(None, ge=0, le=100, description="Examples before each question of a task; its own number when left out.")  # fmt: skip
    apply_chat_template: bool = Field(False, description="Ask the tasks' questions in the model's chat template.")
    task_path: Text | None = Field(None, description="A folder with tasks of your own (YAML and data): below an allowed path of the rig, or inside workdir.")  # fmt: skip
    workdir: Text | None = Field(None, description="A folder with tasks of your own, sent along by content.")

    @model_validator(mode="after")
    def _fits_together(self) -> "EvaluateSpec":
        if not self.data and not self.tasks:
            raise ValueError("data: give rows to measure on, or tasks of lm-eval")
        usual = type(self).model_fields
        if not self.tasks and (alone := [name for name in OF_TASKS if getattr(self, name) != usual[name].default]):
            raise ValueError(f"{alone[0]}: belongs to tasks of lm-eval, and there are none")
        inside = PurePosixPath(self.task_path or "")
        if self.workdir and (inside.is_absolute() or ".." in inside.parts):
            raise ValueError("task_path: is a folder inside workdir when there is one")
        return self
