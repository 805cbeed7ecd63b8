"""The rig's user: HTTP with a token, and the patience to repeat a call that was not answered."""

import uuid
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import httpx

PAGE = 200
NOT_NOW = (502, 503, 504)

Json = dict[str, Any]


class NoAnswer(Exception):
    """Nobody answered, or the answer was: not now."""


class Refused(Exception):
    """The API said no."""

    def __init__(self, status: int, detail: str):
        super().__init__(f"{status}: {detail}")
        self.status = status


@dataclass
class Submission:
    """A body that is sent with the same key until it is acknowledged."""

    path: str
    body: Json
    names: list[str]
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    tries: int = 0


class User:
    """One person with one token."""

    def __init__(self, port: int, token_file: Path, *, timeout_s: float = 3.0):
        self.url = f"http://127.0.0.1:{port}"
        self._token_file = token_file
        self._timeout_s = timeout_s
        self._http: httpx.Client | None = None
        self.waiting: deque[Submission] = deque()
        #: Names of acknowledged jobs by their ids.
        self.acknowledged: dict[str, str] = {}
        self.repeats = 0

    # -- calls ----------------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, *, timeout_s: float | None = None, **options: Any) -> httpx.Response:
        """One call. Raises NoAnswer, Refused."""
        try:
            answer = self._client().request(method, path, timeout=timeout_s or self._timeout_s, **options)
        except (httpx.TransportError, FileNotFoundError) as error:  # not even a token yet
            raise NoAnswer(f"{method} {path}: {error!r}") from None
        if answer.status_code in NOT_NOW:
            raise NoAnswer(f"{method} {path}: {answer.status_code}")
        if answer.is_error:
            raise Refused(answer.status_code, answer.text[:300])
        return answer

    def get(self, path: str, **parameters: Any) -> Json:
        found: Json = self.call("GET", f"/api/v1{path}", params=parameters).json()
        return found

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Json:
        found: Json = self.call("POST", f"/api/v1{path}", **({"json": body} if body else {})).json()
        return found

    def ready(self) -> bool:
        """Whether the rig says that it accepts and runs jobs."""
        try:
            return self.call("GET", "/readyz", timeout_s=1.0).status_code == 200
        except (NoAnswer, Refused):
            return False

    def answered(self) -> bool:
        """Whether the queue itself answers through the API."""
        try:
            self.call("GET", "/api/v1/jobs", params={"limit": 1}, timeout_s=1.0)
        except NoAnswer:
            return False
        return True

    def job(self, job_id: str) -> Json:
        return self.get(f"/jobs/{job_id}")

    def jobs(self, **filters: Any) -> list[Json]:
        """Every page."""
        found: list[Json] = []
        cursor: Json = {}
        while True:
            page = self.get("/jobs", limit=PAGE, **filters, **cursor)
            found += page["jobs"]
            if page["next"] is None:
                return found
            cursor = {"cursor": page["next"]}

    def close(self) -> None:
        if self._http is not None:
            self._http.close()

    # -- submitting -----------------------------------------------------------------------------------------------------

    def submit(self, document: Json) -> None:
        """Send one job as soon as that is possible."""
        self.waiting.append(Submission("/jobs", document, [document["name"]]))

    def submit_batch(self, documents: list[Json]) -> None:
        """The same for several at once: all or none."""
        self.waiting.append(Submission("/jobs/batch", {"jobs": documents}, [d["name"] for d in documents]))

    def send(self) -> None:
        """Try what waits to be sent; what is not answered stays, and is sent again with the same key."""
        while self.waiting:
            first = self.waiting[0]
            first.tries += 1
            try:
                answer = self.call(
                    "POST", f"/api/v1{first.path}", json=first.body, headers={"Idempotency-Key": first.key}
                )
            except NoAnswer:
                return
            self.repeats += first.tries > 1
            made = answer.json()
            jobs = made.get("jobs", [made])
            self.acknowledged |= {job["id"]: name for job, name in zip(jobs, first.names, strict=True)}
            self.waiting.popleft()

    def send_and_forget(self, submission: Submission) -> None:
        """Send it from another thread and do not look at the answer. It still waits to be sent with the same key."""
        submission.tries += 1

        def post() -> None:
            with suppress(httpx.TransportError, FileNotFoundError), self._new_client() as http:
                http.post(
                    f"/api/v1{submission.path}", json=submission.body, headers={"Idempotency-Key": submission.key}
                )

        Thread(target=post, daemon=True).start()

    def _client(self) -> httpx.Client:
        if self._http is None:
            self._http = self._new_client()
        return self._http

    def _new_client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self._token_file.read_text().strip()}"}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=self._timeout_s)
