"""Rows of training and prompt files: read them, and refuse bad ones with their line number.

JSONL or Parquet, told apart by their first bytes. A file holds rows of one shape:

    messages            {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    prompt_completion   {"prompt": "…", "completion": "…"}, both texts or both lists of messages
    text                {"text": "…"}

Does not know what a job is, nor what tokens are (jobs.encoding). Reads one row at a time.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as with_default
from pathlib import Path
from typing import Any, Literal

Row = Mapping[str, Any]
Message = dict[str, Any]
Shape = Literal["messages", "prompt_completion", "text", "prompt", "messages prompts"]

PARQUET_MAGIC = b"PAR1"
#: Longest line that is read, so that a file without line breaks cannot fill the memory.
MAX_LINE_BYTES = 64 * 2**20
PARQUET_BATCH_ROWS = 256
#: Fields that may hold a row's text.
TEXT_FIELDS = ("messages", "prompt", "completion", "text")
ROLES = ("system", "user", "assistant", "tool")
#: Shapes of other tools, by a field that gives them away.
FOREIGN = {
    "conversations": "this is ShareGPT's shape; rewrite `conversations` (from/value) as `messages` (role/content)",
    "instruction": "this is Alpaca's shape; rewrite it as `prompt` (instruction and input) and `completion` (output)",
    "chosen": "this is preference data; supervised fine-tuning needs `messages`, `prompt`/`completion` or `text`",
    "preferred_output": "this is preference data; supervised fine-tuning needs `messages`, `prompt`/`completion` or `text`",
}
NEEDS_TRAINING = "needs `messages`, `prompt` and `completion`, or `text`"
NEEDS_PROMPT = "needs `prompt` (a text) or `messages`"


class InvalidData(ValueError):
    """A file that cannot be used, and the line (JSONL) or row (Parquet) that is wrong."""

    def __init__(self, path: Path, line: int | None, message: str, *, unit: str = "line"):
        self.path, self.line, self.message = path, line, message
        super().__init__(f"{unit} {line}: {message}" if line else message)


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What a whole, valid file holds."""

    rows: int
    shape: Shape
    sha256: str
    #: Its text without the JSON around it, as UTF-8: all rows together, and the longest one.
    text_bytes: int = with_default(default=0, compare=False)
    longest_bytes: int = with_default(default=0, compare=False)


# -- checking a whole file ----------------------------------------------------------------------------------------------


def check_training(path: Path) -> DataReport:
    """Read every row of a training file. Raises InvalidData for the first bad one."""
    return _check(path, training_shape)


def check_prompts(path: Path) -> DataReport:
    """Read every row of a file of prompts. Raises InvalidData for the first bad one; ids must be unique."""
    seen: set[str] = set()

    def shape(row: Row) -> Shape:
        found = prompt_shape(row)
        if (given := row.get("id")) is not None:
            if isinstance(given, bool) or not isinstance(given, (str, int)):
                raise ValueError("`id` must be a text or a whole number")
            if str(given) in seen:
                raise ValueError(f"`id` {str(given)[:60]!r} was used before")
            seen.add(str(given))
        return found

    return _check(path, shape)


def _check(path: Path, shape_of: Callable[[Row], Shape]) -> DataReport:
    shape: Shape | None = None
    count = total_bytes = longest_bytes = 0
    unit = unit_of(path)
    for line, row in read_rows(path):
        try:
            found = shape_of(row)
        except ValueError as error:
            raise InvalidData(path, line, str(error), unit=unit) from None
        if shape is not None and found != shape:
            message = f"has {_words(found)}, but the rows before have {_words(shape)}; one file holds one shape"
            raise InvalidData(path, line, message, unit=unit)
        shape = found
        count += 1
        row_bytes = _text_bytes(row)
        total_bytes, longest_bytes = total_bytes + row_bytes, max(longest_bytes, row_bytes)
    if shape is None:
        raise InvalidData(path, None, "the file has no rows")
    return DataReport(
        rows=count, shape=shape, sha256=sha256_of(path), text_bytes=total_bytes, longest_bytes=longest_bytes
    )


def _text_bytes(row: Row) -> int:
    """How much text is in a row, however deep."""
    total, todo = 0, [row.get(name) for name in TEXT_FIELDS]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            total += len(value) if value.isascii() else len(value.encode(errors="replace"))
        elif isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list):
            todo += value
    return total


def _words(shape: Shape) -> str:
    return {"prompt_completion": "`prompt`/`completion`", "messages prompts": "`messages`"}.get(shape, f"`{shape}`")


def sha256_of(path: Path) -> str:
    """Hash of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- reading rows -------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Each row with its line (JSONL) or row number (Parquet), from 1. Raises InvalidData where it cannot be read."""
    return _parquet_rows(path) if _is_parquet(path) else _json_rows(path)


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == PARQUET_MAGIC
    except OSError as error:
        raise InvalidData(path, None, f"the file cannot be read: {error.strerror}") from None


def unit_of(path: Path) -> str:
    """What a row is called in messages about this file."""
    return "row" if _is_parquet(path) else "line"


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise InvalidData(path, number, f"is longer than {MAX_LINE_BYTES // 2**20} MiB; one row is one line")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # some editors put a byte-order mark first
            if line.strip():
                yield number, _json_row(path, number, line)


