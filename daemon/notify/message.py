"""A message: what it is about, its words, and their bounds. Pure."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

#: A push is read at a glance; ntfy takes 4096 bytes, some of Apprise's services less than 500.
SHORT_BYTES, TITLE_BYTES, LONG_BYTES = 400, 120, 100_000
CONTROL = re.compile(
    "[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)


class Kind(StrEnum):
    """Why it is sent."""

    REPORT = "report"
    URGENT = "urgent"
    JOB = "job"
    TEST = "test"


#: What Standard Webhooks calls the type of an event.
EVENT = {Kind.REPORT: "report.ready", Kind.URGENT: "rig.trouble", Kind.JOB: "job.ended", Kind.TEST: "test.sent"}


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message. `key` says what it is about: a second one with the same key is the same one."""

    key: str
    kind: Kind
    title: str
    text: str
    at: float
    #: Without names and words of jobs, for a channel that others may read; the same when empty.
    bare_title: str = ""
    bare_text: str = ""
    #: The whole of it, where there is room (e-mail, webhooks); the text when empty.
    long_text: str = ""
    #: 1 to 5, as ntfy has them: 4 wants a person, 2 makes no sound.
    priority: int = 3
    tags: tuple[str, ...] = ()
    #: The page that it is about, as a path on the rig.
    path: str = "/"
    #: For programs (webhooks).
    data: Mapping[str, Any] = field(default_factory=dict)

    def words(self, *, names: bool, short: bool) -> tuple[str, str]:
        """Title and text as a channel may have them, within bounds and without control characters."""
        title = self.title if names else self.bare_title or self.title
        text = (self.text if short else self.long_text or self.text) if names else self.bare_text or self.text
        return cut(line(title), TITLE_BYTES), cut(clean(text), SHORT_BYTES if short else LONG_BYTES)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read what `vars` gave."""
        return cls(**{**record, "kind": Kind(record["kind"]), "tags": tuple(record["tags"])})


def merged(messages: Sequence[Message], *, key: str) -> Message:
    """Several as one, the one that matters most first. Its title counts them."""
    first = sorted(messages, key=lambda message: (-message.priority, message.at))
    others = len(first) - 1
    return Message(
        key=key,
        kind=first[0].kind,
        title=f"{first[0].title} (and {others} more)",
        bare_title=f"{first[0].bare_title or first[0].title} (and {others} more)",
        text="\n".join(f"- {message.title}" for message in first),
        bare_text="\n".join(f"- {message.bare_title or message.title}" for message in first),
        long_text="\n\n".join(f"{message.title}\n{message.long_text or message.text}" for message in first),
        at=max(message.at for message in messages),
        priority=first[0].priority,
        tags=first[0].tags,
        path=first[0].path if len({message.path for message in messages}) == 1 else "/",
    )


def clean(text: str) -> str:
    """Without control characters and marks that turn the direction of text round; lines stay."""
    tame = CONTROL.sub(" ", text.replace("\r\n", "\n").replace("\t", " "))
    return "".join("\ufffd" if unicodedata.category(c) == "Cs" else c for c in tame).strip()


def line(text: str) -> str:
    """The same on one line."""
    return " ".join(clean(text).split())


def cut(text: str, limit_bytes: int) -> str:
    """At most so many bytes of UTF-8, never half a character; at the end of a line where that costs little."""
    if len(text.encode()) <= limit_bytes:
        return text
    kept = text.encode()[: limit_bytes - len("…".encode())].decode(errors="ignore")
    head, newline, _ = kept.rpartition("\n")
    if newline and len(head) > len(kept) * 0.7:
        return f"{head}\n…" if len(head.encode()) + 4 <= limit_bytes else f"{head}…"
    return f"{kept.rstrip()}…"


def redacted(text: str, secrets: Iterable[str]) -> str:
    """Without these values, wherever they stand in it."""
    for secret in sorted(filter(lambda value: len(value) >= 6, secrets), key=len, reverse=True):
        text = text.replace(secret, "…")
    return text
