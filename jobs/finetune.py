"""Fine-tuning: rows in, an adapter or a whole model with its tokenizer and model card out.

Reads like the work goes: rows → tokens → model → steps with sealed checkpoints → result. Loads torch and its family.
"""

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft  # noqa: TID253
import torch  # noqa: TID253

from jobs import (
    batches,
    checkpoints,
    environment,
    exports,
    model_facts,
    preferences,
    preflight,
    preview,
    sft,
    trackers,
    weights,
)
from jobs.best import Best
from jobs.estimate import Facts, optimizer_steps, save_every
from jobs.fitting import micro_batch
from jobs.log import say
from jobs.model import Cause
from jobs.model_card import DataFile, trained_card
from jobs.parallel import way
from jobs.recorder import EvaluationStopped, Plan, Recorder
from jobs.run import Interrupted, JobError, Run
from jobs.rundir import keep_json_lines, read_json_lines
from jobs.spent import Meter
from jobs.stability import LossWatch
from jobs.tokens import Rows, kept_apart, tokenise
from jobs.trainers import LEARNING, Sealed, with_recorder

#: A change of one of these makes it another training: its checkpoints do not fit.
IDENTITY = (
    "model", "adapter", "method", "objective", "loss_type", "beta", "desirable_weight", "undesirable_weight", "dtype", "pure_bf16",
    "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "seed", "data_fields", "chat_template", "max_length", "packing", "assistant_only_loss", "eval_fraction",
    "weight_decay", "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "neftune_noise_alpha",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_ratio", "warmup_steps", "lora",
)  # fmt: skip
TRAINERS: Mapping[str, Callable[..., Sealed]] = {"sft": sft.trainer, "dpo": preferences.dpo, "kto": preferences.kto}
#: Of a GPU's free memory the search for a micro-batch leaves so much: estimates are off by a few percent.
SPARE = 0.10
#: On a CPU more rows at once are no faster.
ROWS_AT_ONCE_ON_CPU = 4


def run(run: Run) -> dict[str, Any]:
    """Train, or go on training. Returns the metrics of the result."""
    drafts = run.ranks.decide(lambda: checkpoints.drafts(run.folder.checkpoints))
    try:
        metrics = _finetune(run, drafts)
    finally:
        if run.ranks.is_first:
            shutil.rmtree(drafts, ignore_errors=True)  # all rows as tokens: large, and soon made again
    if run.order.preflight or not run.ranks.is_first:
        return metrics
    return exports.after_training(run, metrics)


def _finetune(run: Run, drafts: Path) -> dict[str, Any]:
    weights.quiet_libraries()
    weights.limit_threads()
    if run.ranks.is_first:
        environment.record(run)
    meter = Meter(run.folder)
    run.phase("loading")
    device = _device(run.order.spec)
    tokenizer = weights.load_tokenizer(run.order)
    rows, eval_rows = run.ranks.decide(lambda: _rows(run, tokenizer, drafts))
    resumed = run.ranks.decide(lambda: _resumed(run, rows))

    run.phase("loading")
    model = _load(run, device, learns=True)
    _find_micro_batch(run, device, rows, eval_rows)
    if run.order.preflight:
        return _preflight(run, model, tokenizer, device, rows, eval_rows, drafts, meter)
    return _learn(run, model, tokenizer, device, rows, eval_rows, resumed, drafts, meter)


def _learn(
    run: Run,
    model: Any,
    tokenizer: Any,
    device: weights.Device,
    rows: Rows,
    eval_rows: Rows | None,
    resumed: Path | None,
    drafts: Path,
    meter: Meter,
) -> dict[str, Any]:
    trainer = _trainer(run, model, tokenizer, rows, eval_rows, device, drafts)
    trackers.join(trainer, run)
    recorder = trainer.recorder
    _stop_if_asked(run)
    if run.ranks.is_first:
        _check_space(run, trainer.model)
    trained_s, tokens_before = _train(trainer, resumed)
    step = trainer.state.global_step
    if step < recorder.plan.total and not recorder.best.stopped:
        raise Interrupted
    if eval_rows is not None and not _evaluated(run, step):
        _evaluate(trainer)
    _take_best(run, trainer)
    learned = trainer.learned()
    if not run.ranks.is_first:
        return {}
    metrics = _metrics(run, rows, resumed, step, recorder)
    tokens = recorder.memory.num_tokens - tokens_before
    metrics["tokens"] = recorder.memory.num_tokens or None  # of all attempts: the count goes on after a resume
    metrics["tokens_per_s"] = round(tokens / trained_s, 1) if trained_s and tokens else None
    run.phase("saving", step=step, total=recorder.plan.total)
    card = _card(run, rows, eval_rows, metrics, meter)
    _leave_result(run, trainer.model, learned, tokenizer, device, card, metrics)
    return metrics


