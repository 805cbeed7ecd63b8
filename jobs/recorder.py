"""What happens at every whole step of a training: metrics, evaluations, sealed checkpoints, stop signals, stability.

Loads transformers: only the process that trains imports it.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import mean
from typing import Any

from transformers import TrainerCallback  # noqa: TID253

from jobs import checkpoints
from jobs.best import Best
from jobs.log import clock_time, say
from jobs.model import Cause
from jobs.run import JobError, Run
from jobs.rundir import read_json, read_json_lines, write_json
from jobs.stability import LossWatch

#: Our own memory inside a checkpoint, beside the trainer's.
RECORDER = "recorder.json"
#: Steps whose times make the estimate of what is left.
TIMED_STEPS = 50
#: Least time between two lines in the log and between two beats inside a step.
LOG_EVERY_S = 10.0
BEAT_EVERY_S = 1.0
#: What trainers measure at a step beside loss and gradient, by the beginning of its name.
STEP_METRICS = ("rewards/", "kl")
#: What an evaluation tells of itself and not of the model.
NOT_OF_THE_MODEL = (
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "eval_num_tokens",
    "eval_entropy",
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """When to do what, in optimizer steps."""

    total: int
    save_every: int
    #: 0: only at the end.
    eval_every: int = 0
    evaluates: bool = False
    #: Whether the best evaluated step must have a checkpoint.
    keeps_best: bool = False
    log_every: int = 1
    #: Whether the last step must have a checkpoint; the training of a preflight leaves it out.
    saves_last: bool = True

    def saves(self, step: int) -> bool:
        return step % self.save_every == 0 or (self.saves_last and step >= self.total)

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


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Decides at every whole step what happens next, and tells how it goes."""

    def __init__(self, run: Run, plan: Plan, watch: LossWatch, best: Best, give_up: Callable[[str, int], JobError]):
        self.run, self.plan, self.watch, self.best, self._give_up = run, plan, watch, best, give_up
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
        stops = self.run.stops_here()
        control.should_evaluate = self.plan.evaluates_at(step) and not stops
        control.should_save = self.plan.saves(step) or stops
        control.should_training_stop = step >= self.plan.total or stops

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" in logs:
            self._one_step(state.global_step, logs, control, scaled=args.fp16)
        state.log_history.clear()  # metrics.jsonl has it; here it would grow with every checkpoint

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._beat("evaluating")
        if self.run.stops_here():
            raise EvaluationStopped

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **_: Any) -> None:
        loss, step = float(metrics["eval_loss"]), state.global_step
        found = {name: _finite(float(value)) for name, value in metrics.items() if _is_of_the_model(name)}
        self.run.metrics(step, **found)
        say(f"Evaluated at step {step}: loss {loss:.4f}.")
        self._judge(step, found, control)
        self._tell("training")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._tell("saving")
        step, folder = state.global_step, self.run.folder.checkpoints
        self.run.ranks.meet()  # each of them has its random numbers in there
        if not self.run.ranks.is_first:
            return
        checkpoints.sync_file(self.run.folder.metrics)  # the curve must reach as far as the checkpoint
        checkpoints.seal(Path(args.output_dir) / f"checkpoint-{step}", folder, step)
        checkpoints.prune(folder, best=self.best.step)
        say(f"Saved checkpoint {step}.")
        self._tell("training")

    # -- before and after a resume --------------------------------------------------------------------------------------

    def remember(self, checkpoint: Path) -> None:
        """Leave our own memory in a checkpoint."""
        if self.run.ranks.is_first:
            write_json(checkpoint / RECORDER, {**vars(self.memory), "watch": self.watch.memory()})

    def recall(self, checkpoint: Path) -> None:
        """Take it up again. The evaluations are in metrics.jsonl."""
        memory = read_json(checkpoint / RECORDER) or {}
        self.watch.recall(memory.pop("watch", {}))
        known = {each.name for each in fields(Memory)}
        self.memory = Memory(**{name: value for name, value in memory.items() if name in known})
        self.best.recall(read_json_lines(self.run.folder.metrics))

    @property
    def times(self) -> list[float]:
        """Seconds of the last steps."""
        return list(self._times)

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
                **{name: _finite(float(value)) for name, value in logs.items() if name.startswith(STEP_METRICS)},
            )
            self.memory.losses.clear()
        self._shown = {"loss": loss} if math.isfinite(loss) else {}
        self._say_step(step, loss, logs["learning_rate"])
        if wrong:
            raise self._give_up(wrong, step - self.watch.suspects)
        if self.watch.suspects:
            control.should_save = False  # weights that may be spoilt are no checkpoint
        self._tell("saving" if control.should_save else "training")

    def _judge(self, step: int, found: dict[str, float | None], control: Any) -> None:
        """Whether it is the best so far: then its checkpoint is kept; or whether there were too many that were not."""
        try:
            better = self.best.look(step, found)
        except KeyError:
            message = f"metric_for_best_model is {self.best.metric}, which this evaluation does not measure."
            raise JobError(Cause.BAD_INPUT, message, f"It measures {', '.join(sorted(found))}.") from None
        if better and self.plan.keeps_best:
            control.should_save = True
        if self.best.stopped:
            say(
                f"No better evaluation for {self.best.worse} times; the best was at step {self.best.step}. It ends here."
            )
            control.should_save = control.should_training_stop = True

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


def _is_of_the_model(name: str) -> bool:
    return (
        name.startswith("eval_")
        and name not in NOT_OF_THE_MODEL
        and not name.startswith(("eval_logits/", "eval_logps/"))
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
