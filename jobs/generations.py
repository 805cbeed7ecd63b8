"""The file of generated rows: appended batch by batch, read again after a kill, put in order at the end. Pure files, no model."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.rundir import read_json, sync_folder, write_json

Answer = dict[str, Any]


class Generations:
    """Answers on disk. Each batch is there whole after `append`, whatever happens next.

    `order` says what the answers belong to (data, model, parameters): answers of another order are never mixed in.
    """

    def __init__(self, path: Path, order_path: Path, order: Mapping[str, Any]):
        self.path, self._order_path, self._order = path, order_path, dict(order)

    def resume(self, batches: Sequence[Sequence[int]]) -> set[int]:
        """Keep the answers of whole batches, and return their rows. The rest is done again, as it would have been.

        A batch is kept or dropped as one, so that sampling repeats exactly what an undisturbed run draws.
        """
        if read_json(self._order_path) != self._order:
            return set()
        found = {answer["index"]: answer for answer in self._read()}
        done = {row for batch in batches if all(index in found for index in batch) for row in batch}
        self._write(found[index] for index in found if index in done)
        return done

    def start_over(self) -> None:
        """Begin an empty file of this order."""
        self._write(())
        write_json(self._order_path, self._order)

    def append(self, answers: Sequence[Answer]) -> None:
        """Add a batch in one write, durably."""
        lines = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        with self.path.open("ab", buffering=0) as file:
            file.write(lines.encode())
            os.fsync(file.fileno())

    def finish(self) -> list[Answer]:
        """Put the answers in the order of the prompts and return them."""
        answers = sorted(self._read(), key=lambda answer: int(answer["index"]))
        self._write(answers)
        return answers

    def _read(self) -> list[Answer]:
        answers: list[Answer] = []
        if not self.path.exists():
            return answers
        with self.path.open("rb") as file:
            for line in file:
                try:
                    answer = json.loads(line)
                except ValueError:
                    break  # a torn tail: nothing after it counts
                if not line.endswith(b"\n"):
                    break
                answers.append(answer)
        return answers

    def _write(self, answers: Iterable[Answer]) -> None:
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with draft.open("w", encoding="utf-8") as file:
            for answer in answers:
                file.write(json.dumps(answer, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)
        sync_folder(self.path.parent)
