"""Evaluation: a model measured on the rows of a file, on lm-eval's tasks, or on both.

Rows are measured longest first and appended batch by batch to output/rows.jsonl, resumed by row; what they say together is
`jobs.evaluation`'s to tell. Loads torch and transformers.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from transformers import GenerationConfig  # noqa: TID253

from jobs import environment, evaluation, harness, weights
from jobs.data import sha256_of
from jobs.evaluation import DEFINITION, MEASURED_ON
from jobs.generate import Patience
from jobs.generations import Answer, Generations
from jobs.log import clock_time, say
from jobs.metrics import is_finite
from jobs.model import Cause
from jobs.questions import Item, fingerprint, in_batches, read_items
from jobs.run import Interrupted, JobError, Run
from jobs.rundir import keep_json_lines, write_json
from jobs.scoring import Score, Scorer

LOG_EVERY_S = 10.0
#: What rows depend on beside the content of files; a change makes them another job's.
IDENTITY = ("model", "dtype", "data_fields", "assistant_only_loss", "max_length", "max_new_tokens", "limit")
#: Rows that results.json shows as the worst ones, and characters of their texts.
WORST, SHOWN_CHARS = 20, 400

#: Rows of rows.jsonl for items, in their order. Raises torch's OutOfMemoryError when there are too many at once.
Measure = Callable[[Sequence[Item]], list[Answer]]


def run(run: Run) -> dict[str, Any]:
    """Measure the model. Returns metrics with their standard errors, and what tells with which results they compare."""
    spec = run.order.spec
    weights.quiet_libraries()
    weights.limit_threads()
    environment.record(run)
    device = weights.device(spec)
    run.phase("loading")
    tokenizer = weights.load_tokenizer(run.order)
    items = read_items(run, tokenizer, context_of(run, tokenizer)) if "data" in run.order.paths else []
    run.phase("loading")
    model = weights.load_model(run.order, device, trainable=False)
    metrics: dict[str, Any] = {}
    measured_on: dict[str, Any] = {"definition": DEFINITION}
    results: dict[str, Any] = {}
    if items:
        rows, resumed = _rows(run, _Measurer(run, model, tokenizer, device), items, device)
        metrics |= evaluation.summary(rows) | {"resumed_rows": resumed}
        measured_on |= metrics[MEASURED_ON] | _told_apart(run, tokenizer, items)
        results["worst"] = [_shortened(row) for row in evaluation.worst(rows, WORST)]
    if spec["tasks"]:
        found = harness.evaluate(run, model, tokenizer)
        metrics |= found.metrics
        measured_on["tasks_sha256"] = found.sha256
        results["tasks"] = found.report
    metrics[MEASURED_ON] = measured_on
    write_json(run.folder.results, {"metrics": metrics, **results})
    keep_json_lines(run.folder.metrics, lambda _: False)
    run.metrics(len(items), **{name: value for name, value in metrics.items() if is_finite(value)})
    return metrics


def context_of(run: Run, tokenizer: Any) -> int:
    """How many tokens the model takes, told by its configuration."""
    from transformers import AutoConfig

    source = weights.sources(run.order)
    config = AutoConfig.from_pretrained(source.model, revision=source.revision, trust_remote_code=False)
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
    return min(int(limit) for limit in limits if limit)


# -- rows ---------------------------------------------------------------------------------------------------------------


def _rows(run: Run, measure: Measure, items: Sequence[Item], device: weights.Device) -> tuple[list[Answer], int]:
    """Every row measured, and how many of them were taken as an earlier attempt left them."""
    batches = in_batches(items, run.order.spec["batch_size"])
    file = _open(run, device)
    done = file.resume(batches) if run.order.resume else set()
    if not done:
        file.start_over()
    left = [batch for batch in batches if batch[0] not in done]
    asked = sum(bool(one.expected) for one in items)
    say(f"{len(items)} rows, {asked} of them questions; {len(done)} measured before; on the {device.name} in {device.dtype}.")  # fmt: skip
    work(run, measure, items, left, file, done=len(done))
    return file.finish(), len(done)


def work(
    run: Run, measure: Measure, items: Sequence[Item], batches: Sequence[Sequence[int]], file: Generations, *, done: int
) -> None:
    """Measure these batches one after the other. Raises Interrupted between two of them."""
    began = said_at = time.monotonic()
    before, size = done, run.order.spec["batch_size"]
    run.phase("evaluating", step=done, total=len(items))
    for batch in batches:
        if run.stop_requested:
            raise Interrupted
        rows, size = _fitting(measure, [items[index] for index in batch], size)
        if wrong := next((row for row in rows if not is_finite(row.get("loss", 0.0))), None):
            hint = "Its weights are damaged, or too large for this dtype: try dtype float32."
            raise JobError(Cause.BAD_INPUT, f"The model's loss on row {wrong['id']} is not a number.", hint)
        file.append(rows)
        done += len(rows)
        now = time.monotonic()
        left_s = (now - began) / (done - before) * (len(items) - done)
        run.progress(step=done, total=len(items), phase="evaluating", eta_s=round(left_s, 1))
        if now - said_at > LOG_EVERY_S or done == len(items):
            said_at = now
            say(f"{done}/{len(items)} rows, {clock_time(left_s)} left")


def _fitting(measure: Measure, batch: Sequence[Item], size: int) -> tuple[list[Answer], int]:
    """Measure a batch in parts of at most `size`; halve it as often as the GPU's memory asks for. Returns the size that fitted."""
    made: list[Answer] = []
    while len(made) < len(batch):
        part = batch[len(made) : len(made) + size]
        try:
            made += measure(part)
            continue
        except torch.OutOfMemoryError:
            pass  # outside of the handler, so that the traceback lets go of the tensors
        torch.cuda.empty_cache()
        if len(part) == 1:
            # a result without its longest rows would be another one
            hint = "Use a shorter max_length or max_new_tokens, a smaller model, or a GPU with more free memory."
            raise JobError(Cause.OOM_GPU, "The GPU's memory ran out with one row alone.", hint)
        size = len(part) // 2
        say(f"The GPU's memory ran out; going on with {size} rows at a time.")
    return made, size


