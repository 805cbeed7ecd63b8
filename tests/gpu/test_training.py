"""What only a real NVIDIA GPU can show of training: `python -m pytest -m gpu -s tests/gpu/test_training.py`.

Each test prints what it measured, so that one run fills docs/gpu-checks.md. Needs a card that nobody else uses, 24 GiB or more,
and 20 GB of disk in the temporary folder. About 15 minutes.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attempts import curve, log, run_folder
from model_folders import write_by_chance

from jobs.estimate import Facts, estimate
from jobs.model_facts import read_model
from jobs.rundir import RunDir, read_json
from jobs.spec import dump, parse

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

CHILD = Path(__file__).with_name("measured_attempt.py")
ROOT = Path(__file__).parent.parent.parent
GIB = 2**30
STEPS = 4
#: Shapes of known models with fewer layers: what a layer and the vocabulary need is what is to be measured.
SHAPES: dict[str, dict[str, int]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 16},
    "8B/4": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 8},
}  # fmt: skip
CHECKED = {"gradient_checkpointing": True}
#: Shape, rows at once, length, and what is different.
CONFIGURATIONS: list[tuple[str, int, int, dict[str, Any]]] = [
    ("1B", 1, 512, {}), ("1B", 4, 512, {}), ("1B", 4, 1024, {"lora": {"lora_dropout": 0.05}}), ("1B", 4, 2048, CHECKED),
    ("1B", 1, 8192, CHECKED), ("1B", 2, 1024, {"method": "full"} | CHECKED),
    ("1B", 2, 1024, {"method": "full", "pure_bf16": True, "optim": "adamw_8bit"} | CHECKED),
    ("1B", 2, 1024, {"objective": "dpo"} | CHECKED), ("1B", 2, 1024, {"method": "qlora", "objective": "dpo"} | CHECKED),
    ("8B/4", 1, 2048, {}), ("8B/4", 2, 2048, CHECKED), ("8B/4", 1, 8192, CHECKED), ("8B/4", 2, 2048, {"method": "qlora"} | CHECKED),
    ("8B/4", 1, 4096, {"method": "qlora", "lora": {"lora_dropout": 0.05}} | CHECKED), ("8B/4", 2, 2048, {"lora": {"use_dora": True}} | CHECKED),
]  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "lora": {}, "qlora": {"method": "qlora"}, "full": {"method": "full"}, "dpo": {"objective": "dpo"}, "kto": {"objective": "kto"},
    "eight bits": {"optim": "adamw_8bit"}, "paged": {"optim": "paged_adamw_8bit"}, "packed": {"packing": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of these shapes with weights of chance."""
    made = {}
    for name, shape in SHAPES.items():
        made[name] = tmp_path_factory.mktemp("models") / name.replace("/", "-")
        write_by_chance(tiny_model, made[name], shape)
    return made


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows that are longer than any `max_length` here, and short ones."""
    folder, chance = tmp_path_factory.mktemp("rows"), random.Random(1)

    def words(count: int) -> str:
        return " ".join(chance.choice(["bolt", "shelf", "night", "card", "fan"]) for _ in range(count))

    made = {}
    for size, count in (("long", 9000), ("short", 12)):
        lines: dict[str, list[dict[str, Any]]] = {"sft": [], "dpo": [], "kto": []}
        for n in range(32):
            lines["sft"].append({"prompt": "Go on: ", "completion": words(count)})
            lines["dpo"].append({"prompt": "Go on: ", "chosen": words(count), "rejected": words(count)})
            lines["kto"].append({"prompt": "Go on: ", "completion": words(count), "label": bool(n % 2)})
        for objective, found in lines.items():
            made[f"{size} {objective}"] = folder / f"{size}-{objective}"
            made[f"{size} {objective}"].write_text("".join(json.dumps(line) + "\n" for line in found))
    return made


def attempt(folder: RunDir) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, CHILD, folder.path], capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout, done.stderr[-2000:]
    folder.log.write_text(done.stdout)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    assert found["status"] == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return found


def document(**fields: Any) -> dict[str, Any]:
    return {"kind": "finetune", "model": "m", "data": "d", "max_steps": 2, "gradient_accumulation_steps": 1, **fields}


def test_nine_of_ten_estimates_are_within_a_tenth_of_the_measured_peak(
    tmp_path: Path, folders: dict[str, Path], rows: dict[str, Path]
) -> None:
    off = []
    for number, (shape, size, length, fields) in enumerate(CONFIGURATIONS):
        spec = document(per_device_train_batch_size=size, max_length=length, **fields)
        data = rows[f"long {fields.get('objective', 'sft')}"]
        found = attempt(run_folder(tmp_path / str(number), spec, {"model": folders[shape], "data": data}))
        measured = found["reserved"] + found["context"]
        expected = estimate(dump(parse(spec)), Facts(model=read_model(folders[shape]))).vram_bytes or 0
        off.append(expected / measured - 1)
        print(f"{shape} {size} x {length} {fields}: estimated {expected / GIB:.2f} GiB, measured {measured / GIB:.2f} GiB "
              f"(context {found['context'] / GIB:.2f}), {off[-1]:+.1%}")  # fmt: skip
    close = sum(abs(each) <= 0.1 for each in off)
    print(f"{close} of {len(off)} within 10 %")
    assert close >= 0.9 * len(off)


@pytest.mark.parametrize("name", METHODS)
def test_a_resume_is_within_the_noise_of_an_undisturbed_run(
    tmp_path: Path, tiny_model: Path, rows: dict[str, Path], name: str
) -> None:
    """Kernels that add in any order break bits, so closeness is what is asked; whether bits hold is printed."""
    fields = {"lora": {"r": 4, "lora_dropout": 0.05}} if METHODS[name].get("method") != "full" else {}
    spec = document(**METHODS[name], **fields) | {"max_steps": STEPS, "save_steps": 2, "max_length": 64}
    places = {"model": tiny_model, "data": rows[f"short {spec.get('objective', 'sft')}"]}
    undisturbed, folder = (run_folder(tmp_path / each, spec, places) for each in ("undisturbed", "killed"))
    attempt(undisturbed)
    killed = (
        "import os, signal, sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; import attempts\n"
        "attempts._die_at(3); attempts.main(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", killed, folder.path, ROOT, ROOT / "tests"], stdin=subprocess.DEVNULL)
    assert done.returncode == -9
    attempt(run_folder(folder.path, spec, places, resume=True, attempt=2))

    assert (read_json(folder.result) or {})["metrics"]["resumed_from_step"] == 2
    losses, expected = ([line["loss"] for line in curve(each)] for each in (folder, undisturbed))
    print(f"{name}: {'bit for bit' if losses == expected else 'close'}, {losses} / {expected}")
    assert losses == pytest.approx(expected, rel=5e-3)


def test_the_micro_batch_that_is_found_fits_and_fills_the_card(
    tmp_path: Path, folders: dict[str, Path], rows: dict[str, Path]
) -> None:
    spec = document(effective_batch_size=64, max_length=1024, gradient_checkpointing=True)
    del spec["gradient_accumulation_steps"]
    folder = run_folder(tmp_path, spec, {"model": folders["1B"], "data": rows["long sft"]})
    found = attempt(folder)
    print([line for line in log(folder).splitlines() if "at once" in line], f"peak {found['reserved'] / GIB:.1f} GiB")


def test_torch_compile_learns_the_same(tmp_path: Path, tiny_model: Path, rows: dict[str, Path]) -> None:
    losses = {}
    for compiled in (False, True):
        spec = document(torch_compile=compiled, max_length=64, lora={"r": 4}) | {"max_steps": 6}
        folder = run_folder(tmp_path / str(compiled), spec, {"model": tiny_model, "data": rows["short sft"]})
        attempt(folder)
        losses[compiled] = [line["loss"] for line in curve(folder)]
    print(losses)
    assert losses[True] == pytest.approx(losses[False], rel=2e-2)


@pytest.mark.parametrize("name", ["lora", "qlora", "full"])
def test_the_peak_that_a_preflight_measures_is_the_jobs(
    tmp_path: Path, folders: dict[str, Path], rows: dict[str, Path], name: str
) -> None:
    """Of rows of many lengths the longest come first there, and anywhere in the job."""
    spec = document(per_device_train_batch_size=2, max_length=1024, **METHODS[name], **CHECKED) | {"max_steps": 24}
    places = {"model": folders["1B"], "data": rows["short sft"]}
    folder = run_folder(tmp_path / "run", spec, places, preflight=True)
    attempt(folder)
    foretold = (read_json(folder.preflight) or {})["measured"]
    found = attempt(run_folder(tmp_path / "run", spec, places))
    measured = found["reserved"] + found["context"]
    print(f"{name}: preflight {foretold['peak_vram_bytes'] / GIB:.2f} GiB, job {measured / GIB:.2f} GiB "
          f"(context {found['context'] / GIB:.2f}); {foretold['step_s']:.3f} s a step")  # fmt: skip
    assert 0.95 * measured <= foretold["peak_vram_bytes"] <= 1.1 * measured
