"""Wait for a fact, and show evidence when it does not come. The only place in the tests that sleeps."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.01


def until(check: Callable[[], T], *, within_s: float = 10.0, evidence: Callable[[], object] = lambda: "") -> T:
    """The first truthy value of `check`, within a deadline."""
    deadline = time.monotonic() + within_s
    while not (value := check()):
        assert time.monotonic() < deadline, f"not within {within_s} s\n{evidence()}"
        time.sleep(POLL_S)
    return value
