"""Who may knock, and with what: every test bears its number from the security checklist."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_api import COMMAND, raw_request
from starlette.testclient import TestClient

from api import auth
from api.guard import CSP
from daemon.store import Store

JOBS = "/api/v1/jobs"
SAFE = {"GET", "HEAD", "OPTIONS"}
#: Everybody may ask these. A route that joins them must be added here by somebody who has thought about it.
OPEN = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/login"), ("POST", "/login"), ("GET", "/static/{name}")}
SLOW_FIXTURES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every method and path of the application."""
    for route in iter_route_contexts(app.routes):
        for method in sorted(route.methods or ()):
            yield method, str(route.path)


def address(path: str) -> str:
    """A path with something in its places."""
    for name, value in {
        "job_id": "1",
        "path:path": "log.txt",
        "sha256": "0" * 64,
        "slot_id": "cpu:0",
        "name": "x",
    }.items():
        path = path.replace(f"{{{name}}}", value)
    return path


# -- who is asking --------------------------------------------------------------------------------------------------------


def test_s3_every_route_but_the_known_ones_needs_the_token(app: FastAPI, stranger: TestClient) -> None:
    found = set(routes(app))
    assert len(found) > 25
    assert found >= OPEN
    for method, path in sorted(found - OPEN):
        assert not auth.is_open(address(path)), f"{path} is open to everybody"
        answer = stranger.request(method, address(path))
        assert answer.status_code == 401, f"{method} {path}"
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert stranger.get("/nothing/here").status_code == 401  # not even what exists is told


def test_s3_a_path_that_looks_open_is_not(stranger: TestClient) -> None:
    for path in ("/healthz/", "/static", "/login/x", "/HEALTHZ", "//healthz", "/healthz/../api/v1/jobs"):
        assert stranger.get(path).status_code in (401, 404, 421), path
    assert stranger.get("/static/../api/v1/jobs").status_code in (401, 404)
    assert stranger.get("/static/%2e%2e/%2e%2e/token").status_code == 404


@SLOW_FIXTURES
@given(st.binary(max_size=300).filter(lambda raw: b"\r" not in raw and b"\n" not in raw))
def test_s5_no_bytes_in_the_header_open_or_break_anything(stranger: TestClient, raw: bytes) -> None:
    for value in (raw, b"Bearer " + raw, b"bearer  " + raw):
        headers: list[tuple[bytes, bytes]] = [(b"Authorization", value)]
        assert stranger.get(JOBS, headers=headers).status_code == 401  # type: ignore[arg-type]
    assert stranger.get(JOBS, headers=[(b"Cookie", auth.COOKIE.encode() + b"=" + raw)]).status_code == 401  # type: ignore[arg-type]


def test_s5_two_tokens_in_one_request_are_none(stranger: TestClient, token: str) -> None:
    good = (b"Authorization", f"Bearer {token}".encode())
    assert stranger.get(JOBS, headers=[good]).status_code == 200  # type: ignore[arg-type]
    assert stranger.get(JOBS, headers=[good, (b"Authorization", b"Bearer x")]).status_code == 401  # type: ignore[arg-type]


# -- from where -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "localhost:80@evil", "localhost.evil.example", "localhost.", "", "localhost:80:90",
        "rig\x00evil", "evil@localhost", "localhost/evil", "[::1", "0.0.0.0", "2130706433", "127.1", "xn--lcalhost-7fd",
    ],
)  # fmt: skip
def test_s8_a_host_that_is_not_ours_is_refused_everywhere(client: TestClient, host: str) -> None:
    for path in (JOBS, "/healthz", "/nothing", "/static/overnight.css", "/login", "/"):
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code == 421, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert "evil" not in answer.text


@pytest.mark.parametrize("hosts", [[], [b"localhost", b"evil"], [b"localhost", b"localhost"]])
def test_s8_exactly_one_host_header_is_accepted(app: FastAPI, token: str, hosts: list[bytes]) -> None:
    assert raw_status(app, hosts, token) == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:2200", "127.0.0.1:1", "[::1]:2200", "rig", "rig.local:2200"])
