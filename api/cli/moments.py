"""Times of day and lengths of time as people type them."""

import re
from datetime import datetime, timedelta
from typing import Any

import click

DURATION = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in ("d", "h", "m(?:in)?", "s")))
UNITS_S = (86_400, 3600, 60, 1)


class Duration(click.ParamType[float]):
    """`6h`, `90m`, `1h30m`, or seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).replace(" ", "")
        found = DURATION.fullmatch(text if text.endswith(tuple("dhmns")) else text + "s")
        if not found or not any(found.groups()):
            self.fail(f"{value!r} is not a time such as 6h, 90m, 1h30m or 3600", param, ctx)
        return sum(float(part) * unit for part, unit in zip(found.groups(), UNITS_S, strict=True) if part)


class Moment(click.ParamType[str]):
    """`22:00` (the next one), or ISO 8601; this machine's time zone when it has no offset."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).strip()
        try:
            return _moment(text, datetime.now().astimezone()).isoformat()
        except ValueError:
            self.fail(f"{value!r} is not a moment such as 22:00 or 2026-11-24T22:00", param, ctx)


def _moment(text: str, now: datetime) -> datetime:
    if re.fullmatch(r"\d{1,2}:\d{2}", text):
        hour, minute = map(int, text.split(":"))
        then = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
        return then if then > now else (then.replace(tzinfo=None) + timedelta(days=1)).astimezone()
    then = datetime.fromisoformat(text)
    return then if then.tzinfo else then.astimezone()
