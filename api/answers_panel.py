"""The first answers of a generation, for its job's page: what was asked, what was said, and how many rows have an error.

Written by a job, so nothing of it is trusted: one bounded read, and text stays text.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api.curves import plain_text
from api.files import NoSuchFile, open_beneath
from api.wording import count
from jobs.model import Job
from jobs.rundir import RunDir

SHOWN = 5
READ_BYTES = 2 << 20
CHARACTERS = 600


@dataclass(frozen=True)
class Shown:
    """One row: what was asked (its id where the file does not say it), what was answered, or why not."""

    name: str
    asked: str
    said: str
    error: str = ""


@dataclass(frozen=True)
class Answers:
    """The first rows, and in words how many could not be answered."""

    rows: tuple[Shown, ...]
    errors: str = ""


def answers(folder: RunDir, job: Job) -> Answers | None:
    """None for a job that has no answers."""
    if job.kind != "generate":
        return None
    try:
        descriptor = open_beneath(folder.path, str(folder.generations.relative_to(folder.path)))
    except NoSuchFile:
        return None
    with os.fdopen(descriptor, "rb") as file:
        lines = file.read(READ_BYTES).split(b"\n")[:-1]  # the last one is empty, or only a part
    found = [value for line in lines if isinstance(value := _read(line), dict)]
    if not found:
        return None
    counted = job.outcome.metrics.get("failed_rows") if job.outcome else None
    failed = counted if isinstance(counted, int) else sum(1 for value in found if value.get("error"))
    words = f"{count(failed, 'row')} without an answer" if failed else ""
    return Answers(tuple(_shown(value) for value in found[:SHOWN]), words)


def _read(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _shown(value: Mapping[str, Any]) -> Shown:
    error = value.get("error")
    message = error.get("message") if isinstance(error, Mapping) else error
    name = str(value.get("custom_id", value.get("id", "")))
    # in OpenAI's shape the line's own id says which of several adapters it was
    if adapter := value.get("adapter") or str(value.get("id", "")).partition("/")[2]:
        name = f"{name} · {adapter}"
    shown = [plain_text(each, CHARACTERS) for each in (name, _asked(value), _said(value), message if error else "")]
    return Shown(*shown)


def _asked(value: Mapping[str, Any]) -> object:
    messages = value.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], Mapping):
        return messages[-1].get("content", "")
    return value.get("prompt", "")


def _said(value: Mapping[str, Any]) -> object:
    try:
        choice = value["response"]["body"]["choices"][0]
        return choice["message"]["content"] if "message" in choice else choice["text"]
    except (KeyError, IndexError, TypeError):
        return value.get("text", "")
