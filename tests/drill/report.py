"""What a drill found, for people and for a file."""

import json
import os
import platform
import time
from collections.abc import Sequence
from typing import Any

from night import Result


def as_text(result: Result) -> str:
    """A table of the faults, and the sums."""
    rows = [f"{'fault':40} {'times':>5}   {'p50':>6} {'p90':>6} {'max':>6}   s until work went on"]
    for name, count in sorted(result.faults.items()):
        rows.append(f"{name:40} {count:5d}   {_figures(result.resumed_s.get(name, []))}")
    rows += [f"{name:40}     -   {reason}" for name, reason in sorted(result.impossible.items())]
    ended = ", ".join(f"{count} {state}" for state, count in result.ended.most_common())
    slots = "3 GPUs of the fake driver" if result.gpus else "3 CPU slots"
    rows += [
        "",
        f"seed {result.seed}, {slots}; disk: {result.disk}",
        f"{sum(result.faults.values())} faults of {len(result.faults)} kinds in {result.wall_s:.0f} s; {result.jobs} jobs ({ended}); "
        f"{result.starts} starts; {result.repeats} submissions repeated after no answer",
        f"{len(result.violations)} violations",
        *(f"  {text.splitlines()[0]}" for text in result.violations),
    ]
    return "\n".join(rows)


def as_json(result: Result) -> str:
    """One line, with where and when."""
    return json.dumps({**machine(), **vars(result)})  # `asdict` would make pairs of a Counter


def restart_text(times_s: Sequence[float]) -> str:
    """How long it took from the daemon's start to the resumed program's first line."""
    p50, p90 = percentile(times_s, 50), percentile(times_s, 90)
    each = " ".join(f"{value:.2f}" for value in times_s)
    return f"resumed after {each} s: p50 {p50:.2f}, p90 {p90:.2f}, max {max(times_s):.2f} s; {machine()}"


def machine() -> dict[str, Any]:
    """Where and when something was measured."""
    load = os.getloadavg()[0]
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "load": round(load, 1),
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which so many per cent lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _figures(values: list[float]) -> str:
    if not values:
        return ""
    return " ".join(f"{percentile(values, p):6.2f}" for p in (50, 90, 100))
