"""The rows of an evaluation as tokens: what is measured, and which question has which expected answer. Does not load the model."""

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from jobs.data import Converted, InvalidData, Message, Reading, Row, convert, read_rows, unit_of
from jobs.encoding import IGNORED, Encoded, encode_converted, render
from jobs.model import Cause
from jobs.reading import usable, while_beating
from jobs.run import JobError, Run


@dataclass(frozen=True, kw_only=True)
class Item:
    """A row. `labels` is IGNORED where nothing is measured; `question` is empty where no answer can be asked for."""

    index: int
    id: Any
    tokens: Sequence[int]
    labels: Sequence[int]
    cut: bool = False
    question: Sequence[int] = ()
    expected: str = ""

    @property
    def length(self) -> int:
        """How many tokens a batch with this row has to hold."""
        return max(len(self.tokens), len(self.question))


def read_items(run: Run, tokenizer: Any, context: int) -> list[Item]:
    """Every row of the job's data, or the first `limit` ones. Raises JobError(bad_input) for a row that cannot be used.

    `context`: tokens that the model takes; a question that leaves no room for an answer is not asked.
    """
    path, spec = Path(run.order.paths["data"]), run.order.spec
    items: list[Item] = []
    with usable("data"):
        for index, (number, row) in enumerate(while_beating(run, islice(read_rows(path), spec["limit"]))):
            try:
                items.append(item(index, row, spec, tokenizer, context))
            except ValueError as error:
                raise InvalidData(path, number, str(error), unit=unit_of(path)) from None
    if not any(_measured(one) for one in items):
        hint = "With a larger max_length something of the answers would be left." if items else ""
        raise JobError(Cause.BAD_INPUT, "data: there is nothing to measure on.", hint)
    return items


def item(index: int, row: Row, spec: Mapping[str, Any], tokenizer: Any, context: int) -> Item:
    """One row as tokens, masked as a fine-tune would learn it. Raises ValueError."""
    converted = convert(row, Reading.of(spec))
    most = min(spec["max_length"], context)
    encoded = encode_converted(converted, tokenizer, most, spec["assistant_only_loss"])
    question, expected = _asked(converted, encoded, tokenizer) if spec["max_new_tokens"] else ((), "")
    if not expected.strip() or len(question) >= context:
        question, expected = (), ""
    given = row.get("id")
    return Item(
        index=index,
        id=given if isinstance(given, (str, int)) and not isinstance(given, bool) else index,
        tokens=array("i", encoded.input_ids),  # 4 bytes each: all rows are kept
        labels=array("i", encoded.labels),
        cut=encoded.cut,
        question=array("i", question),
        expected=expected,
    )


def fingerprint(items: Iterable[Item]) -> str:
    """SHA-256 of what is measured, to the token: equal for two models that read the same rows in the same way."""
    digest = hashlib.sha256()
    for one in items:
        for numbers in (one.tokens, one.labels):
            digest.update(len(numbers).to_bytes(4, "little") + b"".join(n.to_bytes(4, "little", signed=True) for n in numbers))  # fmt: skip
    return digest.hexdigest()


def in_batches(items: Sequence[Item], size: int) -> list[list[int]]:
    """Rows by batch, the longest first: a batch that does not fit into memory shows at once, and little is padded."""
    rows = [one.index for one in sorted(items, key=lambda one: (-one.length, one.index))]
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _measured(one: Item) -> bool:
    return any(label != IGNORED for label in one.labels[1:])


def _asked(converted: Converted, encoded: Encoded, tokenizer: Any) -> tuple[Sequence[int], str]:
    """The tokens before the last answer, and that answer. Nothing for plain text, or where there is no answer to learn."""
    row = converted.row
    if converted.shape == "text":
        return (), ""
    if isinstance(row.get("prompt"), str):
        # as they stand in the row: the model is asked exactly what it would be taught after
        first = next((at for at, label in enumerate(encoded.labels) if label != IGNORED), 0)
        return encoded.input_ids[:first], str(row["completion"])
    messages: list[Message] = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
    last = next((at for at in reversed(range(len(messages))) if _is_answer(messages[at])), 0)
    if not last:
        return (), ""
    text = render(tokenizer, messages[:last], row.get("tools"), to_answer=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]), str(messages[last]["content"])


def _is_answer(message: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and bool(message.get("weight", 1))
