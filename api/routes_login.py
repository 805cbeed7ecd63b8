"""Logging a browser in, with a one-use code or the token itself, for a session cookie; and out again."""

from collections.abc import Mapping
from datetime import UTC, datetime

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from api.auth import COOKIE, NEXT, SESSION_TTL_S, Keys
from api.context import Rig
from api.documents import FORM_TYPE, json_body, parse_form
from api.page import login_form
from api.problems import ApiError, documented
from api.routes_acts import OurPage

WRONG = "This code or token opens nothing. Codes work once, for 10 minutes; `overnight token` makes a new one."
TOO_MANY = "Too many wrong logins from this address. Wait a minute."

router = APIRouter()


class LoginCode(BaseModel):
    """A link that logs a browser in, once."""

    code: str
    url: str
    expires_at: datetime


@router.post(
    "/api/v1/login-codes", operation_id="createLoginCode", tags=["login"], status_code=201, responses=documented(401)
)
def create_login_code(request: Request, rig: Rig) -> LoginCode:
    """Make a code that opens one session within 10 minutes."""
    code, ends_at = rig.keys.new_code()
    # behind the fragment's #: browsers send it to nobody, so no log and no Referer has it
    url = f"{request.url.scheme}://{request.headers['host']}/login#code={code}"
    return LoginCode(code=code, url=url, expires_at=datetime.fromtimestamp(ends_at, UTC))


@router.post("/login", include_in_schema=False)
async def log_in(request: Request, rig: Rig) -> Response:
    """Open a session with a code or the token: JSON from the page's script, a form where scripts are off."""
    is_form = request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM_TYPE
    shown = parse_form(await request.body()) if is_form else _texts(await json_body(request))
    if not await run_in_threadpool(_opens, shown, rig.keys):
        return _refused(request, rig, shown.get("next", "/") if is_form else None)
    wanted = shown.get("next", "/")
    target = wanted if NEXT.fullmatch(wanted) else "/"
    answer: Response = RedirectResponse(target, 303) if is_form else JSONResponse({"next": target})
    is_https = request.url.scheme == "https"
    session = rig.keys.new_session()
    answer.set_cookie(COOKIE, session, max_age=SESSION_TTL_S, httponly=True, samesite="lax", secure=is_https)
    return answer


@router.post("/logout", include_in_schema=False, dependencies=[OurPage])
def log_out(request: Request, rig: Rig) -> Response:
    """End this browser's session, also for whoever has a copy of the cookie. Its service worker forgets the pages that it kept."""
    rig.keys.end_sessions(request.scope["headers"])
    rig.hub.begin_anew()  # a stream asks for the session only when it begins
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="lax", secure=request.url.scheme == "https")
    return answer


def _refused(request: Request, rig: Rig, wanted: str | None) -> Response:
    """A problem for the script; for a form (`wanted`: where it was to lead) the form again, with a sentence."""
    too_many = rig.throttle.fail(request.client.host if request.client else "")
    status, words, headers = (429, TOO_MANY, {"Retry-After": "60"}) if too_many else (401, WRONG, {})
    if wanted is None:
        raise ApiError(status, words, headers=headers)
    answer = login_form(rig, wanted, wrong=words, status=status)
    answer.headers.update(headers)
    return answer


def _opens(shown: Mapping[str, str], keys: Keys) -> bool:
    if code := shown.get("code"):
        return keys.redeem(code)
    return keys.fits(shown.get("token", "").strip().encode())


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ApiError(422, 'Send {"code": "..."} or {"token": "..."}.')
    return value
