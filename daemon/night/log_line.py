"""The line of a log that says why a job failed: a guess by its words, else the last one. Bounded reads only."""

import os
import re

from daemon.wording import plain
from jobs.metrics import open_regular
from jobs.rundir import RunDir

TAIL_BYTES = 32 << 10
#: The head of an exception, or what programs say before they give up.
ERROR = re.compile(r"^\s*[\w.]*(Error|Exception|Interrupt)\b|\b(error|fatal|failed|panic|abort(ed)?|killed|out of memory|no such file|not found|denied)\b", re.IGNORECASE)  # fmt: skip
LONGEST = 2_000


def decisive_line(folder: RunDir) -> str:
    """The last line that names an error, else the last one; "" without a log."""
    descriptor = open_regular(folder.log)
    if descriptor is None:
        return ""
    try:
        length = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, TAIL_BYTES, max(0, length - TAIL_BYTES)).decode(errors="replace")
    finally:
        os.close(descriptor)
    lines = [line for text in tail.split("\n") if (line := plain(text.rstrip("\r").rpartition("\r")[2]).strip())]
    telling = [line for line in lines if ERROR.search(line[:LONGEST])]
    return (telling or lines or [""])[-1][:LONGEST]
