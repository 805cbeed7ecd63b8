"""The form that submits a job, as a browser without script sends it: nothing that was typed is lost, nothing is made twice."""

import re
from collections.abc import Callable, Mapping
from html import unescape
from typing import Any

import pytest
from starlette.testclient import TestClient

from daemon.settings import Settings
from daemon.store import Store
from jobs.model import Job, State

OURS = {"Origin": "http://localhost", "Accept": "text/html"}
COMMAND = {"kind": "command", "argv": "python -c 'print(1)'", "name": "from the page"}
Send = Callable[..., Any]


@pytest.fixture
def send(client: TestClient) -> Send:
    """Fills the form and presses a button."""

    def send(fields: Mapping[str, str], *, do: str = "submit", to: str = "/submit", headers: Mapping[str, str] = OURS) -> Any:  # fmt: skip
        return client.post(to, data={"key": "k1", **fields, "do": do}, headers=headers, follow_redirects=False)

    return send


def only_job(store: Store) -> Job:
    [job] = store.page().jobs
    return job


def words(html: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


def test_the_form_makes_a_job_and_leads_to_it(send: Send, store: Store) -> None:
    answer = send({**COMMAND, "env": "A=b c\nB=2", "max_runtime_s": "1h", "tags": "x, y", "priority": "high"})
    job = only_job(store)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs/{job.id}")
    assert job.spec["argv"] == ["python", "-c", "print(1)"] and job.spec["env"] == {"A": "b c", "B": "2"}
    assert (job.name, job.spec["max_runtime_s"], job.tags, str(job.priority)) == ("from the page", 3600, ("x", "y"), "high")  # fmt: skip


def test_a_form_that_is_sent_twice_makes_one_job_and_another_one_a_second(send: Send, store: Store) -> None:
    first, again = send(COMMAND), send(COMMAND)
    assert first.headers["location"] == again.headers["location"] and len(store.page().jobs) == 1
    assert send({**COMMAND, "name": "went back and changed it"}).status_code == 303
    assert len(store.page().jobs) == 2


def test_what_is_wrong_stands_beside_its_field_and_nothing_is_lost(send: Send, store: Store) -> None:
    answer = send({"kind": "finetune", "model": "no such model", "learning_rate": "fast", "lora.r": "-1", "name": "kept"})  # fmt: skip
    html = answer.text
    assert answer.status_code == 422 and store.page().jobs == ()
    errors = dict(re.findall(r'<p class="error" id="e-([^"]+)">([^<]+)</p>', html))
    assert set(errors) == {"learning_rate", "lora.r", "data"}
    assert "required" in errors["data"] and "fast" in unescape(errors["learning_rate"])
    assert 'value="kept"' in html and 'value="fast"' in html and 'value="-1"' in html
    assert html.count('aria-invalid="true"') == 3 and "3 things to put right." in html
    for name in errors:
        assert re.search(rf'id="f-{re.escape(name)}"[^>]*aria-describedby="e-{re.escape(name)}', html), name


def test_a_wrong_field_that_is_folded_away_is_unfolded(send: Send) -> None:
    html = send({**COMMAND, "max_attempts": "0"}).text
    assert re.search(r'<details[^>]*id="shared-fields" open', html)
    assert not re.search(r'<details[^>]*id="own-fields" open', html)


def test_what_only_the_rig_can_know_is_told_there_too(send: Send) -> None:
    html = send({**COMMAND, "gpus": "9", "secrets": "NO_SUCH"}).text
    errors = dict(re.findall(r'<p class="error" id="e-([^"]+)">([^<]+)</p>', html))
    assert "this rig has 2" in errors["gpus"] and "NO_SUCH" in errors["secrets"]


def test_check_shows_what_it_would_need_and_stores_nothing(send: Send, store: Store) -> None:
    answer = send(COMMAND, do="check")
    text = words(answer.text)
    assert answer.status_code == 200 and store.page().jobs == ()
    assert "Ready. It would start at once." in text
    assert "submit run --name 'from the page' -- python -c 'print(1)'" in text
    assert 'argv = ["python", "-c", "print(1)"]' in text
    assert 'value="from the page"' in answer.text


def test_the_script_gets_the_same_answer_and_what_is_still_missing_is_no_error(send: Send, store: Store) -> None:
    assert "Ready." in send(COMMAND, to="/fragments/submit").text
    html = send({"kind": "finetune", "data": "x"}, to="/fragments/submit").text
    assert "Still needed: model." in html and "data-field" not in html
    html = send({"kind": "finetune", "max_length": "x"}, to="/fragments/submit").text
    assert re.findall(r'data-field="([^"]+)"', html) == ["max_length"]
    assert store.page().jobs == ()


@pytest.mark.parametrize(
    ("text", "where", "amount"),
    [
        ('kind = "command"\nargv = ["true"]', r"/jobs/1", 1),
        ('{"jobs": [{"kind": "command", "argv": ["true"], "id": "a"}, {"kind": "command", "argv": ["true"], "after": ["a"]}]}', r"/jobs\?state=queued", 2),
        ('[base]\nkind = "command"\nargv = ["true"]\n[sweep]\nmax_runtime_s = [10, 20, 30]', r"/sweeps/1", 3),
    ],
    ids=["one", "many", "sweep"],
)  # fmt: skip
def test_a_pasted_document_of_any_sort_is_submitted(send: Send, store: Store, text: str, where: str, amount: int) -> None:  # fmt: skip
    checked = send({"kind": "document", "document": text}, do="check")
    assert "Ready" in checked.text and store.page().jobs == ()
    answer = send({"kind": "document", "document": text})
    assert answer.status_code == 303 and re.fullmatch(where, answer.headers["location"])
    assert len(store.page().jobs) == amount


@pytest.mark.parametrize("text", ["kind = command", '{"kind": "command"', "[]", '{"kind": "nothing"}', "{}", "x = 1", '{"jobs": []}'])  # fmt: skip
def test_a_pasted_document_that_is_none_comes_back_with_the_reason(send: Send, store: Store, text: str) -> None:
    answer = send({"kind": "document", "document": text})
    assert answer.status_code in (200, 422) and store.page().jobs == ()
    assert text in unescape(answer.text)
    assert "to put right" in answer.text or "neither TOML nor JSON" in answer.text


def test_edit_and_run_again_begins_with_what_that_job_said(
    client: TestClient, send: Send, store: Store, brought: Callable[[str, State], Job]
) -> None:
    send({**COMMAND, "env": "A=1", "after": "", "max_attempts": "5"})
    brought("1", State.FAILED)
    html = client.get("/submit?from=1").text
    assert "Run job 1 again" in html and 'value="python -c &#39;print(1)&#39;"' in html and ">A=1</textarea>" in html
    assert re.search(r'name="max_attempts"[^>]*value="5"', html) and "open" in html
    assert "There is no job 99 to begin from" in client.get("/submit?from=99").text
    assert client.get("/submit?from=%3Cx%3E").status_code == 200


def test_the_address_may_fill_the_form(client: TestClient) -> None:
    html = client.get("/submit?kind=finetune&model=job:12&packing=on&lora.r=8").text
    assert re.search(r'name="model"[^>]*value="job:12"', html) and re.search(r'name="lora.r"[^>]*value="8"', html)
    assert re.search(r'name="packing"[^>]* checked', html) and re.search(
        r'name="assistant_only_loss"[^>]* checked', html
    )


def test_the_form_never_reloads_itself_while_somebody_types(client: TestClient) -> None:
    assert 'http-equiv="refresh"' not in client.get("/submit").text


def test_models_and_secrets_can_be_chosen_by_name(client: TestClient, settings: Settings) -> None:
    (settings.models / "smol").mkdir(parents=True)
    settings.secrets_file.write_text('HF_TOKEN = "hf_CANARY"\n')
    settings.secrets_file.chmod(0o600)
    html = client.get("/submit?kind=finetune").text
    assert '<option value="smol">' in html
    html = client.get("/submit?kind=command").text
    assert '<option value="HF_TOKEN">' in html and "CANARY" not in html


@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/submit", "/fragments/submit"])
def test_s9_only_our_own_page_submits(send: Send, store: Store, path: str, headers: Mapping[str, str]) -> None:
    assert send(COMMAND, to=path, headers=headers).status_code == 403
    assert store.page().jobs == ()


def test_s27_forms_that_no_page_sends_are_refused(client: TestClient, send: Send) -> None:
    many = "&".join(f"f{n}=1" for n in range(600))
    form = {**OURS, "Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/submit", content=many, headers=form).status_code == 400
    assert client.post("/submit", content=b"kind=\xff", headers=form).status_code == 400
    assert client.post("/submit", json={"kind": "command"}, headers=OURS).status_code == 415
    assert send({"kind": "nothing"}).status_code == 422 and send({}).status_code == 422


@pytest.mark.parametrize(
    "text", ["\"'><svg onload=alert(1)>", "</textarea><script>alert(1)</script>", "{{ 7 * 7 }}", "\x1b[31m\u202e"]
)
def test_s16_what_is_typed_never_becomes_html(send: Send, text: str) -> None:
    for fields in ({**COMMAND, "name": text, "env": text, "tags": text}, {"kind": "finetune", "model": text, "data": text, "learning_rate": text}, {"kind": "document", "document": f'{{"x": 1, {text}'}):  # fmt: skip
        for do, to in (("submit", "/submit"), ("check", "/submit"), ("check", "/fragments/submit")):
            html = send(fields, do=do, to=to).text
            assert "<svg onload" not in html and "<script>" not in html and ">49<" not in html
