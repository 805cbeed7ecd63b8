"""A preflight: what a job does first, last and most, done once ahead of time, and what that tells of the whole.

Two optimizer steps on the longest rows (the first one fills the optimizer, the second one has the highest peak), a real
checkpoint, a third step on usual rows that goes on from it, an evaluation batch, an answer, the result's files. jobs.finetune and
jobs.generate carry it out; here stands which rows, how it is measured, and what follows. Loads torch.
"""

import math
import random
import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow.compute  # noqa: TID253
import torch  # noqa: TID253

from jobs import checkpoints
from jobs.encoding import IGNORED
from jobs.estimate import save_every
from jobs.log import clock_time, say
from jobs.model import Cause
from jobs.run import JobError, Run
from jobs.rundir import write_json

STEPS_ON_LONGEST, STEPS = 2, 3
#: Of the sample: enough to see that the model speaks, little enough to wait for.
SAMPLE_PROMPT_TOKENS, SAMPLE_TOKENS = 512, 32
#: What a process holds on a GPU beside torch's own memory: context, cuBLAS, cuDNN. A guess, to be measured (docs/gpu-checks.md).
CONTEXT_BYTES = 512 << 20


@dataclass
class Stopwatch:
    """Seconds by what was done."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, name: str) -> "_Timed":
        """For `with`: how long the block takes."""
        return _Timed(self, name)


class _Timed:
    def __init__(self, watch: Stopwatch, name: str):
        self._watch, self._name = watch, name

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self._watch.seconds[self._name] = time.monotonic() - self._began


# -- which rows -----------------------------------------------------------------------------------------------------------


def short(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The document of the few steps."""
    unjudged = {"eval_steps": None, "load_best_model_at_end": False, "early_stopping_patience": None}
    return {**spec, **unjudged, "max_steps": STEPS_ON_LONGEST, "save_steps": STEPS_ON_LONGEST, "logging_steps": 1}


def rows_of_steps(dataset: Any, per_step: int, seed: int) -> Any:
    """The rows of the steps in their order: twice the longest, then usual ones. Those of a small file come several times."""
    ranked = by_length(dataset)
    usual = random.Random(seed).sample(ranked, min(per_step, len(ranked)))  # noqa: S311
    longest = list(islice(cycle(ranked), per_step))
    return dataset.select([*longest, *longest, *islice(cycle(usual), per_step)], keep_in_memory=True)


def longest_batch(dataset: Any, size: int) -> Any:
    """The longest rows, as many as go through the model at once."""
    return dataset.select(by_length(dataset)[:size], keep_in_memory=True)


def by_length(dataset: Any) -> list[int]:
    """Places of all rows, the longest first."""
    lengths = list(_lengths(dataset))
    return sorted(range(len(lengths)), key=lambda at: -lengths[at])


def _lengths(dataset: Any) -> Iterator[int]:
    columns = [name for name in dataset.column_names if name.endswith("_ids")]
    for table in dataset.with_format("arrow").iter(batch_size=10_000):
        counts = [pyarrow.compute.list_value_length(table[name]).to_pylist() for name in columns]
        yield from map(sum, zip(*counts, strict=True))


# -- what it must be able to do ---------------------------------------------------------------------------------------------


def read_back(run: Run) -> Path:
    """The checkpoint that was just sealed, verified byte by byte. Raises JobError when it is not whole."""
    folder = run.folder.checkpoints
    found = checkpoints.sealed(folder)
    wrong = checkpoints.what_is_wrong(found[-1]) if found else "it is not there"
    if wrong is not None:
        message = f"Its checkpoint was written and cannot be read back: {wrong}."
        raise JobError(Cause.USER_ERROR, message, "The disk of the run folder may be faulty: look at the kernel's log.")
    say(f"Checkpoint {checkpoints.step_of(found[-1])} was read back and is whole.")
    return found[-1]


def sample(trainer: Any, tokenizer: Any, row: Mapping[str, Any]) -> dict[str, str]:
    """What the model answers to a row's prompt after the few steps: that it can be used at all, not that it is good."""
    prompt = _prompt(row)[-SAMPLE_PROMPT_TOKENS:]
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.eval()
    tokens = torch.tensor([prompt], device=trainer.args.device)
    with torch.inference_mode(), trainer.accelerator.autocast():
        output = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=SAMPLE_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    answer = tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)
    say(f"A sample: {answer[:200]!r}")
    return {"prompt": tokenizer.decode(prompt), "answer": answer}


def _prompt(row: Mapping[str, Any]) -> list[int]:
    """What comes before the first token that is learnt; of a text that is learnt whole its beginning."""
    if "prompt_ids" in row:
        return list(row["prompt_ids"]) or list(row.get("chosen_ids", row.get("completion_ids", ())))[:1]
    first = next((at for at, label in enumerate(row["labels"]) if label != IGNORED), 0)
    return list(row["input_ids"][: first or 16])


# -- what was measured --------------------------------------------------------------------------------------------------------


def peak(device: Any) -> dict[str, float]:
    """The most memory so far, bytes: of the fullest GPU by torch's own count and a context, or of the process on a CPU."""
    if device.is_gpu:
        most = max(map(torch.cuda.max_memory_reserved, range(torch.cuda.device_count())))
        return {"peak_vram_bytes": float(most + CONTEXT_BYTES)}
    return {
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    }  # Linux counts KiB: getrusage(2)


def of_training(
    spec: Mapping[str, Any], steps: int, seconds: Mapping[str, float], *, eval_batches: int, checkpoint_bytes: int
) -> dict[str, float]:
    """What follows for the whole training. `seconds`: of loading, a usual step, a checkpoint, an evaluation batch, the result."""
    saves = math.ceil(steps / save_every(spec, steps))
    evaluations = 1 + (steps - 1) // spec["eval_steps"] if eval_batches and spec["eval_steps"] else bool(eval_batches)
    expected_s = (
        seconds["loading"]
        + steps * seconds["step"]
        + saves * seconds["checkpoint"]
        + evaluations * eval_batches * seconds.get("evaluation", 0.0)
        + seconds["result"]
    )
    return {
        "expected_s": round(expected_s, 1),
        "steps": float(steps),
        "step_s": round(seconds["step"], 4),
        "checkpoint_s": round(seconds["checkpoint"], 3),
        "checkpoint_bytes": float(checkpoint_bytes),
    }


def of_generation(batches: int, seconds: Mapping[str, float]) -> dict[str, float]:
    """What follows for all batches; the longest ones were measured, so it is the most that it will be."""
    return {
        "expected_s": round(seconds["loading"] + batches * seconds["batch"], 1),
        "steps": float(batches),
        "step_s": round(seconds["batch"], 4),
    }


def passed(run: Run, measured: Mapping[str, float], *, sample: Mapping[str, str] | None = None) -> dict[str, float]:
    """Leave it in the run folder, say it in the log, and return it for the job's record."""
    write_json(run.folder.preflight, {"measured": dict(measured), "sample": dict(sample or {})})
    memory = measured.get("peak_vram_bytes") or measured.get("peak_rss_bytes") or 0.0
    say(
        f"The preflight passed: {memory / 2**30:.1f} GiB at its peak, {measured['step_s']:.2f} s a step, "
        f"about {clock_time(measured['expected_s'])} for the whole job."
    )
    return dict(measured)


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
