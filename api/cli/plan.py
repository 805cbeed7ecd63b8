"""`overnight plan`: the night ahead, drawn; and the expected times of one job, in words."""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from api.cli import output
from api.cli.session import USAGE, Session, fail, with_rig

Json = dict[str, Any]

#: Lanes are drawn for so long at most.
LONGEST, SHORTEST = timedelta(hours=24), timedelta(minutes=2)
UNMISTAKABLE, WEEK = timedelta(hours=20), timedelta(days=6)
#: Without --all, so many jobs are listed.
LISTED = 40
#: Fewer columns than this for the time and a lane says nothing.
NARROWEST = 24
CLOCK = re.compile(r"([01]?[0-9]|2[0-4]):([0-5][0-9])")
LANE_COLOURS = ("cyan", "green", "magenta", "blue", "yellow")
KNOWN, GUESSED = "━", "╌"


@click.command("plan")
@click.option("--by", metavar="HH:MM", help="A deadline of your own instead of the end of the window, as in 07:00.")
@click.option("--what-if", "file", type=click.Path(path_type=Path), help="With the jobs of this file at the end of the queue. Nothing is stored.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="List every job.")
@with_rig
def plan(session: Session, by: str | None, file: Path | None, everything: bool) -> None:
    """What runs when tonight, what will not be done in time, and what would have to give."""
    body = _document(file) if file else None
    found = session.client.plan(what_if=body, by=_deadline(by) if by else "")
    if session.as_json:
        output.emit(found)
        return
    if not found["jobs"]:
        output.say("Nothing runs and nothing waits.", err=False)
        return
    for line in (*lanes(found, shutil.get_terminal_size().columns), ""):
        click.echo(line, color=output.colours())
    shown = found["jobs"] if everything else _shortened(found)
    output.show(jobs_table(found, shown))
    if left := len(found["jobs"]) - len(shown) + found["more"]:
        output.say(f"… and {left} more" + ("" if everything else ": overnight plan --all"), err=False)
    output.say("\n" + "\n".join(verdict(found)), err=False)


def expectation(planned: Mapping[str, Any], *, now: datetime | None = None) -> str:
    """When a job is expected to start and end, in a sentence; nothing when that is not known."""
    start, now = output.moment(planned.get("start_at")), now or datetime.now().astimezone()
    if start is None:
        return ""
    soon = "now" if start <= now + timedelta(seconds=5) else "within a minute"
    starts = (
        f"starts {soon}" if start <= now + timedelta(minutes=1) else f"starts about {_when(planned['start_at'], now)}"
    )
    if planned["basis"] == "unknown" or planned.get("end_at") is None:
        why = "nothing like it has run yet" if planned["basis"] == "unknown" else "it ends beyond the forecast"
        return f"Expected: {starts}; when it ends is not known ({why})."
    guess = " (a guess: nothing like it has run yet)" if planned["basis"] == "guess" else ""
    unsure = " (jobs before it are of unknown length)" if not planned["sure"] and not guess else ""
    late = ", after the window closes" if planned.get("late") else ""
    return f"Expected: {starts}, ends about {_when(planned['end_at'], now)}{late}{guess or unsure}."


# -- the drawing ----------------------------------------------------------------------------------------------------------


def lanes(found: Json, columns: int) -> list[str]:
    """A line of time and a lane for each slot."""
    start, end = _extent(found)
    names = {lane["slot"]: output.clean_line(f"{lane['index']} {lane['name']}")[:16] for lane in found["lanes"]}
    margin = max(map(output.width, names.values()), default=0) + 2
    room = max(NARROWEST, columns - margin - 1)
    at = _scale(start, end, room)
    jobs = {job["id"]: job for job in found["jobs"]}
    lines = [" " * margin + _axis(start, end, room, at)]
    for lane in found["lanes"]:
        name = names[lane["slot"]]
        lines.append(name + " " * (margin - output.width(name)) + _lane(lane["runs"], jobs, room, at))
    if deadline := output.moment(found["deadline"]):
        word = "window closes" if found["deadline"] == found["window_ends_at"] else "deadline"
        if start < deadline <= end:
            text = f"{word} {deadline:%H:%M} "
            column = at(deadline)
            mark = f"{text:>{column}}┃" if column >= len(text) else " " * column + f"┃ {text}"
            lines.append(" " * margin + mark[:room])
    return [line.rstrip() for line in lines]


def _extent(found: Json) -> tuple[datetime, datetime]:
    """From now to the deadline; to the last end, when that is long before it or there is no deadline. A day at most."""
    start = output.moment(found["at"]) or datetime.now().astimezone()
    ends = [output.moment(run["end_at"]) for lane in found["lanes"] for run in lane["runs"]]
    last = max((end for end in ends if end), default=start)
    deadline = output.moment(found["deadline"])
    if deadline is not None and start < deadline < start + 2 * (last - start):
        last = deadline
    return start, max(start + SHORTEST, min(last, start + LONGEST))


def _scale(start: datetime, end: datetime, room: int) -> Callable[[datetime], int]:
    per_column = (end - start) / (room - 1)
    return lambda moment: min(room, max(0, round((moment - start) / per_column)))


def _axis(start: datetime, end: datetime, room: int, at: Callable[[datetime], int]) -> str:
    """`22:00     23:00     00:00`: a mark wherever a round time has space."""
    steps = [timedelta(minutes=minutes) for minutes in (1, 5, 15, 30, 60, 120, 180, 360, 720)]
    fitting = [step for step in steps if (end - start) / step * 8 <= room]
    step = fitting[0] if fitting else steps[-1]
    midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
    mark = midnight + step * -(-(start - midnight) // step)
    line = ""
    while mark <= end:
        if at(mark) + 5 <= room:
            line = line.ljust(at(mark)) + f"{mark:%H:%M}"
        mark += step
    return line


def _lane(runs: Sequence[Json], jobs: Mapping[str, Json], room: int, at: Callable[[datetime], int]) -> str:
    cells: list[str] = [" "] * room
    colours: list[str] = [""] * room
    for run in runs:
        start, end = output.moment(run["start_at"]), output.moment(run["end_at"])
        if start is None or end is None or (first := at(start)) >= room:
            continue
        last = max(first + 1, min(room, at(end)))
        job = jobs.get(run["job"], {})
        fill = KNOWN if job.get("sure", True) else GUESSED
        block = f"┃{run['job']}" if last - first > len(run["job"]) else "┃"
        for column, cell in zip(range(first, last), block.ljust(last - first, fill), strict=True):
            cells[column], colours[column] = cell, LANE_COLOURS[int(run["job"]) % len(LANE_COLOURS)]
    if not output.colours():
        return "".join(cells)
    return "".join(
        click.style(cell, fg=colour) if colour else cell for cell, colour in zip(cells, colours, strict=True)
    )


# -- the list and the verdict ------------------------------------------------------------------------------------------------


def jobs_table(found: Json, jobs: Sequence[Json]) -> str:
    """What starts and ends when."""
    places = {lane["slot"]: str(lane["index"]) for lane in found["lanes"]}
    head = ("JOB", "NAME", "GPU", "STARTS", "ENDS", "")
    return output.table(head, (_row(job, places, found) for job in jobs), give_way="NAME")


def _row(job: Json, places: Mapping[str, str], found: Json) -> list[str]:
    gpus = " ".join(places.get(slot, slot) for slot in job["slots"]) or f"{job['gpus']}x"
    now = output.moment(found["at"])
    starts = "runs" if job["state"] == "running" else _when(job["start_at"], now)
    ends = _when(job["end_at"], now)
    if job["basis"] == "unknown" and ends:
        ends = f"≥ {_when(max(found['at'], job['start_at']), now)}"
    elif ends and not job["sure"]:
        ends = f"~ {ends}"
    notes = ["what if"] if job["id"] in found["what_if"] else []
    notes += ["late"] if job["late"] else []
    if not job["start_at"]:
        notes.append(job["never"] or job["waiting_because"] or "")
    elif len(job["runs"]) > 1:
        notes.append(f"in {len(job['runs'])} parts")
    return [job["id"], job["name"], gpus, starts or "-", ends or "-", ", ".join(filter(None, notes))]


def verdict(found: Json) -> Iterator[str]:
    """Will it be done by morning? And if not, what would have to give."""
    now = output.moment(found["at"])
    deadline = _when(found["deadline"], now)
    ends = [end for job in found["jobs"] if (end := output.moment(job["end_at"]))]
    if any(job["basis"] == "unknown" for job in found["jobs"]):
        yield "≥: nothing like it has run yet, so its length is not known; an hour is assumed for what comes after it."
    if any(not job["sure"] and job["basis"] != "unknown" for job in found["jobs"]):
        yield "~: rests on a guess, of its own length or of what runs before it."
    if found["cut"]:
        yield "The queue is too long for a forecast of all of it."
    if not found["late"]:
        if deadline:
            yield f"Everything that can run will be done by {deadline}."
        elif ends:
            yield f"The last one ends about {max(ends):%a %H:%M}."
        return
    count = len(found["late"])
    names = ", ".join(found["late"][:10]) + (f" and {count - 10} more" if count > 10 else "")
    yield f"{count} job{'s' if count > 1 else ''} will not be done by {deadline}: {names}."
    if gives := found["give_way"]:
        yield _give_way_words(gives, deadline, now)


def _give_way_words(gives: Json, deadline: str, now: datetime | None) -> str:
    if not gives["hold"]:
        return f"Job {gives['job']} would be late even if nothing ran before it."
    hold = gives["hold"]
    named = " and ".join(filter(None, [", ".join(hold[:-1]), hold[-1]]))
    return (
        f"For job {gives['job']} to be done by {deadline}, {named} would have to wait"
        f" (overnight hold {' '.join(hold)}): it would end about {_when(gives['end_at'], now)}."
    )


def _when(iso: str | None, now: datetime | None) -> str:
    """A time of day; with the day where it could be mistaken for tonight's."""
    then = output.moment(iso)
    if then is None:
        return ""
    near = now is None or abs(then - now) < UNMISTAKABLE
    return f"{then:%H:%M}" if near else f"{then:%a %H:%M}" if then - (now or then) < WEEK else f"{then:%b %d %H:%M}"


def _shortened(found: Json) -> list[Json]:
    """The first ones, and those that somebody asks about."""
    what_if = set(found["what_if"])
    return [job for number, job in enumerate(found["jobs"]) if number < LISTED or job["id"] in what_if]


def _deadline(text: str, *, now: datetime | None = None) -> str:
    """The next such time of day here, as ISO 8601."""
    if (match := CLOCK.fullmatch(text)) is None:
        fail(f"--by takes a time of day such as 07:00, not {text!r}", USAGE)
    now = now or datetime.now().astimezone()
    hours, minutes = int(match[1]), int(match[2])
    then = now.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None) + timedelta(hours=hours, minutes=minutes)
    if then <= now.replace(tzinfo=None):
        then += timedelta(days=1)
    return then.astimezone().isoformat()


def _document(file: Path) -> Json:
    """What the file describes, with local data named by content: nothing is sent."""
    from api.cli import documents  # here: it loads pydantic

    body = documents.read(file)
    documents.check(body)
    documents.name_files(body, (file.parent, Path()))
    return body
