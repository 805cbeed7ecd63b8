"""Style, scripts, icons and the manifest. With its own hash in the address a file is kept by browsers for good."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response

from api.problems import ApiError

FOLDER = Path(__file__).parent / "static"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}
FOREVER = "public, max-age=31536000, immutable"
#: The service worker keeps pages of the whole site, though it lies in a folder.
SCOPES = {"offline.js": "/"}

router = APIRouter(include_in_schema=False)


@router.get("/static/{name}")
def static_file(name: str, v: Annotated[str, Query(max_length=128)] = "") -> Response:
    """One of the files that lie in the folder: nothing else can be named."""
    if name not in names():
        raise ApiError(404, "Nothing is here.")
    body, version = asset(name)
    headers = {"Cache-Control": FOREVER if v == version else "no-cache"}
    if name in SCOPES:
        headers["Service-Worker-Allowed"] = SCOPES[name]
    return Response(body, media_type=TYPES[Path(name).suffix], headers=headers)


@cache
def names() -> frozenset[str]:
    """What there is."""
    return frozenset(path.name for path in FOLDER.iterdir() if path.suffix in TYPES)


@cache
def asset(name: str) -> tuple[bytes, str]:
    """The file, and the hash that stands in its address."""
    body = (FOLDER / name).read_bytes()
    return body, hashlib.sha256(body).hexdigest()[:12]


def asset_url(name: str) -> str:
    """The address under which browsers keep it."""
    return f"/static/{name}?v={asset(name)[1]}"
