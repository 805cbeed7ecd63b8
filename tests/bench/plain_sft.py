"""The same fine-tune as anybody writes it: `python plain_sft.py MODEL DATA FOLDER PARAMETERS`. Leaves times and curve in FOLDER."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

IMPORTED = time.time()


class FirstStep(TrainerCallback):  # type: ignore[misc]
    """Notes when the first step was done, and what each step says."""

    at = 0.0

    def __init__(self) -> None:
        self.curve: list[dict[str, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.at = self.at or time.time()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            keys = ("loss", "learning_rate", "num_tokens")
            self.curve.append({"step": state.global_step, "time": time.time(), **{key: logs[key] for key in keys}})


def main() -> None:
    model_folder, data, folder = (Path(word) for word in sys.argv[1:4])
    parameters = json.loads(sys.argv[4])
    first_step = FirstStep()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_folder, dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(model_folder),
        train_dataset=Dataset.from_list([json.loads(line) for line in data.read_text().splitlines() if line]),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
        args=SFTConfig(
            output_dir=str(folder / "output"), use_cpu=True, bf16=False, save_strategy="no", report_to=[],
            disable_tqdm=True, logging_steps=1, learning_rate=2e-4, dataloader_pin_memory=False, gradient_checkpointing=False, **parameters,
        ),
        callbacks=[first_step],
    )  # fmt: skip
    trainer.train()
    (folder / "curve.json").write_text(json.dumps(first_step.curve))
    (folder / "marks.json").write_text(json.dumps([IMPORTED, first_step.at]))


if __name__ == "__main__":
    main()
