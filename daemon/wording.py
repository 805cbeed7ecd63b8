"""Numbers, moments and causes as a person reads them, wherever the rig tells of them. Pure: no clock, no zone of its own."""

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from jobs.metrics import is_finite
from jobs.model import Cause

THIN = "\u202f"  # narrow no-break space: between a number and its unit, and between thousands
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400
CAUSE_WORDS: Mapping[Cause, str] = {
    Cause.LOST: "its process was lost",
    Cause.OOM_GPU: "out of GPU memory",
    Cause.OOM_HOST: "out of main memory",
    Cause.NAN: "training diverged",
    Cause.HANG: "hung",
    Cause.TIMEOUT: "over its time limit",
    Cause.GPU_FAULT: "GPU fault",
    Cause.DISK_FULL: "disk full",
    Cause.BAD_INPUT: "bad input",
    Cause.USER_ERROR: "program error",
    Cause.SIGNAL: "killed from outside",
    Cause.FETCH: "download failed",
}
#: The one number that says most about a result, the best known first.
TELLING_METRICS = (
    "eval_loss",
    "accuracy",
    "score",
    "perplexity",
    "train_loss",
    "final_loss",
    "loss",
    "decode_tokens_per_s",
    "tokens_per_s",
    "rows",
)

#: An escape sequence of a terminal: colours, cursor moves, titles, links.
ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~])")
#: What is neither text nor layout, turns the direction of text, or cannot be encoded.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def plain(text: str) -> str:
    """Text without terminal sequences and control characters."""
    return UNPRINTABLE.sub("", ESCAPE.sub("", text))


def clock(moment: float, now: float, zone: ZoneInfo) -> str:
    """22:14 within half a day, "Mon 22:14" within days, else with the date."""
    then, today = datetime.fromtimestamp(moment, zone), datetime.fromtimestamp(now, zone)
    if then.date() == today.date() or abs(moment - now) < DAY_S / 2:
        return f"{then:%H:%M}"
    if abs(moment - now) < 6 * DAY_S:
        return f"{then:%a %H:%M}"
    return f"{then.day} {then:%b %H:%M}" if then.year == today.year else f"{then.day} {then:%b %Y}"


def duration(seconds: float) -> str:
    """48 s, 12 min, 1 h 12 min, 2 d 3 h."""
    whole = max(0, round(seconds))
    if whole < MINUTE_S:
        return f"{seconds:.1f}{THIN}s" if 0 < seconds < 10 else f"{whole}{THIN}s"
    if whole < HOUR_S:
        minutes, rest = divmod(whole, MINUTE_S)
        return f"{minutes}{THIN}min" + (f" {rest}{THIN}s" if minutes < 10 and rest else "")
    if whole < DAY_S:
        hours, minutes = divmod(whole // MINUTE_S, 60)
        return f"{hours}{THIN}h" + (f" {minutes}{THIN}min" if minutes else "")
    days, hours = divmod(whole // HOUR_S, 24)
    return f"{days}{THIN}d" + (f" {hours}{THIN}h" if hours else "")


def energy(joules: float) -> str:
    """1.24 kWh; Wh below a tenth of it."""
    kwh = joules / 3.6e6
    if kwh >= 0.1:
        return f"{kwh:.2f}{THIN}kWh" if kwh < 10 else f"{kwh:.1f}{THIN}kWh"
    wh = kwh * 1000
    return f"{wh:.0f}{THIN}Wh" if wh >= 10 else f"{wh:.2g}{THIN}Wh"


def percent(ratio: float) -> str:
    return f"{ratio * 100:.0f}{THIN}%"


def number(value: object) -> str:
    """Grouped whole numbers, four digits of others; small and large ones as 2e-4."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}".replace(",", THIN)
    if not 1e-3 <= abs(value) < 1e9:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}" if abs(value) < 10_000 else f"{round(value):,}".replace(",", THIN)


def telling_metric(metrics: Mapping[str, Any]) -> tuple[str, float] | None:
    """The metric to show where there is room for one."""
    known = {name: float(value) for name, value in metrics.items() if is_finite(value)}
    name = next((name for name in TELLING_METRICS if name in known), None)
    return (name, known[name]) if name else None


def count(amount: int, noun: str) -> str:
    """1 job, 2 jobs."""
    return f"{number(amount)} {noun}{'' if amount == 1 else 's'}"
