"""A file of rows that are made one after the other: appended as they come, read again after a kill, put in order at the end.

Pure files, no model. Only the places of rows are held in memory, not the rows.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from jobs.rundir import read_json, sync_folder, write_json

Row = dict[str, Any]
#: A number or a text.
Key = Any


def index_of(row: Mapping[str, Any]) -> Key:
    """The key of rows that are numbered by `index`."""
    return int(row["index"])


class RowsFile:
    """Rows on disk, each with a key of its own. What `append` was given is there, whatever happens next.

    `order` says what they belong to (data, model, parameters): rows of another order are never mixed in. `key`: of a row.
    `places`: of the keys that may be in the file, where the finished file has them; without it keys sort by themselves.
    """

    def __init__(
        self,
        path: Path,
        order_path: Path,
        order: Mapping[str, Any],
        *,
        key: Callable[[Mapping[str, Any]], Key] = index_of,
        places: Mapping[Key, int] | None = None,
    ):
        self.path, self._order_path, self._order = path, order_path, dict(order)
        self._key, self._places = key, places

    def resume(self) -> set[Key]:
        """Cut off a torn end, and return the keys of the rows that are there; none when they are of another order."""
        if read_json(self._order_path) != self._order or not self.path.exists():
            return set()
        found: dict[Key, None] = {}
        end = 0
        with self.path.open("rb+") as file:
            for key, start, size in self._whole(file):
                if key in found:
                    break
                found[key] = None
                end = start + size
            file.truncate(end)
            os.fsync(file.fileno())
        return set(found)

    def start_over(self) -> None:
        """Begin an empty file of this order."""
        with self.path.open("wb") as file:
            os.fsync(file.fileno())
        sync_folder(self.path.parent)
        write_json(self._order_path, self._order)

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows in one write, durably."""
        lines = "".join(_line(row) for row in rows)
        with self.path.open("ab", buffering=0) as file:
            file.write(lines.encode(errors="replace"))
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Put the rows in order."""
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with self.path.open("rb") as source, draft.open("wb") as target:
            found = {key: (start, size) for key, start, size in self._whole(source)}
            for key in sorted(found, key=self._places.__getitem__ if self._places is not None else None):
                start, size = found[key]
                source.seek(start)
                target.write(source.read(size))
            target.flush()
            os.fsync(target.fileno())
        draft.replace(self.path)
        sync_folder(self.path.parent)

    def __iter__(self) -> Iterator[Row]:
        """Every whole row."""
        with self.path.open("rb") as file:
            for _, start, size in list(self._whole(file)):
                file.seek(start)
                yield json.loads(file.read(size))

    def _whole(self, file: IO[bytes]) -> Iterator[tuple[Key, int, int]]:
        """Key, start and size of every row up to the first that is torn or none of ours."""
        start = 0
        for line in file:
            try:
                key = self._key(json.loads(line))
            except (ValueError, KeyError, TypeError):
                return
            if not line.endswith(b"\n") or (self._places is not None and key not in self._places):
                return
            yield key, start, len(line)
            start += len(line)


def _line(row: Row) -> str:
    """As JSON, whatever came in with the data: tables hold dates, decimals and bytes, and Python reads NaN."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    except ValueError:
        return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _finite(value: Any) -> Any:
    """The same with null for what is no number."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
