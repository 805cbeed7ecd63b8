"""How a recipe reads a file of rows: it beats meanwhile, stops when it is asked to, and refuses a bad file in one way."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from jobs.data import InvalidData
from jobs.model import Cause
from jobs.run import Interrupted, JobError, Run

T = TypeVar("T")

BEAT_EVERY_S = 1.0


@contextmanager
def usable(field: str) -> Iterator[None]:
    """Around the reading of the file that this field names. Raises JobError(bad_input) for a row that cannot be used."""
    try:
        yield
    except InvalidData as error:
        raise JobError(Cause.BAD_INPUT, f"{field}: {error}.", "Correct the file and submit the job again.") from error


def while_beating(run: Run, rows: Iterable[tuple[int, T]]) -> Iterator[tuple[int, T]]:
    """The same rows with their numbers, and every second a word of how far it is. Raises Interrupted when it is asked to stop."""
    told_at = -math.inf
    for number, row in rows:
        yield number, row
        if (now := time.monotonic()) - told_at > BEAT_EVERY_S:
            told_at = now
            run.phase("preparing", step=number)
            if run.stop_requested:
                raise Interrupted
