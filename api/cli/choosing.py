"""Which jobs a command is meant for: ids as typed, or a choice that is shown and confirmed before anything happens.

Whatever was chosen by a range or a filter becomes a list of ids first; the command acts on exactly those, and where it can,
only while they are in the state in which they were shown.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import click

from api.cli import output
from api.cli.session import FAILED, LAST, NOT_FOUND, USAGE, Session, fail

P = ParamSpec("P")
R = TypeVar("R")
Json = dict[str, Any]

RANGE = re.compile(r"([1-9][0-9]{0,17})-([1-9][0-9]{0,17})")
PER_PAGE = 200
#: Below the help of every command that takes a choice of jobs.
EPILOG = "JOBS are numbers and ranges: 142 145-150. What a range or a filter chooses is shown, and asked about, first."
#: So many rows of a choice are shown in full; the rest by their ids.
ROWS_SHOWN = 20


@dataclass(frozen=True)
class Verb:
    """A command's word, the states in which it makes sense, and whether `@last` is exact enough for it."""

    name: str
    states: tuple[str, ...]
    takes_last: bool = False


@dataclass(frozen=True)
class Chosen:
    """Jobs to act on, in this order. Each with the state in which it was shown; None for one that was typed."""

    targets: tuple[tuple[str, str | None], ...]
    #: One job that was named by its id: its answer is printed by itself.
    alone: bool = False

    @property
    def ids(self) -> list[str]:
        return [job_id for job_id, _ in self.targets]


def selection(command: Callable[P, R]) -> Callable[P, R]:
    """Give a command jobs, ranges and filters as arguments."""
    for decorate in (
        click.option("-y", "--yes", is_flag=True, help="Do not ask."),
        click.option("--kind", help="Instead of numbers: all of this kind; filters narrow each other down."),
        click.option("--state", help="Instead of numbers: all in this state."),
        click.option("--tag", help="Instead of numbers: all with this tag."),
        click.argument("jobs", nargs=-1, metavar="[JOBS]..."),
    ):
        command = decorate(command)
    return command


def choose(
    session: Session,
    verb: Verb,
    jobs: Sequence[str],
    *,
    tag: str | None = None,
    state: str | None = None,
    kind: str | None = None,
    yes: bool = False,
) -> Chosen:
    """The jobs that are meant. Asks when they were not typed one by one; ends the command when nothing is to be done."""
    filters = {name: value for name, value in (("tag", tag), ("kind", kind)) if value}
    if jobs and (filters or state):
        fail("Name jobs, or choose them with --tag, --state and --kind: not both.", USAGE)
    if not jobs and not filters and not state:
        fail(f"Which jobs? `overnight {verb.name} 142 145-150`, or --tag, --state, --kind.", USAGE)
    if state and state not in verb.states:
        fail(f"{verb.name} takes jobs that are {' or '.join(verb.states)}, not {state}.", USAGE)
    if jobs and not any(RANGE.fullmatch(text) for text in jobs):
        ids = [_typed(session, verb, text) for text in jobs]
        return Chosen(tuple((job_id, None) for job_id in dict.fromkeys(ids)), alone=len(jobs) == 1)
    found = _from_ranges(session, verb, jobs) if jobs else _filtered(session, state, verb.states, filters)
    if not found:
        fail(f"No job that is {' or '.join([state] if state else verb.states)} was found: nothing was done.", NOT_FOUND)
    if not yes:
        _confirm(verb, found)
    return Chosen(tuple((str(job["id"]), str(job["state"])) for job in found))


def compact(ids: Iterable[str]) -> str:
    """`142, 145-150`."""
    runs: list[list[int]] = []
    for number in sorted(map(int, ids)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _typed(session: Session, verb: Verb, text: str) -> str:
    if text == LAST and not verb.takes_last:  # it may be somebody else's by now
        fail(f"{verb.name} wants a job's number, not {LAST}", USAGE)
    return session.job_id(text)


def _from_ranges(session: Session, verb: Verb, texts: Sequence[str]) -> list[Json]:
    """Each id as it was typed, each range as far as its jobs exist and the command makes sense for them."""
    found: dict[str, Json] = {}
    for text in texts:
        if span := RANGE.fullmatch(text):
            first, last = int(span[1]), int(span[2])
            if first > last:
                fail(f"{text}: a range goes from the smaller number to the larger one", USAGE)
            there = [*_between(session, first, last)]
            if others := [job["id"] for job in there if job["state"] not in verb.states]:
                output.say(f"Left out, as they are not {' or '.join(verb.states)}: {compact(others)}.")
            found |= {job["id"]: job for job in there if job["state"] in verb.states}
        else:
            job = session.client.job(_typed(session, verb, text))
            found[job["id"]] = job
    return [*found.values()]


def _between(session: Session, first: int, last: int) -> Iterator[Json]:
    """The jobs with these numbers, upwards. A cursor of the list of all is the number that it goes on below."""
    jobs: list[Json] = []
    for job in _pages(session, cursor=str(last + 1)):
        if int(job["id"]) < first:
            break
        jobs.append(job)
    return reversed(jobs)


def _filtered(session: Session, state: str | None, states: Sequence[str], filters: Mapping[str, str]) -> list[Json]:
    """What waits in the order in which it starts, then the others by their number."""
    found: dict[str, Json] = {}
    for wanted in [state] if state else states:
        if wanted == "queued":
            jobs = [*_pages(session, order="queue", **filters)]
        else:
            jobs = [*_pages(session, state=wanted, **filters)][::-1]
        found |= {job["id"]: job for job in jobs if job["state"] in states}
    return [*found.values()]


def _pages(session: Session, *, cursor: str | None = None, **filters: str) -> Iterator[Json]:
    while True:
        page = session.client.jobs(limit=PER_PAGE, cursor=cursor, **filters)
        yield from page["jobs"]
        cursor = page.get("next")
        if not cursor:
            return


def _confirm(verb: Verb, jobs: Sequence[Json]) -> None:
    """Show every job that is meant, and ask."""
    output.say(output.job_rows(jobs[:ROWS_SHOWN]))
    if rest := [job["id"] for job in jobs[ROWS_SHOWN:]]:
        output.say(f"and {len(rest)} more: {compact(rest)}")
    what = "this job" if len(jobs) == 1 else f"these {len(jobs)} jobs"
    try:
        is_sure = click.confirm(f"{verb.name} {what}?", err=True)
    except click.Abort:
        fail("\nNothing was done. Where nobody can answer, say --yes.", USAGE)
    if not is_sure:
        fail("Nothing was done.", FAILED)
