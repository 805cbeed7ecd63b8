"""Stay with jobs until they have ended: log lines and a progress bar for one, a live table for several, or silence.

A broken connection is taken up again where it broke; only the person at the keyboard ends the watching.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from api.cli import output, screens
from api.cli.session import DETACHED, Session
from api.client import ApiProblem, Client, RigUnreachable
from api.sse import Event

Json = dict[str, Any]

FINAL = ("succeeded", "failed", "cancelled")
LOOK_EVERY_S = 0.5
#: Between tries to reach a rig that does not answer.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


def wait(session: Session, ids: Sequence[str]) -> list[Json]:
    """The jobs when all have ended. Says nothing."""
    with detaching(ids):
        return wait_for(session.client, ids)


def follow(session: Session, ids: Sequence[str], *, log_from: int = 0) -> list[Json]:
    """The jobs when all have ended, shown meanwhile."""
    with detaching(ids):
        if session.as_json:
            return [_as_lines(watch(session.client, job_id, log_from=log_from), job_id) for job_id in ids]
        if len(ids) == 1:
            return [_follow_one(session, ids[0], log_from)]
        return follow_many(session, ids)


@contextlib.contextmanager
def detaching(ids: Sequence[str]) -> Iterator[None]:
    """Ctrl-C leaves the jobs alone, and says so."""
    try:
        yield
    except KeyboardInterrupt:
        goes = f"Job {ids[0]} goes on" if len(ids) == 1 else f"{len(ids)} jobs go on"
        output.say(f"\nDetached. {goes} (overnight logs -f {ids[0]}; overnight cancel {ids[0]} stops it).")
        raise SystemExit(DETACHED) from None


class Patience:
    """Longer and longer pauses while the rig does not answer: its jobs run on without us."""

    def __init__(self, sleep: Callable[[float], object] = time.sleep):
        self._sleep = sleep
        self._pause_s = FIRST_PAUSE_S

    def after(self, error: RigUnreachable | ApiProblem) -> None:
        """Wait before the next try. A refusal is no reason to: it is raised."""
        if isinstance(error, ApiProblem) and error.status < 500:
            raise error
        if self._pause_s == FIRST_PAUSE_S:
            output.say(f"{error}. The job is not affected; trying again.")
        self._sleep(self._pause_s)
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)

    def again(self) -> None:
        """A stream has ended in order, as when the rig starts anew."""
        self._sleep(FIRST_PAUSE_S)

    def restored(self) -> None:
        """It answers."""
        self._pause_s = FIRST_PAUSE_S


def watch(client: Client, job_id: str, *, log_from: int = 0, patience: Patience | None = None) -> Iterator[Event]:
    """A job's events until it has ended, what it printed before included; the last one is `end` with the job.

    Raises ApiProblem for an unknown job, and for one that is deleted meanwhile.
    """
    patience = patience or Patience()
    last, ended, told = "", False, log_from
    while True:
        try:
            for event in () if ended else client.events(job_id, after=last, log_from=log_from):
                patience.restored()
                last = event.id or last
                told = event.data["offset"] if event.type == "log" else told
                yield event
                if ended := _tells_the_end(event):
                    break
            if ended:
                job = client.job(job_id)
                if rest := client.log_from(job_id, told):  # a last line without an end is not sent before
                    yield Event(last, "log", {"job": job_id, "text": rest, "offset": told + len(rest.encode())})
                yield Event(last, "end", job)
                return
            patience.again()
        except (RigUnreachable, ApiProblem) as error:
            patience.after(error)


def wait_for(client: Client, ids: Sequence[str], patience: Patience | None = None) -> list[Json]:
    """The jobs when all have ended, by the stream of all events. Raises ApiProblem for an unknown job."""
    patience = patience or Patience()
    ended: dict[str, Json] = {}
    last = ""
    while True:
        try:
            for event in client.events(after=last):
                patience.restored()
                for job_id in (i for i in ids if _may_have_ended(event, i)):
                    if (job := client.job(job_id))["state"] in FINAL:
                        ended[job_id] = job
                last = event.id or last  # only now: what was not looked at comes again
                if all(job_id in ended for job_id in ids):
                    return [ended[job_id] for job_id in ids]
            patience.again()
        except (RigUnreachable, ApiProblem) as error:
            patience.after(error)


def _tells_the_end(event: Event) -> bool:
    """A final state, or that the job was deleted."""
    return event.type == "state" and event.data.get("state") in (*FINAL, None)


def _may_have_ended(event: Event, job_id: str) -> bool:
    """Whether it is time to look at the job: it has ended, or events may have been missed."""
    return event.type in ("open", "resync") or (_tells_the_end(event) and str(event.data.get("job")) == job_id)


def show(events: Iterator[Event], screen: screens.Screen) -> Json:
    """Put a job's events on a screen; the job when it has ended."""
    lines = screens.LogLines()
    for event in events:
        match event.type:
            case "log":
                screen.log(lines.feed(event.data))
            case "progress":
                screen.progress(event.data)
            case "state" if event.data.get("state") not in FINAL:  # how it ended is told at the end
                screen.state(screens.state_words(event.data))
            case "end":
                screen.log(lines.end())
                return dict(event.data)
    raise RuntimeError("the events ended before the job")  # watch() ends with `end` only


def follow_many(session: Session, ids: Sequence[str], patience: Patience | None = None) -> list[Json]:
    """Several jobs: a live table on a terminal, else a line whenever something happens."""
    looks = _look(session.client, ids, patience or Patience())
    if not output.is_terminal():
        return _lines_of_many(looks)
    from rich.live import Live

    with Live(console=output.console(), refresh_per_second=4) as live:
        for jobs in looks:
            live.update(screens.board(jobs))
    return jobs


def _follow_one(session: Session, job_id: str, log_from: int) -> Json:
    events = watch(session.client, job_id, log_from=log_from)
    if output.is_terminal():
        with screens.Bar() as bar:
            job = show(events, bar)
    else:
        job = show(events, screens.Plain())
    output.say(output.fate_words(job))
    return job


def _as_lines(events: Iterator[Event], job_id: str) -> Json:
    """Every event as a JSON line."""
    for event in events:
        output.emit({"job": job_id, "type": event.type, "data": event.data})
        if event.type == "end":
            return dict(event.data)
    raise RuntimeError("the events ended before the job")  # watch() ends with `end` only


def _look(client: Client, ids: Sequence[str], patience: Patience) -> Iterator[list[Json]]:
    """The jobs, again and again until all have ended. Those that have are not asked for again."""
    known: dict[str, Json] = {}
    while True:
        try:
            for job_id in ids:
                if known.get(job_id, {}).get("state") not in FINAL:
                    known[job_id] = client.job(job_id)
            patience.restored()
        except (RigUnreachable, ApiProblem) as error:
            patience.after(error)
            continue
        jobs = [known[job_id] for job_id in ids]
        yield jobs
        if all(job["state"] in FINAL for job in jobs):
            return
        time.sleep(LOOK_EVERY_S)


def _lines_of_many(looks: Iterator[list[Json]]) -> list[Json]:
    seen: dict[str, str] = {}
    told_at = time.monotonic()
    for jobs in looks:
        due = time.monotonic() - told_at >= screens.LINE_EVERY_S
        told_at = time.monotonic() if due else told_at
        for job in jobs:
            changed = seen.get(job["id"]) != job["state"]
            seen[job["id"]] = job["state"]
            if changed or (due and job["state"] == "running"):
                words = output.what(job)
                output.say(f"Job {job['id']} {job['state']}: {job['name']}{f' ({words})' if words else ''}")
    return jobs
