"""The client of Redis, and its answers as Python values."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

import redis
from redis.client import Pipeline

#: Records that are read, or changed together, in one call.
TOGETHER = 1_000


def connect(url_or_socket: str) -> "redis.Redis":
    """A client for a `redis://` URL or the path of a unix socket."""
    if "://" in url_or_socket:
        return redis.Redis.from_url(url_or_socket)
    return redis.Redis(unix_socket_path=url_or_socket)


def text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def texts(values: Any) -> list[str]:
    return [text(value) for value in values]


def parsed(value: Any) -> dict[str, Any] | None:
    """A record in JSON; None when there is none."""
    return json.loads(value) if value else None


def chunks(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def watch(pipe: Pipeline, *keys: str) -> None:
    """The transaction is run again when one of these changes, too."""
    pipe.watch(*keys)  # type: ignore[no-untyped-call]


def redis_now(pipe: Pipeline) -> float:
    """The clock that all rigs share, in seconds."""
    seconds, micros = pipe.time()
    return int(seconds) + int(micros) / 1e6


def entries(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """XREAD's answer as [(id, fields)]: its shape differs between redis-py's releases and protocols."""
    if not answer:
        return []
    found = next(iter(answer.values())) if isinstance(answer, dict) else answer[0][1]
    if found and isinstance(found[0], list) and found[0] and isinstance(found[0][0], (list, tuple)):
        found = found[0]
    return cast(list[tuple[bytes, dict[bytes, bytes]]], found)
