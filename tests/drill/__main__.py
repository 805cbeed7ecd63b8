"""The fault drill: `python tests/drill [--faults N] [--seed S] [--minutes M] [--rig cpu|gpu] [--report FILE]`.

Hurts a real rig in every way that is known, many times, and checks that nothing was lost and nothing happened twice. Ends with
status 1 when a promise was broken, and prints what is known of that job.
"""

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]  # for the fake NVIDIA driver

from compare import as_table, compare  # noqa: E402
from night import UNFINISHED, drill, night_with_ten_faults  # noqa: E402
from outage import outage  # noqa: E402
from recipes import drill_recipes  # noqa: E402
from report import as_json, as_text, restart_text, sums  # noqa: E402
from restart import measure  # noqa: E402


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python tests/drill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=100, help="how many faults (default 100)")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000, help="the same seed, the same schedule")
    parser.add_argument("--minutes", type=float, default=9.0, help="no fault after so long (default 9)")
    parser.add_argument(
        "--rig", choices=("cpu", "gpu"), default="cpu", help="3 CPU slots, or 3 GPUs played by the fake driver"
    )
    parser.add_argument("--jobs", type=int, default=UNFINISHED, help="so many jobs wait or run all the time")
    parser.add_argument("--only", action="append", help="kinds of faults whose names hold this word")
    parser.add_argument("--report", type=Path, help="add the result to this file, one JSON object a line")
    parser.add_argument(
        "--recipes", action="store_true", help="fine-tunes under fire; their curves must be an undisturbed one's"
    )
    parser.add_argument("--sum", type=Path, help="instead: tables for a page from a file that --report wrote")
    parser.add_argument("--outage", type=float, help="instead: Redis away for so many seconds while jobs run")
    parser.add_argument("--quiet", action="store_true", help="only the result")
    parser.add_argument(
        "--compare", action="store_true", help="instead: the same faults here and on plain RQ (4 minutes)"
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="instead: from a kill of everything to the resumed job, with 1,000 queued",
    )
    parser.add_argument(
        "--night", action="store_true", help="instead: ten faults, and a page that tells of them (on stdout)"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a rig is ended with its drill
    began = time.monotonic()

    def say(text: str) -> None:
        if not options.quiet:
            print(f"{time.monotonic() - began:6.1f} {text}", flush=True)

    if options.sum:
        print(sums(options.sum))
        return 0
    if options.outage:
        broken = outage(options.outage, say)
        print("\n".join(broken) or "nothing was broken", flush=True)
        return 1 if broken else 0
    if options.compare:
        print(as_table(compare(say)), flush=True)
        return 0
    if options.restart:
        print(restart_text(measure(trials=10)), flush=True)
        return 0
    if options.night:
        result, page = night_with_ten_faults(
            seed=options.seed, say=lambda text: print(text, file=sys.stderr, flush=True)
        )
        print(page, flush=True)
        return 1 if result.violations else 0
    print(f"seed {options.seed}", flush=True)
    limits: dict[str, Any] = {
        "faults": options.faults,
        "seed": options.seed,
        "limit_s": options.minutes * 60,
        "say": say,
    }
    if options.recipes:
        result = drill_recipes(**limits)
    else:
        result = drill(**limits, gpus=options.rig == "gpu", unfinished=options.jobs, only=options.only)
    print(as_text(result), flush=True)
    if options.report:
        with options.report.open("a") as file:
            file.write(as_json(result) + "\n")
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
