"""What a benchmark left, on its page and in the terminal; and that a rig takes one that may not fit whole."""

import os
import re
from collections.abc import Iterator
from html import unescape
from typing import Any

import pytest
from benchmark_rows import some_rows
from click.testing import CliRunner
from fastapi import FastAPI
from live_api import NOW, LiveApi
from model_folders import LLAMA_3_8B, write_model
from starlette.testclient import TestClient

from api.app import create_app
from api.cli import overnight
from daemon.rig import Slot, cpu_slots
from daemon.settings import Settings
from daemon.store import Store
from jobs.cells import metrics
from jobs.cells.table import markdown
from jobs.model import End, Job, Outcome
from jobs.rundir import append_json_line, run_dir, write_text
from jobs.spec import parse

XSS = "\"'></text></svg><img src=x onerror=alert(1)>"
DOCUMENT = {"kind": "benchmark", "model": "org/model", "quantizations": ["none", "nf4"]}


@pytest.fixture
def reader(settings: Settings, store: Store) -> Iterator[TestClient]:
    """The owner, without script, at a fixed moment."""
    store.describe_rig("rig", {"slots": [slot.to_json() for slot in cpu_slots(2)]})
    app = create_app(settings, store, now=lambda: NOW)
    headers = {"Authorization": f"Bearer {settings.token_file.read_text().strip()}"}
    with TestClient(app, base_url="http://localhost", headers=headers, follow_redirects=False) as client:
        yield client


def ended(store: Store, settings: Settings, rows: list[dict[str, Any]], **fields: Any) -> Job:
    [job], _ = store.submit([parse({**DOCUMENT, **fields})], now=NOW - 600)
    offered = store.offer(job.id, rig="rig", slots=("cpu:0",), epoch=store.new_epoch("rig"), now=NOW - 500)
    store.claim(job.id, fence=offered.fence, owner="w", now=NOW - 480, lease_s=60)
    folder = run_dir(settings.runs, job.id)
    folder.create()
    for row in rows:
        append_json_line(folder.cells, row)
    write_text(folder.table, markdown("How it runs", ["- model: org/model"], rows))
    return store.finish(job.id, fence=offered.fence, outcome=Outcome(end=End.SUCCEEDED, metrics=metrics(rows)), now=NOW - 60)  # fmt: skip


