"""Keep a run's log within its limit: of one that grows too long the beginning and the end stay."""

import os
from pathlib import Path

#: Shares of the limit that stay: what it was started with, and its newest lines.
KEPT_BEGINNING, KEPT_END = 0.25, 0.25
COPY_BYTES = 1 << 20


def shorten(path: Path, limit_bytes: int) -> int:
    """Cut the middle out of a log that is longer than its limit. Returns how many bytes went; 0: it is short enough.

    Its writers hold it open for appending and go on at its new end. What they write between our last look and the cut is
    lost with the middle; what they write while the end is put back stands before it.
    """
    try:
        if path.stat().st_size <= limit_bytes:
            return 0
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        return _cut(descriptor, limit_bytes)
    finally:
        os.close(descriptor)


def _cut(descriptor: int, limit_bytes: int) -> int:
    beginning = os.pread(descriptor, int(limit_bytes * KEPT_BEGINNING), 0)
    keep_until = beginning.rfind(b"\n") + 1 or len(beginning)
    size = os.fstat(descriptor).st_size
    start = size - int(limit_bytes * KEPT_END)
    end = _rest(descriptor, start)
    end = end[end.find(b"\n") + 1 :]
    gone = os.fstat(descriptor).st_size - keep_until - len(end)
    os.ftruncate(descriptor, keep_until)
    os.write(descriptor, f"\n[Overnight left out {gone} bytes here: max_log_bytes is {limit_bytes}.]\n\n".encode())
    for at in range(0, len(end), COPY_BYTES):
        os.write(descriptor, end[at : at + COPY_BYTES])
    return gone


def _rest(descriptor: int, start: int) -> bytes:
    """Everything from here on, with what is added meanwhile."""
    found = bytearray()
    while part := os.pread(descriptor, COPY_BYTES, start + len(found)):
        found += part
    return bytes(found)
