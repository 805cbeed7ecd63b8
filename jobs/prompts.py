"""Prompts as tokens, and in which batches they are answered. Does not load the model."""

import math
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.data import InvalidData, Reading, Row, convert, read_rows, unit_of
from jobs.encoding import render
from jobs.model import Cause
from jobs.run import Interrupted, JobError, Run

BEAT_EVERY_S = 1.0


@dataclass(frozen=True)
class Prompt:
    """A row as tokens; or why it cannot be answered."""

    index: int
    row: Row
    tokens: Sequence[int] = ()
    error: str = ""


def read_prompts(run: Run, tokenizer: Any, context: int) -> Iterator[Prompt]:
    """Every row of the job's data. A row that the model cannot take carries its error; a broken file ends the job."""
    path = Path(run.order.paths["data"])
    reading, told_at = Reading.of(run.order.spec), -math.inf
    try:
        for index, (number, row) in enumerate(read_rows(path)):
            try:
                row = convert(row, reading).row
            except ValueError as error:
                raise InvalidData(path, number, str(error), unit=unit_of(path)) from None
            yield _prompt(index, row, tokenizer, context)
            if (now := time.monotonic()) - told_at > BEAT_EVERY_S:
                told_at = now
                run.phase("preparing", step=number)
                if run.stop_requested:
                    raise Interrupted
    except InvalidData as error:
        raise JobError(Cause.BAD_INPUT, f"data: {error}.", "Correct the file and submit the job again.") from error


def in_batches(prompts: Sequence[Prompt], size: int) -> list[list[int]]:
    """Rows by batch, longest first: a batch that does not fit into memory shows at once, and little is padded.

    The rows that cannot be answered come first, in a batch of their own.
    """
    failed = [prompt.index for prompt in prompts if prompt.error]
    longest_first = sorted((p for p in prompts if not p.error), key=lambda p: (-len(p.tokens), p.index))
    rows = [prompt.index for prompt in longest_first]
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [failed, *batches] if failed else batches


def _prompt(index: int, row: Row, tokenizer: Any, context: int) -> Prompt:
    try:
        text, special = _text(row, tokenizer)
    except ValueError as error:
        return Prompt(index, row, error=str(error))
    tokens = array("i", tokenizer(text, add_special_tokens=special)["input_ids"])  # 4 bytes each: all prompts are kept
    if not len(tokens):
        return Prompt(index, row, error="The prompt has no tokens.")
    if len(tokens) >= context:
        too_long = f"The prompt has {len(tokens)} tokens; the model takes {context} with its answer."
        return Prompt(index, row, error=too_long)
    return Prompt(index, row, tokens)


def _text(row: Row, tokenizer: Any) -> tuple[str, bool]:
    """The text to continue, and whether the tokenizer must add its own first token (a chat template has it)."""
    if row.get("messages") is not None:
        return render(tokenizer, row["messages"], row.get("tools"), to_answer=True), False
    if getattr(tokenizer, "chat_template", None):
        return render(tokenizer, [{"role": "user", "content": row["prompt"]}], to_answer=True), False
    return row["prompt"], True
