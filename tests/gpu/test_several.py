"""What only two real NVIDIA GPUs can show of a training on several: `python -m pytest -m gpu -s tests/gpu/test_several.py`.

Each test prints what it measured, so that one run fills docs/gpu-checks.md. Needs two cards of 16 GiB or more that nobody else
uses, and 10 GB of disk in the temporary folder. About 15 minutes.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attempts import curve, exit_code, log, run_folder, start_cold
from model_folders import write_by_chance
from until import until

from daemon.gpus import Gpu, discover
from daemon.process_tree import children, is_alive
from jobs.estimate import Facts, estimate
from jobs.model_facts import read_model
from jobs.rundir import RunDir, read_json
from jobs.spec import dump, parse

pytestmark = pytest.mark.gpu

GIB = 2**30
#: The shape of a Llama with a billion parameters.
SHAPE = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 16}  # fmt: skip
WAYS = ("ddp", "fsdp", "device_map")
CHECKED = {"gradient_checkpointing": True}


@pytest.fixture(scope="module")
def cards() -> list[Gpu]:
    """The first two that no MIG splits."""
    found = [gpu for gpu in discover().gpus if not gpu.mig]
    if len(found) < 2:
        pytest.skip(f"{len(found)} whole GPU(s) here, and two are needed")
    return found[:2]


@pytest.fixture(scope="module")
def model(cards: list[Gpu], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of this shape, with weights of chance."""
    made = tmp_path_factory.mktemp("models") / "1B"
    write_by_chance(tiny_model, made, SHAPE)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows"
    rows = [{"prompt": f"Bolt {n}:", "completion": f" shelf {n % 7}" + " and on" * 800} for n in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


Attempt = Callable[..., RunDir]


@pytest.fixture
def attempt(tmp_path: Path, model: Path, data: Path) -> Attempt:
    """Eight rows of a step, whoever takes them."""

    def make(name: str, number: int = 1, **fields: Any) -> RunDir:
        document = {
            "kind": "finetune", "model": "m", "data": "d", "max_steps": 6, "save_steps": 3, "max_length": 1024, "gpus": 2,
            "effective_batch_size": 8, "per_device_train_batch_size": 2, **fields,
        }  # fmt: skip
        places = {"model": model, "data": data}
        return run_folder(tmp_path / name, document, places, resume=number > 1, attempt=number)

    return make


def start(folder: RunDir, cards: list[Gpu]) -> "subprocess.Popen[bytes]":
    uuids = ",".join(card.uuid for card in cards)
    return start_cold(folder, CUDA_DEVICE_ORDER="PCI_BUS_ID", CUDA_VISIBLE_DEVICES=uuids, HF_HUB_OFFLINE="1")


def finish(folder: RunDir, cards: list[Gpu]) -> list[float]:
    """Run it to its end; its losses."""
    process = start(folder, cards)
    assert process.wait(900) == 0, log(folder)
    return [line["loss"] for line in curve(folder)]


def used_bytes(card: Gpu) -> int:
    argv = ["nvidia-smi", f"--id={card.uuid}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout) << 20


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_two_cards_learn_what_one_learns(cards: list[Gpu], attempt: Attempt, method: str) -> None:
    fields = {"method": method, **CHECKED}
    alone = finish(attempt("one", gpus=1, **fields), cards[:1])
    for way in WAYS:
        if way == "fsdp" and method == "qlora":
            continue
        losses = finish(attempt(way, parallel=way, **fields), cards)
        print(f"{method} by {way}: {losses}, alone {alone}")
        assert losses == pytest.approx(alone, rel=1e-2)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_estimate_knows_each_way(cards: list[Gpu], attempt: Attempt, model: Path, method: str) -> None:
    facts, off = Facts(model=read_model(model)), []
    before = [used_bytes(card) for card in cards]
    for way in WAYS:
        fields = {"method": method, "parallel": way, **CHECKED}
        process = start(attempt(way, **fields), cards)
        peak = 0
        while process.poll() is None:
            peak = max(peak, *(used_bytes(card) - idle for card, idle in zip(cards, before, strict=True)))
        assert process.returncode == 0
        spec = dump(parse({"kind": "finetune", "model": "m", "data": "d", "gpus": 2, "max_length": 1024, "per_device_train_batch_size": 2, **fields}))  # fmt: skip
        expected = estimate(spec, facts).vram_bytes or 0
        off.append(expected / peak - 1)
        print(f"{method} by {way}: estimated {expected / GIB:.2f} GiB, measured {peak / GIB:.2f} GiB, {off[-1]:+.1%}")
    assert all(abs(each) <= 0.1 for each in off)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_killed_rank_leaves_nothing(cards: list[Gpu], attempt: Attempt, way: str) -> None:
    idle = [used_bytes(card) for card in cards]
    folder = attempt(way, parallel=way, max_steps=500)
    process = start(folder, cards)
    until(lambda: (read_json(folder.progress) or {}).get("step", 0) >= 4, within_s=300, evidence=lambda: log(folder))
    ranks = children(process.pid)
    os.kill(ranks[1], signal.SIGKILL)
    assert process.wait(10) == 1
    assert not any(map(is_alive, ranks))
    until(lambda: all(used_bytes(card) <= before + (64 << 20) for card, before in zip(cards, idle, strict=True)))
    told = read_json(folder.result) or {}
    assert (told["cause"], told["message"][:13]) == ("signal", "Rank 1 of 2 w")


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_resume_is_within_the_noise(cards: list[Gpu], attempt: Attempt, way: str) -> None:
    fields = {"parallel": way, "lora": {"r": 8, "lora_dropout": 0.05}}
    expected = finish(attempt("undisturbed", **fields), cards)
    folder = attempt("stopped", **fields)
    process = start(folder, cards)
    until(lambda: (read_json(folder.progress) or {}).get("step", 0) >= 2, within_s=300, evidence=lambda: log(folder))
    process.terminate()
    assert exit_code(process) == 75, log(folder)
    losses = finish(attempt("stopped", 2, **fields), cards)
    print(f"{way}: {'bit for bit' if losses == expected else 'close'}, {losses} / {expected}")
    assert losses == pytest.approx(expected, rel=5e-3)
