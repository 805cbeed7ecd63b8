"""What a sweep's page shows, and the table as CSV."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.acts import Act
from api.wording import STATE_WORDS, count, number, short, words
from daemon.sweep_table import Row, Table
from jobs.model import State

#: Rows on the page; the CSV file has all.
ROWS = 300
#: Metrics beside the goal that a row shows.
SHOWN_METRICS = 3
#: What a spreadsheet would take for a formula. Names of metrics are jobs' words.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Line:
    """One job in the table."""

    row: Row
    word: str
    point: Sequence[tuple[str, str]]
    value: str
    others: Sequence[tuple[str, str]]
    is_best: bool


def verdict(table: Table) -> str:
    """The best job and its point in one sentence."""
    best = table.best
    if best is None or best.value is None:
        what = f"tells {table.goal.metric}" if table.rows else "is left"
        return f"No job that succeeded {what} yet." if table.rows else "None of its jobs is left."
    point = ", ".join(f"{name} {value}" for name, value in point_words(best.job.point))
    how = f"with {point}" if point else "which is there once for all points"
    return f"Best: job {best.job.id}, {words(table.goal.metric)} {number(best.value)} {how}."


def progress(table: Table) -> str:
    """How many of its jobs stand where."""
    counts = dict(table.counts)
    early = counts.pop("stopped_early")
    counts["cancelled"] -= early
    parts = [f"{number(amount)} {STATE_WORDS[State(state)]}" for state, amount in counts.items() if amount]
    if early:
        parts.append(f"{number(early)} stopped early")
    noun = "point" if table.sweep.stages else "job"
    return f"{count(len(table.rows), noun)}: {', '.join(parts)}." if parts else ""


def how(table: Table) -> str:
    """How it was made, and what it does by itself."""
    sweep = table.sweep
    parts = [f"{sweep.method} over {', '.join(sweep.axes)}"]
    if len(sweep.stages) > 1:
        parts.append(f"each point is {' and '.join(sweep.stages)}")
    if sweep.max_concurrent:
        parts.append(f"at most {number(sweep.max_concurrent)} at once")
    if sweep.halving:
        parts.append(f"from step {number(sweep.halving.first_step)} on, one in {number(sweep.halving.factor)} goes on")
    word = "highest" if table.goal.maximize else "lowest"
    return f"{'; '.join(parts)}. The {word} {words(table.goal.metric)} is best."


def lines(table: Table) -> list[Line]:
    """The table's rows, as far as the page shows them."""
    best = table.best
    others = [name for name in table.metrics if name != table.goal.metric]
    return [
        Line(
            row=row,
            word="stopped early" if row.stopped_early else STATE_WORDS[row.job.state],
            point=point_words(row.job.point),
            value=number(row.value) if row.value is not None else "",
            others=[(words(n), number(row.metrics[n])) for n in others if n in row.metrics][:SHOWN_METRICS],
            is_best=row is best,
        )
        for row in table.rows[:ROWS]
    ]


def acts(table: Table) -> list[Act]:
    """The buttons."""
    left = sum(not job.state.final for row in table.rows for job in row.jobs)
    question = f"{count(left, 'job')} that wait or run will stop; their run folders stay."
    title = f"Cancel what is left of sweep {table.sweep.id}"
    path = f"/do/sweeps/{table.sweep.id}/cancel"
    return [Act(path, "Cancel what is left", "cancel", question, danger=True, title=title)] if left else []


def point_words(point: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What makes a job different, as a person reads it."""
    return [(name, short(_text(value))) for name, value in point.items()]


def as_csv(table: Table) -> str:
    """Every job with its point and metrics, the best first."""
    axes = [axis for axis in table.sweep.axes if axis not in ("job", "state")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["job", "state", *map(_harmless, (*axes, *table.metrics))])
    for row in table.rows:
        state = "stopped early" if row.stopped_early else str(row.job.state)
        point = ["" if axis not in row.job.point else _cell(row.job.point[axis]) for axis in axes]
        writer.writerow([row.job.id, state, *point, *(row.metrics.get(name, "") for name in table.metrics)])
    return text.getvalue()


def _text(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cell(value: Any) -> Any:
    """Numbers and texts as they are, the rest as JSON: what `submit FILE.csv` reads back."""
    return value if isinstance(value, (int, float, str)) and not isinstance(value, bool) else json.dumps(value)


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text
