"""The file of answers: appended as they come, read again after a kill, put in order at the end. Pure files, no model."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from jobs.generation.answers import Answer, Format, Tally
from jobs.rundir import read_json, sync_folder, write_json


class Results:
    """Answers on disk. What was handed to `append` is there whole, whatever happens next.

    `order` says what the answers belong to (data, model, parameters): answers of another order are never mixed in.
    `keys`: of every request, in the order in which the finished file has them.
    """

    def __init__(
        self, path: Path, order_path: Path, order: Mapping[str, Any], keys: Sequence[str], output_format: Format
    ):
        self.path, self._order_path, self._order, self._format = path, order_path, dict(order), output_format
        self._places = {key: place for place, key in enumerate(keys)}

    def resume(self) -> set[str]:
        """Keys of the answers that are there, each of them once. A torn tail is cut off."""
        if read_json(self._order_path) != self._order or not self.path.exists():
            return set()
        found: dict[str, None] = {}
        with self.path.open("rb+") as file:
            end = 0
            for key, start, size in self._lines(file):
                if key in found or start != end:
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

    def append(self, answers: Sequence[Answer]) -> None:
        """Add answers in one write, durably."""
        lines = "".join(json.dumps(self._format.line(answer), ensure_ascii=False) + "\n" for answer in answers)
        with self.path.open("ab", buffering=0) as file:
            file.write(lines.encode(errors="replace"))
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Put the answers in the order of their requests. Only their places are held in memory."""
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with self.path.open("rb") as source, draft.open("wb") as target:
            places = {key: (start, size) for key, start, size in self._lines(source)}
            for key in sorted(places, key=self._places.__getitem__):
                start, size = places[key]
                source.seek(start)
                target.write(source.read(size))
            target.flush()
            os.fsync(target.fileno())
        draft.replace(self.path)
        sync_folder(self.path.parent)

    def tallies(self) -> Iterator[tuple[str, Tally]]:
        """What each line counts as, with its key."""
        with self.path.open("rb") as file:
            for line in file:
                value = json.loads(line)
                yield self._format.key(value), self._format.tally(value)

    def _lines(self, file: IO[bytes]) -> Iterator[tuple[str, int, int]]:
        """Key, start and size of every whole line that belongs to a request; ends at the first that is torn."""
        start = 0
        for line in file:
            try:
                key = self._format.key(json.loads(line))
            except (ValueError, KeyError, TypeError):
                return
            if not line.endswith(b"\n") or key not in self._places:
                return
            yield key, start, len(line)
            start += len(line)
