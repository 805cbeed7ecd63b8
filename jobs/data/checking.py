"""A whole file, read once: what it holds, or every row that is wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as with_default
from pathlib import Path
from typing import Any

from jobs.data.files import format_of, read_rows, scan, sha256_of, unit_of
from jobs.data.problems import TOLD, InvalidData, RowError
from jobs.data.shapes import Converted, Reading, Shape, convert, training_rows_of, words
from jobs.data.values import Row

#: Fields that may hold a row's text.
TEXT_FIELDS = ("messages", "prompt", "completion", "text", "chosen", "rejected")


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What a whole, valid file holds."""

    rows: int
    shape: Shape
    sha256: str
    #: Its text without the JSON around it, as UTF-8: all rows together, and the longest one.
    text_bytes: int = with_default(default=0, compare=False)
    longest_bytes: int = with_default(default=0, compare=False)
    #: How it was written: file format, the shape's common name, and what was read as something else.
    format: str = with_default(default="", compare=False)
    source: str = with_default(default="", compare=False)
    conversions: tuple[str, ...] = with_default(default=(), compare=False)


def check(path: Path, reading: Reading) -> DataReport:
    """Read every row as this job would. Raises InvalidData with the first wrong ones and their count."""
    return _Check(path, reading).run()


def check_training(path: Path) -> DataReport:
    """Read every row of a file for supervised training. Raises InvalidData."""
    return check(path, Reading())


def check_prompts(path: Path) -> DataReport:
    """Read every row of a file of prompts. Raises InvalidData; ids must be unique."""
    return check(path, Reading("generate"))


def training_rows(path: Path, reading: Reading) -> Iterator[tuple[int, Row]]:
    """Every row to learn from as ours, with its line. Raises InvalidData for the first that is wrong."""
    unit = unit_of(path)
    for line, row in read_rows(path):
        try:
            converted = convert(row, reading)
        except ValueError as error:
            raise InvalidData(path, line, str(error), unit=unit) from None
        for found in training_rows_of(converted, reading.objective):
            yield line, found


class _Check:
    """One pass over a file."""

    def __init__(self, path: Path, reading: Reading):
        self.path, self.reading = path, reading
        self.first: Converted | None = None
        self.rows = self.text_bytes = self.longest_bytes = self.wrong = 0
        self.errors: list[RowError] = []
        self.notes: dict[str, int] = {}
        self.ids: set[str] = set()

    def run(self) -> DataReport:
        for line, row in scan(self.path):
            try:
                if isinstance(row, RowError):
                    raise ValueError(row.message)
                self._take(row)
            except ValueError as error:
                self.wrong += 1
                if len(self.errors) < TOLD:
                    self.errors.append(RowError(line, str(error)))
        if self.errors and not (self.reading.tolerant and self.rows):
            raise InvalidData.of(self.path, self.errors, self.wrong, unit_of(self.path))
        if self.first is None:
            raise InvalidData(self.path, None, "the file has no rows")
        return DataReport(
            rows=self.rows,
            shape=self.first.shape,
            sha256=sha256_of(self.path),
            text_bytes=self.text_bytes,
            longest_bytes=self.longest_bytes,
            format=format_of(self.path),
            source=self.first.source,
            conversions=(*self._conversions(), *self._tolerated()),
        )

    def _conversions(self) -> Iterator[str]:
        return (_counted(note, count, self.rows) for note, count in self.notes.items())

    def _tolerated(self) -> Iterator[str]:
        """The rows that will have an error in place of an answer."""
        for error in self.errors:
            yield f"{unit_of(self.path)} {error.line} will have an error: {error.message}"
        if (more := self.wrong - len(self.errors)) > 0:
            yield f"… and {more} more"

    def _take(self, row: Row) -> None:
        found = convert(row, self.reading)
        if self.reading.objective == "generate":
            self._take_id(found.row)
        if self.first is not None and found.shape != self.first.shape:
            raise ValueError(
                f"has {words(found.shape)}, but the rows before have {words(self.first.shape)}; one file holds one shape"
            )
        self.first = self.first or found
        self.rows += 1
        for note in found.notes:
            self.notes[note] = self.notes.get(note, 0) + 1
        row_bytes = _text_bytes(found.row)
        self.text_bytes, self.longest_bytes = self.text_bytes + row_bytes, max(self.longest_bytes, row_bytes)

    def _take_id(self, row: Row) -> None:
        name = "custom_id" if "custom_id" in row else "id"
        if (given := row.get(name)) is None:
            return
        if isinstance(given, bool) or not isinstance(given, (str, int)):
            raise ValueError(f"`{name}` must be a text or a whole number")
        # answers of several adapters to one prompt are prompts of one id
        known = f"{given}\0{row['adapter']}" if row.get("adapter") else str(given)
        if known in self.ids:
            raise ValueError(f"`{name}` {str(given)[:60]!r} was used before")
        self.ids.add(known)


def _counted(note: str, count: int, rows: int) -> str:
    return note if count == rows else f"{note} ({count} of {rows} rows)"


def _text_bytes(row: Row) -> int:
    """How much text is in a row, however deep."""
    total = 0
    todo: list[Any] = [row.get(name) for name in TEXT_FIELDS]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            total += len(value) if value.isascii() else len(value.encode(errors="replace"))
        elif isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list):
            todo += value
    return total
