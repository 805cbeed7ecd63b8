"""What one GPU has room for, in numbers: published sizes, edges that are exact, and the tables that say it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folders import LLAMA_3_8B, MIXTRAL_8X7B, write_model

from api.cli import overnight
from jobs.capacity import Capacity, capacities, capacity, known_sizes
from jobs.estimate import VRAM_RESERVE_BYTES, Facts, estimate, inference_bytes
from jobs.known_models import CONFIGS, known_model
from jobs.model_facts import ModelFacts, NoFacts, of_config, read_model
from jobs.spec import dump, parse

GIB = 2**30
#: As their authors publish them.
PARAMETERS = {
    "Qwen2.5-0.5B": 494_032_768, "Llama-3.2-1B": 1_235_814_400, "Qwen2.5-1.5B": 1_543_714_304, "Llama-3.2-3B": 3_212_749_824,
    "Qwen2.5-7B": 7_615_616_512, "Llama-3.1-8B": 8_030_261_248, "Qwen2.5-14B": 14_770_033_664, "Qwen2.5-32B": 32_763_876_352,
    "Llama-3.3-70B": 70_553_706_496,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama() -> ModelFacts:
    return of_config({**LLAMA_3_8B, "max_position_embeddings": 131_072})


def by_method(found: list[Capacity]) -> dict[str, Capacity]:
    return {one.method: one for one in found}


# -- from a configuration alone -------------------------------------------------------------------------------------------


def test_the_usual_models_have_the_parameters_that_their_authors_count() -> None:
    assert {name: of_config(config).parameters for name, config in CONFIGS.items()} == PARAMETERS


def test_a_folder_without_weights_says_the_same_as_one_with_them(tmp_path: Path, llama: ModelFacts) -> None:
    whole = write_model(tmp_path / "m", LLAMA_3_8B)
    counted = read_model(whole)
    assert counted == replace(llama, context=8192)
    (whole / "model.safetensors").unlink()
    assert read_model(whole) == counted


def test_what_the_arithmetic_does_not_know_is_said() -> None:
    with pytest.raises(NoFacts, match="how many a mixtral has is told by a dry run only"):
        of_config(MIXTRAL_8X7B)
    with pytest.raises(NoFacts, match="intermediate_size"):
        of_config({"model_type": "llama", "hidden_size": 64})


def test_a_usual_model_is_known_with_or_without_its_owner() -> None:
    assert known_model("meta-llama/Llama-3.1-8B-Instruct") == known_model("llama-3.1-8b") == of_config(CONFIGS["Llama-3.1-8B"])  # fmt: skip
    assert known_model("org/Llama-3.1-8B-mine") is None


# -- room -----------------------------------------------------------------------------------------------------------------


def test_the_batch_that_is_named_fits_and_one_row_more_does_not(llama: ModelFacts) -> None:
    room = 24 * GIB - VRAM_RESERVE_BYTES
    found = by_method(capacities(llama, 24 * GIB))

    def trained(method: str, rows: int, length: int) -> int:
        document = {"kind": "finetune", "model": "m", "data": "d", "method": method, "gradient_checkpointing": True}
        document |= {"per_device_train_batch_size": rows, "max_length": length}
        return estimate(dump(parse(document)), Facts(model=llama)).vram_bytes or 0

    for method in ("lora", "qlora"):
        for length, rows in found[method].batches.items():
            assert trained(method, rows, length) <= room < trained(method, rows + 1, length)
        assert trained(method, 1, found[method].longest) <= room < trained(method, 1, found[method].longest + 128)
    for length, rows in found["generate"].batches.items():
        needs = [inference_bytes(llama, n, length - 256, 256, "bfloat16", on_gpu=True) for n in (rows, rows + 1)]
        assert needs[0] <= room < needs[1]


def test_what_fits_a_24_gib_card_is_what_owners_of_one_know() -> None:
    found = {name: {c.method for c in each if c.fits} for name, each in known_sizes(24 * GIB).items()}

    assert "full" in found["Llama-3.2-1B"] and "full" not in found["Qwen2.5-1.5B"]
    assert "lora" in found["Llama-3.1-8B"] and "lora" not in found["Qwen2.5-14B"]
    assert "qlora" in found["Qwen2.5-32B"] and "qlora" not in found["Llama-3.3-70B"]
    assert "generate, int8" in found["Qwen2.5-14B"] and "generate" not in found["Qwen2.5-14B"]
    assert found["Llama-3.3-70B"] == set()
    qlora = by_method(known_sizes(24 * GIB)["Qwen2.5-32B"])["qlora"]
    assert 1024 <= qlora.longest < 2048  # the notes' table: 23.0 GiB at 2048, 21.9 at 1024


def test_a_documents_own_fields_count(llama: ModelFacts) -> None:
    def of(**fields: Any) -> Capacity:
        found = capacity(dump(parse({"model": "m", "data": "d", **fields})), llama, 24 * GIB)
        assert found is not None
        return found

    kept, again = of(kind="finetune"), of(kind="finetune", gradient_checkpointing=True)
    assert kept.longest < again.longest and again.batches[2048] == 5
    assert of(kind="finetune", lora={"r": 256}).batches.get(2048, 0) < again.batches[2048]
    assert of(kind="generate", max_new_tokens=256).batches == by_method(capacities(llama, 24 * GIB))["generate"].batches
    assert capacity(dump(parse({"kind": "command", "argv": ["x"]})), llama, 24 * GIB) is None


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(list(CONFIGS)), st.integers(2, 200), st.integers(0, 100))
def test_more_memory_never_has_less_room(name: str, gib: int, more: int) -> None:
    model = of_config(CONFIGS[name])
    for small, large in zip(capacities(model, gib * GIB), capacities(model, (gib + more) * GIB), strict=True):
        assert small.longest <= large.longest and small.least_bytes == large.least_bytes
        assert all(rows <= large.batches[length] for length, rows in small.batches.items())
        assert list(small.batches.values()) == sorted(small.batches.values(), reverse=True)
        assert small.fits == (small.least_bytes <= gib * GIB - VRAM_RESERVE_BYTES)


# -- the command, where it needs no rig -------------------------------------------------------------------------------------


def said(*argv: str) -> str:
    done = CliRunner(env={"OVERNIGHT_URL": "http://127.0.0.1:9"}).invoke(overnight, ["fit", *argv])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_what_fits_is_told_without_a_rig(tmp_path: Path) -> None:
    lines = said("--vram", "24").splitlines()
    assert lines[0].startswith("What fits a GPU with 24 GiB")
    [qwen] = [line for line in lines if line.startswith("Qwen2.5-32B")]
    assert qwen.split("  ") and "1 x 1408" in qwen and "needs 562 GiB" in qwen
    assert sum(line.startswith(tuple(CONFIGS)) for line in lines) == len(CONFIGS)

    folder = write_model(tmp_path / "m", LLAMA_3_8B)
    one = said("--model", str(folder), "--vram", "24")
    assert "8.03 billion parameters" in one
    [qlora] = [line for line in one.splitlines() if line.startswith("qlora")]
    assert qlora.split() == ["qlora", "7.24", "GiB", "49", "24", "12", "6", "3", "8192"]
    assert json.loads(said("--model", str(folder), "--vram", "24", "--json"))["models"][0]["parameters"] == 8_030_261_248  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["ft.toml", "--model", "m"], 2, "not both"),
        (["--set", "max_length=3"], 2, "--set changes a job's document"),
        (["--model", "m", "--vram", "24"], 69, "No rig answers"),
        (["--vram", "0"], 2, "0"),
    ],
)
def test_what_makes_no_sense_is_told(argv: list[str], code: int, words: str) -> None:
    done = CliRunner(env={"OVERNIGHT_URL": "http://127.0.0.1:9"}).invoke(overnight, ["fit", *argv])
    assert done.exit_code == code and words in done.output
