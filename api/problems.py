"""Errors as RFC 9457 problems: a stable type, what happened, and what to do. Never a path, a traceback or a version."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import redis
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from daemon.store import RepeatedDifferently, UnknownJob
from jobs.model import InvalidTransition
from jobs.spec import InvalidSpec

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2
#: Redis answers, but cannot take a change now: its disk is full, it loads, or it follows another server.
NOT_NOW = ("MISCONF", "LOADING", "READONLY", "OOM", "NOREPLICAS")

#: Status -> last part of the type, and the title.
KNOWN = {
    400: ("bad-request", "The request cannot be read"),
    401: ("not-authorised", "A token is needed"),
    403: ("forbidden", "Refused"),
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "This cannot be done here"),
    406: ("not-acceptable", "Not in this form"),
    409: ("conflict", "Not in the job's present state"),
    411: ("length-required", "The length is missing"),
    412: ("changed-meanwhile", "Changed by somebody else meanwhile"),
    413: ("too-large", "The body is too large"),
    415: ("unsupported-media-type", "The body must be JSON"),
    416: ("range-not-satisfiable", "The range lies outside the file"),
    421: ("wrong-host", "Not a name of this rig"),
    422: ("invalid", "The request is not valid"),
    429: ("too-many", "Too many"),
    500: ("internal", "Something went wrong on the rig"),
    502: ("rig-away", "Another rig does not answer"),
    503: ("unavailable", "The queue is not reachable"),
    507: ("disk-full", "The rig's disk is full"),
}
WENT_WRONG = "The rig's log has the details. Try again; if it happens again, report it."
QUEUE_AWAY = "Nothing was stored. Try again in a moment; `overnight doctor` on the rig says more."


class FieldProblem(BaseModel):
    """One wrong field. `loc`: the way to it, and the line of the file that it names."""

    field: str
    message: str
    loc: list[str | int] | None = None


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str | None = None
    errors: list[FieldProblem] | None = None


class ApiError(Exception):
    """A refusal in words."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        type: str = "",
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(detail)
        self.status, self.detail, self.type = status, detail, type
        self.errors, self.headers = errors, headers


def problem(
    status: int,
    detail: str | None = None,
    *,
    type: str = "",
    errors: Sequence[tuple[str, str]] = (),
    lines: Sequence[int | None] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer for a refusal."""
    slug, title = KNOWN.get(status, ("refused", "Refused"))
    body: dict[str, Any] = {"type": f"urn:overnight:{type or slug}", "title": title, "status": status}
    if detail:
        body["detail"] = detail
    if errors:
        body["errors"] = [{"field": field, "message": message} for field, message in errors]
        for error, line in zip(body["errors"], lines, strict=False):
            if line is not None:
                error["loc"] = [*error["field"].split("."), line]
    return JSONResponse(body, status, dict(headers or {}), media_type=MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These refusals for a route's OpenAPI."""
    return {
        status: {"model": Problem, "description": KNOWN[status][1], "content": {MEDIA_TYPE: {}}} for status in statuses
    }


def install(app: FastAPI) -> None:
    """Turn every exception that a request may raise into a problem. What is unexpected is the guard's (api.guard)."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(InvalidSpec, _invalid_spec)
    app.add_exception_handler(UnknownJob, _unknown_job)
    app.add_exception_handler(InvalidTransition, _conflict)
    app.add_exception_handler(RepeatedDifferently, _repeated_differently)
    app.add_exception_handler(redis.RedisError, _redis_error)


async def send_problem(scope: Scope, receive: Receive, send: Send, status: int, detail: str) -> None:
    """For middleware: answer with a problem."""
    await problem(status, detail)(scope, receive, send)


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return problem(error.status, error.detail, type=error.type, errors=error.errors, headers=error.headers)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_methods_here(request)))
    detail = {404: "Nothing is here.", 405: f"This address knows {headers.get('Allow')}."}.get(error.status_code)
    return problem(error.status_code, detail, headers=headers)


async def _invalid_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [(".".join(str(part) for part in e["loc"][1:]), str(e["msg"])) for e in error.errors()]
    return problem(422, _joined(errors), errors=errors)


async def _invalid_spec(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InvalidSpec)
    errors = [(e.field, e.message) for e in error.errors]
    lines = [e.line for e in error.errors]
    return problem(422, _joined(errors), type="invalid-job", errors=errors, lines=lines)


async def _unknown_job(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, UnknownJob)
    return problem(404, f"There is no job {error.job_id[:40]}.", type="unknown-job")


async def _conflict(_: Request, error: Exception) -> JSONResponse:
    return problem(409, f"{error}.")


async def _repeated_differently(_: Request, error: Exception) -> JSONResponse:
    detail = "This Idempotency-Key was used for another request. Use a new key for a new job."
    return problem(409, detail, type="repeated-differently")


async def _redis_error(request: Request, error: Exception) -> JSONResponse:
    away = isinstance(error, (redis.ConnectionError, redis.TimeoutError)) or str(error).startswith(NOT_NOW)
    if not away:
        raise error
    log.warning("the queue is not reachable: %s", type(error).__name__)
    request.app.state.ledger.forget()
    return problem(503, QUEUE_AWAY, headers={"Retry-After": str(RETRY_AFTER_S)})


def words_of(error: Exception) -> tuple[int, str]:
    """Status and words for a person who has no use for JSON."""
    if isinstance(error, ApiError):
        return error.status, error.detail
    if isinstance(error, InvalidTransition):
        return 409, f"{error}."
    if isinstance(error, UnknownJob):
        return 404, f"There is no job {error.job_id[:40]}."
    if isinstance(error, InvalidSpec):
        return 422, _joined([(e.field, e.message) for e in error.errors])
    return 503, QUEUE_AWAY


def _joined(errors: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{field}: {message}" if field else message for field, message in errors)


def _methods_here(request: Request) -> set[str]:
    """Every method that some route at this address knows; Starlette names only the first route's."""
    path = request.scope["path"]
    here = (route for route in iter_route_contexts(request.app.routes) if route.path_regex.match(path))
    return {method for route in here for method in route.methods or ()}
