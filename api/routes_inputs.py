"""Uploads by content: a data set is sent once, whatever it is called. It appears whole and verified, or not at all."""

import errno
import hashlib
import logging
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path as FilePath
from typing import Annotated, Any

import redis
from fastapi import APIRouter, Header, Path, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from api.context import Context, Rig
from api.files import serve
from api.problems import ApiError, documented
from api.routes_jobs import EVERYBODY
from jobs.rundir import sync_folder

log = logging.getLogger(__name__)

WRITE_BYTES = 1024 * 1024
DRAFT_PREFIX = ".upload-"

router = APIRouter(prefix="/api/v1/inputs", tags=["inputs"])

Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the content, as hex")]
OCTETS: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}  # fmt: skip


class Input(BaseModel):
    """An uploaded file; documents name it by `reference`."""

    reference: str
    size_bytes: int


@router.put(
    "/{sha256}",
    operation_id="putInput",
    status_code=201,
    responses={**documented(*EVERYBODY, 413, 422, 507), 200: {"model": Input, "description": "It was there already"}},
    openapi_extra=OCTETS,
)
async def put_input(sha256: Digest, request: Request, response: Response, rig: Rig) -> Input:
    """Send a file. Sending it twice does no harm."""
    target = rig.settings.inputs / sha256
    _refuse_large(request.headers.get("content-length"), rig.settings.max_input_bytes)
    if target.is_file():
        async for _ in request.stream():
            pass  # it is here; its sender still wants to be listened to
        response.status_code = 200
        return Input(reference=f"sha256:{sha256}", size_bytes=target.stat().st_size)
    size = await _store(target, sha256, request.stream(), rig.settings.max_input_bytes)
    await run_in_threadpool(_tell_others, rig, sha256)
    return Input(reference=f"sha256:{sha256}", size_bytes=size)


@router.get(
    "/{sha256}",
    operation_id="getInput",
    response_class=Response,
    responses={
        **documented(*EVERYBODY, 404, 416, 422),
        200: {"content": {"application/octet-stream": {}}},
        206: {"content": {"application/octet-stream": {}}, "description": "A part of it"},
    },
)
def get_input(
    sha256: Digest, rig: Rig, range: Annotated[str | None, Header(alias="Range", max_length=100)] = None
) -> Response:
    """The uploaded file. Another rig of the queue fetches it when a job there needs it."""
    try:
        descriptor = os.open(rig.settings.inputs / sha256, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ApiError(404, "No file with this content was uploaded.") from None
    return serve(descriptor, range, media_type="application/octet-stream")


@router.head("/{sha256}", operation_id="hasInput", response_class=Response, responses=documented(*EVERYBODY, 404, 422))
def has_input(sha256: Digest, rig: Rig) -> Response:
    """Whether a file with this content is here."""
    path = rig.settings.inputs / sha256
    if not path.is_file():
        raise ApiError(404, "No file with this content was uploaded.")
    return Response(headers={"Content-Length": str(path.stat().st_size)}, media_type="application/octet-stream")


def _tell_others(rig: Context, sha256: str) -> None:
    """Where several rigs share a queue: the file lies here."""
    if rig.elsewhere.shared:
        try:
            rig.store.add_inputs(rig.settings.rig, [sha256])
        except redis.RedisError:
            log.info("the queue does not know yet that %s is here; the daemon tells it at its next start", sha256)


def sweep_drafts(inputs: FilePath) -> None:
    """At the start: remove what an upload left that was cut off with its process."""
    for draft in inputs.glob(f"{DRAFT_PREFIX}*") if inputs.is_dir() else ():
        draft.unlink(missing_ok=True)


async def _store(target: FilePath, sha256: str, chunks: AsyncIterator[bytes], limit: int) -> int:
    upload = await run_in_threadpool(Upload, target)
    try:
        waiting = bytearray()
        async for chunk in chunks:
            waiting += chunk
            _refuse_large(str(upload.size_bytes + len(waiting)), limit)
            if len(waiting) >= WRITE_BYTES:
                await run_in_threadpool(upload.write, bytes(waiting))
                waiting.clear()
        await run_in_threadpool(upload.write, bytes(waiting))
        if upload.digest != sha256:
            raise ApiError(422, f"What arrived has the SHA-256 {upload.digest}: the file changed, or was cut off.")
        await run_in_threadpool(upload.keep)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ApiError(507, "Free some space on the rig and send the file again.") from None
        raise
    finally:
        await run_in_threadpool(upload.close)
    return upload.size_bytes


class Upload:
    """A file that is still coming."""

    def __init__(self, target: FilePath):
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._target = target
        self._draft = target.with_name(f"{DRAFT_PREFIX}{secrets.token_hex(8)}")
        self._hash = hashlib.sha256()
        self._file = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.size_bytes = 0

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Append."""
        self._hash.update(chunk)
        self.size_bytes += len(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._file, view) :]

    def keep(self) -> None:
        """It is whole: give it its name, for good."""
        os.fsync(self._file)
        self._draft.replace(self._target)
        sync_folder(self._target.parent)

    def close(self) -> None:
        """Remove whatever is not kept."""
        os.close(self._file)
        self._draft.unlink(missing_ok=True)


def _refuse_large(size: str | None, limit: int) -> None:
    if size is not None and size.isdigit() and int(size[:20]) > limit:
        raise ApiError(413, f"An uploaded file may have {limit} bytes (max_input_bytes in the rig's config.toml).")