def words(html: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


def test_the_page_has_a_table_for_each_precision_and_says_why_cells_lack(reader: TestClient, store: Store, settings: Settings) -> None:  # fmt: skip
    job = ended(store, settings, list(some_rows()))
    html = reader.get(f"/jobs/{job.id}").text
    part = html.partition('id="benchmark"')[2].partition("</section>")[0]

    assert part.count("<table") == 2 and part.count('<th scope="col">') == 2 * 9
    told = words(part)
    assert "8 x 1024 does not fit: the memory ran out" in told
    assert "int8 in bfloat16 not run: Weights in int8 need the package bitsandbytes." in told
    assert "47.6 (46.2-48.6)" in told and "17.00 GiB" in told
    assert "Succeeded after 7 min: decode tokens/s 381." in words(html)
    assert words(reader.get(f"/fragments/job/{job.id}").text).count("8 x 1024 does not fit") == 1


def test_its_charts_say_in_words_what_they_show(reader: TestClient, store: Store, settings: Settings) -> None:
    job = ended(store, settings, list(some_rows()))
    html = reader.get(f"/jobs/{job.id}").text
    labels = [words(label) for label in re.findall(r'<svg class="plot" role="img" aria-label="([^"]*)"', html)]

    assert labels == [
        "Decoding by batch size: bfloat16: 47.6 tokens/s at 1, 381 tokens/s at 8; nf4 in bfloat16: 29.8 tokens/s at 1, 238 tokens/s at 8.",
        "First token by prompt length: bfloat16: 0.0342 s at 128, 0.134 s at 1 024; nf4 in bfloat16: 0.0428 s at 128, 0.202 s at 1 024.",
    ]  # fmt: skip
    only = [row for row in some_rows() if row["quantization"] == "none"]
    html = reader.get(f"/jobs/{ended(store, settings, only).id}").text
    assert "prompt 128: 47.6 tokens/s at 1, 381 tokens/s at 8; prompt 1 024: 47.6 tokens/s at 1." in re.sub(
        r"\s+", " ", html
    )


def test_of_one_cell_there_is_a_table_and_no_chart(reader: TestClient, store: Store, settings: Settings) -> None:
    html = reader.get(f"/jobs/{ended(store, settings, list(some_rows())[:1]).id}").text
    assert '<table class="measured">' in html and "Decoding by batch size" not in html


def test_s16_what_a_row_says_becomes_no_html(reader: TestClient, store: Store, settings: Settings) -> None:
    rows = [{**row, "dtype": XSS, **({"reason": XSS} if "reason" in row else {})} for row in some_rows()]
    html = reader.get(f"/jobs/{ended(store, settings, rows).id}").text
    assert XSS in unescape(html) and "<img" not in html
    folder = run_dir(settings.runs, ended(store, settings, []).id)
    folder.cells.unlink(missing_ok=True)
    folder.cells.symlink_to(settings.token_file)
    assert 'id="benchmark-title"' not in reader.get(f"/jobs/{folder.path.name}").text


def test_two_benchmarks_are_compared_by_what_stands_for_them(reader: TestClient, store: Store, settings: Settings) -> None:  # fmt: skip
    first = ended(store, settings, [row for row in some_rows() if row["quantization"] == "none"])
    second = ended(store, settings, [row for row in some_rows() if row["quantization"] == "nf4"])
    told = words(reader.get(f"/compare?ids={first.id},{second.id}").text)

    assert "decode tokens/s higher is better 381 ★ best 238.1" in told.replace("381 best", "381 ★ best")
    assert "ttft s lower is better" in told and "joules/token lower is better" in told


def test_show_prints_the_table(live: LiveApi) -> None:
    job = ended(live.store, live.settings, list(some_rows()))
    environment = {"OVERNIGHT_URL": live.url, "OVERNIGHT_TOKEN": live.token, "OVERNIGHT_HOME": os.devnull}
    shown = CliRunner(env=environment).invoke(overnight, ["show", job.id])

    assert shown.exit_code == 0, shown.output
    assert "## nf4 in bfloat16" in shown.stdout and "| batch | prompt | first token |" in shown.stdout
    run_dir(live.settings.runs, job.id).table.unlink()
    assert CliRunner(env=environment).invoke(overnight, ["show", job.id]).exit_code == 0


def test_a_rig_takes_a_benchmark_whose_largest_cells_may_not_fit(
    client: TestClient, app: FastAPI, settings: Settings, store: Store
) -> None:
    write_model(settings.models / "llama", LLAMA_3_8B)

    def answer(gib: int, **fields: Any) -> Any:
        slot = Slot(id="GPU-0", name="NVIDIA", index=0, memory_bytes=gib << 30)
        store.describe_rig("rig", {"slots": [slot.to_json()]})
        return client.post("/api/v1/jobs", json={"kind": "benchmark", "model": "llama", **fields})

    assert answer(24, batch_sizes=[1, 512], prompt_lengths=[128, 8192]).status_code == 201
    refused = answer(12)
    assert refused.status_code == 422
    assert [e["field"] for e in refused.json()["errors"]] == ["model"]
    assert answer(12, quantizations=["none", "nf4"]).status_code == 201


def test_its_estimate_needs_no_data(client: TestClient, settings: Settings) -> None:
    write_model(settings.models / "llama", LLAMA_3_8B)
    made = client.post("/api/v1/estimate", json={"kind": "benchmark", "model": "llama"}).json()
    assert (made["steps"], made["source"], "vram_bytes" in made["unknown"]) == (9, "estimated", False)
