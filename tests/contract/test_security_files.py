"""A job fills its run folder as it likes; what is served from there stays what it is, and stays in there."""

import os
import socket
from collections.abc import Callable

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from live_api import raw_request
from starlette.testclient import TestClient

from daemon.settings import Settings
from jobs.rundir import RunDir

FILES = "/api/v1/jobs/1/files"


@pytest.fixture
def folder(submit: Callable[..., str], folder_of: Callable[[str], RunDir], settings: Settings) -> RunDir:
    """A run folder with everything in it that could lead out, beside a file that must not be seen."""
    folder = folder_of(submit())
    settings.secrets_file.write_text("SECRET")
    (folder.output / "ok.txt").write_text("ok")
    (folder.output / "link").symlink_to(settings.secrets_file)
    (folder.output / "linked").symlink_to(settings.home)
    (folder.output / "loop").symlink_to(folder.output / "loop")
    os.link(settings.secrets_file, folder.output / "hard")
    os.mkfifo(folder.output / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder.output / "socket"))
    return folder


@pytest.mark.parametrize(
    "path",
    [
        "../../secrets.toml", "..%2f..%2fsecrets.toml", "%2e%2e/%2e%2e/secrets.toml", "..%252f..%252fsecrets.toml",
        "..\\..\\secrets.toml", "/etc/passwd", "%2fetc%2fpasswd", "//etc/passwd", "output/link", "output/linked/secrets.toml",
        "output/loop", "output/hard", "output/fifo", "output/socket", "output/ok.txt/../../../secrets.toml", "%00",
        "output/ok.txt%00.png", ".", "", "output", "output/", "output//ok.txt", "./output/ok.txt", "a" * 600, "a/" * 400, "output/..",
        "output/ok.txt/", "~/secrets.toml", "%ff%fe",
    ],
)  # fmt: skip
def test_s19_nothing_outside_the_run_folder_is_served(app: FastAPI, token: str, folder: RunDir, path: str) -> None:
    status, body = fetch(app, token, path)

    assert status == 404
    assert b"SECRET" not in body
    assert fetch(app, token, "output/ok.txt") == (200, b"ok")


NAMES = ["..", ".", "", "output", "link", "linked", "hard", "secrets.toml", "ok.txt", "%2e%2e", "..;", "\\"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@example(["\n", ""])
@given(st.lists(st.sampled_from(NAMES) | st.text(max_size=5), max_size=8))
def test_s19_no_path_leads_out(app: FastAPI, token: str, folder: RunDir, parts: list[str]) -> None:
    status, body = fetch(app, token, "/".join(parts))

    assert status in (200, 404)
    assert b"SECRET" not in body


def test_s19_links_and_devices_are_neither_listed_nor_archived(client: TestClient, folder: RunDir) -> None:
    assert [file["path"] for file in client.get(f"{FILES}").json()["files"]] == ["output/ok.txt"]
    archive = client.get("/api/v1/jobs/1/archive").content
    assert b"SECRET" not in archive
    assert b"fifo" not in archive


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_s19_a_log_that_is_a_link_is_not_followed(
    client: TestClient, folder: RunDir, settings: Settings, name: str
) -> None:
    (folder.path / name).unlink(missing_ok=True)
    settings.secrets_file.write_text('{"step": 1, "key": "SECRET"}\n')
    (folder.path / name).symlink_to(settings.secrets_file)

    assert "SECRET" not in client.get("/api/v1/jobs/1/log").text
    assert client.get("/api/v1/jobs/1/metrics").json() == []


def test_s19_a_run_folder_that_is_a_link_is_not_entered(client: TestClient, folder: RunDir, settings: Settings) -> None:
    folder.path.rename(settings.home / "elsewhere")
    folder.path.symlink_to(settings.home / "elsewhere")

    assert client.get(f"{FILES}/output/ok.txt").status_code == 404
    assert client.get(FILES).json()["files"] == []


@pytest.mark.parametrize("name", ["evil.html", "evil.svg", "x.js", 'a"b; X-Evil=1.txt', "ü.xhtml", "..;x.pdf"])
def test_s20_files_are_saved_and_never_shown(client: TestClient, folder: RunDir, name: str) -> None:
    (folder.output / name).write_text("<script>alert(1)</script>")

    answer = client.get(f"{FILES}/output/" + "".join(f"%{b:02x}" for b in name.encode()))

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_s20_a_name_with_a_line_break_cannot_add_a_header(client: TestClient, folder: RunDir) -> None:
    (folder.output / "a\r\nX-Evil: 1").write_text("x")

    assert client.get(f"{FILES}/output/a%0d%0aX-Evil:%201").status_code == 404


def fetch(app: FastAPI, token: str, path: str) -> tuple[int, bytes]:
    """Status and body for a path as it stands."""
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {token}".encode())]
    return raw_request(app, "GET", f"{FILES}/{path}", headers)
