"""What a benchmark's page shows: its tables, and how speed and waiting grow with batch and prompt. Rows were left by a job: untrusted."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.context import Context
from api.files import NoSuchFile, open_beneath
from api.job_panel import Panel
from api.svg import Series, chart, named_ticks
from api.wording import number
from jobs.cells import MEASURED, cell_of, is_row, variant_words
from jobs.cells.table import HEAD, LEGEND, Table, tables
from jobs.model import Job
from jobs.rundir import RunDir, run_dir
from jobs.spec.benchmark import MOST_CELLS

Json = Mapping[str, Any]

KIND = "benchmark"
MOST_BYTES = 2 << 20
#: Colours and dashes that can be told apart.
MOST_LINES = 5


@dataclass(frozen=True)
class Benchmark:
    """All that the page shows."""

    head: Sequence[str]
    tables: Sequence[Table]
    panels: Sequence[Panel]
    legend: str = LEGEND


def benchmark(job: Job, rig: Context) -> Benchmark | None:
    """Of a benchmark with at least one row; None of everything else."""
    if job.kind != KIND:
        return None
    rows = rows_of(_lines(job, rig))
    return Benchmark(HEAD, tables(rows), list(filter(None, (_decoding(rows), _waiting(rows))))) if rows else None


def rows_of(lines: Iterable[str]) -> list[Json]:
    """The rows that can be read; of a cell that was done twice the last."""
    found: dict[object, Json] = {}
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and is_row(value):
            found[cell_of(value)] = value
    return list(found.values())[:MOST_CELLS]


def _lines(job: Job, rig: Context) -> list[str]:
    folder = run_dir(rig.settings.runs, job.id)
    path = str(folder.cells.relative_to(folder.path))
    if (holder := rig.elsewhere.holder(job)) is not None:
        answer = rig.elsewhere.ask(holder, f"/api/v1/jobs/{job.id}/files/{path}")
        return answer.text[:MOST_BYTES].splitlines() if answer is not None and answer.status_code == 200 else []
    return _read(folder, path).splitlines()


def _read(folder: RunDir, path: str) -> str:
    try:
        descriptor = open_beneath(folder.path, path)
    except NoSuchFile:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        return file.read(MOST_BYTES).decode(errors="replace")


# -- charts -----------------------------------------------------------------------------------------------------------------


def _decoding(rows: Sequence[Json]) -> Panel | None:
    """Speed over the batch size: each precision at the shortest prompt, or each prompt where there is one precision."""
    return _panel(rows, "Decoding by batch size", "tokens/s", "batch_size", "prompt_length", lambda row: float(row["decode_tokens_per_s"]))  # fmt: skip


def _waiting(rows: Sequence[Json]) -> Panel | None:
    """The first token over the prompt's length: each precision at the smallest batch, or each batch."""
    return _panel(rows, "First token by prompt length", "s", "prompt_length", "batch_size", lambda row: float(row["ttft_s"]))  # fmt: skip


def _panel(rows: Sequence[Json], title: str, unit: str, along: str, beside: str, value: Callable[[Json], float]) -> Panel | None:  # fmt: skip
    known = [row for row in rows if row["state"] == MEASURED]
    stops = sorted({row[along] for row in known})
    if len(stops) < 2:
        return None
    lines = list(_lines_of(known, beside).items())[:MOST_LINES]
    series = [
        Series(label, sorted((float(stops.index(row[along])), value(row)) for row in members))
        for label, members in lines
    ]
    drawn = chart(
        series,
        x_range=(0.0, len(stops) - 1.0),
        y_range=(0.0, max(y for one in series for _, y in one.points)),
        x_ticks=named_ticks([number(stop) for stop in stops]),
    )
    if drawn is None:
        return None
    return Panel(title, unit, drawn, f"{'; '.join(_told(one, stops, unit) for one in series)}.", tuple(one.label for one in series))  # fmt: skip


def _lines_of(known: Sequence[Json], beside: str) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = {}
    variants = {cell_of(row).variant for row in known}
    least = min(row[beside] for row in known)
    for row in sorted(known, key=lambda row: row[beside]):
        if len(variants) == 1:
            found.setdefault(f"{beside.removesuffix('_length').removesuffix('_size')} {number(row[beside])}", []).append(row)  # fmt: skip
        elif row[beside] == least:
            found.setdefault(variant_words(cell_of(row).variant), []).append(row)
    return found


def _told(one: Series, stops: Sequence[int], unit: str) -> str:
    (first, start), (last, end) = one.points[0], one.points[-1]
    at = f"{number(float(f'{start:.3g}'))} {unit} at {number(stops[int(first)])}"
    if len(one.points) == 1:
        return f"{one.label}: {at}"
    return f"{one.label}: {at}, {number(float(f'{end:.3g}'))} {unit} at {number(stops[int(last)])}"
