"""Rows of training and prompt files: read them, recognise how they are written, and refuse bad ones with their line number.

Each format and each shape has a module:

    files       formats told apart: json_rows (JSONL, JSON), csv_rows, arrow_rows (Parquet, Arrow, `datasets` folders)
    shapes      shapes told apart: chat, sharegpt, alpaca, pairs, preference, openai_batch
    checking    a whole file at once

Does not know what a job is, nor what tokens are (jobs.encoding). Reads one row at a time.
"""

from jobs.data.chat import checked_messages
from jobs.data.checking import DataReport, check, check_prompts, check_training, training_rows
from jobs.data.files import format_of, identity, needs_pyarrow, read_rows, scan, sha256_of, unit_of
from jobs.data.problems import InvalidData, RowError
from jobs.data.shapes import (  # fmt: skip
    KNOWN_FIELDS,
    Converted,
    Reading,
    Shape,
    convert,
    prompt_shape,
    training_rows_of,
    training_shape,
)
from jobs.data.values import Message, Row

__all__ = [
    "KNOWN_FIELDS",
    "Converted",
    "DataReport",
    "InvalidData",
    "Message",
    "Reading",
    "Row",
    "RowError",
    "Shape",
    "check",
    "check_prompts",
    "check_training",
    "checked_messages",
    "convert",
    "format_of",
    "identity",
    "needs_pyarrow",
    "prompt_shape",
    "read_rows",
    "scan",
    "sha256_of",
    "training_rows",
    "training_rows_of",
    "training_shape",
    "unit_of",
]
