"""How several GPUs share a training: which way is chosen for numbers of real models, and that the rows of a step stay the same."""

from typing import Any

import pytest
from model_folders import LLAMA_3_8B, LLAMA_32_1B, Config, write_model

from jobs import batches, parallel
from jobs.causes import gpu_out_of_memory
from jobs.estimate import Facts, estimate, optimizer_steps
from jobs.fitting import micro_batch, sharing, what_fits
from jobs.model_facts import read_model
from jobs.spec import InvalidSpec, dump, parse

GIB = 2**30
LLAMA_8B_PARAMETERS = 8_030_261_248
LLAMA_70B: Config = {
    "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "intermediate_size": 28672, "vocab_size": 128256, "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Facts]:
    folder = tmp_path_factory.mktemp("models")
    shapes = {"1B": LLAMA_32_1B, "8B": LLAMA_3_8B, "70B": LLAMA_70B}
    return {name: Facts(model=read_model(write_model(folder / name, shape))) for name, shape in shapes.items()}


def document(**fields: Any) -> dict[str, Any]:
    usual = {"kind": "finetune", "model": "m", "data": "d", "gpus": 2, "effective_batch_size": 8, "max_length": 2048, "gradient_checkpointing": True}  # fmt: skip
    return dump(parse({**usual, **fields}))


@pytest.mark.parametrize(
    ("model", "room_gib", "fields", "way"),
    [
        ("1B", 23.5, {}, "ddp"),
        ("8B", 23.5, {}, "ddp"),
        ("8B", 15.5, {}, "fsdp"),
        ("8B", 15.5, {"method": "qlora"}, "ddp"),
        ("8B", 79.5, {"method": "full", "gpus": 4}, "fsdp"),
        ("8B", 79.5, {"method": "full", "gpus": 4, "optim": "adamw_8bit"}, "device_map"),
        ("8B", 15.5, {"objective": "dpo"}, "device_map"),
        ("70B", 39.5, {"method": "qlora"}, "device_map"),
        ("70B", 47.5, {"gpus": 4}, "fsdp"),
    ],
)
def test_the_fastest_way_that_fits_is_chosen(
    models: dict[str, Facts], model: str, room_gib: float, fields: dict[str, Any], way: str
) -> None:
    found = sharing(document(**fields), models[model], round(room_gib * GIB))
    assert (found.way, found.vram_bytes is not None and found.vram_bytes <= room_gib * GIB) == (way, True), found


def test_it_says_why(models: dict[str, Facts]) -> None:
    def why(model: str, room_gib: int, **fields: Any) -> str:
        return sharing(document(**fields), models[model], room_gib * GIB).why

    assert why("1B", 23) == "one GPU holds the whole model"
    assert "one GPU cannot hold the whole model with what learning needs (18" in why("8B", 15)
    assert why("8B", 15).endswith("of 15.0 GiB), and split between 2 it fits")
    assert why("70B", 39, method="qlora").endswith("and FSDP does not split weights of 4 bits")
    assert why("70B", 8).endswith("no way fits")


def test_where_nothing_limits_or_nobody_knows_each_gpu_has_the_whole_model(models: dict[str, Facts]) -> None:
    assert sharing(document(), models["70B"], None).way == "ddp"
    unknown = sharing(document(), Facts(), 8 * GIB)
    assert (unknown.way, unknown.why, unknown.vram_bytes) == ("ddp", "what it needs is not known", None)


def test_a_way_that_is_asked_for_is_taken(models: dict[str, Facts]) -> None:
    assert sharing(document(parallel="fsdp"), models["1B"], 80 * GIB).way == "fsdp"
    assert sharing(document(parallel="ddp"), models["70B"], 8 * GIB).way == "ddp"


