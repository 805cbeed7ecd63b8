"""What a fault may touch, what a fault has hit, and what is to be done a little later."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Timer

from disk import Disk
from fake_nvml.fakenvml import FakeNvml
from ledger import Ledgers
from rig import Rig, Running
from user import NoAnswer, Refused
from workload import Workload

FINAL = ("succeeded", "failed", "cancelled")
ASK_EVERY_S = 0.5


@dataclass
class Hit:
    """One fault that was carried out."""

    what: str
    at: float = field(default_factory=time.time)
    #: The moment at which the rig was over it; True when that is no measure of anything; None or False: not yet.
    recovered: Callable[[], float | bool | None] = lambda: True
    #: Jobs that must not notice it.
    unhurt: tuple[str, ...] = ()


class Skip(Exception):
    """There is nothing to hit now, or the fault cannot be made here; the message says why."""


class Impossible(Skip):
    """It can never be made on this machine."""


@dataclass
class Scene:
    """One drill's rig with everything around it."""

    rig: Rig
    disk: Disk
    ledgers: Ledgers
    workload: Workload
    rng: random.Random
    say: Callable[[str], None]
    nvml: FakeNvml | None = None
    violations: list[str] = field(default_factory=list)
    #: When Redis was last killed or let back in, by the monotonic clock; ahead of now while it is kept away.
    redis_hurt_at: float = -1e9
    #: What is to be done later, by the monotonic clock.
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _ends: dict[str, tuple[float, bool]] = field(default_factory=dict)
    _timers: list[Timer] = field(default_factory=list)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something in so many seconds."""
        self.later.append((time.monotonic() + seconds, action))

    def exactly_after(self, seconds: float, action: Callable[[], None]) -> None:
        """The same in a thread of its own, for what must not wait for a call that hangs; it may only touch the kernel."""
        timer = Timer(seconds, action)
        timer.daemon = True
        timer.start()
        self._timers = [one for one in self._timers if one.is_alive()] + [timer]

    @property
    def quiet(self) -> bool:
        """Whether nothing is to be done later."""
        return not self.later and not any(timer.is_alive() for timer in self._timers)

    def do_due(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        due = [item for item in self.later if item[0] <= now]
        for item in due:
            self.later.remove(item)
            item[1]()

    def violation(self, text: str) -> None:
        """Note that a promise was broken."""
        self.violations.append(text)
        self.say(f"VIOLATION {text}")

    # -- who is there to be hit ---------------------------------------------------------------------------------------------

    def running(self) -> list[Running]:
        """Jobs whose programs run and have told so."""
        found = self.rig.running()
        return [one for one in found if any(line.pid == one.program for line in self.ledgers.starts(one.job))]

    def names(self) -> tuple[str, ...]:
        """The same, by name."""
        return tuple(one.job for one in self.running())

    def victim(self, *, rank: bool = False, gang: bool = False) -> Running:
        """One of them. Raises Skip."""
        found = [
            one for one in self.running() if (one.rank is not None or not rank) and ("gang" in one.job or not gang)
        ]
        if not found:
            raise Skip("no such job runs now")
        return self.rng.choice(found)

    def starts_again(self, *jobs: str, after: float) -> Callable[[], float | bool | None]:
        """When the first of these jobs starts again. One that was at its end already, or that rightly waits behind others
        (backlog), measures nothing."""
        at_their_end = [job for job in jobs if self._at_its_end(job) or "backlog" in job]

        def check() -> float | bool | None:
            starts = [line.at for job in jobs for line in self.ledgers.starts(job, after=after)]
            if at_their_end or (not starts and all(self.has_ended(job) for job in jobs)):
                return True  # one came to its end in the same moment
            return min(starts, default=None)

        return check

    def has_ended(self, job: str) -> bool:
        """Whether the API says that the job has come to its end; asked at most twice a second."""
        asked_at, answer = self._ends.get(job, (-1e9, False))
        if not answer and time.monotonic() - asked_at > ASK_EVERY_S:
            try:
                answer = any(one["state"] in FINAL for one in self.rig.user.jobs(q=job))
            except (NoAnswer, Refused):
                answer = False
            self._ends[job] = time.monotonic(), answer
        return answer

    def goes_on(self, job: str, *, after: float) -> Callable[[], float | bool | None]:
        """When the job tells anything again."""
        at_its_end = self._at_its_end(job)
        return lambda: at_its_end or next((line.at for line in self.ledgers.lines(job) if line.at > after), None)

    def answers(self) -> float | None:
        """Now, when the API answers from the queue."""
        return time.time() if self.rig.user.answered() else None

    def _at_its_end(self, job: str) -> bool:
        """Whether the job's program may have ended before the fault hit it."""
        lines = [line for line in self.ledgers.lines(job) if line.word != "rank"]
        if not lines or lines[-1].word == "end":
            return True
        return lines[-1].word == "saved" and self.workload.expected[job].stops_after(lines[-1].number)
