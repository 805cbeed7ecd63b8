"""The data as the model sees it, on pages: in the form before it is submitted, and on a fine-tune's own page."""

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from live_api import NOW
from model_folders import copy_tokenizer
from starlette.testclient import TestClient

from daemon.settings import Settings
from daemon.store import Store
from jobs.model import Job
from jobs.rundir import RunDir, write_json
from jobs.spec import parse

OURS = {"Origin": "http://localhost", "Accept": "text/html"}
DIGEST = "b" * 64
XSS = "</pre></section><img src=x onerror=alert(1)><script>alert(1)</script>{{ 7 * 7 }}{% raw %}\x1b[31m\u202e"
FORM = {
    "kind": "finetune",
    "model": "tiny",
    "data": f"sha256:{DIGEST}",
    "max_length": "80",
    "assistant_only_loss": "on",
    "key": "k",
    "do": "check",
}


@pytest.fixture
def model(settings: Settings, tiny_model: Path) -> None:
    copy_tokenizer(tiny_model, settings.models / "tiny")


@pytest.fixture
def data(settings: Settings) -> Callable[..., None]:
    """Puts rows of chats where an upload would."""

    def put(*answers: str, question: str = "Where is bolt 7?") -> None:
        settings.inputs.mkdir(parents=True, exist_ok=True)
        rows = [{"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]} for answer in answers]  # fmt: skip
        (settings.inputs / DIGEST).write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    return put


def section(html: str) -> str:
    found = re.search(r'<section class="card preview".*?</section>', html, re.DOTALL)
    assert found, html
    return found[0]


def words(html: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


@pytest.mark.usefixtures("model")
def test_the_form_shows_the_first_row_lengths_and_what_is_cut(client: TestClient, data: Callable[..., None]) -> None:
    data("Shelf A1.", "Shelf C4, " * 60)
    for path in ("/submit", "/fragments/preview"):
        html = section(client.post(path, data=FORM, headers=OURS).text)
        assert "<mark>Shelf A1.&lt;|im_end|&gt;</mark>" in html, "what it learns to write is marked"
        told = words(html)
        assert "rows 2" in told and "cut at 80 1 row" in told and "half have at most" in told
        assert re.search(r"Row 1: \d+ tokens, \d+ learnt", told)


@pytest.mark.usefixtures("model")
def test_a_row_that_is_cut_shows_what_is_cut_off(client: TestClient, data: Callable[..., None]) -> None:
    data("Shelf C4, " * 60)
    html = section(client.post("/fragments/preview", data=FORM, headers=OURS).text)
    assert "<mark>Shelf C4," in html and "<del>" in html and "cut off" in html


def test_of_a_model_that_is_not_here_it_says_so(client: TestClient, data: Callable[..., None]) -> None:
    data("Shelf A1.")
    html = client.post("/fragments/preview", data={**FORM, "model": "Qwen/Qwen3-1.7B"}, headers=OURS).text
    assert "tokenizer is not on the rig yet" in html


@pytest.mark.parametrize("change", [{"data": ""}, {"data": "no/such/file"}, {"kind": "command"}, {"max_length": "x"}, {"kind": "document", "document": "{"}])  # fmt: skip
def test_of_what_cannot_be_submitted_there_is_none_and_no_error(client: TestClient, change: dict[str, str]) -> None:
    answer = client.post("/fragments/preview", data={**FORM, **change}, headers=OURS)
    assert answer.status_code == 200 and '<section id="preview" hidden>' in answer.text


def test_a_preview_is_for_our_own_page_only(client: TestClient) -> None:
    assert client.post("/fragments/preview", data=FORM, headers={"Origin": "http://evil.example"}).status_code == 403


@pytest.mark.usefixtures("model")
def test_s16_hostile_rows_stay_text(client: TestClient, data: Callable[..., None]) -> None:
    data(XSS, question=XSS)
    for path in ("/submit", "/fragments/preview"):
        html = client.post(path, data={**FORM, "max_length": "400"}, headers=OURS).text
        assert "<img" not in html and "<script>alert" not in html and "\x1b" not in html
        assert "{{ 7 * 7 }}" in unescape(section(html)) and "49" not in words(section(html))


# -- a job's page -------------------------------------------------------------------------------------------------------------


def finetune(store: Store) -> Job:
    [job], _ = store.submit([parse({"kind": "finetune", "model": "tiny", "data": f"sha256:{DIGEST}"})], now=NOW)
    return job


@pytest.mark.usefixtures("model")
def test_a_waiting_fine_tune_leads_to_its_data_as_they_stand_now(
    client: TestClient, store: Store, data: Callable[..., None]
) -> None:
    data("Shelf A1.")
    job = finetune(store)
    assert f'href="/jobs/{job.id}/data"' in client.get(f"/jobs/{job.id}").text
    html = client.get(f"/jobs/{job.id}/data").text
    assert "Shelf A1." in section(html) and "As it stands now" in html


def test_a_fine_tune_that_read_its_data_shows_what_it_found(
    client: TestClient, store: Store, folder_of: Callable[[str], RunDir]
) -> None:
    job = finetune(store)
    example = {"line": 1, "tokens": 9, "trained": 2, "segments": [{"text": "Q ", "part": "read"}, {"text": "A", "part": "learnt"}]}  # fmt: skip
    lengths = {"p50": 9, "p90": 9, "p95": 9, "p99": 9, "longest": 9, "mean": 9.0}
    left = {"rows": 5, "measured": 5, "tokens": 45, "kept_tokens": 45, "trained_tokens": 10, "max_length": 64, "examples": [example], "lengths": lengths}  # fmt: skip
    write_json(folder_of(job.id).preview, left)
    for path in (f"/jobs/{job.id}", f"/jobs/{job.id}/data", f"/fragments/job/{job.id}"):
        html = section(client.get(path).text)
        assert "<span>Q </span><mark>A</mark>" in html and "learnt of them 22" in words(html)


@pytest.mark.parametrize(
    "left",
    [
        b"",
        b"{",
        b"[]",
        b'{"rows": "many"}',
        b'{"rows": 1' + b"0" * 3000 + b"}",
        b'{"rows": 5, "measured": -1, "tokens": 0, "kept_tokens": 1e999, "max_length": -3, "cut": 9}',
        b'{"measured": 1, "kept_tokens": 9, "tokens": 0, "trained_tokens": 99999999999999999999, "max_length": 5, "cut": 5}',
        json.dumps(
            {
                "unknown": XSS,
                "notes": [XSS],
                "problems": [XSS],
                "format": XSS,
                "examples": [
                    {"line": 1, "tokens": 1, "trained": 1, "name": XSS, "segments": [{"text": XSS, "part": "cut"}]}
                ],
            }
        ).encode(),
        json.dumps(
            {"examples": [{"line": 1, "tokens": 1, "trained": 1, "segments": [{"text": "x", "part": "evil"}]}]}
        ).encode(),
    ],
)
def test_what_a_job_writes_there_cannot_break_its_page(
    client: TestClient, store: Store, folder_of: Callable[[str], RunDir], left: bytes
) -> None:
    job = finetune(store)
    folder_of(job.id).preview.write_bytes(left)
    for path in (f"/jobs/{job.id}", f"/jobs/{job.id}/data"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "<img" not in answer.text and "<script>alert" not in answer.text and "\x1b" not in answer.text


def test_a_link_to_another_file_is_not_followed(
    client: TestClient, store: Store, folder_of: Callable[[str], RunDir], tmp_path: Path
) -> None:
    job = finetune(store)
    write_json(tmp_path / "secret.json", {"format": "of another folder"})
    folder_of(job.id).preview.symlink_to(tmp_path / "secret.json")
    assert "of another folder" not in client.get(f"/jobs/{job.id}").text


def test_only_a_fine_tune_has_data(client: TestClient, store: Store, submit: Callable[..., Any]) -> None:
    job_id = submit()
    assert "/data" not in client.get(f"/jobs/{job_id}").text
    assert "Only a fine-tune learns from data" in client.get(f"/jobs/{job_id}/data").text
    assert client.get("/jobs/999/data").status_code == 404
