"""`overnight edit, move, hold, release, retry, cancel, preempt, rm`: the owner's hand on the queue."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from api.cli import choosing, fields, moments, output, toml_text
from api.cli.choosing import Chosen, Verb
from api.cli.session import FAILED, USAGE, Session, exit_code_of, fail, problem_words, with_rig
from api.client import ApiProblem, Client

Json = dict[str, Any]
#: An act on one job, which may be bound to the state in which the job was shown. None: the job is gone.
Act = Callable[[Client, str, str | None], Json | None]
Words = Callable[[Mapping[str, Any]], str]

#: With more jobs than this, only refusals and the count are told.
TOLD_ONE_BY_ONE = 20
NOTHING = "none"
PRIORITIES = click.Choice(["high", "normal", "backlog"])
FORM = """# Job {id}, which waits. Change fields, save, and close the editor; without a change nothing happens.
# A line that is taken out goes back to its default. A comment without a value may get one.

"""


def _is(state_words: str) -> Words:
    return lambda job: f"{_named(job)} {state_words}."


def _waits(words: str) -> Words:
    """With what it waits for, as the rig says."""

    def told(job: Mapping[str, Any]) -> str:
        place = f", place {job['position']} in the queue" if job.get("position") else ""
        because = f": {job['waiting_because']}" if job.get("waiting_because") else ""
        return f"{_named(job)} {words}{place}{because}."

    return told


def _cancelled(job: Mapping[str, Any]) -> str:
    if job["state"] == "running":
        return f"{_named(job)} is running and was asked to stop."
    return f"{_named(job)} is {job['state']}. `overnight retry {job['id']}` queues it again."


def _preempted(job: Mapping[str, Any]) -> str:
    if job["state"] == "queued":
        return f"{_named(job)} does not run; it waits."
    asked = (job.get("wish") or {}).get("kind")
    return (
        f"{_named(job)} was asked to {'stop' if asked == 'cancel' else 'save its work, free its GPU and wait again'}."
    )


def _named(job: Mapping[str, Any]) -> str:
    return f"Job {job['id']}" + (f" ({output.clean_line(job['name'])})" if job.get("name") else "")


def _command(verb: Verb, text: str, act: Act, words: Words) -> click.Command:
    """A command that does one thing to each job that is meant."""

    @click.command(verb.name, help=text, epilog=choosing.EPILOG)
    @choosing.selection
    @with_rig
    def command(session: Session, /, jobs: tuple[str, ...], **choice: Any) -> None:
        _to_each(session, choosing.choose(session, verb, jobs, **choice), act, words)

    return command


def _to_each(session: Session, chosen: Chosen, act: Act, words: Words) -> None:
    """Do it to every job, though one refuses; the exit status is the first refusal's."""
    done: list[Json] = []
    refused: list[tuple[str, ApiProblem]] = []
    for job_id, shown_state in chosen.targets:
        try:
            done.append(act(session.client, job_id, shown_state) or {"id": job_id, "state": "removed", "name": ""})
        except ApiProblem as problem:
            if problem.status == 401:
                raise
            refused.append((job_id, problem))
            output.say(f"Job {job_id}: {problem_words(problem)}" if not chosen.alone else problem_words(problem))
        else:
            if not session.as_json and len(chosen.targets) <= TOLD_ONE_BY_ONE:
                output.say(words(done[-1]), err=False)
    if session.as_json:
        _emit(done, refused, chosen)
    elif len(chosen.targets) > TOLD_ONE_BY_ONE:
        output.say(f"{len(done)} of {len(chosen.targets)} jobs: done.", err=False)
    if refused:
        raise SystemExit(exit_code_of(refused[0][1]))


def _emit(done: Sequence[Json], refused: Sequence[tuple[str, ApiProblem]], chosen: Chosen) -> None:
    if chosen.alone:
        if done:
            output.emit(done[0])
        return
    told = [{"id": job_id, "status": p.status, "detail": problem_words(p)} for job_id, p in refused]
    output.emit({"jobs": done, "refused": told})


