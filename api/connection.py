"""How a call goes to a rig and its answer comes back: HTTP, time limits, repeated calls, refusals.

httpx is loaded with the first call, so that a command's help does not wait for it.
"""

import contextlib
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx

Json = dict[str, Any]
CONNECT_TIMEOUT_S = 2.0
#: Pauses before a broken call is repeated.
REPEAT_AFTER_S = (0.2, 1.0)
CHUNK_BYTES = 1 << 18
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ApiProblem(Exception):
    """The rig refused a call (RFC 9457)."""

    def __init__(self, status: int, *, type: str = "", title: str = "", detail: str = "", errors: Iterable[Json] = ()):
        self.status = status
        self.type = type
        self.title = title
        self.detail = detail
        self.errors = list(errors)
        super().__init__(": ".join(filter(None, (title, detail))) or f"HTTP {status}")


class RigUnreachable(Exception):
    """No rig answers there. `sent`: the request may have arrived, only its answer is missing."""

    def __init__(self, url: str, reason: str, *, sent: bool):
        self.url = url
        self.reason = reason
        self.sent = sent
        super().__init__(f"No rig answers at {url} ({reason})")


class Connection:
    """Calls to one rig, which raise ApiProblem when they are refused, RigUnreachable when nothing answers."""

    def __init__(self, url: str, token: str, *, timeout_s: float):
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._token = token

    def close(self) -> None:
        """Give the connections back."""
        if "_http" in self.__dict__:
            self._http.close()

    def json(self, method: str, path: str, **options: Any) -> Json:
        """A call's answer as an object."""
        response = self.call(method, path, **options)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise RigUnreachable(self.url, "what answers there is not Overnight", sent=True)
        return answer

    def call(
        self, method: str, path: str, *, root: bool = False, once: bool = False, **options: Any
    ) -> "httpx.Response":
        """One call. It is repeated when it breaks and may be: all but a POST without a key change nothing twice."""
        import httpx

        url = self.url + ("" if root else "/api/v1") + path
        may_repeat = method not in ("POST", "PATCH") or "Idempotency-Key" in (options.get("headers") or {})
        pauses = iter(REPEAT_AFTER_S if may_repeat and not once else ())
        sent = False
        while True:
            try:
                response = self._http.request(method, url, **options)
                break
            except httpx.TransportError as error:
                # once it may have arrived, a refused connection is no proof that it did not
                sent = sent or not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
                pause = next(pauses, None) if sent else None
                if pause is None:
                    raise RigUnreachable(self.url, _reason(error), sent=sent) from error
                time.sleep(pause)
        if not response.is_success:
            raise _problem_of(response)
        return response

    def save(self, where: str, target: Path, progress: Callable[[int], object], *, timeout_s: float) -> None:
        """An answer into a file that appears whole or not at all."""
        draft = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")
        try:
            with self.stream("GET", where, timeout_s=timeout_s) as response, draft.open("xb") as file:
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    file.write(chunk)
                    progress(len(chunk))
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    @contextlib.contextmanager
    def stream(self, method: str, path: str, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> "Iterator[httpx.Response]":  # fmt: skip
        """An answer that is read as it comes."""
        import httpx

        url = f"{self.url}/api/v1{path}"
        try:
            with self._http.stream(method, url, headers=headers, timeout=time_limit(timeout_s)) as response:
                if not response.is_success:
                    response.read()
                    raise _problem_of(response)
                yield response
        except httpx.TransportError as error:
            raise RigUnreachable(self.url, _reason(error), sent=True) from error

    @cached_property
    def _http(self) -> "httpx.Client":
        import httpx

        host = urlsplit(self.url).hostname or ""
        return httpx.Client(
            headers={"Authorization": f"Bearer {self._token}"} if self._token else {},
            timeout=time_limit(self.timeout_s),
            trust_env=host not in LOOPBACK,  # a proxy cannot reach our own machine
        )


def time_limit(seconds: float) -> "httpx.Timeout":
    """So long for an answer, and a moment for the connection itself."""
    import httpx

    return httpx.Timeout(seconds, connect=CONNECT_TIMEOUT_S)


def _problem_of(response: "httpx.Response") -> ApiProblem | RigUnreachable:
    """The refusal; or, from a proxy or another program on that port, that this is no rig."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        if response.request.method == "HEAD":  # which has no body
            return ApiProblem(response.status_code, title=response.reason_phrase)
        url = f"{response.url.scheme}://{response.url.netloc.decode()}"
        return RigUnreachable(url, f"what answers there, with HTTP {response.status_code}, is not Overnight", sent=True)
    errors = [error for error in body.get("errors") or () if isinstance(error, dict)]
    words = {name: str(body.get(name) or "") for name in ("type", "title", "detail")}
    return ApiProblem(response.status_code, errors=errors, **words)


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return re.sub(r"^\[Errno -?\d+\] ", "", text).lower() if text else type(error).__name__
