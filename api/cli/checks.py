"""What a check of `overnight doctor` says."""

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Check:
    """What was found, and what to do about it."""

    level: str
    name: str
    message: str
    fix: str = ""
