"""What is kept of each night in `$OVERNIGHT_HOME/reports`: the report, and the forecast of its evening.

2026-11-21.json            the night, as data
2026-11-21.html            the same to read, one file
2026-11-21.forecast.json   what was promised in the evening
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from pydantic import ValidationError

from daemon.night.foretold import Promise
from daemon.night.model import Night
from jobs.rundir import read_json, sync_folder, write_json

log = logging.getLogger(__name__)


def folder(home: Path) -> Path:
    """Where nights are kept."""
    return home / "reports"


def report_path(home: Path, day: date, suffix: str = "json") -> Path:
    """The file of one night: json or html."""
    return folder(home) / f"{day.isoformat()}.{suffix}"


def read_night(home: Path, day: date) -> Night | None:
    """The kept night; None when there is none that this version reads."""
    record = read_json(report_path(home, day))
    try:
        return Night.from_json(record) if record is not None else None
    except ValidationError as error:
        log.warning(
            "%s is of another version (%d errors); it is made anew", report_path(home, day), error.error_count()
        )
        return None


@dataclass(frozen=True)
class KeptMark:
    """A kept night in brief, as a list of nights shows it."""

    date: str
    made_at: float
    over: bool
    colour: str
    sentence: str


def read_mark(home: Path, day: date) -> KeptMark | None:
    """A kept night in brief; None when there is none, or none that can be read."""
    record = read_json(report_path(home, day))
    try:
        if record is None:
            return None
        made_at = datetime.fromisoformat(record["made_at"]).timestamp()
        said = record["verdict"]
        return KeptMark(day.isoformat(), made_at, record["over"] is True, str(said["colour"]), str(said["sentence"]))
    except (KeyError, TypeError, ValueError):
        return None


def keep_night(home: Path, night: Night, html: str) -> None:
    """Write both files, each whole or not at all."""
    day = date.fromisoformat(night.date)
    folder(home).mkdir(mode=0o700, exist_ok=True)
    write_text(report_path(home, day, "html"), html)
    write_json(report_path(home, day), night.to_json())


def nights(home: Path) -> list[date]:
    """The dates of the kept nights, the latest first."""
    return sorted(_dates(folder(home)), reverse=True)


def read_promise(home: Path, day: date) -> Promise | None:
    """What was promised in that evening."""
    record = read_json(_promise_path(home, day))
    try:
        return Promise.from_json(record) if record is not None else None
    except (KeyError, TypeError, ValueError, AttributeError):
        log.warning("%s cannot be read", _promise_path(home, day))
        return None


def has_promise(home: Path, day: date) -> bool:
    """Whether something was promised in that evening."""
    return _promise_path(home, day).exists()


def keep_promise(home: Path, day: date, promise: Promise) -> None:
    """Write it, whole or not at all."""
    folder(home).mkdir(mode=0o700, exist_ok=True)
    write_json(_promise_path(home, day), promise.to_json())


def write_text(path: Path, text: str) -> None:
    """Readers see the old file or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def _promise_path(home: Path, day: date) -> Path:
    return folder(home) / f"{day.isoformat()}.forecast.json"


def _dates(where: Path) -> Iterator[date]:
    for path in where.glob("????-??-??.json"):
        try:
            yield date.fromisoformat(path.stem)
        except ValueError:
            continue  # somebody else's file
