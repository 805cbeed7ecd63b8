"""Early stop of a sweep's worst jobs: asynchronous successive halving, in its stopping form. Pure.

At step `first_step`, and then at each `factor` times as many, a job is compared with all jobs that have come so far. As soon
as `factor` of them have, the best 1/`factor` (rounded up) go on and the others stop. Nobody waits for anybody.

A job is judged at the highest of these steps that it has reached, again whenever another one arrives there. One that has
gone on to the next is no longer judged at this one.

Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht, Talwalkar: A System for Massively Parallel Hyperparameter Tuning,
MLSys 2020 (arXiv:1810.05934), section 3.
"""

import math
from collections.abc import Collection, Iterator, Mapping

from jobs.sweep import Goal, Halving

#: The metric by which jobs are compared when the sweep names none.
DEFAULT_GOAL = Goal(minimize="eval_loss")
STOPPED_EARLY = "Stopped early: "
#: Nobody counts further; a job may write any number.
LARGEST_STEP = 1e12
PARTS = {2: "half", 3: "third", 4: "quarter"}


def to_stop(
    halving: Halving, goal: Goal, rungs: Mapping[int, Mapping[str, float]], running: Collection[str]
) -> dict[str, str]:
    """The running jobs that are not worth going on with, and why. `rungs`: by step, each job's metric when it came to it."""
    found: dict[str, str] = {}
    judged: set[str] = set()
    for step in sorted(rungs, reverse=True):
        values = rungs[step]
        here = [job for job in values if job in running and job not in judged]
        judged |= values.keys()
        if len(values) < halving.factor:
            continue
        going_on = math.ceil(len(values) / halving.factor)
        worst_kept = sorted(goal.key(value) for value in values.values())[going_on - 1]
        for job in here:
            if goal.key(values[job]) > worst_kept:  # who is as good as the last one that goes on goes on, too
                found[job] = _why(goal, halving, step, values[job], len(values))
    return found


def rungs_reached(halving: Halving, step: float) -> Iterator[int]:
    """The steps of comparison that a job at this step has come to, in order."""
    rung = halving.first_step
    while rung <= min(step, LARGEST_STEP):
        yield rung
        rung *= halving.factor


def _why(goal: Goal, halving: Halving, step: int, value: float, count: int) -> str:
    part = PARTS.get(halving.factor, f"1/{halving.factor}")
    return f"{STOPPED_EARLY}{goal.metric} {value:.4g} at step {step} is not among the best {part} of {count}."