def _device(spec: Mapping[str, Any]) -> weights.Device:
    found = weights.device(spec)
    return replace(found, dtype="bfloat16") if spec["pure_bf16"] else found


def _rows(run: Run, tokenizer: Any, drafts: Path) -> tuple[Rows, Rows | None]:
    spec = run.order.spec
    rows = tokenise(run, "data", tokenizer, drafts)
    preview.leave(run, tokenizer, rows.rows + rows.dropped)
    if spec["eval_fraction"]:
        return kept_apart(rows, spec["eval_fraction"], spec["seed"])
    return rows, tokenise(run, "eval_data", tokenizer, drafts) if "eval_data" in run.order.paths else None


def _load(run: Run, device: weights.Device, *, learns: bool) -> Any:
    """The model as its method needs it: all weights that learn in float32, frozen ones in what is computed in, or in 4 bits."""
    spec = run.order.spec
    if way(spec) == "fsdp":
        device = replace(device, name="cpu")  # no GPU could hold it before it is split
    if spec["method"] == "qlora":
        kind, double = spec["bnb_4bit_quant_type"], spec["bnb_4bit_use_double_quant"]
        quantization = weights.few_bits(kind, device, double=double)
        return weights.load_model(run.order, device, trainable=learns, quantization=quantization)
    if spec["method"] != "full":
        return weights.load_model(run.order, device, trainable=learns)
    # not "trainable": an adapter that comes with the model is merged into it, and then everything learns
    dtype = "float32" if learns and not spec["pure_bf16"] else ""
    return weights.load_model(run.order, device, trainable=False, dtype=dtype).requires_grad_(learns)


# -- how many rows at once ----------------------------------------------------------------------------------------------


def _find_micro_batch(run: Run, device: weights.Device, rows: Rows, eval_rows: Rows | None) -> None:
    """With `effective_batch_size` the micro-batch is found here, where the GPU is; a resume keeps it, where it still fits."""
    spec, folder = run.order.spec, run.folder.checkpoints
    if not spec["effective_batch_size"] or spec["per_device_train_batch_size"] > batches.least(spec["objective"]):
        return
    room_bytes = run.ranks.least(_room_bytes()) if device.is_gpu else 0

    def find() -> int:
        found = _most_rows(run, device, rows, eval_rows, room_bytes)
        before = (checkpoints.origin(folder) or {}).get("micro_batch")
        if before and before <= found:
            found = int(before)
        checkpoints.note(folder, micro_batch=found)
        return found

    found = run.ranks.decide(find)
    fields = batches.with_micro(spec, found)
    run.order = replace(run.order, spec={**spec, **fields})
    each = f" on each of {run.ranks.count} GPUs" if run.ranks.count > 1 else ""
    say(
        f"{found} row(s) at once{each}, {fields['gradient_accumulation_steps']} times for each step of {spec['effective_batch_size']}."
    )


def _room_bytes() -> int:
    """What is free, or taken by the model that is there already and counted in the estimate; of several GPUs the least."""
    gpus = range(torch.cuda.device_count())
    return min(int(torch.cuda.mem_get_info(gpu)[0] + torch.cuda.memory_allocated(gpu)) for gpu in gpus)


