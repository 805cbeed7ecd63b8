"""Files of rows, told apart by their first bytes: uploads have no names. Compressed ones are unpacked as they are read."""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from jobs.data import arrow_rows, csv_rows, json_rows
from jobs.data.problems import InvalidData, RowError
from jobs.data.shapes import KNOWN_FIELDS
from jobs.data.values import Row

Format = Literal["JSONL", "JSON", "CSV", "Parquet", "Arrow", "dataset folder"]

PARQUET_MAGIC, ARROW_MAGIC, FEATHER_1_MAGIC = b"PAR1", b"ARROW1", b"FEA1"
#: How an Arrow stream begins, which `datasets` writes.
STREAM_MAGIC = b"\xff\xff\xff\xff"
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
#: Binary formats, which pyarrow reads.
ROWS_NOT_LINES = frozenset({"Parquet", "Arrow", "dataset folder"})
#: A compressed file that unpacks to more is refused: it was made to do so.
MAX_UNPACKED_BYTES = 256 * 2**30
HEAD_BYTES = 1 << 16


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Each row with its line or row number, from 1. Raises InvalidData where it cannot be read."""
    for number, row in scan(path):
        if isinstance(row, RowError):
            raise InvalidData(path, row.line, row.message, unit=unit_of(path))
        yield number, row


def scan(path: Path) -> Iterator[tuple[int, Row | RowError]]:
    """Each row, or what is wrong with its line; goes on after a wrong line. Raises InvalidData where nothing can be read on."""
    match format_of(path):
        case "dataset folder":
            yield from arrow_rows.saved(path)
        case "Parquet":
            yield from arrow_rows.parquet(path)
        case "Arrow":
            yield from arrow_rows.arrow(path)
        case "JSON":
            yield from _unpacked(path, json_rows.array)
        case "CSV":
            delimiter = _delimiter(_head(path)) or _delimiter_of_name(path)
            yield from _unpacked(path, lambda file: csv_rows.rows(file, delimiter))
        case _:
            yield from _unpacked(path, json_rows.lines)


def format_of(path: Path) -> Format:
    """How a file is written. Raises InvalidData when it cannot be read, or is of a kind that is known to be no use."""
    if path.is_dir():
        if arrow_rows.is_saved_dataset(path):
            return "dataset folder"
        raise InvalidData(path, None, "is a folder, but not one that `datasets` saved (it has no state.json)")
    head = _head(path)
    if head.startswith(PARQUET_MAGIC):
        return "Parquet"
    if head.startswith((ARROW_MAGIC, STREAM_MAGIC)):
        return "Arrow"
    if head.startswith(FEATHER_1_MAGIC):
        raise InvalidData(path, None, "is an old Feather file (version 1); write it again as Parquet or Feather 2")
    if head.startswith(UTF_16_MARKS):
        raise InvalidData(path, 1, "not UTF-8 text but UTF-16; save the file as UTF-8")
    begin = head.removeprefix(json_rows.BOM).lstrip()[:1]
    if begin == b"[":
        return "JSON"
    if begin != b"{" and (_delimiter(head) or path.suffix.lower() in (".csv", ".tsv")):
        return "CSV"
    return "JSONL"


def unit_of(path: Path) -> str:
    """What a row is called in messages about this file."""
    return "row" if format_of(path) in ROWS_NOT_LINES else "line"


def needs_pyarrow(path: Path) -> bool:
    """Whether only pyarrow can read it; told without pyarrow."""
    with path.open("rb") as file:
        magic = file.read(6)
    return magic.startswith((PARQUET_MAGIC, ARROW_MAGIC, STREAM_MAGIC, ZSTD_MAGIC))


def sha256_of(path: Path) -> str:
    """Hash of a file's content, as hexadecimal digits; of a saved dataset that of its files, in their order."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256("".join(map(sha256_of, arrow_rows.shards(path))).encode()).hexdigest()


def identity(path: Path) -> tuple[tuple[int, int, int], ...]:
    """What changes when the content does: number, size and time of the file, or of a folder's files. Raises OSError."""
    if path.is_dir() and arrow_rows.is_saved_dataset(path):
        files = [entry for entry in sorted(path.iterdir()) if entry.is_file()]
    else:
        files = [path]
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in files))


def _delimiter(head: bytes) -> str | None:
    first = head.removeprefix(json_rows.BOM).lstrip().split(b"\n", 1)[0].rstrip(b"\r")
    return csv_rows.delimiter_of(first.decode(errors="replace"), KNOWN_FIELDS)


def _delimiter_of_name(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _head(path: Path) -> bytes:
    try:
        with _opened(path) as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise InvalidData(path, None, f"the file cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise InvalidData(path, None, f"cannot be unpacked: {error}") from None


def _unpacked(path: Path, read: Any) -> Iterator[tuple[int, Row | RowError]]:
    number = 0
    try:
        with _opened(path) as file:
            for number, row in read(file):
                yield number, row
    except (EOFError, zlib.error) as error:
        raise InvalidData(path, number + 1, f"cannot be unpacked further: {error}") from None
    except OSError as error:
        raise InvalidData(path, number + 1, f"cannot be read further: {error.strerror or error}") from None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked."""
    with path.open("rb") as raw:
        magic = raw.read(4)
        raw.seek(0)
        if magic.startswith(GZIP_MAGIC):
            with gzip.open(raw) as file:
                yield cast(BinaryIO, file)
        elif magic == ZSTD_MAGIC:
            with _zstd(path, raw) as file:
                yield file
        else:
            yield raw


@contextmanager
def _zstd(path: Path, raw: BinaryIO) -> Iterator[BinaryIO]:
    try:
        import pyarrow
    except ImportError:
        raise InvalidData(path, None, "zstd needs the package pyarrow on the rig; gzip does not") from None
    import io

    with pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd") as stream:
        yield cast(BinaryIO, io.BufferedReader(stream))
