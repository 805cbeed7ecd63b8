"""Prompt and completion: both texts, or both lists of messages."""

from typing import Any

from jobs.data.chat import checked_messages, tools_of
from jobs.data.values import Message, Notes, Row, from_json, text


def pair(row: Row, notes: Notes) -> Row:
    """A row `prompt` and `completion`. Raises ValueError with what is wrong."""
    for field in ("prompt", "completion"):
        if row.get(field) is None:
            raise ValueError(f"`{field}` is missing")
    prompt, completion = row["prompt"], row["completion"]
    if is_text(prompt) != is_text(completion):
        raise ValueError("`prompt` and `completion` must both be texts or both be lists of messages")
    if is_text(prompt):
        text(prompt, "prompt")
        if not text(completion, "completion"):
            raise ValueError("`completion` is empty")
        return {"prompt": prompt, "completion": completion}
    answer = answer_of(completion, "completion", notes)
    return {"prompt": checked_messages(prompt, "prompt", notes), "completion": answer, **tools_of(row, notes)}


def is_text(value: Any) -> bool:
    """Whether it is words, not messages; those may stand there as JSON text, and an answer may be JSON that is none."""
    if not isinstance(value, str):
        return not isinstance(value, list)
    found = from_json(value)
    return not (
        isinstance(found, list)
        and found
        and all(isinstance(part, dict) and ("role" in part or "from" in part) for part in found)
    )


def answer_of(value: Any, field: str, notes: Notes) -> list[Message]:
    """Messages that end with the assistant's. Raises ValueError."""
    answer = checked_messages(value, field, notes)
    if answer[-1]["role"] != "assistant":
        raise ValueError(f"`{field}` must end with an assistant message")
    return answer
