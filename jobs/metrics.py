"""Reading metrics.jsonl while its job writes it. Jobs are programs of anybody: the file may be anything, so reads are bounded.

Nothing but a regular file is opened, and never with a wait: a pipe in its place must not stop whoever reads.
"""

import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Enough for the last line of a job that tells many numbers.
TAIL_BYTES = 64 << 10
#: A longer file is read over several looks.
READ_AT_ONCE_BYTES = 4 << 20
MOST_NAMES = 64
#: What a line has beside its measurements.
NOT_METRICS = frozenset({"step", "epoch", "time"})


def last_values(path: Path) -> dict[str, float]:
    """The last value of every metric, from the file's end; {} when there is no file."""
    found: dict[str, float] = {}
    descriptor = open_regular(path)
    if descriptor is None:
        return found
    with os.fdopen(descriptor, "rb") as file:
        skipped = max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES)
        file.seek(skipped)
        lines = file.read(TAIL_BYTES).split(b"\n")
    for line in reversed(lines[1:] if skipped else lines):
        for name, value in measurements(line).items():
            if name not in NOT_METRICS and len(found) < MOST_NAMES:
                found.setdefault(name, value)
    return found


def measurements(line: bytes) -> dict[str, float]:
    """The finite numbers of a line by name; {} when it is no whole object."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return {name: float(value) for name, value in told.items() if is_finite(value)} if isinstance(told, dict) else {}


def is_finite(value: Any) -> bool:
    """Whether it is a number to compare by. A whole number too large for a float is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


@dataclass
class Follower:
    """Reads a file that grows: each look gives the lines that came since the last one."""

    path: Path
    _inode: int = 0
    _offset: int = 0
    _torn: bytes = field(default=b"", repr=False)

    def lines(self) -> Iterator[bytes]:
        """Whole lines since the last look; all of them again when the file is another one or shorter."""
        descriptor = open_regular(self.path)
        if descriptor is None:
            return iter(())
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(file.fileno())
            if facts.st_ino != self._inode or facts.st_size < self._offset:
                self._inode, self._offset, self._torn = facts.st_ino, 0, b""
            file.seek(self._offset)
            added = file.read(READ_AT_ONCE_BYTES)
        self._offset += len(added)
        *lines, self._torn = (self._torn + added).split(b"\n")
        if len(self._torn) > READ_AT_ONCE_BYTES:
            self._torn = b""  # a line without end is none
        return iter(lines)


def open_regular(path: Path) -> int | None:
    """A descriptor for reading, which the caller closes; None when no regular file is there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None