def _json_row(path: Path, number: int, line: bytes) -> Row:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InvalidData(path, number, f"not UTF-8 text (byte {error.start + 1} of the line)") from None
    except RecursionError:
        raise InvalidData(path, number, "nested too deeply") from None
    except ValueError as error:
        hint = "; one row is one line, not one JSON array" if number == 1 and line.lstrip().startswith(b"[") else ""
        raise InvalidData(path, number, f"not valid JSON: {_reason(error)}{hint}") from None
    if not isinstance(value, dict):
        hint = "; one row is one line" if isinstance(value, list) else ""
        raise InvalidData(path, number, f"not a JSON object but {type(value).__name__}{hint}")
    return value


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    return str(error).split(";")[0]


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InvalidData(path, None, "Parquet needs the package pyarrow on the rig; JSONL does not") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, _without_nulls(row)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        where = number + 1 if number else None
        reason = str(error).splitlines()[0][:200]
        raise InvalidData(path, where, f"not readable as Parquet: {reason}", unit="row") from None


def _without_nulls(value: Any) -> Any:
    """Parquet fills every field of a struct; what JSON would leave out comes as None."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


# -- the shape of one row -----------------------------------------------------------------------------------------------


def training_shape(row: Row) -> Shape:
    """The shape of a training row. Raises ValueError with what is wrong."""
    if row.get("messages") is not None:
        messages = checked_messages(row["messages"], "messages")
        if not any(m["role"] == "assistant" and m.get("weight", 1) for m in messages):
            raise ValueError("`messages` needs at least one assistant message (with a weight other than 0)")
        return "messages"
    if row.get("prompt") is not None or row.get("completion") is not None:
        _check_pair(row)
        return "prompt_completion"
    if row.get("text") is not None:
        if not _text(row["text"], "text").strip():
            raise ValueError("`text` is empty")
        return "text"
    raise ValueError(_lacks(row, NEEDS_TRAINING))


def prompt_shape(row: Row) -> Shape:
    """The shape of a prompt. Raises ValueError with what is wrong."""
    if row.get("messages") is not None:
        messages = checked_messages(row["messages"], "messages")
        if messages[-1]["role"] == "assistant":
            raise ValueError("`messages` ends with the assistant's words; there is nothing left to answer")
        return "messages prompts"
    if row.get("prompt") is not None:
        if not _text(row["prompt"], "prompt"):
            raise ValueError("`prompt` is empty")
        return "prompt"
    raise ValueError(_lacks(row, NEEDS_PROMPT))


def _lacks(row: Row, needs: str) -> str:
    for field, hint in FOREIGN.items():
        if field in row:
            return hint
    fields = ", ".join(f"`{str(name)[:40]}`" for name in list(row)[:6]) or "no fields"
    return f"{needs}; it has {fields}"


def _check_pair(row: Row) -> None:
    for field in ("prompt", "completion"):
        if row.get(field) is None:
            raise ValueError(f"`{field}` is missing")
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) != isinstance(completion, str):
        raise ValueError("`prompt` and `completion` must both be texts or both be lists of messages")
    if isinstance(prompt, str):
        _text(prompt, "prompt")
        if not _text(completion, "completion"):
            raise ValueError("`completion` is empty")
        return
    checked_messages(prompt, "prompt")
    if any(m["role"] != "assistant" for m in checked_messages(completion, "completion")[-1:]):
        raise ValueError("`completion` must end with an assistant message")


def checked_messages(value: Any, field: str) -> list[Message]:
    """The messages with plain text contents, as chat templates take them. Raises ValueError with what is wrong."""
    if not isinstance(value, list):
        raise ValueError(f"`{field}` must be a list of messages")
    if not value:
        raise ValueError(f"`{field}` is empty")
    return [_message(message, f"{field}[{index}]") for index, message in enumerate(value)]


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise ValueError(f"`{where}` must be an object with role and content")
    role = value.get("role")
    if role not in ROLES:
        raise ValueError(f"`{where}.role` is {str(role)[:40]!r}; it must be one of {', '.join(ROLES)}")
    calls = [_tool_call(call, where) for call in value.get("tool_calls") or []]
    message = {**value, "content": _content(value.get("content"), role, where, tool_calls=bool(calls))}
    if calls:
        message["tool_calls"] = calls
    if value.get("weight", 1) not in (0, 1):
        raise ValueError(f"`{where}.weight` must be 0 or 1")
    return message


def _content(value: Any, role: str, where: str, *, tool_calls: bool) -> str:
    if value is None and tool_calls:
        return ""
    if isinstance(value, list):  # OpenAI's content parts
        if any(not isinstance(part, dict) or part.get("type") != "text" for part in value):
            raise ValueError(f"`{where}.content` has a part that is not text; only text can be used")
        value = "".join(_text(part.get("text"), f"{where}.content") for part in value)
    text = _text(value, f"{where}.content")
    if not text and role == "assistant" and not tool_calls:
        raise ValueError(f"`{where}.content` is empty")
    return text


def _tool_call(value: Any, where: str) -> Any:
    """OpenAI writes a call's arguments as JSON text, chat templates want them as an object."""
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return value
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        raise ValueError(f"`{where}.tool_calls` has arguments that are not JSON") from None
    return {**value, "function": {**function, "arguments": arguments}}


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"`{field}` must be a text, not {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"`{field}` holds half of a surrogate pair, which is not valid Unicode") from None
    return value
