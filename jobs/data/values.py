"""Single values of a row: texts, truths, and lists that a table could only hold as JSON text."""

import json
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
Message = dict[str, Any]
#: What was read as something else, once each, in the order in which it came up.
Notes = dict[str, None]

TRUE, FALSE = frozenset({"true", "1", "yes"}), frozenset({"false", "0", "no"})


def text(value: Any, field: str) -> str:
    """A text that can be written as UTF-8. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"`{field}` must be a text, not {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"`{field}` holds half of a surrogate pair, which is not valid Unicode") from None
    return value


def full_text(value: Any, field: str) -> str:
    """A text that is not empty. Raises ValueError."""
    if not text(value, field).strip():
        raise ValueError(f"`{field}` is empty")
    return str(value)


def truth(value: Any, field: str) -> bool:
    """Yes or no, as JSON, numbers or a table's words say it. Raises ValueError."""
    if isinstance(value, bool) or (isinstance(value, (int, float)) and value in (0, 1)):
        return bool(value)
    word = value.strip().lower() if isinstance(value, str) else ""
    if word in TRUE or word in FALSE:
        return word in TRUE
    raise ValueError(f"`{field}` must be true or false, not {str(value)[:40]!r}")


def from_json(value: Any) -> Any:
    """A list or object that stands there as JSON text: tables and some tools can hold it only so. Other texts stay."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, (list, dict)) else value
    return value


def has(row: Row, *names: str) -> bool:
    """Whether one of these fields is there and not null."""
    return any(row.get(name) is not None for name in names)
