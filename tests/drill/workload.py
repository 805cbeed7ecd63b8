"""The jobs of a drill: many small ones of every sort, and what each may come to."""

import random
import sys
from dataclasses import dataclass, field
from typing import Any

from ledger import Ledgers
from rig import PROGRAM

#: Enough for any drill: what a fault interrupts must go on, however often it is hit.
MANY = 100
#: Sort of job -> its share, and fields of its document.
SORTS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (8, {}),
    "gang": (4, {"gpus": 2}),
    "ranks": (3, {"retries": MANY}),
    "gang-ranks": (2, {"gpus": 2, "retries": MANY}),
    "stubborn": (2, {}),
    "leaves": (3, {}),
    "pauses": (2, {}),
    "fails": (2, {}),
    "high": (1, {"priority": "high"}),
    "backlog": (1, {"priority": "backlog"}),
}
STEPS = (15, 60)
STEP_S = 0.05


@dataclass
class Expected:
    """What may become of one job."""

    name: str
    sort: str
    steps: int
    #: The step at which it exits 75 or fails, if it does.
    pauses_at: int = 0
    fails_at: int = 0
    states: set[str] = field(default_factory=set)
    #: Somebody queued it again after its end.
    retried: bool = False
    #: When the owner last asked it to stop, whether or not the call was answered.
    asked_at: float = -1.0

    @property
    def flags(self) -> list[str]:
        """For program.py."""
        return [
            *(["--rank"] if "ranks" in self.sort else []),
            *(["--stubborn"] if self.sort == "stubborn" else []),
            *(["--leaves"] if self.sort == "leaves" else []),
            *(["--pauses", str(self.pauses_at)] if self.pauses_at else []),
            *(["--fails", str(self.fails_at)] if self.fails_at else []),
        ]

    def was_asked(self, ledgers: Ledgers, *, before: float) -> bool:
        """Whether its start at this moment is the one that follows the owner's call: a stubborn job takes its grace first."""
        return 0.0 < self.asked_at < before and not any(
            self.asked_at < line.at < before for line in ledgers.starts(self.name)
        )

    def stops_after(self, step: int) -> bool:
        """Whether its program ends by itself after this step."""
        paused = self.pauses_at and step % self.pauses_at == 0
        return bool(step == self.steps or step == self.fails_at or (paused and step))


class Workload:
    """Makes job documents from a seed, and remembers what is expected of each."""

    def __init__(self, rng: random.Random, ledgers: Ledgers):
        self._rng, self._ledgers = rng, ledgers
        self.expected: dict[str, Expected] = {}

    def document(self) -> dict[str, Any]:
        """The next job."""
        sort = self._rng.choices(list(SORTS), [share for share, _ in SORTS.values()])[0]
        steps = self._rng.randint(*STEPS)
        at = self._rng.randint(5, 12)
        job = Expected(f"{len(self.expected):04d}-{sort}", sort, steps)
        if sort == "pauses":
            job.pauses_at = at
        if sort == "fails":
            job.fails_at = at
        job.states = {"failed" if job.fails_at else "succeeded"}
        self.expected[job.name] = job
        ledger = self._ledgers.path(job.name)
        argv = [sys.executable, str(PROGRAM), str(ledger), str(steps), str(STEP_S), *job.flags]
        return {
            "kind": "command",
            "name": job.name,
            "argv": argv,
            "max_attempts": MANY,
            "tags": [sort],
            **SORTS[sort][1],
        }
