"""The page that submits a job: a form made from the documents' own schema, or a pasted document.

    GET  /submit              ?kind=finetune  ?as=document  ?from=142 (edit and run again)  and any field by its name
    POST /submit              do=submit stores it, do=check shows what it would need; both work without script
    POST /fragments/submit    the same answer for the script, while somebody types
    POST /fragments/preview   what a fine-tune would learn from: it takes longer, so the script asks for it apart

What was typed is never lost: a form that is refused comes back with it, and with what is wrong beside each field.
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import redis
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response

from api import page, preview_panel, submit_panel
from api.context import Context, Rig
from api.documents import FORM_TYPE, batch_of, csv_reader, hash_of, parse_form
from api.form_fields import Part, Widget, fields_of, shown, spelt
from api.form_values import ON, NotADocument, document_of, read_document, texts_of
from api.previewing import glimpse
from api.problems import ApiError, words_of
from api.routes_acts import OurPage
from api.submission import Submitted, one, parsed, submit
from api.submit_panel import Outlook
from daemon.places import Refused
from daemon.rig_secrets import read_secrets
from daemon.store import RepeatedDifferently, UnknownJob
from jobs.spec import KINDS, InvalidSpec

#: More than any kind has fields.
MOST_FIELDS = 500
DOCUMENT = "document"
#: What belongs to the first run only.
NOT_AGAIN = ("after", "not_before")
LISTED_MODELS = 50

router = APIRouter(include_in_schema=False)


async def filled_form(request: Request) -> dict[str, str]:
    """The fields of the form. Raises ApiError 415 or 400."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM_TYPE:
        raise ApiError(415, "This address is for the page's own form. Programs send JSON to /api/v1/jobs.")
    return parse_form(await request.body(), most=MOST_FIELDS)


Form = Annotated[Mapping[str, str], Depends(filled_form)]


@router.get("/submit")
def submit_page(
    request: Request,
    rig: Rig,
    kind: Annotated[str, Query(max_length=32)] = "",
    again: Annotated[str, Query(alias="from", max_length=18)] = "",
    shape: Annotated[str, Query(alias="as", max_length=16)] = "",
) -> Response:
    """The form, empty or with what the address says."""
    texts = {name: value[:4096] for name, value in request.query_params.items()}
    note = ""
    if again:
        try:
            job = rig.store.get(again) if again.isdigit() else None
        except (UnknownJob, redis.RedisError):
            job = None
        if job is None or job.kind not in KINDS:
            note = f"There is no job {again} to begin from; the form is empty."
        else:
            spec = {name: value for name, value in job.spec.items() if name not in NOT_AGAIN}
            kind, texts = job.kind, texts_of(fields_of(job.kind), spec, rig.settings.zone)
            note = f"As job {again} was submitted. Change what you like; a new job is made, that one stays as it is."
    elif (chosen := kind if kind in KINDS else next(iter(KINDS))) and shape != DOCUMENT:
        # a box has its default until the address says otherwise
        boxes = [field for field in fields_of(chosen) if field.widget is Widget.SWITCH]
        texts = {**{box.path: ON for box in boxes if box.default}, **texts}
        texts = {name: text for name, text in texts.items() if text not in ("false",)}
    kind = DOCUMENT if shape == DOCUMENT else kind if kind in KINDS else next(iter(KINDS))
    return _form(rig, kind, texts, note=note, again=again if note and "As job" in note else "")


@router.post("/submit", dependencies=[OurPage])
def send_form(form: Form, rig: Rig) -> Response:
    """Submit it, or show what it would need."""
    kind = _kind(form)
    try:
        document = _document(kind, form, rig)
    except NotADocument as error:
        return _form(rig, kind, form, outlook=_unreadable(error), status=422)
    if form.get("do") != "submit":
        return _form(rig, kind, form, outlook=_look(document, rig, lenient=False), preview=_preview(document, rig))
    try:
        done = _submit(document, rig, form.get("key", ""))
    except InvalidSpec as error:
        return _form(rig, kind, form, outlook=submit_panel.refused(document, error.errors, lenient=False), status=422)
    except (ApiError, RepeatedDifferently, redis.RedisError) as error:
        status, words = words_of(error)
        return _form(rig, kind, form, outlook=Outlook("wrong", words), status=status)
    return RedirectResponse(_where(done), 303)


