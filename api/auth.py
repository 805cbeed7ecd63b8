"""Who may use the rig: whoever has its token, or a session that was opened with it.

The token lies in a 0600 file; this process keeps only its SHA-256. Codes and sessions are signed with keys made from that
hash, so nothing about them is stored, and a new token ends them all.

    code      <expiry>.<nonce>.<signature>   opens one session within 10 minutes; travels in a link's fragment only
    session   <expiry>.<nonce>.<signature>   a cookie for 30 days; logging out ends it before (a file remembers that)
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import problem
from jobs.rundir import read_json, sync_folder, write_json

#: The only addresses that answer without a token. A test enumerates them.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/login"})
OPEN_PREFIX = "/static/"
#: In a request's scope: it is another rig of the queue that asks (api.elsewhere), and it may ask for this.
ASKED_BY_RIG = "overnight.asked_by_rig"

log = logging.getLogger(__name__)

COOKIE = "overnight_session"
CODE_TTL_S = 600
SESSION_TTL_S = 30 * 86_400
SHORTEST_TOKEN = 32
SIGNED = re.compile(r"([0-9]{1,12})\.([A-Za-z0-9_-]{16,64})\.([0-9a-f]{64})", re.ASCII)
#: Where a login may lead: a path of our own, never `//elsewhere`.
NEXT = re.compile(r"/(?![/\\])[\x21-\x7e]{0,500}")
FAILURES_PER_MINUTE = 10
ADDRESSES_KNOWN = 1_000


class TokenUnusable(Exception):
    """The token file cannot be used; the message says what to do."""


def keep_token(path: Path) -> bytes:
    """The SHA-256 of the rig's token; the first call makes the token. Raises TokenUnusable."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        _make_token(path)
    if path.stat().st_mode & 0o077:
        raise TokenUnusable(f"{path} can be read by others. Run `chmod 600 {path}`, or delete it: a new one is made.")
    token = path.read_text().strip()
    if len(token) < SHORTEST_TOKEN:
        raise TokenUnusable(f"The token in {path} is too short to be safe. Delete the file: a new one is made.")
    return hash_of_token(token)


