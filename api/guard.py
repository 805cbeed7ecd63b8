"""The outermost layer: who may knock (Host, Origin), how much may come in, what goes out (headers, no surprises).

Plain ASGI, so that it never buffers a stream. It knows no token: that is api.auth.
"""

import asyncio
import ipaddress
import logging
import re
import socket
import time
from collections.abc import Iterator

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import WENT_WRONG, send_problem
from daemon.peers import host_of
from daemon.settings import Settings

log = logging.getLogger(__name__)

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
#: A name, an IPv4 address or a bracketed IPv6 address, with an optional port; nothing that a lax reader could take for two.
HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9](?:[a-z0-9._-]{0,252}[a-z0-9])?)(?::[0-9]{1,5})?", re.ASCII)
ALWAYS_ALLOWED = ("127.0.0.1", "localhost", "[::1]")
#: Not names: "every address of this machine".
ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "worker-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
CSP_NAME = b"content-security-policy"
HEADERS = (
    (CSP_NAME, CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
#: A file of ours may bring a policy of its own that allows less: one style sheet by its hash, and no script.
STATIC_POLICY = re.compile(
    rb"default-src 'none'; style-src 'sha256-[A-Za-z0-9+/=]{44}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
NO_STORE = (b"cache-control", b"no-store")
#: An answer with one of these says by itself how it may be kept (static files).
CACHED_BY = {b"cache-control", b"etag"}

#: Uploads have a limit of their own (api.routes_inputs).
UPLOADS = re.compile(r"/api/v1/inputs/[^/]+")
#: After a refusal the rest of the body is read for a while, so that its sender sees the answer and not a broken pipe.
LINGER_S = 5.0
LINGER_SILENCE_S = 1.0


class TooLarge(Exception):
    """The body is larger than what is taken."""


class Guard:
    """Stands before everything else."""

    def __init__(self, app: ASGIApp, *, settings: Settings):
        self._app = app
        self._hosts = frozenset(_names(settings))
        self._max_body_bytes = settings.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        limit = None if scope["method"] == "PUT" and UPLOADS.fullmatch(scope["path"]) else self._max_body_bytes
        body = _Body(receive, limit)
        if refusal := self._refusal(scope) or body.refusal(scope):
            await _refuse(scope, body, answer, *refusal)
            return
        try:
            await self._app(scope, body.receive, answer.send)
        except TooLarge:
            await _refuse(scope, body, answer, 413, body.words)
        except ClientDisconnect:
            log.debug("the other side left in the middle of a request")
        except Exception:  # the last line of defence: whoever asked learns nothing of the inside
            log.exception("%s failed", scope["method"])
            if not answer.started:
                await send_problem(scope, receive, answer.send, 500, WENT_WRONG)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        host = _host_name(hosts[0]) if len(hosts) == 1 else None
        if host is None or not (host in self._hosts or _is_own_address(host, scope)):
            return 421, "Open the rig by its own name, or add this one to allowed_hosts in its config.toml."
        if scope["method"] not in SAFE_METHODS and _is_foreign(scope, hosts[0]):
            return 403, "Another site's page asked for this change."
        return None


class _Answer:
    """Adds the security headers to whatever is answered."""

    def __init__(self, send: Send):
        self._send = send
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = [*message.get("headers", ())]
            names = {name.lower() for name, _ in headers}
            own = HEADERS if names & CACHED_BY else (*HEADERS, NO_STORE)
            policies = [value for name, value in headers if name.lower() == CSP_NAME]
            if len(policies) == 1 and STATIC_POLICY.fullmatch(policies[0]):
                kept = [(CSP_NAME, policies[0]), *(header for header in own if header[0] != CSP_NAME)]
            else:
                kept = [*own]
            message = {**message, "headers": [*(h for h in headers if h[0].lower() not in dict(HEADERS)), *kept]}
        await self._send(message)


class _Body:
    """Counts what comes in."""

    def __init__(self, receive: Receive, limit: int | None):
        self._receive, self._limit = receive, limit
        self._read_bytes = 0
        self.done = False

    @property
    def words(self) -> str:
        return f"A request may have {self._limit} bytes. Upload files with PUT /api/v1/inputs/<sha256>."

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """By what the headers announce."""
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if self._limit is not None and any(n.isdigit() and int(n[:20]) > self._limit for n in lengths):
            return 413, self.words
        return None

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._read_bytes += len(message.get("body", b""))
            self.done = not message.get("more_body", False)
            if self._limit is not None and self._read_bytes > self._limit:
                raise TooLarge
        else:
            self.done = True
        return message

    async def drain(self) -> None:
        """Read on and forget, for a while."""
        deadline = time.monotonic() + LINGER_S
        while not self.done and time.monotonic() < deadline:
            message = await asyncio.wait_for(self._receive(), LINGER_SILENCE_S)
            self.done = message["type"] != "http.request" or not message.get("more_body", False)


async def _refuse(scope: Scope, body: _Body, answer: _Answer, status: int, detail: str) -> None:
    """Answer, and hold the end of the answer back until the sender is done: only then may the connection close."""
    if answer.started:
        return
    held: list[Message] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            held.append({**message, "more_body": False})
            message = {**message, "more_body": True}
        await answer.send(message)

    await send_problem(scope, body.receive, send, status, detail)
    expects = any(name == b"expect" for name, _ in scope["headers"])  # it sends nothing before it is told to go on
    if not expects:
        try:
            await body.drain()
        except TimeoutError:
            log.debug("a refused request's body never ended")
    for message in held:
        await answer.send({**message, "body": b""})


def _names(settings: Settings) -> Iterator[str]:
    """Host names that this rig is opened by."""
    yield from ALWAYS_ALLOWED
    if settings.host not in ANY_ADDRESS:
        yield f"[{settings.host}]" if ":" in settings.host else settings.host.lower()
    yield from (name.lower() for name in settings.allowed_hosts)
    yield from (settings.rig.lower(), f"{settings.rig.lower()}.local", socket.gethostname().lower())
    if settings.public_url:
        yield host_of(settings.public_url)


def _host_name(raw: bytes) -> str | None:
    """The Host header without its port; None when it is not one plain host."""
    found = HOST.fullmatch(raw.decode("latin-1").lower())
    return found[1] if found else None


def _is_own_address(host: str, scope: Scope) -> bool:
    """Whether it is the very address that the connection came in on: no page can point a name of its own at that."""
    try:
        named = ipaddress.ip_address(host.strip("[]"))
        return named == ipaddress.ip_address((scope.get("server") or ("",))[0])
    except ValueError:
        return False


def _is_foreign(scope: Scope, host: bytes) -> bool:
    """Whether a browser says that another site's page is behind it. Programs send none of these headers."""
    sites = {value for name, value in scope["headers"] if name == b"sec-fetch-site"}
    if sites - {b"same-origin", b"none"}:
        return True
    origins = {value for name, value in scope["headers"] if name == b"origin"}
    if sites == {b"same-origin"}:
        origins -= {b"null"}  # what a form's Origin is on a page that sends no referrer
    return any(origin.lower().partition(b"://")[2] != host.lower() for origin in origins)
