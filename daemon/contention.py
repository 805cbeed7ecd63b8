"""How long somebody else used a GPU beside our job. Pure arithmetic.

A job is not stopped for it, and its times are not its own: whoever compares runs should know. What counts: others hold
`MORE_MIB` more than when the job began, or have more than `SHARE_PERCENT` of the multiprocessors, for `LASTS_S` at least.
"""

from collections.abc import Sequence
from itertools import pairwise

from daemon.energy import LONGEST_STEP_S, Reading

MORE_MIB, SHARE_PERCENT, LASTS_S = 512, 20, 30.0


def contended_s(readings: Sequence[Reading], start: float, end: float) -> float | None:
    """Seconds between start and end in which others used the GPU, too; None where whose its processes are is not known."""
    inside = [reading for reading in readings if start <= reading.at <= end and reading.foreign_mib is not None]
    if not inside:
        return None
    total = lasted = 0.0
    least_mib = inside[0].foreign_mib or 0
    for a, b in pairwise([*inside, inside[-1]._replace(at=end, foreign_mib=0, foreign_util=0)]):
        if _others_work(a, least_mib):
            lasted += min(b.at - a.at, LONGEST_STEP_S)
            continue
        total, lasted = total + (lasted if lasted >= LASTS_S else 0.0), 0.0
    return round(total + (lasted if lasted >= LASTS_S else 0.0), 1)


def _others_work(reading: Reading, least_mib: int) -> bool:
    more_mib = (reading.foreign_mib or 0) - least_mib
    return more_mib >= MORE_MIB or (reading.foreign_util or 0) > SHARE_PERCENT
