"""The page's buttons: plain forms, so that they work without script. The script sends the same forms and stays on the page.

    POST /do/jobs/{id}/{verb}     cancel preempt retry hold release, move (position=), priority (priority=)
    POST /do/sweeps/{id}/cancel
    POST /do/gpus/{slot}/{verb}   pause resume release check free
    POST /do/rig/{verb}           pause resume

A form that asks a question is answered with that question until it says `sure=yes`. Then: 303 back to `next`, or 204 for the
script. The guard has refused other sites' forms by then; here a request must also *show* that our own page sent it.
"""

from collections.abc import Callable, Mapping
from typing import Annotated
from urllib.parse import quote

import redis
from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response

from api import acts, page, routes_jobs, routes_rig, routes_sweeps, sweep_panel
from api.acts import Act
from api.auth import NEXT
from api.context import Context, Rig
from api.documents import form_body
from api.editing import edit
from api.problems import ApiError, words_of
from daemon.store import UnknownJob
from jobs.model import InvalidTransition, Job
from jobs.spec import InvalidSpec

router = APIRouter(include_in_schema=False)

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
