"""Files of a run folder, out to whoever may see them: a job wrote there, so nothing in it is trusted.

Every path is walked name by name from the folder's own descriptor and no link is followed, so that nothing can be
exchanged between the check and the opening. Only regular files with one name are served.
"""

import json
import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from api.problems import ApiError

CHUNK_BYTES = 256 * 1024
MAX_LISTED = 10_000
MAX_DEPTH = 32
MAX_TAIL_BYTES = 16 * 1024 * 1024
BLOCK_BYTES = 512  # of a tar archive
RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII)


class NoSuchFile(Exception):
    """Nothing that may be served has this path."""


@dataclass(frozen=True)
class Found:
    """A file below a folder."""

    path: str
    size_bytes: int
    changed_at: float


def open_beneath(root: Path, path: str) -> int:
    """A descriptor for reading a regular file below `root`, which the caller closes. Raises NoSuchFile."""
    *folders, name = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in (*folders, name)):
        raise NoSuchFile(path)
    try:
        folder = _open_folder(root, *folders)
        try:
            return _open_file(name, folder)
        finally:
            os.close(folder)
    except (OSError, UnicodeEncodeError):
        raise NoSuchFile(path) from None


def list_files(root: Path) -> tuple[list[Found], bool]:
    """Every file that can be served, by path, and whether there were too many to list."""
    found: list[Found] = []
    for path, _, facts in _walk(root):
        if len(found) == MAX_LISTED:
            return found, True
        found.append(Found(path, facts.st_size, facts.st_mtime))
    return sorted(found, key=lambda file: file.path), False


def tar_of(root: Path, prefix: str) -> Iterator[bytes]:
    """The folder as an uncompressed tar archive, made while it is sent."""
    for path, folder, facts in _walk(root):
        info = tarfile.TarInfo(f"{prefix}/{path}")
        info.size, info.mtime, info.mode = facts.st_size, int(facts.st_mtime), 0o644
        try:
            descriptor = _open_file(path.rpartition("/")[2], folder)
        except OSError:
            continue  # gone or exchanged since it was listed
        try:
            yield info.tobuf(tarfile.PAX_FORMAT)
            yield from _exactly(descriptor, facts.st_size)
        finally:
            os.close(descriptor)
        yield b"\0" * (-facts.st_size % BLOCK_BYTES)
    yield b"\0" * (2 * BLOCK_BYTES)


def serve(
    descriptor: int, wanted: str | None, *, media_type: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The file, or the part of it that a Range header names. Closes the descriptor when it is sent."""
    size = os.fstat(descriptor).st_size
    try:
        part = _part(wanted, size)
    except ApiError:
        os.close(descriptor)
        raise
    start, end = part or (0, size)
    own = {**(headers or {}), "Accept-Ranges": "bytes", "Content-Length": str(end - start)}
    if part:
        own["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    file = os.fdopen(descriptor, "rb", buffering=0)  # closes itself, even when the sending never begins
    file.seek(start)
    return StreamingResponse(_read(file, end - start), 206 if part else 200, own, media_type=media_type)


def attachment(path: str) -> dict[str, str]:
    """Headers with which a browser saves a file and never shows it."""
    name = path.rpartition("/")[2]
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    return {"Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"}


def tail_of(descriptor: int, lines: int) -> bytes:
    """The last lines of a file; of a huge line, its last part."""
    end = os.fstat(descriptor).st_size
    start, found = end, b""
    while start > 0 and len(found) < MAX_TAIL_BYTES and found.count(b"\n", 0, -1) < lines:
        size = min(CHUNK_BYTES, start)
        start -= size
        found = os.pread(descriptor, size, start) + found
    last = found.removesuffix(b"\n").split(b"\n")[-lines:]
    return b"\n".join(last) + (b"\n" if found.endswith(b"\n") else b"")


def json_lines(descriptor: int) -> Iterator[dict[str, Any]]:
    """Every whole line's object. NaN and infinity, which JSON does not have, are null."""
    with os.fdopen(descriptor, "rb") as file:
        for line in file:
            if (value := json_line(line)) is not None:
                yield value


def json_line(line: bytes) -> dict[str, Any] | None:
    """A line's object; None when it is not one."""
    try:
        value = json.loads(line, parse_constant=lambda _: None)
        json.dumps(
            value, allow_nan=False, ensure_ascii=False
        ).encode()  # 1e999 and lone surrogates would break an answer
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _open_folder(root: Path, *parts: str) -> int:
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    for part in parts:
        try:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
        folder = inner
    return folder


def _open_file(name: str, folder: int) -> int:
    # a FIFO would block the opening without O_NONBLOCK
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    if not _may_be_served(os.fstat(descriptor)):
        os.close(descriptor)
        raise FileNotFoundError(name)
    return descriptor


def _may_be_served(facts: os.stat_result) -> bool:
    """A regular file; one with several names may be somebody else's."""
    return stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1


def _walk(root: Path) -> Iterator[tuple[str, int, os.stat_result]]:
    """Every file that may be served: its path, its folder's descriptor, its facts."""
    try:
        top = _open_folder(root)
    except (FileNotFoundError, NotADirectoryError):  # the latter when it is a link
        return
    try:
        for folder, folders, names, descriptor in os.fwalk(".", dir_fd=top, follow_symlinks=False):
            folders[:] = sorted(folders) if folder.count("/") < MAX_DEPTH else []
            for name in sorted(names):
                path = f"{folder}/{name}".removeprefix("./")
                try:
                    path.encode()  # a name that is not UTF-8 has no address
                    facts = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                except (OSError, UnicodeEncodeError):
                    continue
                if _may_be_served(facts):
                    yield path, descriptor, facts
    finally:
        os.close(top)


def _part(wanted: str | None, size: int) -> tuple[int, int] | None:
    """Start and end of the part; None for the whole. Raises ApiError 416. What is not one simple range is ignored (RFC 9110)."""
    found = RANGE.fullmatch(wanted.replace(" ", "")) if wanted else None
    if not found or not (found[1] or found[2]):
        return None
    if not found[1]:
        start, end = max(0, size - int(found[2])), size
    else:
        start, end = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
    if found[1] and found[2] and int(found[2]) < int(found[1]):
        return None
    if start >= end:
        raise ApiError(416, f"The file has {size} bytes.", headers={"Content-Range": f"bytes */{size}"})
    return start, end


def _read(file: FileIO, count: int) -> Iterator[bytes]:
    with file:
        while count > 0 and (chunk := file.read(min(CHUNK_BYTES, count))):
            count -= len(chunk)
            yield chunk


def _exactly(descriptor: int, count: int) -> Iterator[bytes]:
    """As many bytes as the archive's header says, though the file grows or shrinks meanwhile."""
    while count > 0:
        chunk = os.read(descriptor, min(CHUNK_BYTES, count)) or b"\0" * min(CHUNK_BYTES, count)
        count -= len(chunk)
        yield chunk
