"""Server-sent events from bytes, for the Python client."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    id: str
    type: str
    data: Any


def parse_events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Server-sent events from a byte stream; comments are left out, a torn last event too.

    A place without data, which browsers keep to themselves, is an event of type `open`.
    """
    id_, type_, data, is_place = "", "message", b"", False
    for line in lines(chunks, torn=False):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data:
                yield Event(id_, type_, _value(data[:-1]))
            elif is_place:
                yield Event(id_, "open", {})
            type_, data, is_place = "message", b"", False
        elif name == b"data":
            data += value + b"\n"
        elif name == b"event":
            type_ = value.decode(errors="replace")
        elif name == b"id":
            id_, is_place = value.decode(errors="replace"), True


def lines(chunks: Iterable[bytes], *, torn: bool = True) -> Iterator[bytes]:
    """Lines at \\n only (httpx's own would also split at U+2028); `torn`: the last one too when it has no end."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r")
    if rest and torn:
        yield rest


def _value(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")
