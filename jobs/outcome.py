"""How an attempt ended, judged from what is left of it: the child's result, and its keeper's word on the process."""

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from jobs.metrics import is_finite
from jobs.model import Cause, End, Outcome


class StoppedFor(StrEnum):
    """Why the keeper ended the child."""

    CANCEL = "cancel"
    PREEMPT = "preempt"
    TIMEOUT = "timeout"
    HANG = "hang"
    NOT_OURS = "not_ours"


@dataclass(frozen=True, kw_only=True)
class Exit:
    """The content of exit.json."""

    fence: int
    exit_code: int | None = None
    signal: int | None = None
    stopped_for: StoppedFor | None = None
    reason: str = ""
    oom_killed: bool = False
    peak_rss_bytes: int = 0

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read what `asdict` wrote."""
        why = record.get("stopped_for")
        return cls(**{**record, "stopped_for": StoppedFor(why) if why else None})


def judge(*, fence: int, result: Mapping[str, Any] | None, exit: Exit | None) -> Outcome:
    """The outcome of the attempt with this fence. What another attempt left does not count, nor what is no result: a program of
    anybody's ran beside it."""
    result = _sound(result) if result and result.get("fence") == fence else None
    told = exit if exit and exit.fence == fence else None
    if result and result["end"] == End.SUCCEEDED:
        return Outcome(end=End.SUCCEEDED, metrics=result.get("metrics") or {})
    if told and told.stopped_for:
        return _stopped(told)
    if result and result["end"] == End.CHECKED:
        return Outcome(end=End.CHECKED, learned=result.get("learned") or {})
    if result and result["end"] == End.INTERRUPTED:
        return Outcome(end=End.INTERRUPTED, message="It saved its work and stopped.")
    if result:
        return Outcome(
            end=End.FAILED,
            cause=Cause(result["cause"]),
            message=result.get("message", ""),
            hint=result.get("hint", ""),
            next_fields=result.get("next_fields") or {},
            learned=result.get("learned") or {},
        )
    return _without_result(told)


def _sound(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result as the queue can keep it; None when it has no known words, or a table is none, or a number is none."""
    try:
        if End(result["end"]) is End.FAILED:
            Cause(result["cause"])
        text = json.dumps(result, allow_nan=False, ensure_ascii=False)
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    whole: dict[str, Any] = json.loads(text.encode(errors="replace"))  # halves of characters could not be sent on
    is_whole = (
        all(isinstance(whole.get(name) or "", str) for name in ("message", "hint"))
        and all(isinstance(whole.get(name) or {}, dict) for name in ("metrics", "next_fields", "learned"))
        and all(map(is_finite, (whole.get("learned") or {}).values()))
    )
    return whole if is_whole else None


def _stopped(exit: Exit) -> Outcome:
    match exit.stopped_for:
        case StoppedFor.CANCEL:
            return Outcome(end=End.CANCELLED, message=exit.reason)
        case StoppedFor.TIMEOUT:
            hint = "Raise max_runtime_s, or do less in one job. The last checkpoint is kept."
            return Outcome(end=End.FAILED, cause=Cause.TIMEOUT, message=exit.reason, hint=hint)
        case StoppedFor.HANG:
            hint = "The stack of every thread is in stacks.txt."
            return Outcome(end=End.FAILED, cause=Cause.HANG, message=exit.reason, hint=hint)
        case _:
            return Outcome(end=End.INTERRUPTED, message=exit.reason)


def _without_result(exit: Exit | None) -> Outcome:
    if exit is None:
        message = "Its process or its worker died without a word."
        return Outcome(end=End.FAILED, cause=Cause.LOST, message=message, hint="It goes on from its last checkpoint.")
    if exit.oom_killed:
        gib = exit.peak_rss_bytes / 2**30
        message = f"The machine's memory ran out; the job was killed with {gib:.1f} GiB in use."
        return Outcome(end=End.FAILED, cause=Cause.OOM_HOST, message=message, hint="Use a smaller batch or data set.")
    if exit.signal is not None:
        name = signal.Signals(exit.signal).name if exit.signal in set(signal.Signals) else str(exit.signal)
        return Outcome(end=End.FAILED, cause=Cause.SIGNAL, message=f"Killed by {name}, which Overnight did not send.")
    message = f"It exited with status {exit.exit_code} and left no result."
    return Outcome(end=End.FAILED, cause=Cause.USER_ERROR, message=message, hint="The log has its last words.")
