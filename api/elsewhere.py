"""What lies on another rig of the queue: run folders of jobs that ran there, and the answer whether it would take a job.

A call for such a run folder is handed on to the rig that has it, as it is, and signed with the queue's key (daemon.peers).
A call that another rig has handed on is never handed on again.
"""

import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import quote

import httpx
import redis
from fastapi import Request
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Scope

from api.problems import problem
from daemon import peers
from daemon.peers import Peer
from daemon.settings import Settings
from daemon.store import Store
from jobs.model import Job

log = logging.getLogger(__name__)

CONNECT_S, ANSWER_S = 3.0, 10.0
#: Event streams send something every 15 s.
SILENCE_S = 60.0
MAX_CONNECTIONS = 64
KEY_AGAIN_S = 5.0
PASSED_ON = ("accept", "range", "last-event-id", "content-type")
PASSED_BACK = (
    "content-type",
    "content-length",
    "content-range",
    "content-disposition",
    "accept-ranges",
    "cache-control",
    "x-accel-buffering",
    "overnight-log-end",
)
#: What another rig's verdict on a document does not depend on: of a sweep over these, one is asked about.
NO_MATTER = frozenset(
    (
        "name",
        "tags",
        "env",
        "priority",
        "not_before",
        "window",
        "max_runtime_s",
        "max_attempts",
        "notify",
        "learning_rate",
        "seed",
    )
    + ("num_train_epochs", "max_steps", "warmup_ratio", "weight_decay", "lr_scheduler_type", "temperature", "top_p")
)


class HeldElsewhere(Exception):
    """The job's run folder is on another rig."""

    def __init__(self, job_id: str, rig: str):
        super().__init__(job_id, rig)
        self.job_id, self.rig = job_id, rig