def _open(run: Run, device: weights.Device) -> Generations:
    """The rows of these orders: what an earlier attempt left counts when it measured the same."""
    spec = run.order.spec
    order = {name: spec[name] for name in IDENTITY} | {"definition": DEFINITION, "computed_in": device.dtype}
    order |= environment.comparable(spec, run.order.paths)["inputs"]
    return Generations(run.folder.rows, run.folder.checkpoints / "rows.json", order)


class _Measurer:
    """Scores and answers of a batch as rows."""

    def __init__(self, run: Run, model: Any, tokenizer: Any, device: weights.Device):
        self._run, self._tokenizer, self._device = run, tokenizer, device
        self._model, self._scorer = model, Scorer(model, device, tokenizer.pad_token_id)
        self._ends = _end_tokens(model, tokenizer)
        self._context = context_of(run, tokenizer)

    def __call__(self, items: Sequence[Item]) -> list[Answer]:
        """One row of rows.jsonl for each item."""
        scores = self._scorer(items)
        self._run.beat()
        asked = [one for one in items if one.expected]
        answers = dict(zip((one.index for one in asked), self._answers(asked), strict=True)) if asked else {}
        return [_row(one, score, answers.get(one.index)) for one, score in zip(items, scores, strict=True)]

    def _answers(self, items: Sequence[Item]) -> list[str]:
        """What the model says itself, greedily."""
        longest, pad = max(len(one.question) for one in items), self._tokenizer.pad_token_id
        ids = [[pad] * (longest - len(one.question)) + list(one.question) for one in items]  # left: the answer follows
        mask = [[0] * (longest - len(one.question)) + [1] * len(one.question) for one in items]
        patience = Patience(self._run)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=torch.tensor(ids, device=self._device.name),
                attention_mask=torch.tensor(mask, device=self._device.name),
                generation_config=GenerationConfig(
                    max_new_tokens=min(self._run.order.spec["max_new_tokens"], self._context - longest),
                    do_sample=False,
                    eos_token_id=self._ends,
                    pad_token_id=pad,
                ),
                stopping_criteria=[patience],
            )
        if patience.lost:
            raise Interrupted
        return [self._text(tokens) for tokens in output[:, longest:].tolist()]

    def _text(self, tokens: Sequence[int]) -> str:
        end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
        return str(self._tokenizer.decode(tokens[:end], skip_special_tokens=True))


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: chat models often have several."""
    configured = model.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return sorted({int(token) for token in (*several, tokenizer.eos_token_id) if token is not None})


def _row(one: Item, score: Score, answer: str | None) -> Answer:
    row: Answer = {
        "index": one.index,
        "id": one.id,
        "loss": score.loss / score.tokens if score.tokens else 0.0,
        "tokens": score.tokens,
        "correct": score.correct,
        "all_loss": score.all_loss / score.all_tokens if score.all_tokens else 0.0,
        "all_tokens": score.all_tokens,
        "cut": one.cut,
    }
    if answer is not None:
        row["answer"], row["expected"] = answer, one.expected
        row["exact"] = evaluation.is_exact(answer, one.expected)
        row["includes"] = evaluation.includes(answer, one.expected)
    return row


def _told_apart(run: Run, tokenizer: Any, items: Sequence[Item]) -> dict[str, Any]:
    """What tells with which other results these compare (jobs.evaluation.basis), in a person's words and exactly."""
    spec = run.order.spec
    template = getattr(tokenizer, "chat_template", None)
    return {
        "max_length": spec["max_length"],
        "max_new_tokens": spec["max_new_tokens"],
        "data_sha256": sha256_of(Path(run.order.paths["data"])),
        "template_sha256": harness.sha256_of_words(template) if template else None,
        "tokens_sha256": fingerprint(items),
    }


def _shortened(row: evaluation.Row) -> Answer:
    return {name: value[:SHOWN_CHARS] if isinstance(value, str) else value for name, value in row.items()}
