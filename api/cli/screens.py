"""How followed jobs look: plain lines, a bar that stays below the log, or a table of several."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from api.cli import output

if TYPE_CHECKING:
    from rich.table import Table

#: Without a terminal, progress is one line so often.
LINE_EVERY_S = 30.0
#: Of a line without an end, so many characters are kept.
LONGEST_REST = 65_536
#: A live table has so many rows at most.
ROWS = 30


class Screen(Protocol):
    """Where a followed job is shown."""

    def log(self, lines: Sequence[str]) -> None:
        """What the job printed."""

    def progress(self, progress: Mapping[str, Any]) -> None:
        """How far it is."""

    def state(self, text: str) -> None:
        """A change, in words."""


class LogLines:
    """Whole lines from the pieces in which a log comes."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, data: Mapping[str, Any]) -> list[str]:
        """The lines that are whole now."""
        skipped = data.get("skipped_bytes")
        lines = [f"[{output.size(skipped)} left out: overnight logs --all has them]"] if skipped else []
        *whole, self._rest = (self._rest + str(data.get("text", ""))).split("\n")
        # a bar that is redrawn: only what it shows last matters
        self._rest = self._rest if len(self._rest) < LONGEST_REST else output.clean(self._rest)[-LONGEST_REST // 2 :]
        return lines + whole

    def end(self) -> list[str]:
        """What came last, without an end of line."""
        return [self._rest] if self._rest else []


class Plain:
    """Log lines on stdout; the rest, now and then, on stderr."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def log(self, lines: Sequence[str]) -> None:
        for line in lines:
            output.say(line, err=False)

    def progress(self, progress: Mapping[str, Any]) -> None:
        if time.monotonic() - self._told_at >= LINE_EVERY_S:
            self._told_at = time.monotonic()
            output.say(output.progress_words(progress))

    def state(self, text: str) -> None:
        output.say(text)


class Bar:
    """Log lines above a bar that stays in place."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        words = TextColumn("{task.description}", markup=False)
        percent = TaskProgressColumn("{task.percentage:>3.0f} %", "", markup=False)
        self._progress = Progress(BarColumn(30), percent, words, console=output.console(), transient=True)
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def log(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._progress.console.print(output.clean(line), markup=False, highlight=False, soft_wrap=True)

    def progress(self, progress: Mapping[str, Any]) -> None:
        words = output.clean_line(output.progress_words(progress))
        total = progress.get("total") or None
        self._progress.update(self._task, completed=progress.get("step") or 0, total=total, description=words)

    def state(self, text: str) -> None:
        self._progress.update(self._task, description=output.clean_line(text))


def board(jobs: Sequence[Mapping[str, Any]]) -> "Table":
    """Jobs as a table with a bar for each."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for head in ("JOB", "STATE", "NAME", "PROGRESS", ""):
        table.add_column(head, no_wrap=True, overflow="ellipsis")
    active = [job for job in jobs if job["state"] == "running"]
    others = [job for job in jobs if job["state"] != "running"]
    shown = [*active, *others][:ROWS]
    if not all(job.get("position") for job in shown):  # the queue alone stays in its order
        shown.sort(key=lambda job: int(job["id"]))
    for job in shown:
        done = 1.0 if job["state"] == "succeeded" else (job.get("progress") or {}).get("fraction") or 0.0
        colour = output.COLOURS.get(job["state"], "") if output.colours() else ""
        state, name, what = (output.clean_line(text) for text in (job["state"], job["name"], output.what(job)))
        table.add_row(
            str(job["id"]), Text(state, style=colour), Text(name), ProgressBar(1.0, done, width=24), Text(what)
        )
    if len(jobs) > ROWS:
        table.add_row("", Text(f"and {len(jobs) - ROWS} more"), "", "", "")
    return table


def state_words(data: Mapping[str, Any]) -> str:
    because = f": {data['waiting_because']}" if data.get("waiting_because") else ""
    return f"{data.get('state', '')}{because}"
