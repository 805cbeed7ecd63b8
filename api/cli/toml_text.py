"""A job document as TOML that a person edits, and the changes that they made. Reading is tomllib's; only writing is ours."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

Json = dict[str, Any]

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
#: Shown as moments, not as numbers.
MOMENTS = ("not_before",)


def written(document: Mapping[str, Any]) -> str:
    """The document as TOML. Fields without a value stand there as comments: they can be given one."""
    tables = {name: value for name, value in document.items() if isinstance(value, Mapping) and value}
    lines = [_line(name, value) for name, value in document.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{_key(name)}]", *(_line(key, value) for key, value in table.items())]
    return "\n".join(lines) + "\n"


def read(text: str) -> Json:
    """The document in a text. Raises ValueError, which names the line."""
    return {name: _plain(value) for name, value in tomllib.loads(text).items()}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Json:
    """What makes the one the other, as a JSON merge patch: null for a line that was taken out."""
    patch: Json = {name: None for name in before if name not in after}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            if inner := changes(old, value):
                patch[name] = inner
        elif name not in before or value != old or type(value) is not type(old):
            patch[name] = value
    return patch


def presented(document: Mapping[str, Any]) -> Json:
    """The document with its moments in this machine's time zone."""
    return {
        name: datetime.fromtimestamp(value).astimezone() if name in MOMENTS and value is not None else value
        for name, value in document.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.astimezone()).isoformat()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _line(name: str, value: Any) -> str:
    return f"# {_key(name)} =" if value is None or value == {} else f"{_key(name)} = {_value(value)}"


def _key(name: str) -> str:
    return name if BARE_KEY.fullmatch(name) else _string(name)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case datetime():
            return value.isoformat()
        case Mapping():
            return "{" + ", ".join(f"{_key(str(k))} = {_value(v)}" for k, v in _given(value)) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_value, value)) + "]"
    return _string(str(value))


def _given(table: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    return ((key, value) for key, value in table.items() if value is not None)  # TOML has no null


def _string(text: str) -> str:
    """JSON's strings are TOML's, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