# -- retry ----------------------------------------------------------------------------------------------------------------

RETRY = Verb("retry", ("failed", "cancelled"))


@click.command("retry", epilog=choosing.EPILOG)
@choosing.selection
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Change a field first, as in --set learning_rate=1e-4.")  # fmt: skip
@with_rig
def retry(session: Session, /, jobs: tuple[str, ...], sets: tuple[str, ...], **choice: Any) -> None:
    """Put failed or cancelled jobs back into the queue, behind all that wait. They resume from their last checkpoint."""
    changes = _changes(sets, {})
    chosen = choosing.choose(session, RETRY, jobs, **choice)
    _to_each(session, chosen, lambda client, job_id, _: client.retry(job_id, changes), _waits("is queued again"))


# -- edit -----------------------------------------------------------------------------------------------------------------

EDIT = Verb("edit", ("queued",), takes_last=True)


@click.command("edit", epilog=choosing.EPILOG)
@choosing.selection
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="As in --set learning_rate=1e-4 --set lora.r=8; null is the default again.")  # fmt: skip
@click.option("--name", help="A name for people.")
@click.option("--priority", type=PRIORITIES, help="It keeps its turn: first come, first served.")
@click.option("--window", type=click.Choice(["night", "any"]), help="night: only inside the rig's window.")
@click.option("--not-before", metavar="MOMENT", help=f"22:00, ISO 8601, or {NOTHING}.")
@click.option("--gpus", type=click.IntRange(1, 64), help="How many GPUs it needs at once.")
@click.option("--max-runtime", metavar="TIME", help=f"6h, 90m, or {NOTHING}.")
@click.option("-e", "--editor", is_flag=True, help="Open the job's document as TOML in $VISUAL or $EDITOR.")
@with_rig
def edit(session: Session, /, jobs: tuple[str, ...], **given: Any) -> None:
    """Change jobs that wait. Without a change on the command line, one job opens in your editor."""
    choice = {name: given.pop(name) for name in ("tag", "state", "kind", "yes")}
    sets, by_editor = given.pop("sets"), given.pop("editor")
    changes = _changes(sets, given)
    if changes and by_editor:
        fail("Change fields here, or in the editor: not both.", USAGE)
    chosen = choosing.choose(session, EDIT, jobs, **choice)
    if changes:
        _to_each(session, chosen, lambda client, job_id, _: client.edit(job_id, changes), _waits("is changed"))
    elif chosen.alone:
        _edit_by_hand(session, chosen.ids[0])
    else:
        fail("Say what to change: --priority, --window, --set FIELD=VALUE. The editor takes one job.", USAGE)


def _changes(sets: Sequence[str], given: Mapping[str, Any]) -> Json:
    """A merge patch from the flags."""
    changes: Json = {}
    for text in sets:
        fields.change(changes, fields.assignment(text))
    types = {"not_before": moments.Moment(), "max_runtime": moments.Duration()}
    for name, value in given.items():
        if value is not None:
            field = {"max_runtime": "max_runtime_s"}.get(name, name)
            plain = None if value == NOTHING and name in types else value
            changes[field] = types[name].convert(plain, None, None) if name in types and plain is not None else plain
    return changes


