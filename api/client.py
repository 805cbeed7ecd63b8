"""A rig's HTTP API for Python programs: `Client("http://rig:2200", token).submit({"kind": "finetune", ...})`.

Answers are the API's JSON as dictionaries. Prints nothing and reads no configuration (api.cli.config does).
How a call goes is in api.connection.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

from api.connection import CHUNK_BYTES, LOOPBACK, ApiProblem, Connection, Json, RigUnreachable, time_limit
from api.sse import Event, lines, parse_events

__all__ = ["LOOPBACK", "ApiProblem", "Client", "Event", "RigUnreachable", "digest_of", "new_key", "parse_events"]

ANSWER_TIMEOUT_S = 30.0
#: The server hashes and fsyncs an upload before it answers, and checks every job of a batch.
LONG_ANSWER_TIMEOUT_S = 600.0
#: The server sends a comment every 15 s; a stream that is silent for three of them is dead.
STREAM_SILENCE_S = 50.0
#: A header of the log: where it ends.
LOG_END = "Overnight-Log-End"


class Client:
    """A connection to one rig. Calls raise ApiProblem when they are refused, RigUnreachable when nothing answers."""

    def __init__(self, url: str, token: str = "", *, timeout_s: float = ANSWER_TIMEOUT_S):
        self._http = Connection(url, token, timeout_s=timeout_s)

    @property
    def url(self) -> str:
        """Where the rig is."""
        return self._http.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Give the connections back."""
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
        return self._http.json(
            "GET", "/fit", params={name: value for name, value in params.items() if value is not None}
        )

    def estimate(self, document: Mapping[str, Any], **facts: float) -> Json:
        """What a job would need, and whether it fits. Facts of data that is not uploaded: rows, text_bytes, longest_bytes.

        `vram_gib`: as if the largest GPU had so much; `dry_run`: by a step on fake tensors, which takes ten seconds or more.
        """
        patience = {"timeout": time_limit(LONG_ANSWER_TIMEOUT_S)} if facts.get("dry_run") else {}
        return self._http.json("POST", "/estimate", json=dict(document), params=facts, **patience)

    def preview(self, body: Mapping[str, Any]) -> Json:
        """What a fine-tune would learn from: `{"job": {...}, "rows": [[line, {...}], ...], "known": {"rows": N}}`."""
        return self._http.json("POST", "/preview", json=dict(body))

    def jobs(self, **filters: Any) -> Json:
        """One page, newest first: `{"jobs": [...], "next": cursor or None}`.

        Filters: state and cause (one or a list), kind, tag, sweep, since and until (of ends), q; and order, limit, cursor.
        """
        return self._http.json("GET", "/jobs", params={k: v for k, v in filters.items() if v is not None})

    def job(self, job_id: str) -> Json:
        """One job."""
        return self._http.json("GET", f"/jobs/{_part(job_id)}")

    def edit(self, job_id: str, changes: Mapping[str, Any], *, revision: str = "") -> Json:
        """Change a waiting job: a merge patch of its document, `held`, `position`. With the job's `revision` as it was
        read, an edit that somebody else has made since is not overwritten (ApiProblem 412)."""
        headers = {"If-Match": revision} if revision else {}
        return self._http.json("PATCH", f"/jobs/{_part(job_id)}", json=dict(changes), headers=headers)

    def move(self, job_ids: Sequence[str], position: str) -> Json:
        """Put waiting jobs to a place in the queue: `first`, `last`, `before:139`, `after:139`."""
        return self._http.json("POST", "/jobs/move", json={"jobs": list(job_ids), "position": position})

    def cancel(self, job_id: str, *, only_if: str = "") -> Json:
        """Ask it to stop; with a state, only when it is still in that one."""
        return self._http.json("POST", f"/jobs/{_part(job_id)}/cancel", **_only_if(only_if))

    def retry(self, job_id: str, changes: Mapping[str, Any] | None = None) -> Json:
        """Put a failed or cancelled job back into the queue, with changes of its document."""
        return self._http.json("POST", f"/jobs/{_part(job_id)}/retry", **({"json": dict(changes)} if changes else {}))

    def preempt(self, job_id: str, *, only_if: str = "") -> Json:
        """Ask a running job to save its work and to wait again."""
        return self._http.json("POST", f"/jobs/{_part(job_id)}/preempt", **_only_if(only_if))

    def remove(self, job_id: str) -> None:
        """Delete an ended job and its run folder."""
        self._http.call("DELETE", f"/jobs/{_part(job_id)}")

    def compare(self, job_ids: Sequence[str], *, baseline: str = "") -> Json:
        """2 to 5 runs beside each other, the baseline (or the first one) first: `runs`, `fields`, `metrics`, `costs`."""
        params = {"ids": ",".join(job_ids), **({"baseline": baseline} if baseline else {})}
        return self._http.json("GET", "/compare", params=params)

    def diff(self, first: str, second: str) -> Json:
        """What is not the same in two jobs: `same`, `document`, `environment`, `inputs`, `code`, `results`, `unknown`."""
        return self._http.json("GET", "/diff", params={"jobs": f"{first},{second}"})

    # -- sweeps -----------------------------------------------------------------------------------------------------

    def sweeps(self, **filters: Any) -> Json:
        """One page, newest first: `{"sweeps": [...], "next": cursor or None}`. Filters: limit, cursor."""
        return self._http.json("GET", "/sweeps", params={k: v for k, v in filters.items() if v is not None})

    def sweep(self, sweep_id: str) -> Json:
        """A sweep's result: `rows` with each job's point and metrics, the best first; `best`."""
        return self._http.json("GET", f"/sweeps/{_part(sweep_id)}")

    def sweep_csv(self, sweep_id: str) -> str:
        """The same as CSV."""
        return self._http.call("GET", f"/sweeps/{_part(sweep_id)}/table.csv").content.decode()

    def cancel_sweep(self, sweep_id: str) -> Json:
        """Ask all of its jobs that wait or run to stop: `{"asked": how many}`."""
        return self._http.json("POST", f"/sweeps/{_part(sweep_id)}/cancel")

    # -- what a job leaves -------------------------------------------------------------------------------------------

    def log(self, job_id: str, *, tail: int) -> tuple[str, int]:
        """The last lines of what the job printed, and the offset at which its events go on."""
        answer = self._http.call("GET", f"/jobs/{_part(job_id)}/log", params={"tail": tail})
        return answer.content.decode(errors="replace"), int(answer.headers.get(LOG_END, 0))

    def log_from(self, job_id: str, offset: int) -> str:
        """What the job printed from this byte on."""
        try:
            answer = self._http.call("GET", f"/jobs/{_part(job_id)}/log", headers={"Range": f"bytes={offset}-"})
        except ApiProblem as problem:
            if problem.status == 416:  # that is the end
                return ""
            raise
        return answer.content.decode(errors="replace")

    def log_lines(self, job_id: str) -> Iterator[str]:
        """The whole log, line by line, however large."""
        with self._http.stream("GET", f"/jobs/{_part(job_id)}/log", timeout_s=self._http.timeout_s) as response:
            for line in lines(response.iter_bytes(CHUNK_BYTES)):
                yield line.decode(errors="replace")

    def changes(self, job_id: str) -> Json:
        """`{"document", "known", "changes"}`: the same work again, and what is not as it was when the job ran."""
        return self._http.json("GET", f"/jobs/{_part(job_id)}/changes")

    def files(self, job_id: str) -> Json:
        """`{"files": [{"path", "size_bytes", ...}], "truncated": ...}`: what is in the run folder."""
        return self._http.json("GET", f"/jobs/{_part(job_id)}/files")

    def text(self, job_id: str, path: str) -> str:
        """A small text file of the run folder."""
        return self._http.call("GET", f"/jobs/{_part(job_id)}/files/{quote(path)}").content.decode(errors="replace")

    def download(
        self, job_id: str, path: str, target: Path, progress: Callable[[int], object] = lambda n: None
    ) -> None:
        """One file of the run folder into `target`, which appears whole or not at all."""
        self._http.save(f"/jobs/{_part(job_id)}/files/{quote(path)}", target, progress, timeout_s=self._http.timeout_s)

    def events(self, job_id: str = "", *, after: str = "", log_from: int = 0) -> Iterator[Event]:
        """A job's events with its log, or those of all jobs, as they come; from the one after the event id `after`.

        Ends when the rig closes the stream. On the stream of all, an event `open` says from where on it tells everything.
        """
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
        path = f"/jobs/{_part(job_id)}/events?log_from={log_from}" if job_id else "/events"
        with self._http.stream("GET", path, headers=headers, timeout_s=STREAM_SILENCE_S) as response:
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
            self._http.call("HEAD", f"/inputs/{_part(digest)}")
        except ApiProblem as problem:
            if problem.status == 404:
                return False
            raise
        return True

    def put_input(self, digest: str, path: Path, progress: Callable[[int], object] = lambda n: None) -> None:
        """Send a file. Sending it twice does no harm."""
        headers = {"Content-Length": str(path.stat().st_size), "Content-Type": "application/octet-stream"}
        body = _ReadAgain(path, progress)
        self._http.call(
            "PUT", f"/inputs/{_part(digest)}", content=body, headers=headers, timeout=time_limit(LONG_ANSWER_TIMEOUT_S)
        )

    def export(
        self, target: Path, *, job: str = "", slots: Iterable[str] = (), start: float | None = None,
        end: float | None = None, format: str = "csv", progress: Callable[[int], object] = lambda n: None,
    ) -> None:  # fmt: skip
        """Every second of a job's slots, or of these slots in a time, as a file that appears whole or not at all."""
        path = f"/jobs/{_part(job)}/telemetry/export" if job else "/telemetry/export"
        asked = [("format", format), *(("slot", slot) for slot in slots)]
        asked += [(name, repr(float(at))) for name, at in (("start", start), ("end", end)) if at is not None]
        self._http.save(f"{path}?{urlencode(asked)}", target, progress, timeout_s=LONG_ANSWER_TIMEOUT_S)

    # -- the rig --------------------------------------------------------------------------------------------------------

    def gpus(self) -> list[Json]:
        """Every slot with its latest sample and what it does."""
        return list(self._http.json("GET", "/gpus")["gpus"])

    def pause(self, gpu: str = "", *, now: bool = False) -> Json:
        """Start nothing more, on one GPU or on the whole rig. `now`: what runs there saves its work and waits again."""
        return self._http.json("POST", f"/gpus/{_part(gpu)}/pause" if gpu else "/rig/pause", json={"now": now})

    def plan(self, *, what_if: Mapping[str, Any] | None = None, by: str = "") -> Json:
        """The forecast: what ends when, lanes per slot, what will be late; with these documents at the end of the queue."""
        params = {"by": by} if by else {}
        if what_if is None:
            return self._http.json("GET", "/plan", params=params)
        return self._http.json("POST", "/plan", json=dict(what_if), params=params)

    def job_plan(self, job_id: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Json:
        """When one job is expected to start and end. Asked once: an answer that does not come is not missed."""
        return self._http.json("GET", f"/jobs/{_part(job_id)}/plan", once=True, timeout=time_limit(timeout_s))

    def report(self, *, night: str = "", since: str = "", format: str = "json") -> bytes:
        """What happened in a night, by the date of its evening, or since a moment: json, html, md or text."""
        asked = {"night": night, "since": since, "format": format}
        return self._http.call("GET", "/report", params={name: value for name, value in asked.items() if value}).content

    def resume(self, gpu: str = "") -> Json:
        """Start jobs again, on one GPU or on the whole rig."""
        return self._http.json("POST", f"/gpus/{_part(gpu)}/resume" if gpu else "/rig/resume")

    def release_gpu(self, gpu: str) -> Json:
        """Put a GPU that had a fault back into service."""
        return self._http.json("POST", f"/gpus/{_part(gpu)}/release")

    def check_gpu(self, gpu: str) -> Json:
        """Let the rig check a GPU that had a fault, and put it back when that goes well."""
        return self._http.json("POST", f"/gpus/{_part(gpu)}/check")

    def rig(self) -> Json:
        """Settings in force, window, versions, health."""
        return self._http.json("GET", "/rig")

    def rigs(self) -> list[Json]:
        """Every rig of the queue, and whether it lives."""
        return list(self._http.json("GET", "/rigs")["rigs"])

    def forget_rig(self, name: str) -> None:
        """Take a rig that will not come back out of the queue."""
        self._http.call("DELETE", f"/rigs/{_part(name)}")

    def notify(self, *, limit: int = 20) -> Json:
        """Where messages go and how that gets on; so many of the newest messages."""
        return self._http.json("GET", "/notify", params={"limit": limit})

    def test_notify(self, channel: str | None = None) -> Json:
        """Send a test to every channel, or to one: `{"id", "channels"}`; `notify` tells how it went."""
        return self._http.json("POST", "/notify/test", json={"channel": channel} if channel else {})

    def is_ready(self) -> bool:
        """Whether the rig can accept and run jobs now."""
        try:
            return self.readiness()[0] == 200
        except RigUnreachable:
            return False

    def readiness(self) -> tuple[int, str | None]:
        """The status of /readyz, and the server's clock as an HTTP date. Needs no token."""
        try:
            response = self._http.call("GET", "/readyz", root=True)
        except ApiProblem as problem:
            return problem.status, None
        return response.status_code, response.headers.get("Date")

    def login_url(self) -> str:
        """A link that logs a browser in, once."""
        answer = self._http.json("POST", "/login-codes")
        return str(answer.get("url") or f"{self.url}/login#code={answer['code']}")

    # -- inside ---------------------------------------------------------------------------------------------------------

    def _submit(self, path: str, body: Mapping[str, Any], key: str, dry_run: bool) -> Json:
        headers = {"Idempotency-Key": key or new_key()}
        params = {"dry_run": "true"} if dry_run else {}
        timeout = time_limit(LONG_ANSWER_TIMEOUT_S if path.endswith("/batch") else self._http.timeout_s)
        return self._http.json("POST", path, json=dict(body), headers=headers, params=params, timeout=timeout)


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


def _only_if(state: str) -> Json:
    return {"json": {"only_if": state}} if state else {}


def _part(text: str) -> str:
    """One path segment, never a path."""
    if text in ("", ".", ".."):
        raise ValueError(f"{text!r} is not an id")
    return quote(text, safe="")
