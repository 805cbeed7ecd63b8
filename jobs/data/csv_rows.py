"""Rows of CSV: the first line names the columns. Cells may hold lists of messages as JSON text; an empty cell is no value."""

import csv
import io
from collections.abc import Collection, Iterator
from typing import BinaryIO

from jobs.data.json_rows import MAX_LINE_BYTES
from jobs.data.problems import RowError
from jobs.data.values import Row

DELIMITERS = (",", "\t", ";")

Found = Iterator[tuple[int, "Row | RowError"]]


def delimiter_of(first_line: str, known: Collection[str]) -> str | None:
    """What separates its columns, when the line names at least one known column; None when this is no CSV."""
    for delimiter in DELIMITERS:
        try:
            names = next(csv.reader([first_line], delimiter=delimiter), [])
        except csv.Error:
            continue
        if {name.strip() for name in names} & set(known):
            return delimiter
    return None


def rows(file: BinaryIO, delimiter: str) -> Found:
    """Each row with the line where it begins (a cell may hold line breaks)."""
    csv.field_size_limit(MAX_LINE_BYTES)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        yield from _rows(text, delimiter)
    finally:
        text.detach()  # the file is its owner's to close


def _rows(text: io.TextIOWrapper, delimiter: str) -> Found:
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except UnicodeDecodeError:
            yield line, RowError(line, "not UTF-8 text (in or soon after this line); save the file as UTF-8")
            return
        except csv.Error as error:
            yield line, RowError(line, f"not valid CSV: {error}")
            continue
        if not cells or cells == [""]:
            continue
        if names is None:
            names = [name.strip() for name in cells]
        elif len(cells) != len(names):
            has = f"has {len(cells)} cell{'s' if len(cells) > 1 else ''}"
            yield line, RowError(line, f"{has}, and the first line names {len(names)} columns")
        else:
            yield line, {name: cell for name, cell in zip(names, cells, strict=True) if cell != ""}
