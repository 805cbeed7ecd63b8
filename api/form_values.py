"""Between what somebody types into a form and a job document. What cannot be read is left as it is: the document's check says why. Pure."""

import json
import math
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import click

from api.cli import toml_text
from api.cli.moments import Duration
from api.documents import MAX_INTEGER, NotJson, parse_json
from api.form_fields import Field, Widget

Json = dict[str, Any]

WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
ON = "on"
LOCAL_MOMENT = "%Y-%m-%dT%H:%M"


class NotADocument(ValueError):
    """The text is neither TOML nor JSON; the message names the line."""


def document_of(kind: str, fields: Iterable[Field], texts: Mapping[str, str], zone: ZoneInfo) -> Json:
    """The document that a filled form means: what is empty is left out, so that the defaults hold."""
    made: Json = {"kind": kind}
    for field in fields:
        text = texts.get(field.path, "").strip()
        if field.widget is Widget.SWITCH:
            value: Any = bool(text)
            if value == bool(field.default):
                continue
        elif not text:
            continue
        else:
            value = value_of(field, text, zone)
        target = made
        *above, name = field.path.split(".")
        for part in above:
            target = target.setdefault(part, {})
        target[name] = value
    return made


def value_of(field: Field, text: str, zone: ZoneInfo) -> Any:
    """One field's value."""
    match field.widget:
        case Widget.WHOLE | Widget.NUMBER:
            return _number(text)
        case Widget.SECONDS:
            return _seconds(text)
        case Widget.CHOICE:
            return {"true": True, "false": False}.get(text, text) if field.choices == ("true", "false") else text
        case Widget.LIST:
            return _list(field, text)
        case Widget.PAIRS:
            return _pairs(text)
        case Widget.COMMAND:
            return _words(text)
        case Widget.MOMENT:
            return _moment(text, zone)
        case Widget.JSON | Widget.EITHER:
            return _json(text)
    return text


def texts_of(fields: Iterable[Field], document: Mapping[str, Any], zone: ZoneInfo) -> dict[str, str]:
    """What stands in the form for a document; a field that has its default is empty."""
    texts: dict[str, str] = {}
    for field in fields:
        value: Any = document
        for part in field.path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if field.widget is Widget.SWITCH:
            if value if value is not None else field.default:
                texts[field.path] = ON
        elif value is not None and value != field.default and value not in ("", (), [], {}):
            texts[field.path] = text_of(field, value, zone)
    return texts


def text_of(field: Field, value: Any, zone: ZoneInfo) -> str:
    """One value as it would be typed."""
    if isinstance(value, (list, tuple)):
        if field.widget is Widget.COMMAND:
            return shlex.join(map(str, value))
        return ", ".join(map(str, value)) if field.widget is Widget.LIST else json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        if field.widget is Widget.PAIRS:
            return "\n".join(f"{key}={_plain(item)}" for key, item in value.items())
        return json.dumps(value, ensure_ascii=False)
    if field.widget is Widget.MOMENT and isinstance(value, (int, float)):
        return datetime.fromtimestamp(value, zone).strftime(LOCAL_MOMENT)
    return _plain(value)


def read_document(text: str) -> Any:
    """A pasted document: JSON when it begins like it, else TOML. Raises NotADocument."""
    try:
        if text.lstrip().startswith("{"):
            return parse_json(text.encode("utf-8", "replace"))
        # once more as strict JSON: TOML knows dates, infinity and numbers of any size
        return parse_json(json.dumps(toml_text.read(text), default=str).encode("utf-8", "replace"))
    except (NotJson, tomllib.TOMLDecodeError, RecursionError) as error:
        raise NotADocument(str(error) or "it is nested too deeply") from None


def _number(text: str) -> Any:
    plain = text.replace(" ", "").replace("\u202f", "").replace("_", "")
    if WHOLE.fullmatch(plain) and abs(int(plain)) < MAX_INTEGER:
        return int(plain)
    try:
        return _finite(float(plain), text)
    except ValueError:
        return text


def _seconds(text: str) -> Any:
    try:
        return _finite(Duration().convert(text, None, None), text)
    except click.UsageError:
        return _number(text)


def _finite(value: float, text: str) -> float | str:
    return value if math.isfinite(value) else text


def _list(field: Field, text: str) -> Any:
    items = [part.strip() for part in re.split(r"[,\n]", text) if part.strip()]
    # a field that takes one text or several: one that stands alone is itself
    return items[0] if isinstance(field.default, str) and len(items) == 1 else items


def _pairs(text: str) -> Any:
    found: Json = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if not line.strip():
            continue
        if not equals:
            return text  # "a dictionary is wanted": the check says it
        found[name.strip()] = value.strip()
    return found


def _words(text: str) -> Any:
    try:
        return shlex.split(text)
    except ValueError:
        return text


def _moment(text: str, zone: ZoneInfo) -> Any:
    try:
        then = datetime.fromisoformat(text)
    except ValueError:
        return text
    return (then if then.tzinfo else then.replace(tzinfo=zone)).isoformat()


def _json(text: str) -> Any:
    try:
        return parse_json(text.encode("utf-8", "replace"))
    except NotJson:
        return text


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
