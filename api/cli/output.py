"""What the commands print. Results go to stdout, everything else to stderr; nothing of a rig reaches the terminal uncleaned.

Names, logs and messages are other programs' words: control characters in them could move the cursor, set the clipboard or
forge lines, and square brackets would be markup to rich. `clean` takes out the first, markup stays off for the second.
"""

import json
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console

Json = dict[str, Any]

#: Whole escape sequences, so that no `[31m` is left of them: CSI, then OSC, DCS and the like with their text, then the short ones.
ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
#: C0 but tab and newline, DEL, C1, line separators, and what turns the reading direction or hides text.
CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)
COLOURS = {"running": "cyan", "succeeded": "green", "failed": "red", "cancelled": "yellow", "queued": "blue"}
UNITS = ("B", "kB", "MB", "GB", "TB")


def clean(text: object) -> str:
    """Text for a terminal: no control characters but newline and tab. What a carriage return overwrote is left out."""
    lines = str(text).replace("\r\n", "\n").split("\n")
    shown = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
    return CONTROLS.sub("", ESCAPES.sub("", shown))


def clean_line(text: object) -> str:
    """The same on one line."""
    return " ".join(clean(text).split())


def say(text: object, *, err: bool = True) -> None:
    """A line for a person, on stderr unless it is the result itself."""
    click.echo(clean(text), err=err, color=False)


def emit(value: object) -> None:
    """One JSON value on a line of stdout; pure ASCII, so that nothing in it can steer a terminal."""
    click.echo(json.dumps(value), color=False)


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether somebody watches: a terminal, and nobody asked for plain output."""
    stream = stream or sys.stdout
    return stream.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


def colours() -> bool:
    """Whether stdout takes colours."""
    return is_terminal() and not os.environ.get("NO_COLOR")


def console() -> "Console":
    """A rich console that takes every text as it is."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


# -- words ------------------------------------------------------------------------------------------------------------


def duration(seconds: float | None) -> str:
    """`3 h 12 min`, `4 min 10 s`, `8.2 s`."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def size(count: float | None) -> str:
    """`12.3 MB`, decimal."""
    if count is None:
        return ""
    for unit in UNITS:
        if count < 1000 or unit == UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def moment(iso: str | None) -> datetime | None:
    """An API's moment in this machine's time zone."""
    try:
        return datetime.fromisoformat(iso).astimezone() if iso else None
    except ValueError:
        return None


def clock(iso: str | None, *, now: datetime | None = None) -> str:
    """`03:10`, with the date when it is not today's."""
    when = moment(iso)
    if when is None:
        return ""
    today = (now or datetime.now()).date()
    return when.strftime("%H:%M" if when.date() == today else "%b %d %H:%M")


# -- tables -----------------------------------------------------------------------------------------------------------


def width(text: str) -> int:
    """Columns that a text takes in a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, give_way: str = "") -> str:
    """Aligned columns. On a terminal the column `give_way` is cut so that a row stays on its line."""
    cells = [[clean_line(cell) for cell in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(head, *cells, strict=True)]
    if give_way and is_terminal():
        there = shutil.get_terminal_size().columns - 1
        at = list(head).index(give_way)
        widths[at] = max(8, min(widths[at], there - (sum(widths) - widths[at]) - 2 * (len(head) - 1)))
    return "\n".join(_row(row, widths) for row in [list(head), *cells])


def _row(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (_fit(cell, columns) for cell, columns in zip(row, widths, strict=True))
    return "  ".join(cells).rstrip()


def _fit(text: str, columns: int) -> str:
    if width(text) > columns:
        while width(text) > columns - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (columns - width(text))


def coloured(text: str) -> str:
    """The words for states in their colours, when stdout takes colours."""
    if not colours():
        return text
    pattern = rf"\b({'|'.join(COLOURS)})\b"
    return re.sub(pattern, lambda found: click.style(found[0], fg=COLOURS[found[0]]), text)


def show(text: str) -> None:
    """A text that `table` or another of ours made, on stdout."""
    click.echo(coloured(text), color=colours())


# -- jobs -------------------------------------------------------------------------------------------------------------


def job_rows(jobs: Iterable[Mapping[str, Any]]) -> str:
    """The list of jobs."""
    head = ("ID", "STATE", "NAME", "KIND", "TOOK", "WHAT")
    return table(head, ((j["id"], j["state"], j["name"], j["kind"], took(j), what(j)) for j in jobs), give_way="WHAT")


def queue_rows(jobs: Iterable[Mapping[str, Any]]) -> str:
    """What waits, by its place in the queue."""
    head = ("#", "ID", "PRIORITY", "NAME", "KIND", "GPUS", "WAITS BECAUSE")
    rows = ((j["position"], j["id"], j["priority"], j["name"], j["kind"], j["gpus"], what(j)) for j in jobs)
    return table(head, rows, give_way="WAITS BECAUSE")


def took(job: Mapping[str, Any], *, now: datetime | None = None) -> str:
    """How long it ran, or runs."""
    start, end = moment(job.get("started_at")), moment(job.get("finished_at"))
    if start is None:
        return ""
    return duration(((end or now or datetime.now().astimezone()) - start).total_seconds())


def what(job: Mapping[str, Any]) -> str:
    """What there is to say about a job in its state."""
    if job["state"] == "queued":
        return str(job.get("waiting_because") or "")
    if job["state"] == "running":
        words = progress_words(job.get("progress") or {})
        is_first_look = any(run.get("preflight") for run in (job.get("attempts") or ())[-1:])
        return ", ".join(filter(None, ("preflight", words))) if is_first_look else words
    outcome = job.get("outcome") or {}
    cause = outcome.get("cause")
    return ": ".join(part for part in (cause, outcome.get("message") or "") if part)


def progress_words(progress: Mapping[str, Any]) -> str:
    """`step 40 of 200, loss 1.21, done about 03:10`."""
    parts = [str(progress.get("phase") or "")]
    if progress.get("total"):
        parts.append(f"step {progress['step']} of {progress['total']}")
    if isinstance(loss := (progress.get("metrics") or {}).get("loss"), (int, float)):
        parts.append(f"loss {loss:.4g}")
    if (eta_s := progress.get("eta_s")) is not None:
        parts.append(f"done about {eta_clock(eta_s)}")
    return ", ".join(filter(None, parts))


def eta_clock(eta_s: float) -> str:
    """A moment so many seconds from now, as a clock shows it."""
    then = datetime.fromtimestamp(datetime.now().timestamp() + eta_s)
    return then.strftime("%H:%M:%S" if eta_s < 600 else "%H:%M")


def fate_words(job: Mapping[str, Any]) -> str:
    """How a job ended, in one or two lines."""
    outcome = job.get("outcome") or {}
    ran = f" after {took(job)}" if took(job) else ""
    why = f" ({outcome['cause']})" if outcome.get("cause") else ""
    lines = [f"Job {job['id']} {job['state']}{why}{ran}: {clean_line(job['name'])}"]
    lines += [f"  {clean_line(outcome[part])}" for part in ("message", "hint") if outcome.get(part)]
    return "\n".join(lines)
