"""What our trainers have in common, whatever they learn from: arguments, checkpoints, resumes, the learning rate.

Loads torch and its family: only the process that trains imports it. Knows no TRL; jobs.sft and jobs.preferences do.
"""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from accelerate.utils import save_fsdp_optimizer  # noqa: TID253
from transformers import PrinterCallback, Trainer  # noqa: TID253

from jobs import batches, checkpoints, parallel, split_weights
from jobs.recorder import EvaluationStopped, Recorder
from jobs.weights import Device

#: The adapter that learns. A preference trainer may have a second one beside it, frozen, to compare with.
LEARNING = "default"


#: FSDP2; a checkpoint has whole weights, so that it is read like any other.
SPLIT = {"version": 2, "state_dict_type": "FULL_STATE_DICT", "reshard_after_forward": True}


class Sealed(Trainer):  # type: ignore[misc]
    """A trainer that saves only what a resume needs, and takes the learning rate from its orders, not from a checkpoint."""

    recorder: Recorder

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:  # one of several processes writes
            return
        # no copy of the tokenizer in every checkpoint, and no pickled arguments
        only = {"selected_adapters": [LEARNING]} if hasattr(self.model, "peft_config") else {}
        self.model.save_pretrained(output_dir, state_dict=state_dict, **only)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Of weights that are split between GPUs only those that learn are gathered."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        self._save(output_dir, split_weights.gathered(self.model, keep=self.args.should_save))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # transformers would write all weights a second time here
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.recorder.remember(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")

    def evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        """Leaves the random numbers as they were: a training is the same whether it is looked at or not."""
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices):
            found = dict(super().evaluate(*arguments, **named))
        split_weights.apart(self.model)
        return found

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        try:
            return dict(super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler))
        except EvaluationStopped:
            self.control.should_save = self.control.should_training_stop = True
            return {}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """In the types that were trained: PEFT loads an adapter as float32 that TRL had made bfloat16."""
        target = self.model if model is None else model
        if self.is_fsdp_enabled:
            split_weights.load(target, Path(resume_from_checkpoint))
            return
        types = {name: parameter.dtype for name, parameter in target.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, parameter in target.named_parameters():
            if name in types and parameter.dtype != types[name]:
                parameter.data = parameter.data.to(types[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _no_warnings() if checkpoint else nullcontext():
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.lr_scheduler.base_lrs == [self.args.learning_rate] * len(
            self.lr_scheduler.base_lrs
        ):
            return
        # a halved learning rate would be undone here: both states bring the old one along
        scheduler = self.lr_scheduler
        scheduler.base_lrs = [self.args.learning_rate] * len(scheduler.base_lrs)
        rates = [
            base * curve(scheduler.last_epoch)
            for base, curve in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        for group, base, rate in zip(self.optimizer.param_groups, scheduler.base_lrs, rates, strict=True):
            group["initial_lr"], group["lr"] = base, rate
        scheduler._last_lr = rates

    def recall(self, checkpoint: Path) -> None:
        """Take up our own part of a checkpoint; the trainer takes up its own."""
        self.recorder.recall(checkpoint)
        self._total_train_tokens = self.recorder.memory.num_tokens

    def learned(self) -> Mapping[str, Any] | None:
        """The weights that learn, gathered from all processes; None where each has all of them. Every process must ask."""
        return split_weights.gathered(self.model, keep=self.args.should_save) if self.is_fsdp_enabled else None

    def load_weights(self, checkpoint: Path) -> None:
        """The weights of a checkpoint, without going on with the training."""
        self._load_from_checkpoint(str(checkpoint))
        self.state.global_step = checkpoints.step_of(checkpoint)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Ours is written with the results."""

    def _send_telemetry(self) -> None:
        """The rig's work is nobody's business."""


class Prepared:
    """For trainers that would render and tokenise: the rows come as tokens, ours (jobs.tokens)."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def with_recorder(trainer: Sealed, recorder: Recorder) -> Sealed:
    """Our recorder in place of its own printing."""
    trainer.recorder = recorder
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(recorder)
    return trainer


def arguments(spec: Mapping[str, Any], device: Device, drafts: Path) -> dict[str, Any]:
    """TrainingArguments of a document, for every objective."""
    split = parallel.way(spec) == "fsdp"
    warmup = spec["warmup_steps"] if spec["warmup_steps"] is not None else min(spec["warmup_ratio"], 0.999999)
    return {
        "output_dir": str(drafts),
        "max_steps": spec["max_steps"] or -1,
        "num_train_epochs": spec["num_train_epochs"],
        "per_device_train_batch_size": spec["per_device_train_batch_size"],
        "per_device_eval_batch_size": spec["per_device_eval_batch_size"],
        # one process alone takes the rows that several GPUs would have shared
        "gradient_accumulation_steps": spec["gradient_accumulation_steps"]
        * batches.gpus(spec)
        // parallel.processes(spec),
        "ddp_find_unused_parameters": False,  # all that learn take part in every step
        "learning_rate": spec["learning_rate"],
        "lr_scheduler_type": spec["lr_scheduler_type"],
        "lr_scheduler_kwargs": dict(spec["lr_scheduler_kwargs"]),
        "warmup_steps": warmup,  # below 1 it is a share of all steps
        "weight_decay": spec["weight_decay"],
        "optim": spec["optim"],
        "adam_beta1": spec["adam_beta1"],
        "adam_beta2": spec["adam_beta2"],
        "adam_epsilon": spec["adam_epsilon"],
        "max_grad_norm": spec["max_grad_norm"],
        "neftune_noise_alpha": spec["neftune_noise_alpha"],
        "seed": spec["seed"],
        "max_length": spec["max_length"],
        "gradient_checkpointing": spec["gradient_checkpointing"] and not split,
        "fsdp": split or None,
        "fsdp_config": {**SPLIT, "activation_checkpointing": spec["gradient_checkpointing"]} if split else None,
        "torch_compile": spec["torch_compile"],
        "bf16": device.dtype == "bfloat16",
        "fp16": device.dtype == "float16",
        "use_cpu": not device.is_gpu,
        "dataloader_pin_memory": device.is_gpu,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would show a loss that is not a number as 0
        "save_strategy": "no",  # our recorder decides
        "eval_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def _no_warnings() -> warnings.catch_warnings:
    return warnings.catch_warnings(action="ignore")
