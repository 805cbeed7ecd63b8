"""The page's buttons: plain forms, so that they work without script. The script sends the same forms and stays on the page.

    POST /do/jobs/{id}/{verb}     cancel preempt retry hold release, move (position=), priority (priority=)
    POST /do/sweeps/{id}/cancel
    POST /do/gpus/{slot}/{verb}   pause resume release check free
    POST /do/rig/{verb}           pause resume
    POST /do/night/retry          a group= of the night's failures, with the changes that the page named

A form that asks a question is answered with that question until it says `sure=yes`. Then: 303 back to `next`, or 204 for the
script. The guard has refused other sites' forms by then; here a request must also *show* that our own page sent it.
"""

from collections.abc import Callable, Mapping
from typing import Annotated
from urllib.parse import quote

import redis
from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response

from api import acts, night_panel, page, routes_jobs, routes_rig, routes_sweeps, sweep_panel
from api.acts import Act
from api.auth import NEXT
from api.context import Context, Rig
from api.documents import form_body
from api.editing import edit, retry
from api.problems import ApiError, words_of
from daemon.night.model import Action
from daemon.store import UnknownJob
from jobs.model import InvalidTransition, Job
from jobs.spec import InvalidSpec

router = APIRouter(include_in_schema=False)

#: Of refused jobs so many are named.
MOST_NAMED = 3

Form = Annotated[Mapping[str, str], Depends(form_body)]
Deed = Callable[[], object]


def sent_by_our_page(request: Request) -> None:
    """A browser says where a form comes from, and the guard believes it; whoever says nothing is no browser. Raises ApiError."""
    if not {"origin", "sec-fetch-site"} & set(request.headers):
        raise ApiError(403, "These addresses are for the page's own forms. Programs use /api/v1.")


OurPage = Depends(sent_by_our_page)


@router.post("/do/jobs/{job_id}/{verb}", dependencies=[OurPage])
def do_with_job(job_id: str, verb: str, request: Request, form: Form, rig: Rig) -> Response:
    """One of a job's buttons."""
    deeds: dict[str, Callable[[Job], object]] = {
        "cancel": lambda job: routes_jobs.cancel_job(job, rig, {}),
        "preempt": lambda job: routes_jobs.preempt_job(job, rig, {}),
        "retry": lambda job: routes_jobs.retry_job(job, rig, {}),
        "hold": lambda job: edit(job.id, {"held": True}, rig),
        "release": lambda job: edit(job.id, {"held": False}, rig),
        "move": lambda job: edit(job.id, {"position": form.get("position")}, rig),
        "priority": lambda job: edit(job.id, {"priority": form.get("priority", "")}, rig),
    }
    if verb not in deeds:
        raise ApiError(404, "Nothing is here.")
    found: list[Act] = []

    def deed() -> object:
        job = routes_jobs.known(job_id, rig)
        found.extend(act for act in acts.of_job(job) if act.path == f"/do/jobs/{job.id}/{verb}")
        return None if _asks(found, form) else deeds[verb](job)

    return _answer(request, form, rig, deed, found, back=f"/jobs/{quote(job_id, safe='')}")


@router.post("/do/gpus/{slot_id}/{verb}", dependencies=[OurPage])
def do_with_slot(slot_id: str, verb: str, request: Request, form: Form, rig: Rig) -> Response:
    """One of a slot's buttons."""
    deeds: dict[str, Deed] = {
        "pause": lambda: routes_rig.pause_gpu(slot_id, rig, {}),
        "resume": lambda: routes_rig.resume_gpu(slot_id, rig),
        "release": lambda: routes_rig.release_gpu(slot_id, rig),
        "check": lambda: routes_rig.check_gpu(slot_id, rig),
        "free": lambda: routes_rig.pause_gpu(slot_id, rig, {"now": True}),
    }
    if verb not in deeds:
        raise ApiError(404, "Nothing is here.")
    found: list[Act] = []

    def deed() -> object:
        for slot in rig.facts().slots:
            if slot.slot.id == slot_id:
                at, job = f"/do/gpus/{quote(slot_id, safe='')}", rig.facts().jobs.get(slot.job or "")
                offered = acts.of_slot(slot, page.slot_title(slot.slot), at, job)
                found.extend(act for act in offered if act.path == f"{at}/{verb}")
        return None if _asks(found, form) else deeds[verb]()

    return _answer(request, form, rig, deed, found, back="/")


