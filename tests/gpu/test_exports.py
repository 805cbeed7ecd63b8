"""What only a real NVIDIA GPU can show of exports: `python -m pytest -m gpu -s tests/gpu/test_exports.py`. A minute or two."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from attempts import exit_code, log, run_folder, start_cold

from jobs.rundir import RunDir, read_json

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpu() -> str:
    """The first card's UUID."""
    try:
        told = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no NVIDIA driver here")
    if not told.stdout.strip():
        pytest.skip("nvidia-smi sees no GPU here")
    return told.stdout.split()[0]


def trained(path: Path, model: Path, gpu: str, **fields: Any) -> RunDir:
    rows = path.with_suffix(".rows")
    rows.write_text(
        "".join(json.dumps({"prompt": f"Bolt {n}?", "completion": f"Shelf {n % 7}."}) + "\n" for n in range(16))
    )
    document = {
        "kind": "finetune",
        "model": "tiny",
        "data": "rows",
        "max_steps": 20,
        "learning_rate": 5e-3,
        "export": ["merged", "gguf"],
    }
    folder = run_folder(path, {**document, **fields}, {"model": model, "data": rows})
    environment = {"OVERNIGHT_GPU_UUID": gpu, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", gpu)}
    assert exit_code(start_cold(folder, **environment)) == 0, log(folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_what_was_learnt_on_the_card_is_merged_within_rounding(
    tmp_path: Path, tiny_model: Path, gpu: str, method: str
) -> None:
    folder = trained(tmp_path / method, tiny_model, gpu, method=method)
    metrics = (read_json(folder.result) or {})["metrics"]
    print(f"{method}: merge_difference {metrics['merge_difference']}")
    assert metrics["merge_difference"] < 0.05
    assert json.loads((folder.merged / "config.json").read_text())["dtype"] == "bfloat16"
    assert folder.gguf.stat().st_size == metrics["gguf_bytes"]


def test_the_card_tells_its_energy(tmp_path: Path, tiny_model: Path, gpu: str) -> None:
    card = (trained(tmp_path / "run", tiny_model, gpu).adapter / "README.md").read_text()
    [line] = [line for line in card.splitlines() if line.startswith("| energy of its GPUs")]
    print(line)
    assert float(line.split("|")[2].split()[0]) > 0
