"""Pages and documents go out compressed, to whoever says that he can read that. Streams and files pass as they are.

No page carries a secret beside text of somebody else's, so that its length could tell nothing worth knowing.
"""

import gzip

from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Below this the header costs more than is won.
LEAST_BYTES = 600
LEVEL = 6
TYPES = (
    b"text/html",
    b"text/css",
    b"text/javascript",
    b"text/markdown",
    b"image/svg+xml",
    b"application/json",
    b"application/problem+json",
    b"application/manifest+json",
)


class Compressed:
    """Plain ASGI: an answer whose body comes in one piece is compressed, every other one is passed on."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _accepts_gzip(scope):
            send = _Answer(send).send
        await self._app(scope, receive, send)


class _Answer:
    """Holds the head of an answer back until the size of its body is known."""

    def __init__(self, send: Send):
        self._send = send
        self._head: Message | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_worth_it(message):
            self._head = message
            return
        if self._head is not None:
            head, self._head = self._head, None
            body = message.get("body", b"")
            if not message.get("more_body", False) and len(body) >= LEAST_BYTES:
                message = {**message, "body": gzip.compress(body, LEVEL, mtime=0)}
                head = _with_length(head, len(message["body"]))
            await self._send(head)
        await self._send(message)


def _accepts_gzip(scope: Scope) -> bool:
    accepted = b",".join(value for name, value in scope["headers"] if name == b"accept-encoding").lower()
    offers = [one.strip().partition(b";") for one in accepted.split(b",")]
    return any(name == b"gzip" and b"q=0" not in rest.replace(b" ", b"").split(b";") for name, _, rest in offers)


def _is_worth_it(head: Message) -> bool:
    """Whole texts only: no part of a file, nothing that is compressed already, nothing to be saved as it is."""
    headers = dict(head.get("headers", ()))
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip()
    has_own_shape = {b"content-encoding", b"content-range", b"content-disposition", b"etag"} & set(headers)
    return head["status"] != 206 and kind in TYPES and not has_own_shape


def _with_length(head: Message, length: int) -> Message:
    kept = [(name, value) for name, value in head["headers"] if name != b"content-length"]
    own = [(b"content-encoding", b"gzip"), (b"vary", b"accept-encoding"), (b"content-length", str(length).encode())]
    return {**head, "headers": [*kept, *own]}
