"""The page of all jobs, and what can be done with many of them at once.

/jobs                  ?state= (several) ?cause= ?kind= ?tag= ?sweep= ?since=24h ?until= ?q= ?cursor=
/fragments/joblist     its changing part
POST /do/bulk          verb=, and id= (several) or all=yes with query=; asks until sure=yes
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qs

import redis
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import RedirectResponse, Response

from api import bulk, page, panels
from api.auth import NEXT
from api.bulk import VERBS, Result, Verb
from api.comparison import MOST as MOST_COMPARED
from api.context import Context, Rig
from api.documents import FORM_TYPE
from api.filters import SPANS, Filters
from api.jobs_list import MOST_AT_ONCE, listing, matching
from api.problems import ApiError, words_of
from api.routes_acts import OurPage
from api.wording import count
from daemon.night.best import BASELINE_TAG
from jobs.model import Job, State
from jobs.spec import KINDS

#: Names that a question shows.
NAMED = 12
MOST_FIELDS = MOST_AT_ONCE + 20

router = APIRouter(include_in_schema=False)

Cursor = Annotated[str, Query(max_length=60)]


@router.get("/jobs")
def jobs_page(rig: Rig, request: Request, cursor: Cursor = "") -> Response:
    """Jobs that match, in the order in which one looks for them."""
    return _list_page("jobs.html", rig, request, cursor)


@router.get("/fragments/joblist")
def jobs_fragment(rig: Rig, request: Request, cursor: Cursor = "") -> Response:
    """The list alone."""
    return _list_page("jobs_list_live.html", rig, request, cursor)


def _list_page(template: str, rig: Context, request: Request, cursor: str) -> Response:
    now = rig.now()
    snap = panels.look(rig.store, rig.ledger, rig.settings, now)
    filters = Filters.of(request.url.query, now, rig.settings.zone)
    shown = None
    if snap.facts is not None:
        try:
            shown = listing(rig.store, snap.facts, filters, cursor)
        except redis.RedisError:
            snap = panels.look(rig.store, rig.ledger, rig.settings, now)
    return page.render(
        template,
        rig,
        200,
        now=now,
        snap=snap,
        heart=panels.heart(snap),
        banners=[banner for banner in panels.banners(snap) if banner.level == "warn"],
        facts=snap.facts,
        counts=snap.counts or {},
        filters=filters,
        listing=shown,
        cursor=cursor,
        here="jobs",
        address="/jobs" + (f"?{query}" if (query := filters.query(cursor=cursor)) else ""),
        kinds=tuple(KINDS),
        states=(State.RUNNING, State.FAILED, State.QUEUED, State.SUCCEEDED, State.CANCELLED),
        spans=SPANS,
        verbs=VERBS.values(),
        most_at_once=MOST_AT_ONCE,
    )


# -- many at once -------------------------------------------------------------------------------------------------------------


async def _form(request: Request) -> dict[str, list[str]]:
    """The fields of a form that may name a job for each row. Raises ApiError 415 or 400."""
    raw = await request.body()
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if raw and content_type != FORM_TYPE:
        raise ApiError(415, f"Send the form with `Content-Type: {FORM_TYPE}`.")
    try:
        return parse_qs(raw.decode("ascii"), max_num_fields=MOST_FIELDS, keep_blank_values=True)
    except ValueError:
        raise ApiError(400, f"The form cannot be read; it may name {MOST_AT_ONCE} jobs at most.") from None


@router.post("/do/bulk", dependencies=[OurPage])
def do_with_many(request: Request, fields: Annotated[dict[str, list[str]], Depends(_form)], rig: Rig) -> Response:
    """Ask with names and counts; when that was answered, do it and tell what came of it."""
    form = {name: values[0] for name, values in fields.items()}
    back = wanted if NEXT.fullmatch(wanted := form.get("next", "")) else "/jobs"
    try:
        if form.get("verb") == "compare":
            jobs, _ = _selected(fields, rig)
            first = sorted(jobs, key=lambda job: (BASELINE_TAG not in job.tags, int(job.id)))
            return RedirectResponse(f"/compare?ids={','.join(job.id for job in first[: MOST_COMPARED + 1])}", 303)
        verb = VERBS.get(form.get("verb", ""))
        if verb is None:
            raise ApiError(422, "Choose what is to be done with them.")
        jobs, more = _selected(fields, rig)
        ask = Question(verb, jobs, [job for job in jobs if verb.takes(job)], more, back, form.get("changes", ""))
        if form.get("sure") != "yes" or not ask.taken:
            return _asked(rig, ask)
        return _told(rig, ask, verb.does(ask.taken, rig, form))
    except (ApiError, redis.RedisError) as error:
        status, words = words_of(error)
        return page.message(rig, status, title="This could not be done", text=words, back=back)


def _selected(fields: Mapping[str, Sequence[str]], rig: Context) -> tuple[list[Job], bool]:
    """The jobs that were ticked, or all that match; those that are gone since are left out."""
    if fields.get("all") == ["yes"]:
        filters = Filters.of(fields.get("query", [""])[0], rig.now(), rig.settings.zone)
        return matching(rig.store, rig.facts(), filters)
    ids = [job_id for field in (*fields.get("id", ()), *fields.get("ids", ())) for job_id in field.split(",")]
    ids = list(dict.fromkeys(job_id for job_id in ids if job_id.isascii() and job_id.isdigit() and len(job_id) <= 18))
    if not ids:
        raise ApiError(422, "No job was chosen: tick some, or choose all that match.")
    found = rig.store.get_many(ids[:MOST_AT_ONCE])
    return [found[job_id] for job_id in ids if job_id in found], len(ids) > MOST_AT_ONCE


@dataclass(frozen=True)
class Question:
    """What is to be done, with whom of those that were chosen, and the changes that were typed."""

    verb: Verb
    chosen: Sequence[Job]
    taken: Sequence[Job]
    #: More were chosen than one action takes.
    more: bool
    back: str
    typed: str


def _asked(rig: Context, ask: Question, wrong: str = "") -> Response:
    """The page that asks. It works without script, and the jobs that it counts are those that will be changed."""
    return page.render(
        "bulk.html",
        rig,
        422 if wrong else 200,
        ask=ask,
        title=bulk.title_of(ask.verb, len(ask.taken)),
        named=ask.taken[:NAMED],
        ids=",".join(job.id for job in ask.taken),
        remedy=bulk.remedy_for(ask.taken) if ask.verb.key == "retry" and ask.taken else None,
        most_at_once=MOST_AT_ONCE,
        wrong=wrong,
    )


def _told(rig: Context, ask: Question, result: Result) -> Response:
    """What came of it: back to the list when all went well; else who was refused, and why."""
    if not result.refused:
        return RedirectResponse(ask.back, 303)
    if ask.typed.strip() and not result.done:
        return _asked(rig, ask, wrong=result.refused[0][1])
    values = {
        "title": f"{count(result.done, 'job')} {ask.verb.done}",
        "left": len(ask.taken) - result.done,
        "refused": result.refused[:NAMED],
        "more": max(0, len(result.refused) - NAMED),
        "back": ask.back,
    }
    return page.render("bulk_result.html", rig, 200 if result.done else 409, **values)
