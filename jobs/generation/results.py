"""The file of answers: rows of jobs.rows_file in one of the output's formats."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.generation.answers import Answer, Format, Tally
from jobs.rows_file import RowsFile


class Results:
    """Answers on disk. `keys`: of every request, in the order in which the finished file has them."""

    def __init__(
        self, path: Path, order_path: Path, order: Mapping[str, Any], keys: Sequence[str], output_format: Format
    ):
        places = {key: place for place, key in enumerate(keys)}
        self._rows = RowsFile(path, order_path, order, key=output_format.key, places=places)
        self._format = output_format
        self.resume, self.start_over, self.finish = self._rows.resume, self._rows.start_over, self._rows.finish

    def append(self, answers: Sequence[Answer]) -> None:
        """Add answers in one write, durably."""
        self._rows.append([self._format.line(answer) for answer in answers])

    def tallies(self) -> Iterator[tuple[str, Tally]]:
        """What each line counts as, with its key."""
        for row in self._rows:
            yield self._format.key(row), self._format.tally(row)
