"""A file of rows as a table of tokens on disk: memory stays small however long the file is. Loads pyarrow and datasets."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets  # noqa: TID253
import pyarrow  # noqa: TID253

from jobs.data import InvalidData, Reading, Row, sha256_of, training_rows, training_shape, unit_of
from jobs.encoding import encode
from jobs.log import say
from jobs.model import Cause
from jobs.preference_tokens import encode_preference
from jobs.reading import usable, while_beating
from jobs.run import JobError, Run

ROWS_PER_BATCH = 1000
TOKENS = pyarrow.list_(pyarrow.int32())
#: The columns that each objective learns from.
SCHEMAS = {
    "sft": pyarrow.schema([("input_ids", TOKENS), ("labels", TOKENS)]),
    "dpo": pyarrow.schema([("prompt_ids", TOKENS), ("chosen_ids", TOKENS), ("rejected_ids", TOKENS)]),
    "kto": pyarrow.schema([("prompt_ids", TOKENS), ("completion_ids", TOKENS), ("label", pyarrow.bool_())]),
}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A file as tokens, and what was counted on the way."""

    dataset: Any
    sha256: str
    rows: int
    tokens: int
    trained_tokens: int
    cut: int
    dropped: int
    #: Tokens of the longest row.
    longest: int = 0


@dataclass
class _Counts:
    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    cut: int = 0
    dropped: int = 0
    longest: int = 0

    def add(self, tokens: int, trained: int, longest: int) -> None:
        """Count a row that is learnt from."""
        self.rows, self.tokens, self.trained_tokens = self.rows + 1, self.tokens + tokens, self.trained_tokens + trained
        self.longest = max(self.longest, longest)


def tokenise(run: Run, field: str, tokenizer: Any, folder: Path) -> Rows:
    """The file that this field names, as tokens below `folder`. Raises JobError(bad_input) for a row that cannot be used."""
    path, spec = Path(run.order.paths[field]), run.order.spec
    target = folder / f"{field}.arrow"
    counts = _Counts()
    encoded, schema = _encoded(run, path, spec, tokenizer, counts), SCHEMAS[spec["objective"]]
    with (
        usable(field),
        pyarrow.OSFile(str(target), "wb") as file,
        pyarrow.ipc.new_stream(file, schema) as writer,
    ):
        while batch := list(islice(encoded, ROWS_PER_BATCH)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))
    if not counts.rows:
        hint = "With a larger max_length something that can be learnt would be left of the rows."
        raise JobError(Cause.BAD_INPUT, f"{field}: there is no row to learn from.", hint if counts.dropped else "")
    say(
        f"{field}: {counts.rows} rows, {counts.tokens} tokens, {100 * counts.trained_tokens / counts.tokens:.0f} % "
        f"of them learnt; {counts.cut} rows cut at {spec['max_length']} tokens, {counts.dropped} left out."
    )
    return Rows(dataset=datasets.Dataset.from_file(str(target)), sha256=sha256_of(path), **vars(counts))


def _encoded(
    run: Run, path: Path, spec: Mapping[str, Any], tokenizer: Any, counts: _Counts
) -> Iterator[Mapping[str, Any]]:
    for number, row in while_beating(run, training_rows(path, Reading.of(spec))):
        try:
            columns = _sft_row(row, spec, tokenizer, counts) if spec["objective"] == "sft" else _preference(row, spec, tokenizer, counts)  # fmt: skip
        except ValueError as error:
            raise InvalidData(path, number, str(error), unit=unit_of(path)) from None
        if columns is None:
            counts.dropped += 1
            continue
        yield columns


def _sft_row(row: Row, spec: Mapping[str, Any], tokenizer: Any, counts: _Counts) -> Mapping[str, Any] | None:
    # a packed text is split where it is too long, everything else is cut
    whole = spec["packing"] and training_shape(row) == "text"
    encoded = encode(row, tokenizer, None if whole else spec["max_length"], spec["assistant_only_loss"])
    counts.cut += encoded.cut
    if not encoded.trained:
        return None
    counts.add(len(encoded.input_ids), encoded.trained, len(encoded.input_ids))
    return {"input_ids": encoded.input_ids, "labels": encoded.labels}


def _preference(row: Row, spec: Mapping[str, Any], tokenizer: Any, counts: _Counts) -> Mapping[str, Any] | None:
    pair = encode_preference(row, tokenizer, spec["objective"], spec["max_length"])
    if pair is None:
        return None
    counts.cut += pair.cut
    counts.add(pair.tokens, pair.trained, pair.longest)
    return pair.columns


def kept_apart(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Rows to learn from, and rows to evaluate on: always the same ones for a file and a seed."""
    count = len(rows.dataset)
    evaluated = min(count - 1, max(1, round(count * fraction)))
    if evaluated < 1:
        message = "eval_fraction: the data has one row, and none would be left to learn from."
        raise JobError(Cause.BAD_INPUT, message, "Give more rows, or leave eval_fraction out.")
    chosen = set(random.Random(seed).sample(range(count), evaluated))  # noqa: S311
    apart = [[at for at in range(count) if (at in chosen) is wanted] for wanted in (False, True)]
    learnt, held = (rows.dataset.select(places, keep_in_memory=True) for places in apart)
    return replace(rows, dataset=learnt, rows=len(learnt)), replace(rows, dataset=held, rows=len(held))
