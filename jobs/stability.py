"""Tells when a training has gone astray: a loss that is no number, or one that left where it was and does not come back.

Pure. A real blow-up seldom shows as NaN: the loss freezes at the logarithm of the vocabulary, which is guessing, and the gradient is zero.
"""

import math
from collections.abc import Mapping
from typing import Any

#: So many steps in a row decide; one bad batch does not.
NOT_FINITE_STEPS = 2
ASTRAY_STEPS = 5
#: Astray: that many times the best smoothed loss, and no better than guessing.
WORSE = 3.0
#: Weight of the newest step in the smoothed loss.
SMOOTHING = 0.1


class LossWatch:
    """Looks at every optimizer step's loss and gradient norm."""

    def __init__(self, vocabulary: int):
        self._guessing = math.log(max(2, vocabulary)) - 0.1
        self._smoothed: float | None = None
        self._best = math.inf
        self._not_finite = 0
        self._astray = 0
        self._no_gradient = 0

    @property
    def suspects(self) -> int:
        """Steps up to the newest one that looked bad: their weights must not be saved."""
        return max(self._not_finite, self._astray, self._no_gradient)

    def look(self, loss: float, grad_norm: float | None) -> str | None:
        """Take one step in. Returns why the training must stop, or None."""
        finite = math.isfinite(loss) and (grad_norm is None or math.isfinite(grad_norm))
        self._not_finite = 0 if finite else self._not_finite + 1
        if self._not_finite >= NOT_FINITE_STEPS:
            return f"the loss or its gradient was not a number for {self._not_finite} steps in a row"
        if not finite:
            return None
        self._no_gradient = self._no_gradient + 1 if grad_norm == 0 else 0
        if self._no_gradient >= ASTRAY_STEPS:
            return f"the gradient was zero for {self._no_gradient} steps in a row (loss {loss:.3f})"
        self._astray = self._astray + 1 if loss > max(WORSE * self._best, self._guessing) else 0
        if self._astray >= ASTRAY_STEPS:
            return (
                f"the loss rose to {loss:.3f} and stayed there for {self._astray} steps; the best was {self._best:.3f}"
            )
        self._smoothed = loss if self._smoothed is None else self._smoothed + SMOOTHING * (loss - self._smoothed)
        self._best = min(self._best, self._smoothed)
        return None

    def memory(self) -> dict[str, Any]:
        """What a later attempt must know."""
        return {"smoothed": self._smoothed, "best": None if math.isinf(self._best) else self._best}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on from another attempt's memory."""
        self._smoothed = memory.get("smoothed")
        best = memory.get("best")
        self._best = math.inf if best is None else best