def test_s8_our_own_names_are_accepted(client: TestClient, host: str) -> None:
    assert client.get(JOBS, headers={"Host": host}).status_code == 200


def test_s8_the_address_that_was_called_is_a_name_of_ours(app: FastAPI, token: str) -> None:
    assert raw_status(app, [b"192.168.1.5:2200"], token, server=("192.168.1.5", 2200)) == 200
    assert raw_status(app, [b"192.168.1.6:2200"], token, server=("192.168.1.5", 2200)) == 421
    assert raw_status(app, [b"evil.example"], token, server=("evil.example", 80)) == 421


FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://localhost:8000"},  # another program on this machine is another site
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none", "Origin": "null"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_s9_another_sites_page_changes_nothing_by_any_method(
    app: FastAPI, client: TestClient, store: Store, headers: dict[str, str]
) -> None:
    client.post(JOBS, json=COMMAND)
    before = store.last_event_id()

    for method, path in routes(app):
        if method not in SAFE:
            answer = client.request(method, address(path), json=COMMAND, headers=headers)
            assert answer.status_code == 403, f"{method} {path}"
    for method in ("TRACE", "PROPFIND", "LINK"):
        assert client.request(method, JOBS, headers=headers).status_code == 403

    assert store.last_event_id() == before


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "null"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_s9_our_own_page_and_programs_may_change_things(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post(JOBS, json=COMMAND, headers=headers).status_code == 201


def test_s10_no_other_site_is_ever_allowed_to_read(client: TestClient) -> None:
    for method in ("GET", "OPTIONS"):
        answer = client.request(method, JOBS, headers={"Origin": "http://evil.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]


# -- with what ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None, "json"]
)
def test_s12_bodies_are_json_and_say_so(client: TestClient, store: Store, kind: str | None) -> None:
    headers = {"Content-Type": kind} if kind else {}
    for method, path in (("POST", JOBS), ("POST", f"{JOBS}/batch"), ("PATCH", f"{JOBS}/1")):
        client.post(JOBS, json=COMMAND)
        before = store.last_event_id()
        answer = client.request(method, path, content=json.dumps(COMMAND), headers=headers)
        assert answer.status_code == 415, path
        assert store.last_event_id() == before


@pytest.mark.parametrize("size", [2_000_000, 3_200_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_s26_a_large_body_is_refused_whether_announced_or_not(
    client: TestClient, store: Store, size: int, chunked: bool
) -> None:
    body = b'{"kind": "' + b"a" * size + b'"}'
    content: Any = (body[at : at + 65_536] for at in range(0, len(body), 65_536)) if chunked else body

    answer = client.post(JOBS, content=content, headers={"Content-Type": "application/json"})

    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert sum(store.counts().values()) == 0


GOOD = json.dumps(COMMAND)[:-1]
UNREADABLE = [
    GOOD + ', "kind": "command"}',
    GOOD + ', "max_runtime_s": NaN}',
    GOOD + ', "max_runtime_s": -Infinity}',
    GOOD + ', "max_runtime_s": 1e999}',
    GOOD + ', "gpus": ' + "9" * 5_000 + "}",
    GOOD + ', "gpus": 99999999999999999999}',
    GOOD + ', "name": "\\ud800"}',
    GOOD + ', "\\ud800": 1}',
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 500 + "1" + "}" * 500,
    '{"jobs": ' + "[" * 40 + "]" * 40 + "}",
    GOOD,
    "",
    "\ufeff{}",
    '{"kind": "\xff"}',
    "{" + ",".join(f'"{n}": 1' for n in range(60_000)) + ', "0": 1}',
]


@pytest.mark.parametrize("text", UNREADABLE)
def test_s27_what_readers_disagree_about_is_refused(client: TestClient, store: Store, text: str) -> None:
    client.post(JOBS, json=COMMAND)
    before = store.last_event_id()
    content = text.encode("latin-1" if "\xff" in text else "utf-8")

    for method, path in (("POST", JOBS), ("POST", f"{JOBS}/batch"), ("PATCH", f"{JOBS}/1")):
        answer = client.request(method, path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, answer.text[:300]
        assert answer.json()["type"] == "urn:overnight:not-json"
    assert store.last_event_id() == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(["kind", "argv", "model", "data", "gpus", "name", "tags", "after", "lora", "env", "base", "sweep", "jobs", "held"])  # fmt: skip


@SLOW_FIXTURES
@given(JSON | st.dictionaries(FIELDS, JSON | st.sampled_from(["command", "finetune", ["true"]])))
def test_s27_no_document_breaks_the_server(client: TestClient, body: Any) -> None:
    content = json.dumps(body).encode()
    for method, path in (
        ("POST", JOBS),
        ("POST", f"{JOBS}/batch"),
        ("PATCH", f"{JOBS}/1"),
        ("POST", f"{JOBS}/1/cancel"),
    ):
        answer = client.request(method, path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code < 500, answer.text


# -- what goes out ----------------------------------------------------------------------------------------------------------


def test_s15_every_answer_has_the_security_headers(app: FastAPI, client: TestClient, stranger: TestClient) -> None:
    answers = [
        client.request(method, address(path), json={})
        for method, path in routes(app)
        if not path.endswith("/events")  # test_events looks at these
    ]
    answers += [
        client.get("/nothing"),
        client.request("DELETE", JOBS),
        client.get(JOBS, headers={"Host": "evil"}),
        client.post(JOBS, json={}, headers={"Origin": "http://evil"}),
        client.post(JOBS, content=b"x" * 2_000_000),
        stranger.get(JOBS),
        stranger.get("/", headers={"Accept": "text/html"}, follow_redirects=False),
    ]
    assert len({answer.status_code for answer in answers}) > 6
    for answer in answers:
        assert answer.headers.get_list("content-security-policy") == [CSP], answer.url
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers
    assert "unsafe" not in CSP
    assert "frame-ancestors 'none'" in CSP


HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}", "&lt;b&gt;", "ünï 日本 \U0001f989"]


@SLOW_FIXTURES
@given(st.sampled_from(HOSTILE) | st.text(max_size=40))
def test_s16_hostile_names_stay_data(client: TestClient, text: str) -> None:
    answer = client.post(JOBS, json={**COMMAND, "name": text, "env": {"NOTE": text}})

    assert answer.headers["content-type"].startswith("application/")
    if answer.status_code == 201:
        job = client.get(answer.headers["Location"]).json()
        assert job["spec"]["name"] == job["spec"]["env"]["NOTE"] == text
    else:
        assert answer.status_code in (400, 422)


def test_s38_an_error_of_ours_tells_nothing_of_the_inside(
    app: FastAPI, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(f"secret detail in {__file__}")

    object.__setattr__(app.state.context, "now", broken)
    stranger = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
    answer = stranger.get(f"{JOBS}?state=queued", headers={"Authorization": f"Bearer {token}"})

    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "urn:overnight:internal",
        "title": "Something went wrong on the rig",
        "status": 500,
        "detail": "The rig's log has the details. Try again; if it happens again, report it.",
    }
    assert "secret detail" in caplog.text
    assert token not in caplog.text


@pytest.mark.parametrize("path", ["/nothing", "/api/v1/nothing", f"{JOBS}/1/files/no", "/static/none.js"])
def test_s38_what_is_not_here_is_a_problem_without_paths(client: TestClient, path: str) -> None:
    answer = client.get(path)

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert "/home" not in answer.text
    assert "/tmp" not in answer.text


def raw_status(app: FastAPI, hosts: list[bytes], token: str, server: tuple[str, int] = ("127.0.0.1", 80)) -> int:
    """The status of a call with these Host headers."""
    headers = [*((b"host", host) for host in hosts), (b"authorization", f"Bearer {token}".encode())]
    return raw_request(app, "GET", JOBS, headers, server)[0]