class Elsewhere:
    """The other rigs of this queue, for the API."""

    def __init__(self, store: Store, settings: Settings, now: Callable[[], float]):
        self._store, self._settings, self._now = store, settings, now
        self._key = b""
        self._key_read_at = -KEY_AGAIN_S

    @property
    def shared(self) -> bool:
        """Whether there can be other rigs."""
        return self._settings.redis_url is not None

    # -- other rigs' calls to this one

    async def admits(self, scope: Scope) -> bool:
        """Whether a rig of this queue asks for something that rigs may ask each other for."""
        shown = [value for name, value in scope["headers"] if name == b"authorization"]
        if not self.shared or len(shown) != 1 or not shown[0].startswith(peers.SCHEME.encode()):
            return False
        header = shown[0].decode("latin-1")
        if self._fits(scope, header):
            return True
        if time.monotonic() - self._key_read_at < KEY_AGAIN_S:
            return False
        self._key_read_at = time.monotonic()
        try:
            self._key = await run_in_threadpool(peers.key_of, self._store)
        except redis.RedisError:
            return False
        return self._fits(scope, header)

    def _fits(self, scope: Scope, header: str) -> bool:
        target = target_of(scope)
        return bool(self._key) and peers.is_signed(
            self._key, header, to=self._settings.rig, method=scope["method"], target=target, now=self._now()
        )

    # -- calls to other rigs

    def holder(self, job: Job) -> str | None:
        """The other rig that has the job's run folder; None when it is here, or when that rig was forgotten."""
        rig = peers.holder(job, self._settings)
        if not self.shared or rig == self._settings.rig or rig not in self._store.rigs():
            return None
        return rig

    async def forward(self, request: Request, error: HeldElsewhere) -> Response:
        """Hand the request on to the rig that has the run folder."""
        peer = await run_in_threadpool(self._peer, error.rig)
        if peer is None:
            return problem(502, away(error.job_id, error.rig))
        method, target = request.method, target_of(request.scope)
        signed = await run_in_threadpool(self._signed, peer, method, target)
        passed = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        asked = self._stream.build_request(
            method,
            _url(peer, target),
            headers={**passed, **signed, "accept-encoding": "identity"},
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S, pool=CONNECT_S),
        )
        try:
            answer = await self._stream.send(asked, stream=True)
        except httpx.HTTPError as broken:
            log.warning("rig %s does not answer at %s: %s", peer.rig, peer.url, broken)
            return problem(502, silent(error.job_id, peer))
        if answer.status_code in (401, 403, 421):
            await answer.aclose()
            return problem(502, _refused(peer, answer.status_code))
        headers = {name: answer.headers[name] for name in PASSED_BACK if name in answer.headers}
        body: AsyncIterator[bytes] = answer.aiter_raw()
        return StreamingResponse(body, answer.status_code, headers, background=BackgroundTask(answer.aclose))

    def ask(self, rig: str, target: str) -> httpx.Response | None:
        """A short answer to a GET, for a page that does not wait long; None when it does not come."""
        return self._call(rig, "GET", target)

    def taken_by(self, documents: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """For each document another rig that takes it, by its own word; None where there is none.

        A rig that the document names and that cannot be asked now takes it when it is back: there it is explained what lacks.
        """
        verdicts: dict[str, str | None] = {}
        names = list(peers.living_peers(self._store, self._settings))
        found = []
        for document in documents:
            key = json.dumps({k: v for k, v in document.items() if k not in NO_MATTER}, sort_keys=True)
            if key not in verdicts:
                verdicts[key] = self._taker(document, names)
            found.append(verdicts[key])
        return found

    def close(self) -> None:
        """Give the connections back."""
        if "_short" in self.__dict__:
            self._short.close()

    def _taker(self, document: Mapping[str, Any], living: Sequence[str]) -> str | None:
        wanted = document.get("rig")
        if wanted and wanted not in living:
            return wanted if wanted in self._store.rigs() and wanted != self._settings.rig else None
        return next((rig for rig in ([wanted] if wanted else living) if self._would_take(rig, document)), None)

    def _would_take(self, rig: str, document: Mapping[str, Any]) -> bool:
        answer = self._call(rig, "POST", "/api/v1/jobs?dry_run=true", json=dict(document))
        return answer is not None and answer.status_code == 200

    def _call(self, rig: str, method: str, target: str, **body: Any) -> httpx.Response | None:
        peer = self._peer(rig)
        if peer is None:
            return None
        try:
            return self._short.request(method, _url(peer, target), headers=self._signed(peer, method, target), **body)
        except httpx.HTTPError as error:
            log.info("rig %s does not answer at %s: %s", rig, peer.url, error)
            return None

    def _peer(self, rig: str) -> Peer | None:
        peer = peers.living_peers(self._store, self._settings).get(rig)
        return peer if peer and peer.url else None

    def _signed(self, peer: Peer, method: str, target: str) -> dict[str, str]:
        key = peers.key_of(self._store)
        return peers.sign(key, to=peer.rig, method=method, target=target, now=self._now())

    @cached_property
    def _stream(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=MAX_CONNECTIONS)
        return httpx.AsyncClient(verify=peers.tls(), limits=limits, trust_env=False)

    @cached_property
    def _short(self) -> httpx.Client:
        timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        return httpx.Client(verify=peers.tls(), timeout=timeout, trust_env=False)


def target_of(scope: Scope) -> str:
    """The path as it was sent, with its query."""
    raw = scope.get("raw_path") or quote(scope["path"]).encode()
    query = scope.get("query_string", b"")
    return (raw.partition(b"?")[0] + (b"?" + query if query else b"")).decode("latin-1")


def away(job_id: str, rig: str) -> str:
    """For a rig that has not spoken for a while."""
    return (
        f"The run folder of job {job_id} is on rig {rig}, which is away. Its record is here (GET /api/v1/jobs/{job_id}); "
        f"log and files come back with {rig}."
    )


def silent(job_id: str, peer: Peer) -> str:
    """For a rig that lives and cannot be reached."""
    return (
        f"The run folder of job {job_id} is on rig {peer.rig}, and nothing answers at {peer.url}, which is where {peer.rig} "
        f"says that it is. Set `host` and `public_url` in its config.toml to an address that this rig reaches."
    )


def _refused(peer: Peer, status: int) -> str:
    fixes = {
        421: f"add the host of {peer.url} to its allowed_hosts",
        401: "set the clocks of both machines (NTP), and let both use the same Redis and the same Overnight",
    }
    fix = fixes.get(status, "look for what stands between both")
    return f"Rig {peer.rig} refused the call of this rig ({status}): {fix}."


def _url(peer: Peer, target: str) -> httpx.URL:
    base = httpx.URL(peer.url)
    return base.copy_with(raw_path=base.raw_path.rstrip(b"/") + target.encode("latin-1"))
