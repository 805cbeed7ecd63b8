"""Supervised fine-tuning with a LoRA adapter: rows in, an adapter with its tokenizer and model card out.

Reads like the work goes: rows → tokens → model → steps with sealed checkpoints → adapter. Loads torch and its family.
"""

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft  # noqa: TID253
from trl import SFTConfig  # noqa: TID253

from jobs import checkpoints, environment, preview, sft, weights
from jobs.card import model_card
from jobs.estimate import optimizer_steps, save_every
from jobs.log import say
from jobs.model import Cause
from jobs.run import Interrupted, JobError, Run
from jobs.rundir import keep_json_lines, read_json_lines
from jobs.stability import LossWatch
from jobs.tokens import Rows, tokenise

#: A change of one of these makes it another training: its checkpoints do not fit.
IDENTITY = (
    "model",
    "adapter",
    "method",
    "dtype",
    "seed",
    "data_fields",
    "chat_template",
    "max_length",
    "packing",
    "assistant_only_loss",
    "weight_decay",
    "lr_scheduler_type",
    "warmup_ratio",
    "lora",
)


def run(run: Run) -> dict[str, Any]:
    """Train, or go on training. Returns the metrics of the result."""
    drafts = checkpoints.drafts(run.folder.checkpoints)
    try:
        return _finetune(run, drafts)
    finally:
        shutil.rmtree(drafts, ignore_errors=True)  # all rows as tokens: large, and soon made again


def _finetune(run: Run, drafts: Path) -> dict[str, Any]:
    spec = run.order.spec
    weights.quiet_libraries()
    weights.limit_threads()
    environment.record(run)
    run.phase("loading")
    device = weights.device(spec)
    tokenizer = weights.load_tokenizer(run.order)
    rows = tokenise(run, "data", tokenizer, drafts)
    eval_rows = tokenise(run, "eval_data", tokenizer, drafts) if "eval_data" in run.order.paths else None
    preview.leave(run, tokenizer, rows.rows + rows.dropped)
    resumed = _resumable(run, rows)
    _forget_metrics_after(run, checkpoints.step_of(resumed) if resumed else 0)

    run.phase("loading")
    model = weights.load_model(run.order, device, trainable=True)
    trainer = _trainer(run, model, tokenizer, rows, eval_rows, device, drafts)
    total = trainer.recorder.plan.total
    _stop_if_asked(run)
    _check_space(run, trainer.model)
    trained_s, tokens_before = _train(trainer, resumed, total)
    if trainer.state.global_step < total:
        raise Interrupted
    if eval_rows is not None and not _evaluated(run, total):
        _evaluate(trainer)
    metrics = _metrics(run, rows, resumed, total)
    tokens = trainer.recorder.memory.num_tokens - tokens_before
    metrics["tokens"] = trainer.recorder.memory.num_tokens or None  # of all attempts: the count goes on after a resume
    metrics["tokens_per_s"] = round(tokens / trained_s, 1) if trained_s and tokens else None
    run.phase("saving", step=total, total=total)
    _leave_adapter(run, trainer.model, tokenizer, rows, metrics)
    return metrics


# -- going on where it stopped --------------------------------------------------------------------------------------------


def _resumable(run: Run, rows: Rows) -> Path | None:
    """The checkpoint to go on from. When there is none, or it belongs to another training, what is there is removed."""
    folder, spec = run.folder.checkpoints, run.order.spec
    facts = {key: spec[key] for key in IDENTITY} | {
        "data_sha256": rows.sha256,
        "effective_batch": spec["per_device_train_batch_size"] * spec["gradient_accumulation_steps"],
    }
    before = checkpoints.origin(folder) if run.order.resume else None
    changed = [key for key, value in facts.items() if before is not None and before.get(key) != value]
    if before is None or changed:
        if changed:
            say(f"Starting over: {', '.join(changed)} changed since the last attempt.")
        checkpoints.start_over(folder, {**facts, "learning_rate": spec["learning_rate"]})
        return None
    newest = checkpoints.newest_whole(folder, say=say)
    checkpoints.discard_after(folder, checkpoints.step_of(newest) if newest else -1)
    say(f"Going on from step {checkpoints.step_of(newest)}." if newest else "No whole checkpoint: from the beginning.")
    return newest