def test_where_the_way_that_was_asked_for_does_not_fit_another_is_named(models: dict[str, Facts]) -> None:
    [change] = what_fits(document(parallel="ddp"), models["8B"], 15 * GIB)
    assert (dict(change.fields), change.changes_meaning) == ({"parallel": "fsdp"}, False)
    [change] = what_fits(document(parallel="ddp", objective="dpo"), models["8B"], 15 * GIB)
    assert change.fields["parallel"] == "device_map"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_shared_is_divided_and_what_is_not_stays(models: dict[str, Facts], method: str) -> None:
    needs = {
        (way, gpus): estimate(document(method=method, parallel=way, gpus=gpus), models["8B"])
        for way in ("ddp", "fsdp", "device_map")
        for gpus in (2, 4)
    }
    alone = estimate(document(method=method, gpus=1), models["8B"])
    learned_from = LLAMA_8B_PARAMETERS * (2 if method == "lora" else 4)
    for gpus in (2, 4):
        whole, split, layers = (needs[way, gpus].parts for way in ("ddp", "fsdp", "device_map"))
        assert whole["weights"] == alone.parts["weights"] and whole["optimizer"] == alone.parts["optimizer"]
        assert split["optimizer"] == round(alone.parts["optimizer"] / gpus)
        assert learned_from / gpus < split["weights"] < learned_from
        assert split["activations"] == alone.parts["activations"] > layers["activations"]
        assert alone.parts["weights"] / gpus < layers["weights"] < alone.parts["weights"] * 0.6
    for way in ("fsdp", "device_map"):
        assert (needs[way, 4].vram_bytes or 0) < (needs[way, 2].vram_bytes or 0) < (needs["ddp", 2].vram_bytes or 0)


def test_the_published_size_of_a_split_8b_is_met(models: dict[str, Facts]) -> None:
    """notes of the field: LoRA on an 8B, split between two, about 13 GiB on each at one row of 2048 tokens."""
    need = estimate(document(parallel="fsdp"), models["8B"]).vram_bytes or 0
    assert need == pytest.approx(13 * GIB, rel=0.08)


@pytest.mark.parametrize("gpus", [1, 2, 4])
def test_the_rows_of_a_step_are_the_same_for_any_number_of_gpus(gpus: int) -> None:
    spec = document(gpus=gpus, effective_batch_size=32)
    assert batches.rows_per_step(spec) == 32
    for micro in batches.sizes(spec, 64):
        cut = {**spec, **batches.with_micro(spec, micro)}
        assert cut["per_device_train_batch_size"] * cut["gradient_accumulation_steps"] * gpus == 32
        assert optimizer_steps({**cut, "num_train_epochs": 1, "max_steps": None}, 100) == 4


def test_the_micro_batch_that_is_found_is_one_gpus_share(models: dict[str, Facts]) -> None:
    assert micro_batch(document(effective_batch_size=8), models["1B"], 60 * GIB) == 4
    assert micro_batch(document(effective_batch_size=8, gpus=8), models["1B"], 60 * GIB) == 1


def test_out_of_memory_halves_what_each_gpu_takes_and_keeps_the_rows_of_a_step() -> None:
    spec = document(per_device_train_batch_size=4)
    changed = {**spec, **gpu_out_of_memory(spec).next_fields}
    assert (changed["per_device_train_batch_size"], batches.rows_per_step(changed)) == (2, 8)


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"effective_batch_size": 9}, "effective_batch_size", "9 rows cannot be shared evenly by 2 GPUs"),
        (
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
            "effective_batch_size",
            "4 x gradient_accumulation_steps 2 x 2 GPUs is 16",
        ),
        ({"gpus": 1, "parallel": "ddp"}, "parallel", "set gpus to 2 or more"),
        ({"parallel": "fsdp", "method": "qlora"}, "parallel", "fsdp does not split weights of 4 bits"),
        ({"parallel": "fsdp", "objective": "kto"}, "parallel", "fsdp is for objective sft"),
        ({"parallel": "fsdp", "optim": "paged_adamw_8bit"}, "parallel", "adamw_torch_fused, sgd can be split"),
    ],
)
def test_what_cannot_be_shared_is_refused(fields: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        document(**fields)
    [error] = refused.value.errors
    assert error.field == field and words in error.message


def test_one_process_for_each_gpu_but_where_they_hold_layers() -> None:
    ways = {way: parallel.processes(document(parallel=way, gpus=3, effective_batch_size=9)) for way in ("auto", "ddp", "fsdp", "device_map")}  # fmt: skip
    assert ways == {"auto": 3, "ddp": 3, "fsdp": 3, "device_map": 1}
    assert parallel.processes(document(gpus=1)) == 1