def _most_rows(run: Run, device: weights.Device, rows: Rows, eval_rows: Rows | None, room_bytes: int) -> int:
    spec = run.order.spec
    longest = max(rows.longest, eval_rows.longest if eval_rows else 0)
    known = {**spec, "max_length": spec["max_length"] if spec["packing"] else min(spec["max_length"], longest)}
    few = batches.sizes(spec, min(ROWS_AT_ONCE_ON_CPU, batches.rows_per_step(spec)))[-1]
    if not device.is_gpu:
        return few
    try:
        model = model_facts.read_model(weights.folder(run.order))
    except model_facts.NoFacts as why:
        say(f"How many rows fit is not known: {why}.")
        return few
    return micro_batch(known, Facts(model=model), round(room_bytes * (1 - SPARE))) or few


# -- going on where it stopped --------------------------------------------------------------------------------------------


def _resumed(run: Run, rows: Rows) -> Path | None:
    """The checkpoint to go on from, with a curve that ends there: each step must be in it once."""
    resumed = _resumable(run, rows)
    last = checkpoints.step_of(resumed) if resumed else 0
    keep_json_lines(run.folder.metrics, lambda line: int(line.get("step", 0)) <= last)
    return resumed


def _resumable(run: Run, rows: Rows) -> Path | None:
    """The checkpoint to go on from. When there is none, or it belongs to another training, what is there is removed."""
    folder, spec = run.folder.checkpoints, run.order.spec
    facts = {key: spec[key] for key in IDENTITY} | {
        "data_sha256": rows.sha256,
        "effective_batch": batches.rows_per_step(spec),
        "split": True if way(spec) == "fsdp" else None,  # its checkpoints are others
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


def _give_up(run: Run, why: str, last_good_step: int) -> JobError:
    """The training has gone astray: back to before it did, with half the learning rate, once."""
    run.ranks.decide(lambda: checkpoints.discard_after(run.folder.checkpoints, last_good_step))
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
) -> Sealed:
    spec = run.order.spec
    plan = Plan(total=1, save_every=1)  # replaced below: packing decides how many rows there are
    watch = LossWatch(len(tokenizer))
    recorder = Recorder(run, plan, watch, Best.of(spec), lambda why, step: _give_up(run, why, step))
    parts: dict[str, Any] = {"model": model, "processing_class": tokenizer, "train_dataset": rows.dataset}
    parts["eval_dataset"] = eval_rows.dataset if eval_rows else None
    if spec["method"] != "full" and not isinstance(model, peft.PeftModel):
        parts["peft_config"] = peft.LoraConfig(task_type="CAUSAL_LM", **_lora(spec["lora"]))
    if spec["method"] == "full" and spec["objective"] != "sft":
        parts["ref_model"] = _load(
            run, device, learns=False
        )  # what it must not stray from; an adapter is switched off for that
    try:
        trainer = with_recorder(TRAINERS[spec["objective"]](spec, device, drafts, **parts), recorder)
    except (
        ValueError,
        ImportError,
    ) as error:  # what PEFT and TRL say about parameters that do not fit this model or rig
        raise JobError(Cause.BAD_INPUT, f"These parameters do not fit the model: {str(error)[:300]}") from error
    if device.dtype == "float16":  # its loss scaler takes no gradients in bfloat16, which TRL gives QLoRA's adapters
        for parameter in trainer.model.parameters():
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    recorder.plan = _plan(spec, len(trainer.train_dataset), evaluates=eval_rows is not None)
    if isinstance(model, peft.PeftModel):
        own = model.peft_config[LEARNING]
        say(
            f"Going on with an adapter of r {own.r}, lora_alpha {own.lora_alpha:g}: its own settings count, not `lora`."
        )
    learning = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in trainer.model.parameters())
    steps = f"{recorder.plan.total} optimizer step(s)"
    where = f"{batches.gpus(spec)} x {device.name} by {way(spec)}" if way(spec) else f"the {device.name}"
    say(f"Learning {learning:,} of {every:,} parameters on {where} in {device.dtype}: {steps}.")
    return trainer