@router.post("/do/sweeps/{sweep_id}/cancel", dependencies=[OurPage])
def cancel_sweep(sweep_id: str, request: Request, form: Form, rig: Rig) -> Response:
    """A sweep's button."""
    found: list[Act] = []

    def deed() -> object:
        sweep = routes_sweeps.known(sweep_id, rig)
        found.extend(sweep_panel.acts(rig.tables.of(sweep)))
        return None if _asks(found, form) else routes_sweeps.cancel_sweep(sweep, rig)

    return _answer(request, form, rig, deed, found, back=f"/sweeps/{quote(sweep_id, safe='')}")


@router.post("/do/rig/{verb}", dependencies=[OurPage])
def do_with_rig(verb: str, request: Request, form: Form, rig: Rig) -> Response:
    """One of the rig's buttons."""
    deeds: dict[str, Deed] = {
        "pause": lambda: routes_rig.pause_rig(rig, {}),
        "resume": lambda: routes_rig.resume_rig(rig),
    }
    if verb not in deeds:
        raise ApiError(404, "Nothing is here.")
    found = [act for act in acts.of_rig(verb == "resume") if act.path == f"/do/rig/{verb}"]
    return _answer(request, form, rig, lambda: None if _asks(found, form) else deeds[verb](), found, back="/")


@router.post("/do/night/retry", dependencies=[OurPage])
def retry_group(request: Request, form: Form, rig: Rig) -> Response:
    """The button of a group that needs somebody. What is changed for the retry is found anew: the form only says which jobs."""
    found: list[Act] = []

    def deed() -> None:
        groups = rig.nights.made(rig.facts()).needs_you
        group = next((g for g in groups if g.action and night_panel.key(g.action.jobs) == form.get("group")), None)
        if group is None or group.action is None:
            raise ApiError(409, "These jobs do not stand there together any more. Look at the page again.")
        found.extend(night_panel.group_acts(group))
        if not _asks(found, form):
            _retry_all(group.action, rig)

    return _answer(request, form, rig, deed, found, back="/")


def _retry_all(action: Action, rig: Context) -> None:
    """Every one that can go again goes; the others are named. Raises ApiError."""
    refused: list[str] = []
    for job in action.jobs:
        try:
            retry(job, action.changes.get(job, {}), rig)
        except (InvalidTransition, UnknownJob, InvalidSpec, ApiError) as error:
            refused.append(f"Job {job}: {words_of(error)[1]}")
    if refused:
        done = len(action.jobs) - len(refused)
        raise ApiError(409, f"{done} of {len(action.jobs)} wait again. {' '.join(refused[:MOST_NAMED])}")


def _asks(found: list[Act], form: Mapping[str, str]) -> bool:
    """Whether the owner has yet to say that he is sure."""
    return bool(found and found[0].question) and form.get("sure") != "yes"


def _answer(
    request: Request, form: Mapping[str, str], rig: Context, deed: Deed, found: list[Act], *, back: str
) -> Response:
    """Do it, and go back to where the button was; or ask; or tell why it was refused."""
    is_script = "application/json" in request.headers.get("accept", "")
    wanted = form.get("next", "")
    back = wanted if NEXT.fullmatch(wanted) else back
    try:
        deed()
    except (InvalidTransition, UnknownJob, InvalidSpec, ApiError, redis.RedisError) as error:
        if is_script:
            raise
        status, words = words_of(error)
        return page.message(rig, status, title="This could not be done", text=words, back=back)
    if _asks(found, form):
        act, fields = found[0], {"sure": "yes", "next": back, found[0].name: found[0].value}
        return page.message(rig, 200, title=act.full_label, text=act.question, back=back, act=act, fields=fields)
    return Response(status_code=204) if is_script else RedirectResponse(back, 303)
