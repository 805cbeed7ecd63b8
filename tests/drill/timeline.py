"""A night as its owner could have followed it: every fault and what it did to the jobs, in the order of time, as a page."""

import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from checker import moment
from ledger import Ledgers
from scene import Hit
from user import Json

#: The ten faults of `--night`, each one once, in an order that the seed decides.
NIGHT = (
    "worker killed",
    "program killed",
    "rank killed",
    "GPU lost under a job",
    "Redis killed",
    "daemon killed",
    "everything killed",
    "power cut",
    "disk too full to start jobs",
    "preempted",
)
#: A command in a sentence: its paths are of the machine that ran it.
COMMAND = re.compile(r"`[^`]*program\.py[^`]*`")
#: Seconds of calm between two faults: so that a reader can follow.
CALM_S = (2.0, 3.5)


@dataclass(frozen=True)
class Struck:
    """One fault that was carried out: when, which, on whom, and when work had gone on."""

    at: float
    name: str
    hit: Hit
    over_at: float | None


def page(*, began: float, seed: int, struck: list[Struck], jobs: list[Json], gpus: list[Json], ledgers: Ledgers,
         violations: list[str], disk: str) -> str:  # fmt: skip
    """The whole page, in Markdown. `jobs` and `gpus`: as the API tells them at the end."""
    words = {job["name"]: _named(job) for job in jobs} | {gpu["id"]: f"GPU {gpu['index']}" for gpu in gpus}
    starts = sorted(line.at for job in jobs for line in ledgers.starts(job["name"]))
    times = [_over_at(one, starts) - one.hit.at for one in struck]
    rows = sorted([*_faults(struck), *(row for job in jobs for row in _of_job(job, ledgers))])
    clock = [f"{_minutes(at - began)}  {_readable(text, words)}" for at, text in rows]
    states = [job["state"] for job in jobs]
    ended = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))
    command = f".venv/bin/python tests/drill --night --seed {seed}"
    return "\n".join([
        "# A night with ten faults",
        "",
        "This page is the output of one command; nothing was added by hand:",
        "",
        f"    {command} > docs/a-night-with-ten-faults.md",
        "",
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(began))} UTC; {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}; {len(gpus)} GPUs, played by the fake driver; disk: {disk}.",
        "The processes, their deaths and the times are real. A \"night\" lasts minutes here because the jobs are short: each one",
        "counts, and saves each step. \"From step 17\" means that it had saved 17 steps before and did none of them again.",
        "",
        f"**{len(struck)} faults, {len(jobs)} jobs: {ended}. {len(violations)} broken promises.** "
        "(A job called `fails` is made to fail.)",
        *[f"- broken: {text.splitlines()[0]}" for text in violations],
        f"Seconds until work went on: half of the faults {median(times):.1f} or less, the slowest {max(times):.1f}.",
        "",
        "| # | at | fault | work goes on after |",
        "|---:|---|---|---:|",
        *(_readable(row, words) for row in _table(struck, times, began)),
        "",
        "Times are minutes:seconds from the first submission. The last column counts from the fault (from the restart, where one",
        "was needed; from the end of the outage, where the fault is one) until a job that was hit ran again; for Redis, until the",
        "API answered.",
        "",
        "```text",
        *clock,
        "```",
    ])  # fmt: skip


def _over_at(one: Struck, starts: list[float]) -> float:
    """When a job that was hit ran again (or Redis answered); where that measures nothing, the next start of any job."""
    return one.over_at or next((at for at in starts if at > one.hit.at), one.hit.at)


def _table(struck: list[Struck], times: list[float], began: float) -> Iterator[str]:
    for number, (one, took_s) in enumerate(zip(struck, times, strict=True), 1):
        yield f"| {number} | {_minutes(one.at - began)} | {one.name}: {one.hit.what} | {took_s:.1f} s |"


def _faults(struck: list[Struck]) -> Iterator[tuple[float, str]]:
    for number, one in enumerate(struck, 1):
        yield one.at, f"FAULT {number:2d}  {one.name}: {one.hit.what}"


def _of_job(job: Json, ledgers: Ledgers) -> Iterator[tuple[float, str]]:
    """What became of one job: its starts from its own ledger, its ends from the API."""
    who = f"          {_named(job)}"
    runs = sorted((moment(run["started_at"]), run) for run in job["attempts"])
    for line in ledgers.starts(job["name"]):
        slots = next((run["slots"] for at, run in reversed(runs) if at <= line.at), [])
        yield (
            line.at,
            f"{who} {f'goes on from step {line.number}' if line.number else 'starts'} on {' and '.join(slots)}",
        )
    for run in job["attempts"]:
        if run["ended_at"] and run["end"] in ("failed", "interrupted") and run["ended_at"] != job["finished_at"]:
            yield moment(run["ended_at"]), f"{who} stopped ({run['cause'] or run['end']}): {run['message']}"
    if job["finished_at"]:
        again = len(job["attempts"]) - 1
        times = f" after {again} stop{'s' if again != 1 else ''}" if again else ""
        yield moment(job["finished_at"]), f"{who} {job['state'].upper()}{times}"


def _named(job: Json) -> str:
    return f"job {job['id']} ({job['name'].partition('-')[2]})"


def _readable(text: str, words: Mapping[str, str]) -> str:
    for name, word in words.items():
        text = text.replace(name, word)
    return COMMAND.sub("its program", text)


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60):02d}:{seconds % 60:04.1f}"
