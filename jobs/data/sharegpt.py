"""ShareGPT's shape: `conversations` of from and value, with its many names for who speaks."""

from typing import Any

from jobs.data.chat import checked_messages, need_answer, tools_of
from jobs.data.values import Message, Notes, Row, from_json, text

FIELDS = ("conversations", "conversation")
SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
#: Its value is a call as JSON: {"name": ..., "arguments": {...}}.
CALL = "function_call"


def conversation(row: Row, notes: Notes) -> Row:
    """A row `messages` from ShareGPT's. Raises ValueError with what is wrong."""
    field, messages = messages_of(row, notes)
    need_answer(messages, field)
    return {"messages": messages, **tools_of(row, notes)}


def messages_of(row: Row, notes: Notes) -> tuple[str, list[Message]]:
    """The field's name and its messages. A `system` beside them comes first."""
    field = next(name for name in FIELDS if row.get(name) is not None)
    turns = from_json(row[field])
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"`{field}` must be a list of messages, and not empty")
    notes[f"ShareGPT's `{field}` read as `messages`"] = None
    messages = [message_of(turn, f"{field}[{index}]") for index, turn in enumerate(turns)]
    if row.get("system"):
        messages.insert(0, {"role": "system", "content": text(row["system"], "system")})
    return field, checked_messages(messages, field, notes)


def message_of(turn: Any, where: str) -> Message:
    """One message from `from` and `value`; one that has a role already stays as it is."""
    if not isinstance(turn, dict):
        raise ValueError(f"`{where}` must be an object with from and value")
    if "role" in turn:
        return turn
    speaker = str(turn.get("from")).lower()
    kept = {"weight": turn["weight"]} if turn.get("weight") is not None else {}
    if speaker == CALL:
        return {"role": "assistant", "content": "", "tool_calls": _calls(turn.get("value"), where), **kept}
    if speaker not in SPEAKERS:
        known = ", ".join((*SPEAKERS, CALL))
        raise ValueError(f"`{where}.from` is {str(turn.get('from'))[:40]!r}; known are {known}")
    return {"role": SPEAKERS[speaker], "content": text(turn.get("value"), f"{where}.value"), **kept}


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    found = from_json(value)
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise ValueError(f"`{where}.value` must be a call as JSON: {{name, arguments}}")
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": from_json(call.get("arguments") or {})}}
        for call in calls
    ]
