"""What only a real NVIDIA GPU can show of generation: `python -m pytest -m gpu -s tests/gpu/test_generation.py`.

Each test prints what it measured, so that one run fills docs/gpu-checks.md. Needs a card that nobody else uses, 16 GiB or more.
About five minutes. With OVERNIGHT_TEST_VLLM=/path/to/venv/bin/python it checks vLLM, too.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attempts import log, run_folder

from jobs import demo_model
from jobs.rundir import RunDir, read_json, read_json_lines

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

ROOT = Path(__file__).parent.parent.parent
GIB = 2**30
PROMPTS = 64
#: Runs an attempt; with "padded", as if continuous batching were not possible; with a number, as if more at once did not fit.
CHILD = """
import json, sys
from pathlib import Path
import torch
from jobs import generate
from jobs.__main__ import main
from jobs.generation.engine import Unsupported
if "padded" in sys.argv:
    def refuse(*_):
        raise Unsupported("this check wants padded batches")
    generate.Transformers._continuous = refuse
if "starve" in sys.argv:
    torch.cuda.set_per_process_memory_fraction(float(sys.argv[-1]))
status = main(Path(sys.argv[1]))
free, total = torch.cuda.mem_get_info()
print(json.dumps({"status": status, "reserved": torch.cuda.max_memory_reserved(), "total": total}))
"""


@pytest.fixture(scope="module")
def model(pytestconfig: pytest.Config) -> Path:
    """The real one, whole."""
    try:
        return demo_model.prepare(pytestconfig.cache.mkdir("models"))
    except demo_model.DemoModelMissing as error:
        pytest.skip(str(error))


def attempt(
    path: Path, model: Path, *words: str, count: int = PROMPTS, vllm: str = "", **fields: Any
) -> tuple[dict[str, int], RunDir]:
    chance = random.Random(1)
    data = path.with_suffix(".jsonl")
    rows = [{"prompt": "Tell me about bolts. " * chance.choice([1, 1, 2, 4, 16, 60])} for _ in range(count)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = {"kind": "generate", "model": "m", "data": "d", "max_new_tokens": 64, **fields}
    paths = {"model": model, "data": data, **({"vllm_python": vllm} if vllm else {})}
    folder = run_folder(path, document, paths)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CHILD, str(folder.path), *words], capture_output=True, text=True, env=environment)  # fmt: skip
    assert done.stdout, done.stderr[-2000:]
    folder.log.write_text(done.stdout)
    return json.loads(done.stdout.splitlines()[-1]), folder


def texts(folder: RunDir) -> list[str]:
    return [row["text"] for row in read_json_lines(folder.generations)]


def speed(folder: RunDir) -> float:
    return float(((read_json(folder.result) or {})["metrics"] or {})["tokens_per_s"])


def differing(one: RunDir, other: RunDir) -> int:
    return sum(mine != theirs for mine, theirs in zip(texts(one), texts(other), strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_both_ways_of_batching_say_the_same(tmp_path: Path, model: Path, dtype: str, temperature: float) -> None:
    """In float32 nearly always, kernels may differ in the last bit; in bfloat16 it is told how many differ."""
    found, continuous = attempt(tmp_path / "continuous", model, dtype=dtype, temperature=temperature)
    assert found["status"] == 0 and "Continuous batching cannot be used" not in log(continuous), log(continuous)
    _, padded = attempt(tmp_path / "padded", model, "padded", dtype=dtype, temperature=temperature)
    different = differing(continuous, padded)
    print(f"{dtype}, temperature {temperature}: {different} of {PROMPTS} answers differ")
    assert dtype == "bfloat16" or different <= 2


def test_speed_of_both_ways(tmp_path: Path, model: Path) -> None:
    _, continuous = attempt(tmp_path / "continuous", model, count=1000)
    _, padded = attempt(tmp_path / "padded", model, "padded", count=1000)
    _, alone = attempt(tmp_path / "alone", model, "padded", count=100, batch_size=1)
    print(f"tokens/s: continuous {speed(continuous)}, padded {speed(padded)}, one by one {speed(alone)}")
    assert speed(continuous) > speed(alone) and speed(padded) > speed(alone)


def test_it_fills_the_card_and_does_not_run_out(tmp_path: Path, model: Path) -> None:
    found, folder = attempt(tmp_path / "run", model, count=1000, max_new_tokens=1024)
    assert found["status"] == 0, log(folder)
    assert "The memory ran out" not in log(folder)
    line = next(line for line in log(folder).splitlines() if "at once" in line)
    print(f"{line}; reserved {found['reserved'] / GIB:.1f} of {found['total'] / GIB:.1f} GiB")


def test_a_real_out_of_memory_error_halves_and_goes_on(tmp_path: Path, model: Path) -> None:
    """It is given a part of the card and does not know it."""
    total = int(subprocess.run(["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits", "-i", "0"], capture_output=True, text=True, check=True).stdout)  # fmt: skip
    found, folder = attempt(tmp_path / "run", model, "starve", str(1500 / total), count=300, max_new_tokens=256)
    assert found["status"] == 0, log(folder)
    assert "The memory ran out; going on with" in log(folder)
    assert len(texts(folder)) == 300


@pytest.mark.skipif("OVERNIGHT_TEST_VLLM" not in os.environ, reason="OVERNIGHT_TEST_VLLM names no Python with vLLM")
def test_vllm_answers_like_transformers(tmp_path: Path, model: Path) -> None:
    python = os.environ["OVERNIGHT_TEST_VLLM"]
    found, ours = attempt(tmp_path / "ours", model, count=600)
    found, theirs = attempt(tmp_path / "theirs", model, count=600, vllm=python)
    assert found["status"] == 0, log(theirs)
    assert ((read_json(theirs.result) or {})["metrics"])["engine"].startswith("vLLM")
    print(
        f"{differing(ours, theirs)} of 600 greedy answers differ; tokens/s: vLLM {speed(theirs)}, transformers {speed(ours)}"
    )
    found, drawn = attempt(
        tmp_path / "drawn", model, count=20, vllm=python, engine="vllm", temperature=0.8, n=3, stop=["."]
    )
    assert found["status"] == 0, log(drawn)
    assert not any("." in text for row in read_json_lines(drawn.generations) for text in row["texts"])