@router.post("/fragments/submit", dependencies=[OurPage])
def check_form(form: Form, rig: Rig) -> Response:
    """What is wrong with it so far, and what it would need."""
    kind = _kind(form)
    try:
        outlook = _look(_document(kind, form, rig), rig, lenient=True)
    except NotADocument as error:
        outlook = _unreadable(error)
    return page.render("submit_live.html", rig, outlook=outlook, now=rig.now())


@router.post("/fragments/preview", dependencies=[OurPage])
def preview_form(form: Form, rig: Rig) -> Response:
    """What it would learn from, as far as that can be told."""
    try:
        found = _preview(_document(_kind(form), form, rig), rig)
    except NotADocument:
        found = None
    return page.render("preview_live.html", rig, preview=found)


# -- inside -------------------------------------------------------------------------------------------------------------------


def _kind(form: Mapping[str, str]) -> str:
    kind = form.get("kind", "")
    if kind != DOCUMENT and kind not in KINDS:
        raise ApiError(422, f"There is no kind of job {kind[:40]!r}.")
    return kind


def _document(kind: str, form: Mapping[str, str], rig: Context) -> Any:
    if kind == DOCUMENT:
        text = form.get("document", "")
        return read_document(text) if text.strip() else {}
    return document_of(kind, fields_of(kind), form, rig.settings.zone)


def _look(document: Any, rig: Context, *, lenient: bool) -> Outlook:
    if document == {}:
        return Outlook("missing", "Paste a job document: TOML or JSON, one job, a list of jobs, or a sweep.")
    try:
        return submit_panel.look(document, rig, lenient=lenient)
    except ApiError as error:
        return Outlook("wrong", error.detail)
    except redis.RedisError as error:
        return submit_panel.unavailable(error)


def _preview(document: Any, rig: Context) -> preview_panel.Panel | None:
    """Of a fine-tune that could be submitted but for a file that is still to come; None for everything else."""
    try:
        [spec] = parsed(one(document))
        found = glimpse(spec, rig)
    except (InvalidSpec, ApiError, redis.RedisError):
        return None  # what is wrong with it stands beside the fields
    return preview_panel.panel(found) if found is not None else None


def _unreadable(error: NotADocument) -> Outlook:
    return Outlook("wrong", f"This is neither TOML nor JSON: {error}.", {"document": str(error)})


def _submit(document: Any, rig: Context, key: str) -> Submitted:
    # the same form sent twice makes one job; the same form with other words in it is another one
    repeat_key = f"form:{key[:64]}:{hash_of(document)[:32]}" if key.isascii() and key.isprintable() and key else None
    if isinstance(document, Mapping) and "kind" not in document and {"jobs", "base"} & set(document):
        return submit(batch_of(document, csv_reader(rig.settings.inputs)), document, rig, key=repeat_key)
    return submit(one(document), document, rig, key=repeat_key)


def _where(done: Submitted) -> str:
    first = done.jobs[0]
    if first.sweep:
        return f"/sweeps/{first.sweep}"
    return f"/jobs/{first.id}" if len(done.jobs) == 1 else "/jobs?state=queued"


def _form(
    rig: Context,
    kind: str,
    texts: Mapping[str, str],
    *,
    outlook: Outlook | None = None,
    preview: preview_panel.Panel | None = None,
    status: int = 200,
    **more: str,
) -> Response:
    frame = page.frame(rig)
    is_document = kind == DOCUMENT
    return page.render(
        "submit.html",
        rig,
        status,
        **frame,
        kind=kind,
        kinds=tuple(KINDS),
        about=(KINDS[kind].__doc__ or "").partition("\n")[0] if not is_document else "",
        groups={} if is_document else {str(part): shown(kind, part) for part in Part},
        texts=texts,
        outlook=outlook,
        preview=preview,
        key=texts.get("key") or secrets.token_urlsafe(12),
        spelt=spelt,
        lists={} if is_document else _lists(rig),
        note=more.get("note", ""),
        again=more.get("again", ""),
    )


def _lists(rig: Context) -> dict[str, Sequence[str]]:
    """What can be chosen from, by field: names only."""
    try:
        models = sorted(path.name for path in rig.settings.models.iterdir() if not path.name.startswith("."))
    except OSError:
        models = []
    try:
        names = sorted(read_secrets(rig.settings.secrets_file))
    except (Refused, OSError):
        names = []
    try:
        rigs = sorted(rig.store.rigs())
    except redis.RedisError:
        rigs = []
    return {"model": models[:LISTED_MODELS], "secrets": names, "rig": rigs}