def _edit_by_hand(session: Session, job_id: str) -> None:
    job = session.client.job(job_id)
    if job["state"] != "queued":  # before somebody takes the trouble
        fail(f"Job {job_id} is {job['state']}, and only a waiting job can be changed.", USAGE)
    document = {name: value for name, value in job["spec"].items() if name != "kind"}
    text = FORM.format(id=job_id) + toml_text.written(toml_text.presented(document))
    before = toml_text.read(text)
    while True:
        edited = click.edit(text, extension=".toml", require_save=False)
        if edited is None or edited.strip() == "":
            fail("Nothing was changed.", FAILED)
        text = edited
        try:
            changes = toml_text.changes(before, toml_text.read(text))
            if not changes:
                output.say("Nothing was changed.")
                return
            changed = session.client.edit(job_id, changes, revision=job["revision"])
        except ValueError as error:
            _once_more(f"This is no TOML: {error}.", USAGE)
        except ApiProblem as problem:
            if problem.status != 422:
                raise
            _once_more(problem_words(problem), USAGE)
        else:
            if session.as_json:
                output.emit(changed)
            else:
                output.say(f"Changed: {', '.join(sorted(changes))}.", err=False)
                output.say(_waits("is changed")(changed), err=False)
            return


def _once_more(words: str, code: int) -> None:
    """Back to the editor, where somebody sits at it; else the end."""
    output.say(words)
    if not sys.stdin.isatty() or not click.confirm("Edit again?", default=True, err=True):
        fail("Nothing was changed.", code)


# -- move -----------------------------------------------------------------------------------------------------------------

MOVE = Verb("move", ("queued",), takes_last=True)


@click.command("move", epilog=choosing.EPILOG)
@choosing.selection
@click.option("--first", is_flag=True, help="Before all of its priority.")
@click.option("--last", is_flag=True, help="Behind all of its priority.")
@click.option("--before", metavar="JOB", help="Right before this one, which has the same priority.")
@click.option("--after", metavar="JOB", help="Right behind this one.")
@with_rig
def move(
    session: Session,
    /,
    jobs: tuple[str, ...],
    first: bool,
    last: bool,
    before: str | None,
    after: str | None,
    **choice: Any,
) -> None:
    """Put waiting jobs elsewhere in the queue, in the order in which they are named: all of them, or none."""
    beside = [f"{side}:{session.job_id(job)}" for side, job in (("before", before), ("after", after)) if job]
    places = [*beside, *(word for word, is_meant in (("first", first), ("last", last)) if is_meant)]
    if len(places) != 1:
        fail("Where to? One of --first, --last, --before JOB, --after JOB.", USAGE)
    chosen = choosing.choose(session, MOVE, jobs, **choice)
    moved = session.client.move(chosen.ids, places[0])
    if session.as_json:
        output.emit(moved)
        return
    for job in moved["jobs"][:TOLD_ONE_BY_ONE]:
        output.say(_waits("waits")(job), err=False)
    if len(moved["jobs"]) > TOLD_ONE_BY_ONE:
        output.say(f"{len(moved['jobs'])} jobs were moved, in this order.", err=False)


# -- the rest ---------------------------------------------------------------------------------------------------------------

hold = _command(
    Verb("hold", ("queued",), takes_last=True),
    "Keep waiting jobs from starting, until they are released.",
    lambda client, job_id, _: client.edit(job_id, {"held": True}),
    _is("is held: it waits until it is released"),
)
release = _command(
    Verb("release", ("queued",), takes_last=True),
    "Let held jobs start again.",
    lambda client, job_id, _: client.edit(job_id, {"held": False}),
    _waits("may start again"),
)
cancel = _command(
    Verb("cancel", ("queued", "running")),
    "Stop jobs for good; what waits is cancelled at once.",
    lambda client, job_id, state: client.cancel(job_id, only_if=state or ""),
    _cancelled,
)
preempt = _command(
    Verb("preempt", ("running",)),
    "Let running jobs save their work, free their GPUs and wait again.",
    lambda client, job_id, state: client.preempt(job_id, only_if=state or ""),
    _preempted,
)
remove = _command(
    Verb("rm", ("succeeded", "failed", "cancelled")),
    "Delete ended jobs and their run folders.",
    lambda client, job_id, _: client.remove(job_id),
    lambda job: f"Job {job['id']} and its run folder are removed.",
)

COMMANDS = (edit, move, hold, release, cancel, retry, preempt, remove)
