"""A log is searched for a text, on the server, so that it works without script and on a log of any size. Bounded."""

import os
from collections import deque
from dataclasses import dataclass

from api.curves import plain
from api.files import NoSuchFile, open_beneath
from jobs.rundir import RunDir

#: Of a longer log, its last part is searched.
SEARCHED_BYTES = 32 << 20
MOST_SHOWN = 200
MOST_MARKS = 20


@dataclass(frozen=True)
class Hit:
    """A line that has the text. `pieces`: in turns what is not the text, and the text as it stands there."""

    number: int | None
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Search:
    """What was found: the last lines of all that match. `cut`: only the log's end was searched."""

    text: str
    hits: tuple[Hit, ...]
    total: int
    cut: bool = False


def search(folder: RunDir, text: str) -> Search:
    """Lines of the log that have the text, whatever its case."""
    wanted = text.strip()
    try:
        descriptor = open_beneath(folder.path, folder.log.name)
    except NoSuchFile:
        return Search(wanted, (), 0)
    with os.fdopen(descriptor, "rb") as file:
        skipped = max(0, os.fstat(descriptor).st_size - SEARCHED_BYTES)
        file.seek(skipped)
        if skipped:
            file.readline()
        return _among(file.read(SEARCHED_BYTES), wanted, numbered=not skipped)


def _among(content: bytes, wanted: str, *, numbered: bool) -> Search:
    needle, hits, total = wanted.lower(), deque[Hit](maxlen=MOST_SHOWN), 0
    rough = needle.encode() if needle.isascii() else b""
    for number, line in enumerate(content.split(b"\n"), 1):
        if rough and b"\x1b" not in line and rough not in line.lower():
            continue  # most lines: quickly
        shown = plain(line.decode(errors="replace"))
        if needle in shown.lower():
            total += 1
            hits.append(Hit(number if numbered else None, pieces(shown, needle)))
    return Search(wanted, tuple(hits), total, cut=not numbered)


def pieces(line: str, needle: str) -> tuple[str, ...]:
    """The line taken apart at the text: before, text, between, text, ..., rest."""
    lower = line.lower()
    if len(lower) != len(line):  # a letter whose small form is longer: places would not agree
        return (line,)
    found: list[str] = []
    start = 0
    while len(found) < 2 * MOST_MARKS and (at := lower.find(needle, start)) >= 0:
        found += [line[start:at], line[at : at + len(needle)]]
        start = at + len(needle)
    return (*found, line[start:])
