"""Which evaluation was the best, and whether to go on. Pure; made anew from the evaluations in metrics.jsonl after a resume."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

#: Of metrics whose names hold one of these, the smaller value is better.
SMALLER_IS_BETTER = ("loss", "perplexity", "error", "kl")


@dataclass
class Best:
    """Looks at every evaluation. `patience`: 0 goes on for ever; `threshold`: less than this is not better."""

    metric: str = "eval_loss"
    greater: bool = False
    patience: int = 0
    threshold: float = 0.0
    step: int | None = None
    value: float | None = None
    #: Evaluations since the best one.
    worse: int = 0

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Self:
        """As a document asks for it."""
        metric = str(spec["metric_for_best_model"])
        metric = metric if metric.startswith("eval_") else f"eval_{metric}"
        greater = spec["greater_is_better"]
        if greater is None:
            greater = not any(word in metric for word in SMALLER_IS_BETTER)
        return cls(
            metric=metric,
            greater=greater,
            patience=spec["early_stopping_patience"] or 0,
            threshold=spec["early_stopping_threshold"],
        )

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.patience <= self.worse

    def look(self, step: int, metrics: Mapping[str, Any]) -> bool:
        """Take one evaluation in. Returns whether it is the best one so far. Raises KeyError when it lacks the metric."""
        value = metrics[self.metric]
        if value is not None and math.isfinite(value) and self._is_better(value):
            self.step, self.value, self.worse = step, value, 0
            return True
        self.worse += 1
        return False

    def recall(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Go on from the evaluations of earlier attempts."""
        for line in lines:
            if self.metric in line:
                self.look(int(line["step"]), line)

    def _is_better(self, value: float) -> bool:
        if self.value is None:
            return True
        gain = value - self.value if self.greater else self.value - value
        return gain > self.threshold
