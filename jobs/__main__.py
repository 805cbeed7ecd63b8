"""Run the attempt that a run folder describes: `python -m jobs RUN_FOLDER`.

Writes only into that folder. Exit status: 0 succeeded, 75 interrupted (saved, run it again), 1 failed; result.json says more.
"""

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from jobs import environment, gang, log
from jobs.causes import classify
from jobs.model import End
from jobs.ranks import ALONE, Ranks, join
from jobs.run import EXIT_FAILED, EXIT_INTERRUPTED, Interrupted, JobError, Order, Run
from jobs.rundir import RunDir, write_json

#: Every kind's recipe: a module with `run(run) -> metrics`, loaded in the process that needs it.
RECIPES = {
    "finetune": "jobs.finetune",
    "generate": "jobs.generate",
    "evaluate": "jobs.evaluate",
    "benchmark": "jobs.benchmark",
    "export": "jobs.exports",
    "command": "jobs.command",
}


def main(path: Path, *, as_rank: bool = False) -> int:
    """Run one attempt, or one of its processes where it has several, and leave its result. Returns the exit status."""
    folder = RunDir(path)
    try:
        order = Order.read(folder)
    except JobError as error:
        print(f"{error.message}. {error.hint}", file=sys.stderr)
        return 2
    ranks = Ranks.of(os.environ) if as_rank else ALONE
    result = folder.rank_result(ranks.number) if as_rank else folder.result
    if not ranks.is_first:
        log.be_quiet()
    run = Run(folder.aside if order.preflight else folder, order, ranks)
    run.stop_on_sigterm()
    run.dump_stacks_on_sigusr1()
    if order.spec["kind"] != "command":  # a program of the owner's own sees the rig's environment as it is
        environment.set_defaults()
    try:
        run.folder.create()
        if as_rank:
            join(ranks, os.environ)
        if gang.is_needed(order.spec) and not as_rank:
            metrics = gang.run(run)
        else:
            metrics = importlib.import_module(RECIPES[order.spec["kind"]]).run(run)
    except Interrupted:
        _leave_result(result, order, end=End.INTERRUPTED)
        return EXIT_INTERRUPTED
    except Exception as error:  # whatever a job does wrong ends here, as a result that names its cause
        # `run.order`, not `order`: the recipe may have found its micro-batch
        failure = error if isinstance(error, JobError) else classify(error, run.order.spec)
        if failure is not error:
            traceback.print_exc()
        print(f"Failed ({failure.cause}): {failure.message} {failure.hint}".rstrip(), file=sys.stderr, flush=True)
        _leave_result(
            result,
            order,
            end=End.FAILED,
            cause=failure.cause,
            message=failure.message,
            hint=failure.hint,
            next_fields=failure.next_fields,
            learned=failure.learned,
        )
        return EXIT_FAILED
    if order.preflight:
        _leave_result(result, order, end=End.CHECKED, learned=metrics)
    else:
        _leave_result(result, order, end=End.SUCCEEDED, metrics=metrics)
    return 0


def _leave_result(path: Path, order: Order, **facts: Any) -> None:
    write_json(path, {"fence": order.fence, "attempt": order.attempt, **facts})


if __name__ == "__main__":
    as_rank = sys.argv[2:] == [gang.RANK_WORD]
    if len(sys.argv) != 2 and not as_rank:
        sys.exit("usage: python -m jobs RUN_FOLDER")
    status = main(Path(sys.argv[1]).absolute(), as_rank=as_rank)
    if as_rank:  # what torch takes down at the end of a process may hang or crash; the result is on disk
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
