"""Evaluation: a model measured on the rows of a file, on lm-eval's tasks, or on both.

Rows are measured longest first and appended batch by batch to output/rows.jsonl, resumed by row; what they say together is
`jobs.evaluation`'s to tell. Loads torch and transformers.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch  # noqa: TID253

from jobs import environment, evaluation, weights
from jobs.data import sha256_of
from jobs.evaluation import DEFINITION, MEASURED_ON, harness, measuring
from jobs.evaluation.questions import Item, fingerprint, in_batches, read_items
from jobs.log import clock_time, say
from jobs.metrics import is_finite
from jobs.model import Cause
from jobs.rows_file import Row, RowsFile
from jobs.run import Interrupted, JobError, Run
from jobs.rundir import keep_json_lines, write_json

LOG_EVERY_S = 10.0
#: What rows depend on beside the content of files; a change makes them another job's.
IDENTITY = ("model", "dtype", "data_fields", "assistant_only_loss", "max_length", "max_new_tokens", "limit")
#: Rows that results.json shows as the worst ones, and characters of their texts.
WORST, SHOWN_CHARS = 20, 400

#: Rows of rows.jsonl for items, in their order. Raises torch's OutOfMemoryError when there are too many at once.
Measure = Callable[[Sequence[Item]], list[Row]]


def run(run: Run) -> dict[str, Any]:
    """Measure the model. Returns metrics with their standard errors, and what tells with which results they compare."""
    spec = run.order.spec
    weights.quiet_libraries()
    weights.limit_threads()
    environment.record(run)
    device = weights.device(spec)
    run.phase("loading")
    tokenizer = weights.load_tokenizer(run.order)
    items = read_items(run, tokenizer, measuring.context_of(run, tokenizer)) if "data" in run.order.paths else []
    run.phase("loading")
    model = weights.load_model(run.order, device, trainable=False)
    metrics: dict[str, Any] = {}
    measured_on: dict[str, Any] = {"definition": DEFINITION}
    results: dict[str, Any] = {}
    if items:
        rows, resumed = _rows(run, measuring.Measurer(run, model, tokenizer, device), items, device)
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


# -- rows ---------------------------------------------------------------------------------------------------------------


def _rows(run: Run, measure: Measure, items: Sequence[Item], device: weights.Device) -> tuple[list[Row], int]:
    """Every row measured, and how many of them were taken as an earlier attempt left them."""
    file = _open(run, device)
    done = file.resume() if run.order.resume else set()
    if not done:
        file.start_over()
    left = in_batches([one for one in items if one.index not in done], run.order.spec["batch_size"])
    asked = sum(bool(one.expected) for one in items)
    say(f"{len(items)} rows, {asked} of them questions; {len(done)} measured before; on the {device.name} in {device.dtype}.")  # fmt: skip
    work(run, measure, items, left, file, done=len(done))
    file.finish()
    return list(file), len(done)


def work(
    run: Run, measure: Measure, items: Sequence[Item], batches: Sequence[Sequence[int]], file: RowsFile, *, done: int
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


def _fitting(measure: Measure, batch: Sequence[Item], size: int) -> tuple[list[Row], int]:
    """Measure a batch in parts of at most `size`; halve it as often as the GPU's memory asks for. Returns the size that fitted."""
    made: list[Row] = []
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


def _open(run: Run, device: weights.Device) -> RowsFile:
    """The rows of these orders: what an earlier attempt left counts when it measured the same."""
    spec = run.order.spec
    order = {name: spec[name] for name in IDENTITY} | {"definition": DEFINITION, "computed_in": device.dtype}
    order |= environment.contents(spec, run.order.paths, ("model", "adapter", "data", "chat_template"))
    return RowsFile(run.folder.rows, run.folder.checkpoints / "rows.json", order)


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


def _shortened(row: evaluation.Row) -> Row:
    return {name: value[:SHOWN_CHARS] if isinstance(value, str) else value for name, value in row.items()}
