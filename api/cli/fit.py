"""`overnight fit`: what a job would need, and whether it fits, before it is submitted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from api.cli.session import FAILED, JOB_ID, LAST, USAGE, Session, fail, with_rig

Json = dict[str, Any]


@click.command("fit")
@click.argument("file", metavar="[FILE|JOB]", required=False)
@click.option("--model", default="", help="The largest batches of this model, by method: a folder, a name, a hub id.")
@click.option("--vram", "vram_gib", type=click.FloatRange(0, 10_000, min_open=True), metavar="GIB", help="As if the GPU had so much memory.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Step through the fine-tune on fake tensors: exact, ten seconds or more.")
@click.option(
    "--set", "sets", multiple=True, metavar="FIELD=VALUE", help="What if: any field, as in --set max_length=2048."
)
@with_rig
def fit(
    session: Session, file: str | None, model: str, vram_gib: float | None, dry_run: bool, sets: tuple[str, ...]
) -> None:
    """What fits: a job, a model, or with neither the usual sizes of models on this rig.

    Of a job: memory, steps and room that it would need, which GPUs it fits, and what would make it fit. Nothing is stored or
    uploaded. The exit status is 1 when a job fits no GPU. With --vram and a folder (or no model) it needs no rig.
    """
    if file and model:
        fail("Name a job's file or number, or --model: not both.", USAGE)
    if not file:
        if sets or dry_run:
            fail(
                f"{'--set changes' if sets else '--dry-run steps through'} a job's document: name its file or number.",
                USAGE,
            )
        _show_capacity(session, model, vram_gib)
        return
    _show_jobs(session, file, vram_gib, dry_run, sets)


def _show_jobs(session: Session, file: str, vram_gib: float | None, dry_run: bool, sets: tuple[str, ...]) -> None:
    from api.cli import (  # here: they load pydantic, which `overnight --help` need not wait for
        estimates,
        fields,
        output,
    )

    views: list[Json] = []
    for document, reports in _documents(session, file):
        for text in sets:
            fields.change(document, fields.assignment(text))
        views.append(estimates.ask(session, document, reports, vram_gib, dry_run=dry_run))
        if not session.as_json:
            if len(views) > 1:
                session.say("")
            session.say(
                output.clean_line(document.get("name") or f"{document.get('kind')} {document.get('model', '')}")
            )
            estimates.show(session, views[-1])
    if session.as_json:
        output.emit(views[0] if len(views) == 1 else {"estimates": views})
    if any(view["fits"] is False for view in views):
        raise SystemExit(FAILED)


def _show_capacity(session: Session, model: str, vram_gib: float | None) -> None:
    from api.cli import capacities, output  # here: they load pydantic

    view = capacities.without_a_rig(model, vram_gib) or session.client.what_fits(model, vram_gib)
    if session.as_json:
        output.emit(view)
    else:
        output.show(capacities.words(view, one=bool(model)))


def _documents(session: Session, file: str) -> Iterator[tuple[Json, Json]]:
    """Every document that is meant, with what its local data files hold."""
    from api.cli import documents, output

    path = Path(file)
    if not path.exists():
        if file != LAST and not JOB_ID.fullmatch(file):
            fail(f"{file} is neither a file nor a job's id", USAGE)
        yield session.client.job(session.job_id(file))["spec"], {}
        return
    body = documents.read(path)
    for note in documents.in_our_names(body):
        output.say(output.clean_line(note))
    folders = (path.parent, Path())
    reports = documents.check_rows(body, folders)
    documents.name_files(body, folders)
    for document in documents.members(body):
        if not documents.is_batch(body):
            yield document, reports
        elif local := [name for name in ("model", "adapter", "data", "eval_data") if _is_local(document.get(name))]:
            output.say(
                f"{document.get('id') or document.get('name') or 'A job'}: its {local[0]} is still to come from {document[local[0]]}."
            )
        else:
            yield {name: value for name, value in document.items() if name not in ("id", "after")}, reports


def _is_local(value: object) -> bool:
    """Whether it names a job of the same file, which has no number yet."""
    return isinstance(value, str) and value.startswith("job:") and not JOB_ID.fullmatch(value)
