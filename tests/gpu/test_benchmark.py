"""Benchmarks on a real NVIDIA GPU: `python -m pytest -m gpu -s tests/gpu/test_benchmark.py`. Prints what docs/gpu-checks.md asks for.

Needs a card that nobody else uses, and the demo model. About five minutes. Every attempt is a process of its own: this one
must not hold the card.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attempts import log, run_folder
from until import until

from daemon.gpus import Gpu
from daemon.telemetry import latest, summarize
from jobs import demo_model
from jobs.cells import peak_bytes
from jobs.estimate import inference_bytes
from jobs.model_facts import read_model
from jobs.rundir import RunDir, read_json_lines

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parent.parent.parent
GIB = 2**30
#: A loop of our own: prefill, then one token at a time with the cache that the model returns.
PLAIN_LOOP = """
import sys, time, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).to("cuda").eval()
batch, prompt, new = map(int, sys.argv[2:])
tokens = torch.randint(model.config.vocab_size, (batch, prompt), device="cuda")
best = 0.0
with torch.inference_mode():
    for _ in range(4):
        out = model(tokens, use_cache=True, logits_to_keep=1)
        torch.cuda.synchronize(); began = time.perf_counter()
        for _ in range(new - 1):
            out = model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
            torch.cuda.synchronize()
        best = max(best, batch * (new - 1) / (time.perf_counter() - began))
print(best)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole demo model."""
    return demo_model.prepare(tmp_path_factory.mktemp("models"))


def rows(folder: RunDir, gpu: Gpu, model: Path, **fields: Any) -> list[dict[str, Any]]:
    run_folder(folder.path, {"kind": "benchmark", "model": "demo", **fields}, {"model": model})
    environment = {"CUDA_VISIBLE_DEVICES": gpu.uuid, "OVERNIGHT_GPU_UUID": gpu.uuid, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}  # fmt: skip
    with folder.log.open("w") as output:
        subprocess.run([sys.executable, "-m", "jobs", folder.path], env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)  # fmt: skip
    print(folder.table.read_text() if folder.table.exists() else log(folder)[-3000:])
    return list(read_json_lines(folder.cells))


def test_every_precision_runs_on_the_card(tmp_path: Path, gpu: Gpu, model: Path) -> None:
    pytest.importorskip("bitsandbytes")
    precisions = {"dtypes": ["bfloat16", "float16"], "quantizations": ["none", "nf4", "int8"]}
    found = rows(RunDir(tmp_path), gpu, model, batch_sizes=[1, 16], prompt_lengths=[128, 2048], **precisions)

    assert {row["state"] for row in found} == {"measured"} and len(found) == 24
    facts = read_model(model)
    for row in found:
        needs = inference_bytes(facts, row["batch_size"], row["prompt_length"], 128, row["dtype"], quantization=row["quantization"], on_gpu=True)  # fmt: skip
        print(f"{row['dtype']} {row['quantization']} {row['batch_size']} x {row['prompt_length']}: estimated {needs / GIB:.2f} GiB, "
              f"reserved {peak_bytes(row) / GIB:.2f} GiB, on the card {row['device_used_bytes'] / GIB:.2f} GiB")  # fmt: skip
        assert 0 < row["peak_allocated_bytes"] <= row["peak_reserved_bytes"] < row["device_used_bytes"]
    assert any(row["joules_per_token"] for row in found), "cells above a second have their energy"


def test_the_decode_rate_is_that_of_a_plain_loop(tmp_path: Path, gpu: Gpu, model: Path) -> None:
    [row] = rows(RunDir(tmp_path), gpu, model, batch_sizes=[8], prompt_lengths=[256], dtypes=["bfloat16"])
    argv = [sys.executable, "-c", PLAIN_LOOP, model, "8", "256", "128"]
    done = subprocess.run(argv, env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu.uuid}, capture_output=True, text=True, check=True)  # fmt: skip
    plain = float(done.stdout.split()[-1])
    print(f"generate() {row['decode_tokens_per_s']:.0f} tokens/s, a plain loop {plain:.0f}")
    assert row["decode_tokens_per_s"] == pytest.approx(plain, rel=0.15)


@pytest.fixture
def sampled(home: Path) -> Iterator[Path]:
    """A rig's home whose sampler is at work."""
    argv = [sys.executable, "-m", "daemon.sampler", "--home", str(home)]
    with (home / "sampler.log").open("wb") as output, subprocess.Popen(argv, stderr=output) as sampler:
        until(lambda: latest(home, now=time.time()).slots, within_s=30, evidence=(home / "sampler.log").read_text)
        yield home
        sampler.terminate()


def test_the_cells_energy_is_the_samplers(tmp_path: Path, sampled: Path, gpu: Gpu, model: Path) -> None:
    [row] = rows(RunDir(tmp_path), gpu, model, batch_sizes=[32], prompt_lengths=[512], new_tokens=1024, repeats=5)
    start, end = row["started_at"], row["ended_at"]
    until(lambda: summarize(sampled, [gpu.uuid], start, end).coverage > 0.99, within_s=15)
    used, took_s = summarize(sampled, [gpu.uuid], start, end), end - start
    print(json.dumps({"cell_j": row["energy_j"], "sampler_j": used.energy_j, "seconds": took_s}))
    # the sampler's interval has the warm-up, too: a few tokens of a thousand
    assert used.energy_j == pytest.approx(row["energy_j"], rel=0.1)


def test_a_cell_that_does_not_fit_is_told_and_the_rest_goes_on(tmp_path: Path, gpu: Gpu, model: Path) -> None:
    found = rows(RunDir(tmp_path), gpu, model, batch_sizes=[1, 2048], prompt_lengths=[8000], new_tokens=16, dtypes=["bfloat16", "float16"])  # fmt: skip
    assert [(row["dtype"], row["batch_size"], row["state"]) for row in found] == [
        ("bfloat16", 1, "measured"), ("bfloat16", 2048, "does_not_fit"), ("float16", 1, "measured"), ("float16", 2048, "does_not_fit"),
    ]  # fmt: skip
