"""What the jobs of the drill told their observer. Written by `program.py`, read here."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Line:
    """One line of a ledger."""

    at: float
    pid: int
    word: str
    number: int


class Ledgers:
    """A folder with one ledger per job, by the job's name."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, job: str) -> Path:
        return self.folder / job

    def lines(self, job: str) -> list[Line]:
        """Everything that the job told, oldest first; a line that is being written is left out."""
        try:
            text = self.path(job).read_text()
        except FileNotFoundError:
            return []
        found = []
        for row in text[: text.rfind("\n") + 1].splitlines():
            at, pid, word, number = row.split()
            found.append(Line(float(at), int(pid), word, int(number)))
        return found

    def starts(self, job: str, *, after: float = 0.0) -> list[Line]:
        """Its starts, later than a moment."""
        return [line for line in self.lines(job) if line.word == "start" and line.at > after]

    def moved(self, job: str, *, after: float) -> bool:
        """Whether the job told anything later than a moment."""
        return any(line.at > after for line in self.lines(job))

    def all_starts(self) -> int:
        """How often any job started."""
        return sum(len(self.starts(path.name)) for path in self.folder.iterdir() if "." not in path.name)
