"""Chats: `messages` of role and content, as OpenAI, TRL and chat templates know them. With weights and tools."""

import json
from typing import Any

from jobs.data.values import Message, Notes, Row, from_json, text

ROLES = ("system", "user", "assistant", "tool")


def conversation(row: Row, notes: Notes) -> Row:
    """A row `messages` (and `tools`) with plain text contents. Raises ValueError with what is wrong."""
    messages = checked_messages(row["messages"], "messages", notes)
    need_answer(messages, "messages")
    return {"messages": messages, **tools_of(row, notes)}


def need_answer(messages: list[Message], field: str) -> None:
    """Raises ValueError when there is nothing to learn."""
    if not any(m["role"] == "assistant" and m.get("weight", 1) for m in messages):
        raise ValueError(f"`{field}` needs at least one assistant message (with a weight other than 0)")


def checked_messages(value: Any, field: str, notes: Notes | None = None) -> list[Message]:
    """The messages with plain text contents, as chat templates take them. Raises ValueError with what is wrong."""
    value = from_json(value)
    if not isinstance(value, list):
        raise ValueError(f"`{field}` must be a list of messages")
    if not value:
        raise ValueError(f"`{field}` is empty")
    notes = {} if notes is None else notes
    return [_message(message, f"{field}[{index}]", notes) for index, message in enumerate(value)]


def tools_of(row: Row, notes: Notes) -> dict[str, Any]:
    """`tools` of a row, when it offers any. Raises ValueError."""
    tools = from_json(row.get("tools"))
    if not tools and row.get("functions"):
        functions = from_json(row["functions"])
        if not isinstance(functions, list):
            raise ValueError("`functions` must be a list")
        notes["`functions` read as `tools`"] = None
        tools = [{"type": "function", "function": function} for function in functions]
    if not tools:
        return {}
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("`tools` must be a list of objects")
    return {"tools": tools}


def _message(value: Any, where: str, notes: Notes) -> Message:
    if not isinstance(value, dict):
        raise ValueError(f"`{where}` must be an object with role and content")
    role = value.get("role")
    if role == "developer":
        notes["role `developer` read as `system`"] = None
        role = "system"
    if role == "function" or value.get("function_call"):
        raise ValueError(f"`{where}` has OpenAI's old function calls; write them as `tool_calls` and role `tool`")
    if role not in ROLES:
        raise ValueError(f"`{where}.role` is {str(role)[:40]!r}; it must be one of {', '.join(ROLES)}")
    calls = [_tool_call(call, where) for call in value.get("tool_calls") or []]
    message = {**value, "role": role, "content": _content(value.get("content"), role, where, tool_calls=bool(calls))}
    message.pop("tool_calls", None)
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
        value = "".join(text(part.get("text"), f"{where}.content") for part in value)
    words = text(value, f"{where}.content")
    if not words and role == "assistant" and not tool_calls:
        raise ValueError(f"`{where}.content` is empty")
    return words


def _tool_call(value: Any, where: str) -> Any:
    """OpenAI writes a call's arguments as JSON text, chat templates want them as an object."""
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"`{where}.tool_calls` must be a list of {{type, function: {{name, arguments}}}}")
    if not isinstance(function.get("arguments"), str):
        return value
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        raise ValueError(f"`{where}.tool_calls` has arguments that are not JSON") from None
    return {**value, "function": {**function, "arguments": arguments}}
