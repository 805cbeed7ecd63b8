"""TRL's SFTTrainer with our own hands on checkpoints, metrics, stop signals and stability. The only module that knows TRL.

Loads torch and its family: only the process that trains imports it.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from transformers import PrinterCallback, TrainerCallback  # noqa: TID253
from trl import SFTConfig, SFTTrainer  # noqa: TID253

from jobs import checkpoints
from jobs.log import clock_time, say
from jobs.run import JobError, Run
from jobs.rundir import read_json, write_json
from jobs.stability import LossWatch

#: Our own memory inside a checkpoint, beside the trainer's.
RECORDER = "recorder.json"
#: Steps whose times make the estimate of what is left.
TIMED_STEPS = 50
#: Least time between two lines in the log and between two beats inside a step.
LOG_EVERY_S = 10.0
BEAT_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """When to do what, in optimizer steps."""

    total: int
    save_every: int
    #: 0: only at the end.
    eval_every: int = 0
    evaluates: bool = False
    log_every: int = 1

    def saves(self, step: int) -> bool:
        return step % self.save_every == 0 or step >= self.total

    def evaluates_at(self, step: int) -> bool:
        return self.evaluates and (step >= self.total or (self.eval_every > 0 and step % self.eval_every == 0))


class EvaluationStopped(Exception):
    """The attempt was asked to stop in the middle of an evaluation."""


@dataclass
class Memory:
    """What must go on after a resume as if nothing had happened."""

    num_tokens: int = 0
    #: Losses since the last line in metrics.jsonl.
    losses: list[float] = field(default_factory=list)
    best_eval_loss: float | None = None
    best_step: int | None = None


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Decides at every whole step what happens next, and tells how it goes."""

    def __init__(self, run: Run, plan: Plan, watch: LossWatch, give_up: Callable[[str, int], JobError]):
        self.run, self.plan, self.watch, self._give_up = run, plan, watch, give_up
        self.memory = Memory()
        self._times: deque[float] = deque(maxlen=TIMED_STEPS)
        self._last_step_at: float | None = None
        self._last_said_at = -math.inf
        self._last_beat_at = -math.inf
        self._shown: dict[str, float] = {}
        self._step = 0

    # -- the trainer's events -------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.max_steps != self.plan.total:
            raise RuntimeError(f"the trainer plans {state.max_steps} steps, not {self.plan.total}")
        self._step = state.global_step
        self._tell("training")
        self._last_step_at = time.monotonic()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._beat("training")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = self._step = state.global_step
        control.should_evaluate = self.plan.evaluates_at(step) and not self.run.stop_requested
        control.should_save = self.plan.saves(step) or self.run.stop_requested
        control.should_training_stop = step >= self.plan.total or self.run.stop_requested

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" in logs:
            self._one_step(state.global_step, logs, control, scaled=args.fp16)
        state.log_history.clear()  # metrics.jsonl has it; here it would grow with every checkpoint

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._beat("evaluating")
        if self.run.stop_requested:
            raise EvaluationStopped

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **_: Any) -> None:
        loss, step = float(metrics["eval_loss"]), state.global_step
        self.run.metrics(step, eval_loss=_finite(loss))
        if self.memory.best_eval_loss is None or loss < self.memory.best_eval_loss:
            self.memory.best_eval_loss, self.memory.best_step = loss, step
        say(f"Evaluated at step {step}: loss {loss:.4f}.")
        self._tell("training")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tell("saving")
        step, folder = state.global_step, self.run.folder.checkpoints
        checkpoints.sync_file(self.run.folder.metrics)  # the curve must reach as far as the checkpoint
        checkpoints.seal(Path(args.output_dir) / f"checkpoint-{step}", folder, step)
        checkpoints.prune(folder, best=self.memory.best_step)
        say(f"Saved checkpoint {step}.")
        self._tell("training")

    # -- inside -----------------------------------------------------------------------------------------------------------

    def _one_step(self, step: int, logs: dict[str, Any], control: Any, *, scaled: bool) -> None:
        loss, grad_norm = float(logs["loss"]), logs.get("grad_norm")
        grad_norm = None if grad_norm is None else float(grad_norm)
        self._clock()
        self.memory.num_tokens = int(logs.get("num_tokens", 0))
        self.memory.losses.append(loss)
        # in float16 the loss scaler looks for its scale with gradients that overflow, and skips those steps itself
        wrong = self.watch.look(loss, _finite(grad_norm) if scaled else grad_norm)
        if step % self.plan.log_every == 0 or step >= self.plan.total or wrong:
            self.run.metrics(
                step,
                epoch=round(float(logs["epoch"]), 6),
                loss=_finite(mean(self.memory.losses)),
                learning_rate=logs["learning_rate"],
                grad_norm=_finite(grad_norm),
                num_tokens=self.memory.num_tokens,
                mean_token_accuracy=_finite(logs.get("mean_token_accuracy")),
            )
            self.memory.losses.clear()
        self._shown = {"loss": loss} if math.isfinite(loss) else {}
        self._say_step(step, loss, logs["learning_rate"])
        if wrong:
            raise self._give_up(wrong, step - self.watch.suspects)
        if self.watch.suspects:
            control.should_save = False  # weights that may be spoilt are no checkpoint
        self._tell("saving" if control.should_save else "training")

    def _clock(self) -> None:
        now = time.monotonic()
        if self._last_step_at is not None:
            self._times.append(now - self._last_step_at)
        self._last_step_at = now

    def _eta_s(self) -> float | None:
        return round(mean(self._times) * (self.plan.total - self._step), 1) if self._times else None

    def _tell(self, phase: str) -> None:
        self.run.progress(step=self._step, total=self.plan.total, phase=phase, eta_s=self._eta_s(), metrics=self._shown)
        self._last_beat_at = time.monotonic()

    def _beat(self, phase: str) -> None:
        if time.monotonic() - self._last_beat_at > BEAT_EVERY_S:
            self._tell(phase)

    def _say_step(self, step: int, loss: float, learning_rate: float) -> None:
        now = time.monotonic()
        if now - self._last_said_at < LOG_EVERY_S and step < self.plan.total:
            return
        self._last_said_at = now
        left = self._eta_s()
        more = f", {mean(self._times):.2f} s a step, about {clock_time(left)} left" if left else ""
        say(f"Step {step}/{self.plan.total}: loss {loss:.4f}, learning rate {learning_rate:.2e}{more}.")


class Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer that saves only what a resume needs, and takes the learning rate from its orders, not from a checkpoint."""

    recorder: Recorder

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # no copy of the tokenizer in every checkpoint, and no pickled arguments
        self.model.save_pretrained(output_dir, state_dict=state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        draft = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        write_json(draft / RECORDER, {**vars(self.recorder.memory), "watch": self.recorder.watch.memory()})

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        try:
            return dict(super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler))
        except EvaluationStopped:
            self.control.should_save = self.control.should_training_stop = True
            return {}

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
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
        memory = read_json(checkpoint / RECORDER) or {}
        self.recorder.watch.recall(memory.pop("watch", {}))
        self.recorder.memory = Memory(**memory)
        self._total_train_tokens = self.recorder.memory.num_tokens

    def load_weights(self, checkpoint: Path) -> None:
        """The weights of a checkpoint, without going on with the training."""
        self._load_from_checkpoint(str(checkpoint))
        self.state.global_step = checkpoints.step_of(checkpoint)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Ours is written with the results."""

    def _send_telemetry(self) -> None:
        """The rig's work is nobody's business."""


def trainer(config: SFTConfig, recorder: Recorder, **parts: Any) -> Trainer:
    """A trainer with our recorder and without its own printing."""
    made = Trainer(args=config, **parts)
    made.recorder = recorder
    made.remove_callback(PrinterCallback)
    made.add_callback(recorder)
    return made


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
