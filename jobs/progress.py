"""Reading progress.json while its job writes it. A command may write it, too: the file may be anything, so it is held to its form."""

import json
import os
from pathlib import Path
from typing import Any

from jobs.metrics import MOST_NAMES, is_finite, open_regular
from jobs.model import Progress

MAX_BYTES = 64 << 10
PHASE_LETTERS = 40


def read_progress(path: Path, *, fence: int) -> tuple[Progress, object] | None:
    """How far the attempt with this fence is, and what changes with every word of it; None when it has said nothing usable."""
    descriptor = open_regular(path)
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as file:
        try:
            told = json.loads(file.read(MAX_BYTES))
        except (ValueError, RecursionError):
            return None
    if not isinstance(told, dict) or told.get("fence") != fence:
        return None
    metrics = told.get("metrics")
    named = list(metrics.items())[:MOST_NAMES] if isinstance(metrics, dict) else []
    progress = Progress(
        phase="".join(c for c in str(told.get("phase", "")) if c.isprintable())[:PHASE_LETTERS],
        step=_count(told.get("step")),
        total=_count(told.get("total")),
        eta_s=float(told["eta_s"]) if is_finite(told.get("eta_s")) else None,
        metrics={str(name)[:64]: float(value) for name, value in named if is_finite(value)},
    )
    return progress, told.get("at")


def _count(value: Any) -> int:
    return max(0, int(value)) if is_finite(value) else 0
