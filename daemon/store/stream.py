"""The stream of changes, which planner, page and messages follow."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daemon.store.keys import EVENTS
from daemon.store.records import Records
from daemon.store.wire import entries, text


@dataclass(frozen=True)
class Event:
    """One change, as told to whoever follows."""

    id: str
    type: str
    job: str
    data: Mapping[str, Any]


class Stream(Records):
    """Verbs about events. Changes of records tell of themselves (`Records`)."""

    def last_event_id(self) -> str:
        """Where the stream ends now."""
        newest = self.redis.xrevrange(EVENTS, count=1)
        return text(newest[0][0] or "0-0") if newest else "0-0"

    def first_event_id(self) -> str | None:
        """The oldest event that is still kept; None when there is none."""
        oldest = self.redis.xrange(EVENTS, count=1)
        return text(oldest[0][0] or "0-0") if oldest else None

    def events(self, after: str, *, block_ms: int | None = None, count: int = 1_000) -> list[Event]:
        """What happened after this id; waits up to `block_ms` for the first."""
        answer = self.redis.xread({EVENTS: after}, count=count, block=block_ms)
        return [parse_event(event_id, fields) for event_id, fields in entries(answer)]

    def tell(self, type: str, job_id: str, data: Mapping[str, Any]) -> None:
        """Add an event that changes no record."""
        self._tell(self.redis, type, job_id, data)


def parse_event(event_id: bytes, fields: Mapping[bytes, bytes]) -> Event:
    """An entry of the stream."""
    texts = {text(key): text(value) for key, value in fields.items()}
    return Event(text(event_id), texts["type"], texts["job"], json.loads(texts["data"]))
