"""What a drill found, for people and for a file."""

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
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


def sums(path: Path) -> str:
    """Tables for a page, from a file of results."""
    results = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [
        "| seed | rig | faults | kinds | jobs | starts | repeated submissions | violations |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in results:
        slots = "3 GPUs" if one["gpus"] else "3 CPU slots"
        figures = (
            sum(one["faults"].values()),
            len(one["faults"]),
            one["jobs"],
            one["starts"],
            one["repeats"],
            len(one["violations"]),
        )
        rows.append(f"| {one['seed']} | {slots} | {' | '.join(map(str, figures))} |")
    rows += ["", "| fault | times | p50 | p90 | max |", "|---|---:|---:|---:|---:|"]
    for name in sorted({name for one in results for name in one["faults"]}):
        times = [value for one in results for value in one["resumed_s"].get(name, [])]
        cells = [f"{percentile(times, p):.2f}" for p in (50, 90, 100)] if times else ["-"] * 3
        rows.append(f"| {name} | {sum(one['faults'].get(name, 0) for one in results)} | {' | '.join(cells)} |")
    return "\n".join(rows)


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
