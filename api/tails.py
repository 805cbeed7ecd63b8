"""The growing end of a run folder: what was added to its log and its metrics since the last look."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.files import NoSuchFile, json_line, open_beneath
from jobs.rundir import RunDir

CHUNK_BYTES = 16 * 1024
#: Who begins further behind than this begins here; the whole log is at /log.
BACKLOG_BYTES = 1024 * 1024
ROWS_AT_ONCE = 500


@dataclass(frozen=True)
class LogText:
    """Whole lines of the log, and the offset behind them."""

    text: str
    offset: int
    skipped_bytes: int = 0


@dataclass(frozen=True)
class Rows:
    """Lines of metrics.jsonl. `reset`: the file was rewritten (a job went back to a checkpoint); these begin it anew."""

    rows: tuple[Mapping[str, Any], ...]
    reset: bool = False


class LogTail:
    """Reads on in log.txt."""

    def __init__(self, folder: RunDir, offset: int):
        self._folder, self.offset = folder, offset

    def read(self, *, to_the_end: bool = False) -> LogText | None:
        """The next lines; None when there are none yet. A line that is longer than a chunk comes in parts.

        `to_the_end`: nothing follows any more, so a last line without an end is one, too.
        """
        try:
            descriptor = _open(self._folder, self._folder.log)
        except NoSuchFile:
            return None
        try:
            return self._next(descriptor, to_the_end)
        finally:
            os.close(descriptor)

    def _next(self, descriptor: int, to_the_end: bool) -> LogText | None:
        size = os.fstat(descriptor).st_size
        if size < self.offset:
            self.offset = 0  # begun anew
        skipped = max(0, size - self.offset - BACKLOG_BYTES)
        chunk = os.pread(descriptor, CHUNK_BYTES, self.offset + skipped)
        if skipped:
            cut = chunk.find(b"\n") + 1
            skipped, chunk = skipped + cut, chunk[cut:]
        # a bar that a program redraws ends its "lines" with \r
        end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r")) + 1
        if end == 0 and (not chunk or (len(chunk) < CHUNK_BYTES and not to_the_end)):
            return None
        if end:
            chunk = chunk[:end]
        elif len(chunk) == CHUNK_BYTES:
            chunk = _whole_characters(chunk)
        self.offset += skipped + len(chunk)
        return LogText(chunk.decode(errors="replace"), self.offset, skipped)


class MetricsTail:
    """Reads on in metrics.jsonl."""

    def __init__(self, folder: RunDir, offset: int):
        self._folder, self.offset = folder, offset
        self._inode: int | None = None

    def read(self) -> Rows | None:
        """The next rows; None when there are none yet."""
        try:
            descriptor = _open(self._folder, self._folder.metrics)
        except NoSuchFile:
            return None
        with os.fdopen(descriptor, "rb") as file:
            reset = self._was_rewritten(descriptor)
            if reset:
                self.offset = 0
            file.seek(self.offset)
            rows: list[Mapping[str, Any]] = []
            while len(rows) < ROWS_AT_ONCE and (line := file.readline()).endswith(b"\n"):
                self.offset += len(line)
                if (row := json_line(line)) is not None:
                    rows.append(row)
        return Rows(tuple(rows), reset) if rows or reset else None

    def _was_rewritten(self, descriptor: int) -> bool:
        """Another file, a shorter one, or one in which no line ends where we stopped."""
        facts = os.fstat(descriptor)
        replaced = self._inode is not None and self._inode != facts.st_ino
        self._inode = facts.st_ino
        if self.offset == 0:
            return False
        return replaced or facts.st_size < self.offset or os.pread(descriptor, 1, self.offset - 1) != b"\n"


def log_size(folder: RunDir) -> int:
    """How many bytes the log has now."""
    try:
        descriptor = _open(folder, folder.log)
    except NoSuchFile:
        return 0
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _open(folder: RunDir, path: Path) -> int:
    return open_beneath(folder.path, path.name)


def _whole_characters(chunk: bytes) -> bytes:
    """Without the first bytes of a character whose last ones are still to come."""
    for cut in range(1, min(4, len(chunk))):
        if chunk[-cut] >= 0xC0:
            return chunk[:-cut] if len(chunk) > cut else chunk
        if chunk[-cut] < 0x80:
            break
    return chunk
