"""What is wrong with a file of rows, row by row, in words for its owner."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Of a file, so many wrong rows are told; the rest is counted.
TOLD = 20


@dataclass(frozen=True)
class RowError:
    """What is wrong with one row. `line`: its line or row number, from 1; None when it is the file itself."""

    line: int | None
    message: str


class InvalidData(ValueError):
    """A file that cannot be used. `line` and `message` are the first error's; `errors` are the first ones of `count`."""

    def __init__(
        self,
        path: Path,
        line: int | None,
        message: str,
        *,
        unit: str = "line",
        errors: Sequence[RowError] = (),
        count: int = 1,
    ):
        self.path, self.line, self.message, self.unit = path, line, message, unit
        self.errors = tuple(errors) or (RowError(line, message),)
        self.count = max(count, len(self.errors))
        first = f"{unit} {line}: {message}" if line else message
        super().__init__(first if self.count == 1 else f"{first} (and {self.count - 1} more wrong {unit}s)")

    @classmethod
    def of(cls, path: Path, errors: Sequence[RowError], count: int, unit: str) -> "InvalidData":
        """Several wrong rows."""
        return cls(path, errors[0].line, errors[0].message, unit=unit, errors=errors, count=count)

    @property
    def told(self) -> Iterator[tuple[int | None, str]]:
        """Each error that is told, with its line, as a sentence of its own; then how many more there are."""
        for error in self.errors:
            yield error.line, f"{self.unit} {error.line}: {error.message}" if error.line else error.message
        if (more := self.count - len(self.errors)) > 0:
            yield None, f"… and {more} more {self.unit}{'s' if more > 1 else ''} like these"
