"""A file of rows as a table of tokens on disk: memory stays small however long the file is. Loads pyarrow and datasets."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets  # noqa: TID253
import pyarrow  # noqa: TID253

from jobs.data import InvalidData, Reading, sha256_of, training_rows, training_shape, unit_of
from jobs.encoding import encode
from jobs.log import say
from jobs.model import Cause
from jobs.run import Interrupted, JobError, Run

ROWS_PER_BATCH = 1000
BEAT_EVERY_S = 1.0
SCHEMA = pyarrow.schema([(name, pyarrow.list_(pyarrow.int32())) for name in ("input_ids", "labels")])


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


@dataclass
class _Counts:
    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    cut: int = 0
    dropped: int = 0


def tokenise(run: Run, field: str, tokenizer: Any, folder: Path) -> Rows:
    """The file that this field names, as tokens below `folder`. Raises JobError(bad_input) for a row that cannot be used."""
    path, spec = Path(run.order.paths[field]), run.order.spec
    target = folder / f"{field}.arrow"
    counts = _Counts()
    encoded = _encoded(run, path, spec, tokenizer, counts)
    try:
        with pyarrow.OSFile(str(target), "wb") as file, pyarrow.ipc.new_stream(file, SCHEMA) as writer:
            while batch := list(islice(encoded, ROWS_PER_BATCH)):
                writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=SCHEMA))
    except InvalidData as error:
        raise JobError(Cause.BAD_INPUT, f"{field}: {error}.", "Correct the file and submit the job again.") from error
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
) -> Iterator[dict[str, list[int]]]:
    told_at = -math.inf
    for number, row in training_rows(path, Reading.of(spec)):
        try:
            # a packed text is split where it is too long, everything else is cut
            whole = spec["packing"] and training_shape(row) == "text"
            encoded = encode(row, tokenizer, None if whole else spec["max_length"], spec["assistant_only_loss"])
        except ValueError as error:
            raise InvalidData(path, number, str(error), unit=unit_of(path)) from None
        if (now := time.monotonic()) - told_at > BEAT_EVERY_S:
            told_at = now
            run.phase("preparing", step=number)
            if run.stop_requested:
                raise Interrupted
        counts.cut += encoded.cut
        if not encoded.trained:
            counts.dropped += 1
            continue
        counts.rows += 1
        counts.tokens += len(encoded.input_ids)
        counts.trained_tokens += encoded.trained
        yield {"input_ids": encoded.input_ids, "labels": encoded.labels}