def _lora(spec: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's own options; what is not given is left to it."""
    lists = {name: list(value) for name, value in spec.items() if isinstance(value, (list, tuple)) and value}
    plain = {name: value for name, value in spec.items() if not isinstance(value, (list, tuple))}
    return plain | lists


def _plan(spec: Mapping[str, Any], rows: int, *, evaluates: bool) -> Plan:
    total = optimizer_steps(spec, rows)
    return Plan(
        total=total,
        save_every=save_every(spec, total),
        eval_every=spec["eval_steps"] or 0,
        evaluates=evaluates,
        keeps_best=bool(spec["load_best_model_at_end"] or spec["early_stopping_patience"]),
        log_every=spec["logging_steps"],
    )


def _train(trainer: Sealed, resumed: Path | None) -> tuple[float, int]:
    """Take the steps that are left. Returns how long it took and how many tokens had been seen before."""
    recorder = trainer.recorder
    if resumed is not None:
        trainer.recall(resumed)
    seen = recorder.memory.num_tokens
    if resumed is not None and _is_done(trainer, resumed):
        return 0.0, seen
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    return time.monotonic() - began, seen


def _is_done(trainer: Sealed, resumed: Path) -> bool:
    """Whether only the output was missing. An evaluation that was due at the checkpoint's step is made up for."""
    recorder, step = trainer.recorder, checkpoints.step_of(resumed)
    if step >= recorder.plan.total or recorder.best.stopped:
        trainer.load_weights(resumed)
        return True
    if recorder.plan.evaluates_at(step) and not _evaluated(recorder.run, step):
        trainer.load_weights(resumed)
        _evaluate(trainer)
    return recorder.best.stopped


def _evaluate(trainer: Sealed) -> None:
    try:
        trainer.evaluate()
    except EvaluationStopped:
        raise Interrupted from None


def _evaluated(run: Run, step: int) -> bool:
    lines = run.folder.metrics
    return run.ranks.decide(
        lambda: any("eval_loss" in each and each["step"] == step for each in read_json_lines(lines))
    )


def _take_best(run: Run, trainer: Sealed) -> None:
    """The best evaluated weights in place of the last ones, where that was asked for."""
    best, plan = trainer.recorder.best, trainer.recorder.plan
    if not plan.keeps_best or best.step is None or best.step == trainer.state.global_step:
        return
    found = [path for path in checkpoints.sealed(run.folder.checkpoints) if checkpoints.step_of(path) == best.step]
    wrong = run.ranks.decide(lambda: checkpoints.what_is_wrong(found[0]) if found else "it is not there")
    if wrong is not None:
        say(f"The best checkpoint, of step {best.step}, cannot be used ({wrong}): the last one is the result.")
        best.step = trainer.state.global_step
        return
    trainer.load_weights(found[0])
    say(f"The result is the checkpoint of step {best.step}: {best.metric} {best.value:.4f}.")


def _stop_if_asked(run: Run) -> None:
    if run.stops_here():
        raise Interrupted


# -- before the night -----------------------------------------------------------------------------------------------------


def _preflight(
    run: Run,
    model: Any,
    tokenizer: Any,
    device: weights.Device,
    rows: Rows,
    eval_rows: Rows | None,
    drafts: Path,
    meter: Meter,
) -> dict[str, Any]:
    """Everything that the training will do, once (jobs.preflight). Returns what was measured."""
    spec, watch = run.order.spec, preflight.Stopwatch()
    say("Preflight: a few real steps, the longest rows first. What it writes goes aside and is removed.")
    run.order = replace(run.order, spec=preflight.short(spec))
    few = rows
    if not spec["packing"]:  # all packed rows are as long as they may be
        dataset = preflight.rows_of_steps(rows.dataset, batches.rows_per_step(spec), spec["seed"])
        few = replace(rows, dataset=dataset)
    held = eval_rows
    if eval_rows is not None:
        size = spec["per_device_eval_batch_size"]
        held = replace(eval_rows, dataset=preflight.longest_batch(eval_rows.dataset, size))
    trainer = _trainer(run, model, tokenizer, few, held, device, drafts)
    trainer.args.train_sampling_strategy = "sequential"
    recorder = trainer.recorder
    recorder.plan = replace(recorder.plan, evaluates=False, keeps_best=False)
    _stop_if_asked(run)
    _check_space(run, trainer.model)
    watch.seconds["loading"] = time.monotonic() - run.began
    with watch.time("longest"):
        trainer.train()
    memory = preflight.peak(device)
    _stop_if_asked(run)
    checkpoint = preflight.read_back(run)
    trainer.args.max_steps = preflight.STEPS
    recorder.plan = replace(recorder.plan, total=preflight.STEPS, saves_last=False)
    _train(trainer, checkpoint)
    _stop_if_asked(run)
    if held is not None:
        with watch.time("evaluation"):
            _evaluate(trainer)
    run.phase("generating")
    sample = preflight.sample(trainer, tokenizer, few.dataset[0])
    run.phase("saving")
    with watch.time("result"):
        step = trainer.state.global_step
        metrics = _metrics(run, rows, None, step, recorder)
        _leave_result(run, trainer.model, None, tokenizer, device, _card(run, rows, eval_rows, metrics, meter), metrics)
    longest_s, usual_s = recorder.times[-2:]
    watch.seconds["checkpoint"] = watch.seconds["longest"] - sum(recorder.times[:-1])
    watch.seconds["step"] = min(longest_s, usual_s)  # usual rows are not slower: more is noise
    measured = preflight.of_training(
        spec,
        optimizer_steps(spec, len(trainer.train_dataset) if spec["packing"] else len(rows.dataset)),
        watch.seconds,
        eval_batches=math.ceil(eval_rows.rows / spec["per_device_eval_batch_size"]) if eval_rows else 0,
        checkpoint_bytes=preflight.size_of(checkpoint),
    )
    return preflight.passed(run, measured | memory, sample=sample)


# -- results ------------------------------------------------------------------------------------------------------------


def _metrics(run: Run, rows: Rows, resumed: Path | None, step: int, recorder: Recorder) -> dict[str, Any]:
    lines = list(read_json_lines(run.folder.metrics))
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    keeps_best = recorder.plan.keeps_best
    taken = recorder.best.step if keeps_best else step
    eval_losses = [line["eval_loss"] for line in lines if line.get("eval_loss") is not None and line["step"] == taken]
    last = losses[-math.ceil(len(losses) / 10) :]
    return {
        "train_loss": round(sum(last) / len(last), 6) if last else None,
        "first_loss": round(losses[0], 6) if losses else None,
        "final_loss": round(losses[-1], 6) if losses else None,
        "eval_loss": round(eval_losses[-1], 6) if eval_losses else None,
        "steps": step,
        "best_step": taken if keeps_best else None,
        "best_metric": recorder.best.value if keeps_best else None,
        "rows": rows.rows,
        "tokens": rows.tokens,
        "trained_tokens": rows.trained_tokens,
        "cut_rows": rows.cut,
        "dropped_rows": rows.dropped,
        "resumed_from_step": checkpoints.step_of(resumed) if resumed else None,
    }


def _card(run: Run, rows: Rows, eval_rows: Rows | None, metrics: Mapping[str, Any], meter: Meter) -> str:
    files = [DataFile(field="data", sha256=rows.sha256, rows=rows.rows)]
    files += [DataFile(field="eval_data", sha256=eval_rows.sha256, rows=eval_rows.rows)] if eval_rows else []
    return trained_card(run.order, files, metrics, meter.read(run.now()))


def _leave_result(
    run: Run,
    model: Any,
    learned: Mapping[str, Any] | None,
    tokenizer: Any,
    device: weights.Device,
    card: str,
    metrics: Mapping[str, Any],
) -> None:
    """The adapter, or the model, appears whole or not at all. `learned`: its weights, where each GPU had a part of them."""
    whole = run.order.spec["method"] == "full"
    target = run.folder.model if whole else run.folder.adapter
    draft = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    if not whole:
        model.save_pretrained(draft, selected_adapters=[LEARNING], state_dict=learned)
    elif learned is None:  # float32 was for learning; it is used as it was computed
        model.to(getattr(torch, device.dtype)).save_pretrained(draft)
    else:
        used = {name: weight.to(getattr(torch, device.dtype)) for name, weight in learned.items()}
        model.save_pretrained(draft, state_dict=used)
    tokenizer.save_pretrained(draft)
    (draft / "README.md").write_text(card)
    checkpoints.make_durable(draft)
    checkpoints.put_in_place(draft, target)
    where = target.relative_to(run.folder.path)
    say(f"The {target.name} is in {where}; loss {metrics['first_loss']} → {metrics['train_loss']}.")
