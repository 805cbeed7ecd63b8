"""A rig's HTTP API for Python programs: `Client("http://rig:2200", token).submit({"kind": "finetune", ...})`.

Answers are the API's JSON as dictionaries. Prints nothing and reads no configuration (api.cli.config does).
httpx is loaded with the first call, so that a command's help does not wait for it.
"""

import contextlib
import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode, urlsplit

from api.sse import Event, lines, parse_events

if TYPE_CHECKING:
    import httpx

Json = dict[str, Any]
CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 30.0
#: The server hashes and fsyncs an upload before it answers, and checks every job of a batch.
LONG_ANSWER_TIMEOUT_S = 600.0
#: The server sends a comment every 15 s; a stream that is silent for three of them is dead.
STREAM_SILENCE_S = 50.0
#: A header of the log: where it ends.
LOG_END = "Overnight-Log-End"
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


class Client:
    """A connection to one rig. Calls raise ApiProblem when they are refused, RigUnreachable when nothing answers."""

    def __init__(self, url: str, token: str = "", *, timeout_s: float = ANSWER_TIMEOUT_S):
        self.url = url.rstrip("/")
        self._token = token
        self._timeout_s = timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        if "_http" in self.__dict__:
            self._http.close()

    # -- jobs -----------------------------------------------------------------------------------------------------

    def submit(self, document: Mapping[str, Any], *, key: str = "", dry_run: bool = False) -> Json:
        """One job. A call that breaks is repeated with the same key, so that it is never submitted twice."""
        return self._submit("/jobs", document, key, dry_run)

    def submit_batch(self, body: Mapping[str, Any], *, key: str = "", dry_run: bool = False) -> Json:
        """`{"jobs": [...]}` or `{"base": {...}, "sweep": {...}}`: all or none."""
        return self._submit("/jobs/batch", body, key, dry_run)

    def what_fits(self, model: str = "", vram_gib: float | None = None) -> Json:
        """The largest batches of a model (or of the usual ones) on the largest GPU, or on one with so much memory."""
        params = {"model": model or None, "vram_gib": vram_gib}
        return self._json("GET", "/fit", params={name: value for name, value in params.items() if value is not None})

    def estimate(self, document: Mapping[str, Any], **facts: float) -> Json:
        """What a job would need, and whether it fits. Facts of data that is not uploaded: rows, text_bytes, longest_bytes.

        `vram_gib`: as if the largest GPU had so much; `dry_run`: by a step on fake tensors, which takes ten seconds or more.
        """
        patience = {"timeout": _timeout(LONG_ANSWER_TIMEOUT_S)} if facts.get("dry_run") else {}
        return self._json("POST", "/estimate", json=dict(document), params=facts, **patience)

    def preview(self, body: Mapping[str, Any]) -> Json:
        """What a fine-tune would learn from: `{"job": {...}, "rows": [[line, {...}], ...], "known": {"rows": N}}`."""
        return self._json("POST", "/preview", json=dict(body))

    def jobs(self, **filters: Any) -> Json:
        """One page, newest first: `{"jobs": [...], "next": cursor or None}`.

        Filters: state and cause (one or a list), kind, tag, sweep, since and until (of ends), q; and order, limit, cursor.
        """
        return self._json("GET", "/jobs", params={k: v for k, v in filters.items() if v is not None})

    def job(self, job_id: str) -> Json:
        """One job."""
        return self._json("GET", f"/jobs/{_part(job_id)}")

    def edit(self, job_id: str, changes: Mapping[str, Any], *, revision: str = "") -> Json:
        """Change a waiting job: a merge patch of its document, `held`, `position`. With the job's `revision` as it was
        read, an edit that somebody else has made since is not overwritten (ApiProblem 412)."""
        headers = {"If-Match": revision} if revision else {}
        return self._json("PATCH", f"/jobs/{_part(job_id)}", json=dict(changes), headers=headers)

    def move(self, job_ids: Sequence[str], position: str) -> Json:
        """Put waiting jobs to a place in the queue: `first`, `last`, `before:139`, `after:139`."""
        return self._json("POST", "/jobs/move", json={"jobs": list(job_ids), "position": position})

    def cancel(self, job_id: str, *, only_if: str = "") -> Json:
        """Ask it to stop; with a state, only when it is still in that one."""
        return self._json("POST", f"/jobs/{_part(job_id)}/cancel", **_only_if(only_if))

    def retry(self, job_id: str, changes: Mapping[str, Any] | None = None) -> Json:
        """Put a failed or cancelled job back into the queue, with changes of its document."""
        return self._json("POST", f"/jobs/{_part(job_id)}/retry", **({"json": dict(changes)} if changes else {}))

    def preempt(self, job_id: str, *, only_if: str = "") -> Json:
        """Ask a running job to save its work and to wait again."""
        return self._json("POST", f"/jobs/{_part(job_id)}/preempt", **_only_if(only_if))

    def remove(self, job_id: str) -> None:
        """Delete an ended job and its run folder."""
        self._call("DELETE", f"/jobs/{_part(job_id)}")

    def compare(self, job_ids: Sequence[str], *, baseline: str = "") -> Json:
        """2 to 5 runs beside each other, the baseline (or the first one) first: `runs`, `fields`, `metrics`, `costs`."""
        params = {"ids": ",".join(job_ids), **({"baseline": baseline} if baseline else {})}
        return self._json("GET", "/compare", params=params)

    def diff(self, first: str, second: str) -> Json:
        """What is not the same in two jobs: `same`, `document`, `environment`, `inputs`, `code`, `results`, `unknown`."""
        return self._json("GET", "/diff", params={"jobs": f"{first},{second}"})

    # -- sweeps -----------------------------------------------------------------------------------------------------

    def sweeps(self, **filters: Any) -> Json:
        """One page, newest first: `{"sweeps": [...], "next": cursor or None}`. Filters: limit, cursor."""
        return self._json("GET", "/sweeps", params={k: v for k, v in filters.items() if v is not None})

    def sweep(self, sweep_id: str) -> Json:
        """A sweep's result: `rows` with each job's point and metrics, the best first; `best`."""
        return self._json("GET", f"/sweeps/{_part(sweep_id)}")

    def sweep_csv(self, sweep_id: str) -> str:
        """The same as CSV."""
        return self._call("GET", f"/sweeps/{_part(sweep_id)}/table.csv").content.decode()

    def cancel_sweep(self, sweep_id: str) -> Json:
        """Ask all of its jobs that wait or run to stop: `{"asked": how many}`."""
        return self._json("POST", f"/sweeps/{_part(sweep_id)}/cancel")

    # -- what a job leaves -------------------------------------------------------------------------------------------

    def log(self, job_id: str, *, tail: int) -> tuple[str, int]:
        """The last lines of what the job printed, and the offset at which its events go on."""
        answer = self._call("GET", f"/jobs/{_part(job_id)}/log", params={"tail": tail})
        return answer.content.decode(errors="replace"), int(answer.headers.get(LOG_END, 0))

    def log_from(self, job_id: str, offset: int) -> str:
        """What the job printed from this byte on."""
        try:
            answer = self._call("GET", f"/jobs/{_part(job_id)}/log", headers={"Range": f"bytes={offset}-"})
        except ApiProblem as problem:
            if problem.status == 416:  # that is the end
                return ""
            raise
        return answer.content.decode(errors="replace")

    def log_lines(self, job_id: str) -> Iterator[str]:
        """The whole log, line by line, however large."""
        with self._stream("GET", f"/jobs/{_part(job_id)}/log", timeout_s=self._timeout_s) as response:
            for line in lines(response.iter_bytes(CHUNK_BYTES)):
                yield line.decode(errors="replace")

    def changes(self, job_id: str) -> Json:
        """`{"document", "known", "changes"}`: the same work again, and what is not as it was when the job ran."""
        return self._json("GET", f"/jobs/{_part(job_id)}/changes")

    def files(self, job_id: str) -> Json:
        """`{"files": [{"path", "size_bytes", ...}], "truncated": ...}`: what is in the run folder."""
        return self._json("GET", f"/jobs/{_part(job_id)}/files")

    def text(self, job_id: str, path: str) -> str:
        """A small text file of the run folder."""
        return self._call("GET", f"/jobs/{_part(job_id)}/files/{quote(path)}").content.decode(errors="replace")

    def download(
        self, job_id: str, path: str, target: Path, progress: Callable[[int], object] = lambda n: None
    ) -> None:
        """One file of the run folder into `target`, which appears whole or not at all."""
        self._save(f"/jobs/{_part(job_id)}/files/{quote(path)}", target, progress, timeout_s=self._timeout_s)

    def events(self, job_id: str = "", *, after: str = "", log_from: int = 0) -> Iterator[Event]:
        """A job's events with its log, or those of all jobs, as they come; from the one after the event id `after`.

        Ends when the rig closes the stream. On the stream of all, an event `open` says from where on it tells everything.
        """
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
        path = f"/jobs/{_part(job_id)}/events?log_from={log_from}" if job_id else "/events"
        with self._stream("GET", path, headers=headers, timeout_s=STREAM_SILENCE_S) as response:
            yield from parse_events(response.iter_bytes())

    # -- inputs ---------------------------------------------------------------------------------------------------------

    def upload(self, path: Path, progress: Callable[[int], object] = lambda n: None) -> str:
        """The file's name on the rig, `sha256:<hex>`. It is sent only when the rig has no file with this content."""
        digest = digest_of(path)
        if not self.has_input(digest):
            self.put_input(digest, path, progress)
        return f"sha256:{digest}"

    def has_input(self, digest: str) -> bool:
        """Whether a file with this content is on the rig."""
        try:
            self._call("HEAD", f"/inputs/{_part(digest)}")
        except ApiProblem as problem:
            if problem.status == 404:
                return False
            raise
        return True

    def put_input(self, digest: str, path: Path, progress: Callable[[int], object] = lambda n: None) -> None:
        """Send a file. Sending it twice does no harm."""
        headers = {"Content-Length": str(path.stat().st_size), "Content-Type": "application/octet-stream"}
        body = _ReadAgain(path, progress)
        self._call(
            "PUT", f"/inputs/{_part(digest)}", content=body, headers=headers, timeout=_timeout(LONG_ANSWER_TIMEOUT_S)
        )

    def export(
        self, target: Path, *, job: str = "", slots: Iterable[str] = (), start: float | None = None,
        end: float | None = None, format: str = "csv", progress: Callable[[int], object] = lambda n: None,
    ) -> None:  # fmt: skip
        """Every second of a job's slots, or of these slots in a time, as a file that appears whole or not at all."""
        path = f"/jobs/{_part(job)}/telemetry/export" if job else "/telemetry/export"
        asked = [("format", format), *(("slot", slot) for slot in slots)]
        asked += [(name, repr(float(at))) for name, at in (("start", start), ("end", end)) if at is not None]
        self._save(f"{path}?{urlencode(asked)}", target, progress, timeout_s=LONG_ANSWER_TIMEOUT_S)

    # -- the rig --------------------------------------------------------------------------------------------------------

    def gpus(self) -> list[Json]:
        """Every slot with its latest sample and what it does."""
        return list(self._json("GET", "/gpus")["gpus"])

    def pause(self, gpu: str = "", *, now: bool = False) -> Json:
        """Start nothing more, on one GPU or on the whole rig. `now`: what runs there saves its work and waits again."""
        return self._json("POST", f"/gpus/{_part(gpu)}/pause" if gpu else "/rig/pause", json={"now": now})

    def plan(self, *, what_if: Mapping[str, Any] | None = None, by: str = "") -> Json:
        """The forecast: what ends when, lanes per slot, what will be late; with these documents at the end of the queue."""
        params = {"by": by} if by else {}
        if what_if is None:
            return self._json("GET", "/plan", params=params)
        return self._json("POST", "/plan", json=dict(what_if), params=params)

    def job_plan(self, job_id: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Json:
        """When one job is expected to start and end. Asked once: an answer that does not come is not missed."""
        return self._json("GET", f"/jobs/{_part(job_id)}/plan", once=True, timeout=_timeout(timeout_s))

    def report(self, *, night: str = "", since: str = "", format: str = "json") -> bytes:
        """What happened in a night, by the date of its evening, or since a moment: json, html, md or text."""
        asked = {"night": night, "since": since, "format": format}
        return self._call("GET", "/report", params={name: value for name, value in asked.items() if value}).content

    def resume(self, gpu: str = "") -> Json:
        """Start jobs again, on one GPU or on the whole rig."""
        return self._json("POST", f"/gpus/{_part(gpu)}/resume" if gpu else "/rig/resume")

    def release_gpu(self, gpu: str) -> Json:
        """Put a GPU that had a fault back into service."""
        return self._json("POST", f"/gpus/{_part(gpu)}/release")

    def check_gpu(self, gpu: str) -> Json:
        """Let the rig check a GPU that had a fault, and put it back when that goes well."""
        return self._json("POST", f"/gpus/{_part(gpu)}/check")

    def rig(self) -> Json:
        """Settings in force, window, versions, health."""
        return self._json("GET", "/rig")

    def rigs(self) -> list[Json]:
        """Every rig of the queue, and whether it lives."""
        return list(self._json("GET", "/rigs")["rigs"])

    def forget_rig(self, name: str) -> None:
        """Take a rig that will not come back out of the queue."""
        self._call("DELETE", f"/rigs/{_part(name)}")

    def notify(self, *, limit: int = 20) -> Json:
        """Where messages go and how that gets on; so many of the newest messages."""
        return self._json("GET", "/notify", params={"limit": limit})

    def test_notify(self, channel: str | None = None) -> Json:
        """Send a test to every channel, or to one: `{"id", "channels"}`; `notify` tells how it went."""
        return self._json("POST", "/notify/test", json={"channel": channel} if channel else {})

    def is_ready(self) -> bool:
        """Whether the rig can accept and run jobs now."""
        try:
            return self.readiness()[0] == 200
        except RigUnreachable:
            return False

    def readiness(self) -> tuple[int, str | None]:
        """The status of /readyz, and the server's clock as an HTTP date. Needs no token."""
        try:
            response = self._call("GET", "/readyz", root=True)
        except ApiProblem as problem:
            return problem.status, None
        return response.status_code, response.headers.get("Date")

    def login_url(self) -> str:
        """A link that logs a browser in, once."""
        answer = self._json("POST", "/login-codes")
        return str(answer.get("url") or f"{self.url}/login#code={answer['code']}")

    # -- inside -----------------------------------------------------------------------------------------------------------

    @cached_property
    def _http(self) -> "httpx.Client":
        import httpx

        host = urlsplit(self.url).hostname or ""
        return httpx.Client(
            headers={"Authorization": f"Bearer {self._token}"} if self._token else {},
            timeout=_timeout(self._timeout_s),
            trust_env=host not in LOOPBACK,  # a proxy cannot reach our own machine
        )

    def _submit(self, path: str, body: Mapping[str, Any], key: str, dry_run: bool) -> Json:
        headers = {"Idempotency-Key": key or new_key()}
        params = {"dry_run": "true"} if dry_run else {}
        timeout = _timeout(LONG_ANSWER_TIMEOUT_S if path.endswith("/batch") else self._timeout_s)
        return self._json("POST", path, json=dict(body), headers=headers, params=params, timeout=timeout)

    def _json(self, method: str, path: str, **options: Any) -> Json:
        response = self._call(method, path, **options)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise RigUnreachable(self.url, "what answers there is not Overnight", sent=True)
        return answer

    def _call(
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

    def _save(self, where: str, target: Path, progress: Callable[[int], object], *, timeout_s: float) -> None:
        """An answer into a file that appears whole or not at all."""
        draft = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")
        try:
            with self._stream("GET", where, timeout_s=timeout_s) as response, draft.open("xb") as file:
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    file.write(chunk)
                    progress(len(chunk))
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _stream(self, method: str, path: str, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> "Iterator[httpx.Response]":  # fmt: skip
        import httpx

        url = f"{self.url}/api/v1{path}"
        try:
            with self._http.stream(method, url, headers=headers, timeout=_timeout(timeout_s)) as response:
                if not response.is_success:
                    response.read()
                    raise _problem_of(response)
                yield response
        except httpx.TransportError as error:
            raise RigUnreachable(self.url, _reason(error), sent=True) from error


def new_key() -> str:
    """An Idempotency-Key that nobody else has."""
    return secrets.token_hex(16)


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's content, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _ReadAgain:
    """A file's content as a request body that can be sent once more from its start."""

    def __init__(self, path: Path, progress: Callable[[int], object]):
        self._path = path
        self._progress = progress

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                self._progress(len(chunk))
                yield chunk


def _timeout(seconds: float) -> "httpx.Timeout":
    import httpx

    return httpx.Timeout(seconds, connect=CONNECT_TIMEOUT_S)


def _only_if(state: str) -> Json:
    return {"json": {"only_if": state}} if state else {}


def _part(text: str) -> str:
    """One path segment, never a path."""
    if text in ("", ".", ".."):
        raise ValueError(f"{text!r} is not an id")
    return quote(text, safe="")


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
