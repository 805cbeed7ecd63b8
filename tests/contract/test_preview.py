"""The preview of a fine-tune: over HTTP, with a real tokenizer, in a process without torch."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from live_api import NOW
from model_folders import copy_tokenizer

from daemon.settings import Settings
from daemon.store import Store
from jobs.data import Reading, convert
from jobs.encoding import encode
from jobs.light_tokenizer import LightTokenizer
from jobs.preview import Preview
from jobs.rundir import run_dir, write_json
from jobs.spec import parse

JOBS, PREVIEW = "/api/v1/jobs", "/api/v1/preview"
DIGEST = "a" * 64
ROWS = [
    {"conversations": [{"from": "human", "value": "Where is bolt 7? 🔩"}, {"from": "gpt", "value": "Im Regal A1 — grün."}]},
    {"conversations": [{"from": "human", "value": "And bolt 8?"}, {"from": "gpt", "value": "Shelf C4, " * 40}]},
]  # fmt: skip


@pytest.fixture
def tuned(settings: Settings, tiny_model: Path) -> dict[str, Any]:
    copy_tokenizer(tiny_model, settings.models / "tiny")
    return {"kind": "finetune", "model": "tiny", "data": f"sha256:{DIGEST}", "max_length": 80}


def upload(settings: Settings, *rows: object) -> None:
    settings.inputs.mkdir(parents=True, exist_ok=True)
    (settings.inputs / DIGEST).write_text("".join(json.dumps(row) + "\n" for row in rows))


def learnt(preview: dict[str, Any]) -> list[str]:
    return [part["text"] for part in preview["examples"][0]["segments"] if part["part"] == "learnt"]


def test_a_dry_run_shows_the_first_row_with_what_is_learnt_of_it(
    client: TestClient, settings: Settings, tuned: dict[str, Any]
) -> None:
    upload(settings, *ROWS)
    answer = client.post(JOBS, json=tuned, params={"dry_run": True})
    assert answer.status_code == 200, answer.text
    preview = answer.json()["preview"]
    assert preview["unknown"] == ""
    assert learnt(preview) == ["Im Regal A1 — grün.<|im_end|>"]
    assert (preview["source"], preview["shape"], preview["format"]) == ("ShareGPT", "messages", "JSONL")
    assert preview["conversions"] == ["ShareGPT's `conversations` read as `messages`"]
    assert (preview["rows"], preview["measured"], preview["cut"], preview["dropped"]) == (2, 2, 1, 0)
    assert preview["lengths"]["longest"] > 80
    assert preview["kept_tokens"] < preview["tokens"]
    assert "max_length cuts off" in preview["notes"][0]


def test_rows_that_are_not_uploaded_can_be_sent(client: TestClient, tuned: dict[str, Any]) -> None:
    rows = [[number, convert(row, Reading()).row] for number, row in enumerate(ROWS, 1)]
    body = {"job": tuned, "rows": rows, "known": {"rows": 200, "source": "ShareGPT", "format": "JSONL"}}
    preview = client.post(PREVIEW, json=body).json()
    assert (preview["rows"], preview["measured"], preview["source"]) == (200, 2, "ShareGPT")
    assert preview["expected_tokens"] == preview["kept_tokens"] * 100
    assert client.post(PREVIEW, json={"job": tuned}).json()["unknown"] == "its data is not on the rig yet"


def test_a_chat_template_of_ones_own_is_used(client: TestClient, tuned: dict[str, Any]) -> None:
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}<|im_end|>{% endfor %}"
    rows = [[1, convert(ROWS[0], Reading()).row]]
    preview = client.post(PREVIEW, json={"job": tuned, "rows": rows, "template": template}).json()
    assert preview["examples"][0]["segments"][0]["text"] == "user: Where is bolt 7? 🔩<|im_end|>assistant:"
    assert learnt(preview) == [" Im Regal A1 — grün.<|im_end|>"]


def test_rows_that_the_template_refuses_are_told_by_line(client: TestClient, tuned: dict[str, Any]) -> None:
    template = "{% for message in messages %}{% if loop.length > 2 %}{{ raise_exception('too long') }}{% endif %}{{ message.content }}{% endfor %}"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [[1, {"messages": messages}], [4, {"messages": [*messages, *messages]}]]
    preview = client.post(PREVIEW, json={"job": tuned, "rows": rows, "template": template}).json()
    assert preview["problems"] == ["line 4: the model's chat template refuses the messages: too long"]


def test_a_template_that_never_ends_is_ended(
    client: TestClient, tuned: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.previews.WALL_S", 2.0)
    forever = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ messages }}"
    rows = [[1, convert(ROWS[0], Reading()).row]]
    preview = client.post(PREVIEW, json={"job": tuned, "rows": rows, "template": forever}).json()
    assert preview["unknown"] == "the preview took longer than 2 s"


def test_a_model_without_a_tokenizer_has_no_preview_and_says_why(
    client: TestClient, settings: Settings, tuned: dict[str, Any]
) -> None:
    bare = settings.models / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    (bare / "model.safetensors").write_bytes(b"")
    upload(settings, *ROWS)
    answer = client.post(JOBS, json={**tuned, "model": "bare"}, params={"dry_run": True})
    assert answer.json()["preview"]["unknown"] == "the model's folder has no tokenizer.json"


def test_the_preview_of_a_job_that_has_begun_can_be_read(
    client: TestClient, settings: Settings, store: Store, tuned: dict[str, Any]
) -> None:
    job = store.submit([parse(tuned)], now=NOW)[0][0]
    assert client.get(f"{JOBS}/{job.id}/preview").status_code == 404
    folder = run_dir(settings.runs, job.id)
    folder.create()
    write_json(folder.preview, asdict(Preview(rows=2, measured=2, lengths=None, notes=("so",))))
    preview = client.get(f"{JOBS}/{job.id}/preview").json()
    assert (preview["rows"], preview["notes"]) == (2, ["so"])
    folder.preview.unlink()
    folder.preview.symlink_to(settings.token_file)  # a job's doing
    assert client.get(f"{JOBS}/{job.id}/preview").status_code == 404


def test_every_wrong_line_is_told_with_its_place(client: TestClient, settings: Settings, tuned: dict[str, Any]) -> None:
    upload(settings, ROWS[0], {"conversations": []}, {"text": "other"}, *[{"a": 1}] * 30)
    answer = client.post(JOBS, json=tuned)
    assert answer.status_code == 422
    errors = answer.json()["errors"]
    assert errors[0]["loc"] == ["data", 2]
    assert errors[0]["message"].startswith("line 2: ")
    assert [error["loc"][1] for error in errors[:20]] == list(range(2, 22))
    assert errors[20]["message"] == "… and 12 more lines like these"
    assert "loc" not in errors[20]


def test_only_a_fine_tune_has_a_preview(client: TestClient) -> None:
    answer = client.post(PREVIEW, json={"job": {"kind": "command", "argv": ["true"]}})
    assert answer.json()["errors"] == [{"field": "job.kind", "message": "only a fine-tune has a preview"}]


def test_what_previews_and_the_api_load_has_no_torch_in_it() -> None:
    script = "import sys, api.app, jobs.preview; print([m for m in ('torch', 'transformers', 'datasets', 'pandas', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- the light tokenizer does as transformers does ----------------------------------------------------------------------

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% generation %}{{ m.content | tojson }}{% endgeneration %}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% if add_generation_prompt %}{{ bos_token }}assistant\n{% endif %}"
)
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Wo? 🔩"}, {"role": "assistant", "content": "Im Regal — grün."}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "thinking": "hm"}], "tools": [{"name": "é"}]},
    {"prompt": "2+2=", "completion": " 4"},
    {"text": "The rig sleeps.\n\tIt does."},
]  # fmt: skip


@pytest.mark.parametrize("template", [None, THINKING])
def test_it_gives_the_same_tokens_and_labels_as_transformers(tiny_model: Path, template: str | None) -> None:
    from transformers import AutoTokenizer

    full, light = AutoTokenizer.from_pretrained(tiny_model), LightTokenizer(tiny_model, template)
    if template:
        full.chat_template = template
    assert light.all_special_tokens == full.all_special_tokens
    assert light.eos_token_id == full.eos_token_id
    for row in CHATS:
        if "tools" in row and not template:
            continue
        assert encode(row, light, 64) == encode(row, full, 64)
