"""Tells a job that hangs from one that is slow: by what the job last said, not by silence alone. Pure.

Each phase has its own budget; a training's steady steps are measured against its own history.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import median

from jobs.model import Progress

#: Loading, saving, evaluating and everything before the first step may take this many times the least budget.
SLOW_PHASE_FACTOR = 6.0
#: A step that takes this many times the median is not slow, it hangs.
STEADY_FACTOR = 10.0
STEPS_REMEMBERED = 32
STEADY_PHASES = frozenset({"training", "generating"})


@dataclass
class Watchdog:
    """Watches the beats of one attempt. `least_s`: no budget is shorter. Times are monotonic seconds."""

    least_s: float
    began: float
    _beat_at: float = field(init=False)
    _progress: Progress | None = None
    _beat: object = None
    _steps_s: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS_REMEMBERED))

    def __post_init__(self) -> None:
        self._beat_at = self.began

    def saw(self, progress: Progress | None, beat: object, now: float) -> None:
        """What the job says now; `beat` changes whenever it says something."""
        if progress is None or beat == self._beat:
            return
        before = self._progress
        if before is not None and progress.phase == before.phase and progress.step > before.step:
            self._steps_s.append((now - self._beat_at) / (progress.step - before.step))
        self._beat, self._beat_at, self._progress = beat, now, progress

    def hung(self, now: float) -> str | None:
        """Why the job counts as hung; None while it is within its budget."""
        silent_s, budget_s = now - self._beat_at, self.budget_s
        if silent_s <= budget_s:
            return None
        phase = self._progress.phase if self._progress else "starting"
        at = f" at step {self._progress.step}" if self._progress and self._progress.step else ""
        return f"It said nothing for {silent_s:.0f} s while {phase}{at}; {budget_s:.0f} s are its limit there."

    @property
    def budget_s(self) -> float:
        """How long it may be silent now."""
        if self._progress is None or self._progress.phase not in STEADY_PHASES or not self._steps_s:
            return SLOW_PHASE_FACTOR * self.least_s
        return max(self.least_s, STEADY_FACTOR * median(self._steps_s))
