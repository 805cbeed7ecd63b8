"""The file of measured rows: appended as they come, read again after a kill, put in order at the end. Pure files, no model."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.rundir import read_json, sync_folder, write_json

Row = dict[str, Any]


class RowsFile:
    """Rows on disk, each with its `index`. What `append` was given is there, whatever happens next.

    `order` says what they belong to (data, model, parameters): rows of another order are never mixed in.
    """

    def __init__(self, path: Path, order_path: Path, order: Mapping[str, Any]):
        self.path, self._order_path, self._order = path, order_path, dict(order)

    def resume(self) -> set[int]:
        """Cut off a torn end, and return the indices of the rows that are there; none when they are of another order."""
        if read_json(self._order_path) != self._order:
            return set()
        rows, whole_bytes = self._read()
        if self.path.exists():
            os.truncate(self.path, whole_bytes)
        return {int(row["index"]) for row in rows}

    def start_over(self) -> None:
        """Begin an empty file of this order."""
        self._write(())
        write_json(self._order_path, self._order)

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows in one write, durably."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with self.path.open("ab", buffering=0) as file:
            file.write(lines.encode())
            os.fsync(file.fileno())

    def finish(self) -> list[Row]:
        """Put the rows in order and return them."""
        rows = sorted(self._read()[0], key=lambda row: int(row["index"]))
        self._write(rows)
        return rows

    def _read(self) -> tuple[list[Row], int]:
        """The whole rows, and how many bytes they take."""
        rows: list[Row] = []
        if not self.path.exists():
            return rows, 0
        whole_bytes = 0
        with self.path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    break  # torn: nothing after it counts
                if not line.endswith(b"\n"):
                    break
                rows.append(row)
                whole_bytes += len(line)
        return rows, whole_bytes

    def _write(self, rows: Iterable[Row]) -> None:
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with draft.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)
        sync_folder(self.path.parent)