def _forget_metrics_after(run: Run, step: int) -> None:
    """The curve must have each step once: what came after the checkpoint comes again."""
    keep_json_lines(run.folder.metrics, lambda line: int(line.get("step", 0)) <= step)


def _give_up(run: Run, why: str, last_good_step: int) -> JobError:
    """The training has gone astray: back to before it did, with half the learning rate, once."""
    checkpoints.discard_after(run.folder.checkpoints, last_good_step)
    rate = run.order.spec["learning_rate"]
    first_rate = (checkpoints.origin(run.folder.checkpoints) or {}).get("learning_rate")
    if rate != first_rate:  # this is the second time
        hint = "Look at the data for broken rows, or start again with a much smaller learning rate."
        return JobError(Cause.NAN, f"The training went astray again with learning rate {rate:g}: {why}.", hint)
    hint = f"It goes on from its last good checkpoint with learning rate {rate / 2:g}."
    return JobError(Cause.NAN, f"The training went astray: {why}.", hint, next_fields={"learning_rate": rate / 2})


def _check_space(run: Run, model: Any) -> None:
    """Hours of work must not end in a checkpoint that cannot be written."""
    learning = [(p.numel(), p.element_size()) for p in model.parameters() if p.requires_grad]
    needed = checkpoints.needed_bytes(run.folder.checkpoints, checkpoints.expected_bytes(learning))
    free = shutil.disk_usage(run.folder.path).free
    if needed > free:
        message = f"Its checkpoints need {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB."
        raise JobError(
            Cause.DISK_FULL, message, "Free some space; it starts by itself then.", learned={"disk_bytes": needed}
        )


# -- training -----------------------------------------------------------------------------------------------------------


def _trainer(
    run: Run, model: Any, tokenizer: Any, rows: Rows, eval_rows: Rows | None, device: weights.Device, drafts: Path
) -> sft.Trainer:
    spec = run.order.spec
    lora = None
    if not isinstance(model, peft.PeftModel):
        lora = peft.LoraConfig(task_type="CAUSAL_LM", **_lora(spec["lora"]))
    plan = sft.Plan(total=1, save_every=1)  # replaced below: packing decides how many rows there are
    recorder = sft.Recorder(run, plan, LossWatch(len(tokenizer)), lambda why, step: _give_up(run, why, step))
    try:
        trainer = sft.trainer(
            _config(spec, device, drafts),
            recorder,
            model=model,
            train_dataset=rows.dataset,
            eval_dataset=eval_rows.dataset if eval_rows else None,
            processing_class=tokenizer,
            peft_config=lora,
        )
    except ValueError as error:  # what PEFT and TRL say about parameters that do not fit this model
        raise JobError(Cause.BAD_INPUT, f"These parameters do not fit the model: {str(error)[:300]}") from error
    recorder.plan = _plan(spec, len(trainer.train_dataset), evaluates=eval_rows is not None)
    learning = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in trainer.model.parameters())
    steps = f"{recorder.plan.total} optimizer step(s)"
    say(f"Learning {learning:,} of {every:,} parameters on the {device.name} in {device.dtype}: {steps}.")
    return trainer


def _lora(spec: Mapping[str, Any]) -> dict[str, Any]:
    targets = spec["target_modules"]
    return {**spec, "target_modules": targets if isinstance(targets, str) else list(targets)}


