"""Submit: make the document, check it, send its local files and then itself, and stay with the jobs as asked.

Loads pydantic (through flags and documents), so only a command that submits imports this.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.cli import documents, estimates, fields, flags, follow, output, plan, previews, workdirs
from api.cli.session import USAGE, Session, fail, fate
from api.client import ApiProblem, RigUnreachable, new_key
from jobs.data import DataReport

Json = dict[str, Any]

#: Of a batch, so many jobs are listed.
LISTED = 12
#: The upload of a larger file tells how far it is.
LARGE_BYTES = 8_000_000
#: Of an earlier job's results these are told.
TELLING = ("eval_loss", "loss", "accuracy", "tokens_per_s")
#: Nobody waits longer than this to hear when a job will start.
FORECAST_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class How:
    """What to do beside submitting."""

    follow: bool = False
    wait: bool = False
    dry_run: bool = False
    key: str = ""


def submit(
    session: Session,
    kind: str | None,
    values: Mapping[str, Any],
    *,
    file: Path | None = None,
    table: Path | None = None,
    argv: Sequence[str] = (),
    ship: bool = True,
) -> None:
    """Submit a file, or one job of this kind, with what the flags say. Ends with the jobs' fate when it waits for it.

    `ship`: the folder of a command's own files goes along unless something else is said.
    """
    how = How(follow=values["follow_"], wait=values["wait"], dry_run=values["dry_run"], key=values["key"])
    body: Json = documents.read(file) if file else {"argv": list(argv)} if argv else {}
    if table is not None:
        body = documents.with_table(body, table.resolve())
    notes = documents.in_our_names(body)  # before the flags, which have our names and count more
    for document in documents.members(body):
        fields.change(document, flags.document(kind, values))
        if kind != "command":  # which has a field of this name
            fields.allow_retries(document, values.get("retries"))
        for text in values["sets"]:
            notes += documents.assign(document, text)
    for note in dict.fromkeys(notes):
        output.say(output.clean_line(note))
    if argv and ship and not {"workdir", "cwd"} & set(body) and (folder := workdirs.suggested(argv, Path())):
        body["workdir"] = folder
    send(session, body, (file.parent, Path()) if file else (Path(),), how)


def send(session: Session, body: Json, folders: Sequence[Path], how: How) -> None:
    """Check, upload what is local, submit, and stay with the jobs as asked. Ends with their fate when it waits for it."""
    documents.check(body)
    with workdirs.packed(session, body, folders):
        _send(session, body, folders, how)


def _send(session: Session, body: Json, folders: Sequence[Path], how: How) -> None:
    reports = documents.check_rows(body, folders)
    if how.dry_run:
        _dry_run(session, body, folders, how, reports)
        return
    documents.send_files(session.client, body, folders, _note_upload)
    jobs, sweep = _post(session, body, how)
    if not session.as_json:
        _announce(session, jobs, sweep)
    if how.follow or how.wait:
        _stay(session, jobs, how)
    elif session.as_json:
        output.emit({"sweep": sweep, "jobs": jobs} if documents.is_batch(body) else jobs[0])


def _post(session: Session, body: Json, how: How) -> tuple[list[Json], str | None]:
    """The jobs, and the sweep that they are."""
    key = how.key or new_key()
    post = session.client.submit_batch if documents.is_batch(body) else session.client.submit
    try:
        answer = post(body, key=key, dry_run=how.dry_run)
    except RigUnreachable as error:
        if error.sent:
            output.say(
                f"Whether it was stored is not known. Repeat the command with --key {key}: it is not stored twice."
            )
        raise
    return (list(answer["jobs"]), answer.get("sweep")) if "jobs" in answer else ([answer], None)


def _dry_run(
    session: Session, body: Json, folders: Sequence[Path], how: How, reports: Mapping[str, DataReport]
) -> None:
    local = {} if documents.is_batch(body) else {key: path for _, key, path in documents.local_files(body, folders)}
    amount = documents.count(body, folders)
    files = documents.name_files(body, folders)
    try:
        trials, _ = _post(session, body, how)
    except ApiProblem as problem:
        # what would be uploaded is not there yet; its rows were checked here
        left = [error for error in problem.errors if not (files and "is not uploaded" in str(error.get("message")))]
        if left or not problem.errors:
            problem.errors = left
            raise
        trials = [{"job": body, "would_wait_because": None}]
    needs = None if documents.is_batch(body) else estimates.ask(session, body, reports)
    if needs and needs["message"]:  # the rig could not tell before it had the data
        fail(output.clean_line(needs["message"]), USAGE)
    view = trials[0].get("preview") or _preview(session, body, local, reports)
    if session.as_json:
        uploads = [str(path) for path in files]
        output.emit({"valid": True, "jobs": trials, "uploads": uploads, "estimate": needs, "preview": view})
        return
    told = "its jobs" if amount is None else f"{amount} job{'' if amount == 1 else 's'}"
    session.say(f"Valid: {told} would be queued. Nothing was stored.")
    for path in files:
        session.say(f"  {path} ({output.size(path.stat().st_size)}) would be uploaded")
    if before := trials[0].get("ran_before"):
        session.say(output.clean_line(f"  You ran this before as job {before['id']} ({_fate_of(before)})."))
    if len(trials) == 1 and trials[0].get("would_wait_because"):
        session.say(f"  It would wait: {trials[0]['would_wait_because']}")
    if needs:
        estimates.show(session, needs)
    if view:
        previews.show(session, view)


def _preview(session: Session, body: Json, local: Mapping[str, Path], reports: Mapping[str, DataReport]) -> Json | None:
    """Of one fine-tune whose files are only here."""
    if documents.is_batch(body) or body.get("kind") != "finetune":
        return None
    report = reports.get(str(body.get("data")))
    return previews.ask(session, body, (local["data"], report) if report else None, local.get("chat_template"))


def _stay(session: Session, jobs: list[Json], how: How) -> None:
    ids = [str(job["id"]) for job in jobs]
    ended = follow.follow(session, ids) if how.follow else follow.wait(session, ids)
    if session.as_json and not how.follow:
        output.emit(ended[0] if len(ended) == 1 else {"jobs": ended})
    raise SystemExit(fate(ended))


def _announce(session: Session, jobs: list[Json], sweep: str | None) -> None:
    if sweep:
        session.say(f"Sweep {sweep}: {len(jobs)} jobs, {jobs[0]['id']} to {jobs[-1]['id']}.")
        session.say(f"Its table: overnight sweep {sweep}   {session.page_of_sweep(sweep)}")
        return
    for job in jobs[:LISTED]:
        waits = f" waits: {job['waiting_because']}." if job.get("waiting_because") else ""
        tail = f"  {session.page_of(job['id'])}" if len(jobs) > 1 else ""
        session.say(output.clean_line(f"Job {job['id']} {job['state']}: {job['name']}.{waits}{tail}"))
    if len(jobs) > LISTED:
        session.say(f"… and {len(jobs) - LISTED} more, up to job {jobs[-1]['id']}.")
    if before := jobs[0].get("ran_before"):
        session.say(output.clean_line(f"You ran this before as job {before['id']} ({_fate_of(before)})."))
    if expected := _expectation(session, jobs):
        session.say(expected)
    if len(jobs) == 1:
        session.say(f"Follow: overnight logs -f {jobs[0]['id']}   {session.page_of(jobs[0]['id'])}")


def _fate_of(before: Json) -> str:
    """How an earlier job stands, with the numbers that it is known by."""
    metrics = before.get("metrics") or {}
    known = [f"{name} {metrics[name]:.4g}" for name in TELLING if isinstance(metrics.get(name), (int, float))]
    return ", ".join([str(before["state"]), *known])


def _expectation(session: Session, jobs: list[Json]) -> str:
    """When the job, or the last one of many, is expected to start and end. The submission has succeeded whatever happens here."""
    last = jobs[-1]
    if last["state"] != "queued":
        return ""
    try:
        planned = session.client.job_plan(str(last["id"]), timeout_s=FORECAST_TIMEOUT_S)
    except (ApiProblem, RigUnreachable):
        return ""
    words = plan.expectation(planned)
    return words if len(jobs) == 1 or not words else f"Job {last['id']}, the last: {words[0].lower()}{words[1:]}"


def _note_upload(path: Path, size_bytes: int) -> Callable[[int], object]:
    """Tell how far the upload of a large file is."""
    if size_bytes < LARGE_BYTES:
        return lambda count: None
    told = sent = 0

    def note(count: int) -> None:
        nonlocal told, sent
        sent += count
        if (percent := 100 * sent // size_bytes) >= told + 10:
            told = percent
            output.say(f"Uploading {path.name}: {percent} % of {output.size(size_bytes)}")

    return note
