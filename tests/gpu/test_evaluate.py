"""What only a real NVIDIA GPU can show of an evaluation: `python -m pytest -m gpu -s tests/gpu/test_evaluate.py`. About two minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attempts import run_folder

from jobs.data import check_training
from jobs.estimate import Facts, estimate
from jobs.model_facts import read_model
from jobs.rundir import RunDir, read_json, read_json_lines
from jobs.spec import dump, parse

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

CHILD = Path(__file__).with_name("measured_attempt.py")
ROOT = Path(__file__).parent.parent.parent
GIB = 2**30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows"
    rows = [{"prompt": f"Shelf {n}:", "completion": " bolt night card" * (2 + n * 29 % 150)} for n in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def attempt(path: Path, model: Path, data: Path, **fields: Any) -> tuple[RunDir, dict[str, int]]:
    spec = {"kind": "evaluate", "model": "m", "data": "d", "max_new_tokens": 16, **fields}
    folder = run_folder(path, spec, {"model": model, "data": data})
    done = subprocess.run(
        [sys.executable, CHILD, folder.path], capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    assert found["status"] == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return folder, found


def test_the_size_of_a_batch_moves_no_loss_beyond_bf16s_noise(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    losses = []
    for size in (1, 16):
        folder, _ = attempt(tmp_path / str(size), tiny_model, data, batch_size=size, max_new_tokens=0)
        losses.append([row["loss"] for row in read_json_lines(folder.rows)])
    apart = max(abs(a - b) / a for a, b in zip(*losses, strict=True))
    print(f"rows alone and 16 at once in bf16: {apart:.2e} apart at most")
    assert apart < 1e-2


def test_the_memory_estimate_is_within_a_fifth_and_never_too_low(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    facts = Facts(model=read_model(tiny_model), data=check_training(data))
    for number, fields in enumerate(({"batch_size": 8}, {"batch_size": 64}, {"batch_size": 64, "max_new_tokens": 256})):
        _, found = attempt(tmp_path / str(number), tiny_model, data, **fields)
        measured = found["reserved"] + found["context"]
        spec = dump(parse({"kind": "evaluate", "model": "m", "data": "d", "max_new_tokens": 16, **fields}))
        expected = estimate(spec, facts).vram_bytes or 0
        print(f"{fields}: estimated {expected / GIB:.2f} GiB, measured {measured / GIB:.2f} GiB, {expected / measured - 1:+.1%}")  # fmt: skip
        assert 1.0 <= expected / measured <= 1.2


def test_the_gpus_own_error_halves_the_batch_and_the_result_is_whole(
    tmp_path: Path, tiny_model: Path, data: Path
) -> None:
    """A card that is nearly full: what is left holds some rows at once, not all."""
    alone, _ = attempt(tmp_path / "alone", tiny_model, data, batch_size=1, max_new_tokens=0)
    hog = "import torch, sys; f, _ = torch.cuda.mem_get_info(); x = torch.empty(f - (900 << 20), dtype=torch.uint8, device='cuda'); print('held', flush=True); sys.stdin.read()"  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", hog], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holding:
        assert holding.stdout is not None and holding.stdout.readline() == b"held\n"
        folder, _ = attempt(tmp_path / "full", tiny_model, data, batch_size=64, max_new_tokens=0)
        assert holding.stdin is not None
        holding.stdin.close()
    assert len(list(read_json_lines(folder.rows))) == 64
    whole, halved = ((read_json(each.results) or {})["metrics"]["eval_loss"] for each in (alone, folder))
    assert halved == pytest.approx(whole, rel=1e-3)