def _config(spec: Mapping[str, Any], device: weights.Device, drafts: Path) -> SFTConfig:
    return SFTConfig(
        output_dir=str(drafts),
        max_steps=spec["max_steps"] or -1,
        num_train_epochs=spec["num_train_epochs"],
        per_device_train_batch_size=spec["per_device_train_batch_size"],
        per_device_eval_batch_size=spec["per_device_eval_batch_size"],
        gradient_accumulation_steps=spec["gradient_accumulation_steps"],
        learning_rate=spec["learning_rate"],
        lr_scheduler_type=spec["lr_scheduler_type"],
        warmup_steps=min(spec["warmup_ratio"], 0.999999),  # below 1 it is a share of all steps
        weight_decay=spec["weight_decay"],
        seed=spec["seed"],
        max_length=spec["max_length"],
        packing=spec["packing"],
        packing_strategy="bfd_split",
        eval_packing=False,
        # without packing the rows are as they must be; TRL would only copy them
        dataset_kwargs={"skip_prepare_dataset": not spec["packing"]},
        gradient_checkpointing=spec["gradient_checkpointing"],
        bf16=device.dtype == "bfloat16",
        fp16=device.dtype == "float16",
        use_cpu=not device.is_gpu,
        dataloader_pin_memory=device.is_gpu,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would show a loss that is not a number as 0
        save_strategy="no",  # our recorder decides
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def _plan(spec: Mapping[str, Any], rows: int, *, evaluates: bool) -> sft.Plan:
    total = optimizer_steps(spec, rows)
    return sft.Plan(
        total=total,
        save_every=save_every(spec, total),
        eval_every=spec["eval_steps"] or 0,
        evaluates=evaluates,
        log_every=spec["logging_steps"],
    )


def _train(trainer: sft.Trainer, resumed: Path | None, total: int) -> tuple[float, int]:
    """Take the steps that are left. Returns how long it took and how many tokens had been seen before."""
    if resumed is not None:
        trainer.recall(resumed)
    seen = trainer.recorder.memory.num_tokens
    if resumed is not None and checkpoints.step_of(resumed) >= total:
        trainer.load_weights(resumed)  # only the output was missing
        return 0.0, seen
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    return time.monotonic() - began, seen


def _evaluate(trainer: sft.Trainer) -> None:
    try:
        trainer.evaluate()
    except sft.EvaluationStopped:
        raise Interrupted from None


def _evaluated(run: Run, step: int) -> bool:
    return any("eval_loss" in line and line["step"] == step for line in read_json_lines(run.folder.metrics))


def _stop_if_asked(run: Run) -> None:
    if run.stop_requested:
        raise Interrupted


# -- results ------------------------------------------------------------------------------------------------------------


def _metrics(run: Run, rows: Rows, resumed: Path | None, total: int) -> dict[str, Any]:
    lines = list(read_json_lines(run.folder.metrics))
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    eval_losses = [line["eval_loss"] for line in lines if line.get("eval_loss") is not None]
    last = losses[-math.ceil(len(losses) / 10) :]
    return {
        "train_loss": round(sum(last) / len(last), 6) if last else None,
        "first_loss": round(losses[0], 6) if losses else None,
        "final_loss": round(losses[-1], 6) if losses else None,
        "eval_loss": round(eval_losses[-1], 6) if eval_losses else None,
        "steps": total,
        "rows": rows.rows,
        "tokens": rows.tokens,
        "trained_tokens": rows.trained_tokens,
        "cut_rows": rows.cut,
        "dropped_rows": rows.dropped,
        "resumed_from_step": checkpoints.step_of(resumed) if resumed else None,
    }


def _leave_adapter(run: Run, model: Any, tokenizer: Any, rows: Rows, metrics: Mapping[str, Any]) -> None:
    """The adapter appears whole, or not at all."""
    target = run.folder.adapter
    draft = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    card = model_card(run.order.job_id, run.order.spec, rows.sha256, metrics)
    (draft / "README.md").write_text(card)
    checkpoints.make_durable(draft)
    checkpoints.put_in_place(draft, target)
    where = target.relative_to(run.folder.path)
    say(f"The adapter is in {where}; loss {metrics['first_loss']} → {metrics['train_loss']}.")
