"""The night's report: as JSON, HTML, Markdown or a few lines of text, by `Accept` or by `format`."""

import hashlib
import json
import re
from datetime import date
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import AwareDatetime, BeforeValidator

from api import report_html
from api.context import Rig
from api.night_keeper import last_night, night_of
from api.problems import ApiError, documented
from api.report_markdown import markdown
from api.routes_jobs import EVERYBODY
from daemon.night import Night, message, read_since

Format = Literal["json", "html", "md", "text"]
TYPES: dict[Format, str] = {
    "json": "application/json",
    "html": "text/html; charset=utf-8",
    "md": "text/markdown; charset=utf-8",
    "text": "text/plain; charset=utf-8",
}
#: What `Accept` may name, the first of equals wins.
ACCEPTED: dict[str, Format] = {
    "application/json": "json",
    "text/html": "html",
    "text/markdown": "md",
    "text/plain": "text",
    "application/*": "json",
    "text/*": "html",
    "*/*": "json",
}
LONGEST_S = 31 * 86_400.0
ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d")

router = APIRouter(prefix="/api/v1", tags=["report"])


def _only_iso(value: object) -> object:
    """Not a number of seconds, which pydantic would take for a date, too."""
    if isinstance(value, str) and not ISO_DATE.fullmatch(value):
        raise ValueError("is a date such as 2026-11-25")
    return value


NightDate = Annotated[
    date | None,
    BeforeValidator(_only_iso),
    Query(alias="night", description="The date of its evening; the last night, up to now, when left out."),
]
Since = Annotated[
    AwareDatetime | None, Query(description="Instead of a night: from this moment to now, at most 31 days.")
]
Chosen = Annotated[Format | None, Query(alias="format", description="Instead of `Accept`.")]
CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind.partition(";")[0]: {} for kind in TYPES.values()}},
    304: {"description": "It is as it was (`If-None-Match`)."},
}


@router.get(
    "/report",
    operation_id="getReport",
    response_model=Night,
    responses={**documented(*EVERYBODY, 404, 406, 422), **CONTENT},
)
def get_report(
    request: Request, rig: Rig, day: NightDate = None, since: Since = None, format: Chosen = None
) -> Response:
    """What happened in a night: from the records and the telemetry, the same after every restart.

    HTML is one file with its own style and no script. Plain text is a message of at most 400 bytes.
    """
    kind = format or _accepted(request.headers.get("accept", ""))
    night = _night(rig, day, since)
    headers = {"Vary": "Accept"}
    if kind == "json":
        body = json.dumps(night.to_json(), allow_nan=False, ensure_ascii=False)
    elif kind == "md":
        body = markdown(night)
    elif kind == "text":
        body = f"{message.title(night)}\n{message.text(night, most_bytes=_room(night))}\n"
    else:
        body = report_html.of_night(rig, night)
        headers["Content-Security-Policy"] = report_html.policy()
    headers["ETag"] = tag = f'"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'
    headers["Cache-Control"] = "no-cache"
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=TYPES[kind], headers=headers)


def _room(night: Night) -> int:
    """What the title and two line ends leave."""
    return message.MOST_BYTES - len(message.title(night).encode()) - 2


def _night(rig: Rig, day: date | None, since: AwareDatetime | None) -> Night:
    settings, now = rig.settings, rig.now()
    if since is not None:
        if day is not None:
            raise ApiError(422, "Name a night or a moment since when, not both.")
        if not now - LONGEST_S <= since.timestamp() < now:
            raise ApiError(422, "`since` lies in the past 31 days.")
        return read_since(rig.store, rig.ledger, settings, now, since.timestamp(), forecast=rig.ledger.foresee(rig.facts(), settings))  # fmt: skip
    night = last_night(rig) if day is None else night_of(rig, day)
    if night is None:
        raise ApiError(404, "That night has not begun.")
    return night


def _accepted(header: str) -> Format:
    """The format that an Accept header asks for. Raises ApiError 406."""
    wanted: list[tuple[float, int, Format]] = []
    for part in header.split(",") if header.strip() else ["*/*"]:
        name, *parameters = (piece.strip() for piece in part.split(";"))
        if (kind := ACCEPTED.get(name.lower())) is not None and (weight := _weight(parameters)) > 0:
            wanted.append((weight, -list(ACCEPTED).index(name.lower()), kind))
    if not wanted:
        raise ApiError(406, f"The report comes as {', '.join(kind.partition(';')[0] for kind in TYPES.values())}.")
    return max(wanted)[2]


def _weight(parameters: list[str]) -> float:
    found = next((value for value in parameters if value.startswith("q=")), "q=1")
    try:
        return min(1.0, max(0.0, float(found.removeprefix("q="))))
    except ValueError:
        return 0.0