def hash_of_token(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def login_code(token_hash: bytes, now: float) -> str:
    """A code that opens one session within 10 minutes. Whoever can read the token can make one."""
    return _sign(token_hash, "code", int(now) + CODE_TTL_S)


class Ended:
    """Sessions that were logged out, each until it would have ended by itself. They survive a restart."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time):
        self._path, self._now, self._lock = path, now, threading.Lock()
        known = read_json(path) or {}
        self._expiries = {str(nonce): int(expiry) for nonce, expiry in known.items() if isinstance(expiry, int)}

    def __contains__(self, nonce: str) -> bool:
        return nonce in self._expiries

    def add(self, nonce: str, expiry: int) -> None:
        """Remember one, and forget those that are over anyway."""
        now = self._now()
        with self._lock:  # two browsers may log out at once, each in a thread of its own
            self._expiries = {one: end for one, end in self._expiries.items() if end > now} | {nonce: expiry}
            try:
                write_json(self._path, self._expiries)
            except OSError as error:  # a full disk: it holds until this process ends
                log.warning("%s cannot be written (%s)", self._path, error)


class Keys:
    """Checks what a caller shows."""

    def __init__(
        self,
        token_hash: bytes,
        use_once: Callable[[str, int], bool],
        now: Callable[[], float] = time.time,
        *,
        ended: Ended,
    ):
        self._hash, self._use_once, self._now, self._ended = token_hash, use_once, now, ended

    def fits(self, token: bytes) -> bool:
        """Whether this is the token. Hashes are compared: their length and characters tell nothing."""
        return hmac.compare_digest(hashlib.sha256(token).digest(), self._hash)

    def new_code(self) -> tuple[str, int]:
        """A login code, and when it ends."""
        now = self._now()
        return login_code(self._hash, now), int(now) + CODE_TTL_S

    def redeem(self, code: str) -> bool:
        """Use a code up."""
        nonce = _verified(self._hash, "code", code, self._now())
        return nonce is not None and self._use_once(f"login:{nonce}", CODE_TTL_S + 60)

    def new_session(self) -> str:
        """A cookie's value."""
        return _sign(self._hash, "session", int(self._now()) + SESSION_TTL_S)

    def admits(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Whether a request's headers show the token or a session. Any bytes are safe here."""
        shown = [value for name, value in headers if name == b"authorization"]
        if shown:
            scheme, _, token = shown[0].partition(b" ")
            return len(shown) == 1 and scheme.lower() == b"bearer" and self.fits(token.strip())
        return any(nonce not in self._ended for nonce, _ in self._sessions(headers))

    def end_sessions(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Log out whatever session a request's headers show."""
        for nonce, expiry in self._sessions(headers):
            self._ended.add(nonce, expiry)

    def _sessions(self, headers: list[tuple[bytes, bytes]]) -> Iterator[tuple[str, int]]:
        for text in _cookies(headers):
            if nonce := _verified(self._hash, "session", text, self._now()):
                yield nonce, int(text.partition(".")[0])


class Throttle:
    """Counts failures by address; remembers the latest thousand addresses."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def fail(self, address: str) -> bool:
        """Note a failure; whether there were too many within a minute."""
        failures = self._failures.setdefault(address, deque(maxlen=FAILURES_PER_MINUTE + 1))
        self._failures.move_to_end(address)
        if len(self._failures) > ADDRESSES_KNOWN:
            self._failures.popitem(last=False)
        failures.append(self._now())
        return len(failures) > FAILURES_PER_MINUTE and failures[0] > self._now() - 60


class Authenticated:
    """Lets nobody pass without the token or a session, whatever the address: a new route is closed by itself."""

    def __init__(self, app: ASGIApp, *, keys: Keys, other_rig: Callable[[Scope], Awaitable[bool]]):
        self._app, self._keys, self._other_rig = app, keys, other_rig

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_open(scope["path"]) or self._keys.admits(scope["headers"]):
            await self._app(scope, receive, send)
        elif await self._other_rig(scope):
            await self._app({**scope, ASKED_BY_RIG: True}, receive, send)
        elif _is_browser(scope):
            wanted = scope["path"] if scope["method"] != "POST" else "/"  # a form's address shows nothing
            await RedirectResponse(f"/login?next={quote(wanted, safe='/')}", 303)(scope, receive, send)
        else:
            words = "Send `Authorization: Bearer <token>`. The token is in the rig's home, in the file `token`."
            await problem(401, words, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)


def is_open(path: str) -> bool:
    """Whether an address answers to everybody."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIX)


def _make_token(path: Path) -> None:
    """Appears whole and readable by its owner alone; of two that make it at once, one wins and both use it."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")  # 256 bits
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        return
    finally:
        draft.unlink()
    sync_folder(path.parent)


def _sign(token_hash: bytes, use: str, expiry: int) -> str:
    nonce = secrets.token_urlsafe(16)
    return f"{expiry}.{nonce}.{_signature(token_hash, use, f'{expiry}.{nonce}')}"


def _verified(token_hash: bytes, use: str, text: str, now: float) -> str | None:
    """The nonce of what we signed for this use and what has not ended."""
    found = SIGNED.fullmatch(text)
    if not found:
        return None
    expiry, nonce, signature = found.groups()
    if not hmac.compare_digest(signature, _signature(token_hash, use, f"{expiry}.{nonce}")):
        return None
    return nonce if int(expiry) > now else None


def _signature(token_hash: bytes, use: str, text: str) -> str:
    key = hmac.digest(token_hash, f"overnight {use} 1".encode(), "sha256")
    return hmac.digest(key, text.encode(), "sha256").hex()


def _cookies(headers: list[tuple[bytes, bytes]]) -> Iterator[str]:
    """Every cookie of our name; what other programs on this host have set is passed over."""
    for name, value in headers:
        if name == b"cookie":
            for part in value.decode("latin-1").split(";"):
                key, _, text = part.strip().partition("=")
                if key == COOKIE:
                    yield text


def _is_browser(scope: Scope) -> bool:
    """A person opens a page or sends a form: show the login instead of JSON."""
    if scope["method"] not in ("GET", "HEAD", "POST") or scope["path"].startswith("/api/"):
        return False
    accepted = b",".join(value for name, value in scope["headers"] if name == b"accept")
    return b"text/html" in accepted
