"""What a job will need, by arithmetic: real models' sizes, published measurements, and what must never go down."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_folders import LLAMA_3_8B, LLAMA_32_1B, MIXTRAL_8X7B, write_header, write_model

from jobs.data import DataReport, check_prompts, check_training
from jobs.estimate import Estimate, Facts, estimate, inference_bytes, optimizer_steps
from jobs.fitting import micro_batch, what_fits
from jobs.model_facts import ModelFacts, NoFacts, identity, read_adapter, read_model
from jobs.spec import dump, parse

GIB = 2**30
#: Rows that are longer than any limit.
LONG = DataReport(rows=1000, shape="text", sha256="", text_bytes=10**9, longest_bytes=10**6)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    return read_model(write_model(tmp_path_factory.mktemp("models") / "llama", LLAMA_3_8B))


def tune(**fields: Any) -> dict[str, Any]:
    return dump(parse({"kind": "finetune", "model": "m", "data": "d", **fields}))


def ask(**fields: Any) -> dict[str, Any]:
    return dump(parse({"kind": "generate", "model": "m", "data": "d", **fields}))


def made(spec: dict[str, Any], model: ModelFacts, data: DataReport | None = LONG) -> Estimate:
    return estimate(spec, Facts(model=model, data=data, eval_data=data))


def need(spec: dict[str, Any], model: ModelFacts, data: DataReport | None = LONG) -> int:
    needs = made(spec, model, data).vram_bytes
    assert needs is not None
    return needs


# -- the model's folder -------------------------------------------------------------------------------------------------


def test_a_models_size_is_read_from_its_headers(tmp_path: Path, llama: ModelFacts) -> None:
    assert llama.parameters == 8_030_261_248
    assert read_model(write_model(tmp_path / "1b", LLAMA_32_1B)).parameters == 1_235_814_400
    assert read_model(write_model(tmp_path / "8x7b", MIXTRAL_8X7B)).parameters == 46_702_792_704


def test_a_model_in_several_files_is_the_same_model(tmp_path: Path, llama: ModelFacts) -> None:
    sharded = write_model(tmp_path / "m", LLAMA_3_8B, shards=4)
    write_header(sharded / "consolidated.safetensors", {"all.weight": [10**9, 8]})  # which transformers would not load

    assert read_model(sharded) == llama


def test_a_change_of_any_file_is_seen(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", LLAMA_32_1B)
    before = identity(folder)
    (folder / "config.json").write_text(json.dumps({**LLAMA_32_1B, "hidden_size": 4096}))

    assert identity(folder) != before


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 8,
        (10).to_bytes(8, "little") + b"[[[[[[[[[[",
        (2).to_bytes(8, "little") + b"[]",
        (17).to_bytes(8, "little") + b'{"w": {"shape":4}}'[:17],
        (100).to_bytes(8, "little") + json.dumps({"w": {"dtype": "BF16", "shape": [-1]}}).encode(),
        (200).to_bytes(8, "little") + json.dumps({"w": {"dtype": "BF16", "shape": [10**11] * 8}}).encode(),
    ],
)
def test_a_broken_file_is_no_size_and_no_crash(tmp_path: Path, raw: bytes) -> None:
    folder = write_model(tmp_path / "m", LLAMA_32_1B)
    (folder / "model.safetensors").write_bytes(raw)

    with pytest.raises(NoFacts):
        read_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"hidden_size": "many"}', '{"hidden_size": 1e999}', "[" * 10_000])
def test_a_configuration_without_numbers_is_no_size(tmp_path: Path, text: str) -> None:
    folder = write_model(tmp_path / "m", LLAMA_32_1B)
    (folder / "config.json").write_text(text)

    with pytest.raises(NoFacts):
        read_model(folder)


def test_an_index_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", LLAMA_32_1B, shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../other.safetensors"}}))

    with pytest.raises(NoFacts):
        read_model(folder)


def test_an_adapters_parameters_are_counted(tmp_path: Path) -> None:
    write_header(tmp_path / "adapter_model.safetensors", {"a.lora_A.weight": [16, 576], "a.lora_B.weight": [192, 16]})

    assert read_adapter(tmp_path) == 16 * (576 + 192)


# -- memory -------------------------------------------------------------------------------------------------------------


def test_weights_of_an_8b_model_take_16_gb(llama: ModelFacts) -> None:
    assert made(tune(), llama).parts["weights"] == 16_060_522_496
    assert made(tune(dtype="float32"), llama).parts["weights"] == 2 * 16_060_522_496
    assert made(ask(), llama).parts["weights"] == 16_060_522_496


def test_an_adapter_is_counted_by_its_rank_and_its_layers(llama: ModelFacts, tmp_path: Path) -> None:
    assert made(tune(), llama).parts["adapter"] == 41_943_040 * 4  # what PEFT prints for r=16 on every linear layer
    attention = tune(lora={"r": 8, "target_modules": ["q_proj", "v_proj"]})
    assert made(attention, llama).parts["adapter"] == 3_407_872 * 4
    assert made(attention, llama).parts["optimizer"] == 3_407_872 * 8
    moe = read_model(write_model(tmp_path / "moe", MIXTRAL_8X7B))
    gates = 32 * 16 * (4096 + 8)
    assert made(tune(), moe).parts["adapter"] == (13_631_488 + gates) * 4  # its experts are no linear layers


def test_the_parts_are_the_whole(llama: ModelFacts) -> None:
    for spec in (tune(), tune(eval_data="e", packing=True), ask(batch_size=32)):
        found = made(spec, llama)
        assert found.vram_bytes == sum(found.parts.values())
        assert all(size >= 0 for size in found.parts.values())


def test_a_published_measurement_is_met_within_a_tenth(llama: ModelFacts) -> None:
    """torchtune's README: Llama 3.1 8B, LoRA r 8 on q, v and output, 2 x 2048, one RTX 4090: 16.2 GiB allocated at most."""
    spec = tune(
        per_device_train_batch_size=2,
        max_length=2048,
        gradient_checkpointing=True,
        lora={"r": 8, "target_modules": ["q_proj", "v_proj", "o_proj"]},
    )
    parts = made(spec, llama).parts
    allocated = sum(size for part, size in parts.items() if part != "overhead")

    assert allocated / GIB == pytest.approx(16.2, rel=0.1)


def test_every_method_and_optimizer_has_its_arithmetic(llama: ModelFacts) -> None:
    """What LLaMA-Factory's README gives for all weights: 18 bytes a parameter with mixed precision, 8 in pure bfloat16."""
    small = tune(per_device_train_batch_size=1, max_length=2048, gradient_checkpointing=True)

    assert need({**small, "method": "qlora"}, llama) / GIB == pytest.approx(8.1, rel=0.1)
    full = tune(per_device_train_batch_size=1, max_length=512, gradient_checkpointing=True, method="full")
    assert need(full, llama) == pytest.approx(18 * llama.parameters, rel=0.1)
    assert need({**full, "pure_bf16": True}, llama) == pytest.approx(8 * llama.parameters, rel=0.1)
    eight_bits = {**full, "pure_bf16": True, "optim": "adamw_8bit"}
    assert need(eight_bits, llama) == pytest.approx(6.1 * llama.parameters, rel=0.1)
    assert need({**eight_bits, "optim": "paged_adamw_8bit"}, llama) < need(eight_bits, llama)


def test_a_preference_needs_both_answers_and_what_it_is_compared_with(llama: ModelFacts) -> None:
    sft = tune(per_device_train_batch_size=1, max_length=2048, gradient_checkpointing=True)
    dpo = {**sft, "objective": "dpo"}
    assert made(dpo, llama).parts["activations"] > 2 * made(sft, llama).parts["activations"]
    assert made(dpo, llama).parts["weights"] == made(sft, llama).parts["weights"]  # an adapter is switched off
    full = [made({**each, "method": "full"}, llama).parts["weights"] for each in (dpo, sft)]
    assert full[0] - full[1] == 2 * llama.parameters


def test_layers_that_are_learnt_whole_count_as_such(llama: ModelFacts) -> None:
    plain = tune(lora={"r": 16})
    found = made(tune(lora={"r": 16, "modules_to_save": ["embed_tokens"]}), llama).parts["adapter"]
    assert found - made(plain, llama).parts["adapter"] == 4 * 128_256 * 4096


def test_the_micro_batch_is_the_most_that_fits_and_keeps_the_effective_batch(llama: ModelFacts) -> None:
    spec = tune(effective_batch_size=24, max_length=2048, gradient_checkpointing=True)
    known = Facts(model=llama)
    assert (spec["per_device_train_batch_size"], spec["gradient_accumulation_steps"]) == (1, 24)
    found = [micro_batch(spec, known, room * GIB) for room in (10, 18, 24, 80)]
    assert found == sorted(found) and found[0] == 1 and found[-1] == 24
    assert all(24 % micro == 0 for micro in found)
    assert micro_batch(spec, Facts(), 80 * GIB) is None


def test_a_quantised_checkpoint_takes_what_is_stored(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", {**LLAMA_3_8B, "quantization_config": {"bits": 8}}, dtype="I8")

    assert made(ask(), read_model(folder)).parts["weights"] == 8_030_261_248


def test_the_cache_of_an_8b_model_takes_128_kib_a_token(llama: ModelFacts) -> None:
    short = DataReport(rows=1, shape="prompt", sha256="", text_bytes=0, longest_bytes=0)
    one, more = (made(ask(max_new_tokens=count), llama, short).parts["kv_cache"] for count in (1000, 2000))

    assert (more - one) / 1000 == pytest.approx(128 * 1024, rel=0.02)  # and a copy of a layer's keys


def test_an_answer_ends_where_the_models_context_does(llama: ModelFacts) -> None:
    assert need(ask(max_new_tokens=100_000), llama) == need(ask(max_new_tokens=1_000_000), llama)


def test_short_rows_need_less_than_the_longest_that_is_allowed(llama: ModelFacts) -> None:
    short = DataReport(rows=50, shape="text", sha256="", text_bytes=5_000, longest_bytes=100)

    assert need(tune(max_length=8192), llama, short) < need(tune(max_length=8192), llama) / 2
    assert need(tune(max_length=8192), llama, None) == need(tune(max_length=8192), llama)  # nobody knows: the worst
    assert need(tune(max_length=8192, packing=True), llama, short) > need(tune(max_length=8192), llama)


def test_a_large_evaluation_counts(llama: ModelFacts) -> None:
    spec = tune(per_device_train_batch_size=1, gradient_checkpointing=True, per_device_eval_batch_size=512)

    assert need({**spec, "eval_data": "e"}, llama) > 2 * need(spec, llama)


def test_nothing_is_said_where_nothing_is_known(llama: ModelFacts) -> None:
    assert estimate(tune(), Facts(data=LONG)) == Estimate(rows=1000, steps=63, tokens=1_024_000)
    assert estimate(tune(max_steps=7), Facts()).steps == 7
    assert estimate(ask(), Facts(model=llama)) == Estimate()
    assert estimate(dump(parse({"kind": "command", "argv": ["true"]})), Facts()) == Estimate()


lengths = st.integers(8, 20_000)
sizes = st.integers(1, 64)


@given(size=sizes, length=lengths, rank=st.integers(1, 256), more=st.integers(1, 64), checkpointing=st.booleans(),
       packing=st.booleans(), evaluates=st.booleans(), dropout=st.sampled_from([0.0, 0.05]))  # fmt: skip
def test_more_never_needs_less_to_learn(
    llama: ModelFacts, size: int, length: int, rank: int, more: int, checkpointing: bool, packing: bool, evaluates: bool,
    dropout: float,
) -> None:  # fmt: skip
    def needs(size: int, length: int, rank: int, eval_size: int = 4) -> int:
        spec = tune(
            per_device_train_batch_size=size,
            per_device_eval_batch_size=eval_size,
            max_length=length,
            gradient_checkpointing=checkpointing,
            packing=packing,
            eval_data="e" if evaluates else None,
            lora={"r": rank, "lora_dropout": dropout},
        )
        return need(spec, llama)

    base = needs(size, length, rank)
    assert base <= needs(size + more, length, rank)
    assert base <= needs(size, length + more, rank)
    assert base <= needs(size, length, rank + more)
    assert base <= needs(size, length, rank, eval_size=4 + more)


@given(size=sizes, count=st.integers(1, 20_000), longest=st.integers(0, 100_000), more=st.integers(1, 1_000))
def test_more_never_needs_less_to_answer(llama: ModelFacts, size: int, count: int, longest: int, more: int) -> None:
    def needs(size: int, count: int, longest: int) -> int:
        data = DataReport(rows=10_000, shape="prompt", sha256="", text_bytes=longest, longest_bytes=longest)
        return need(ask(batch_size=size, max_new_tokens=count), llama, data)

    base = needs(size, count, longest)
    assert base <= needs(size + more, count, longest)
    assert base <= needs(size, count + more, longest)
    assert base <= needs(size, count, longest + more)


# -- steps, tokens, room ------------------------------------------------------------------------------------------------


def test_steps_are_counted_as_the_trainer_does() -> None:
    assert optimizer_steps(tune(), 127) == 8  # 32 batches of 4, in groups of 4
    assert optimizer_steps(tune(num_train_epochs=2.5), 127) == 20
    assert optimizer_steps(tune(max_steps=3), 127) == 3
    assert optimizer_steps(tune(per_device_train_batch_size=1, gradient_accumulation_steps=16), 1) == 1


def test_rows_and_their_text_are_counted_while_they_are_checked(tmp_path: Path) -> None:
    rows = [{"prompt": "äb", "completion": "c" * n, "source": "x" * 999} for n in (1, 20, 3)]
    file = tmp_path / "rows"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check_training(file)
    assert (report.rows, report.text_bytes, report.longest_bytes) == (3, 3 * 3 + 24, 23)
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "abc"}]}]}
    file.write_text(json.dumps(parts) + "\n")
    assert check_prompts(file).longest_bytes == len("userabc")


def test_checkpoints_are_bounded(llama: ModelFacts) -> None:
    adapter = 41_943_040
    long, short = made(tune(), llama).disk_bytes, made(tune(max_steps=1), llama).disk_bytes

    assert long is not None and short is not None
    assert 3 * adapter * 12 + adapter * 4 < long < 4 * adapter * 12
    assert adapter * 12 < short < adapter * 17


# -- what would fit -----------------------------------------------------------------------------------------------------


def test_the_effective_batch_stays(llama: ModelFacts) -> None:
    spec = tune(per_device_train_batch_size=8, gradient_accumulation_steps=2, max_length=512)
    smaller, cheaper = what_fits(spec, Facts(model=llama, data=LONG), 30 * GIB)

    assert smaller.fields == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}
    assert cheaper.fields == {"gradient_checkpointing": True}
    assert not smaller.changes_meaning and not cheaper.changes_meaning


def test_a_shorter_length_is_named_only_when_nothing_else_helps_and_as_another_job(llama: ModelFacts) -> None:
    spec = tune(per_device_train_batch_size=1, gradient_checkpointing=True, max_length=65_536)
    [change] = what_fits(spec, Facts(model=llama, data=LONG), 24 * GIB)

    assert change.changes_meaning
    assert set(change.fields) == {"max_length"}
    assert 4096 < change.fields["max_length"] < 16_384


def test_four_bits_are_named_where_no_smaller_batch_helps(llama: ModelFacts) -> None:
    (change,) = what_fits(tune(per_device_train_batch_size=1), Facts(model=llama, data=LONG), 12 * GIB)
    assert change.fields == {"gradient_checkpointing": True, "method": "qlora"} and change.changes_meaning


def test_fewer_prompts_at_once_fit(llama: ModelFacts) -> None:
    [change] = what_fits(ask(batch_size=64, max_new_tokens=2048), Facts(model=llama, data=LONG), 23 * GIB)

    assert set(change.fields) == {"batch_size"}
    assert 1 <= change.fields["batch_size"] < 64
    assert what_fits(ask(), Facts(model=llama, data=LONG), 10 * GIB) == []


@given(
    size=sizes, accumulation=st.integers(1, 8), length=lengths, room_gib=st.integers(16, 80), evaluates=st.booleans()
)
def test_what_is_named_fits_and_is_a_document(
    llama: ModelFacts, size: int, accumulation: int, length: int, room_gib: int, evaluates: bool
) -> None:
    spec = tune(per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, max_length=length,
                per_device_eval_batch_size=size, eval_data="e" if evaluates else None)  # fmt: skip
    facts = Facts(model=llama, data=LONG, eval_data=LONG)
    for change in what_fits(spec, facts, room_gib * GIB):
        changed = dump(parse({**spec, **change.fields}))
        assert estimate(changed, facts).vram_bytes == change.vram_bytes <= room_gib * GIB
        batches = [
            each["per_device_train_batch_size"] * each["gradient_accumulation_steps"] for each in (spec, changed)
        ]
        assert batches[0] == batches[1]
        other = changed["max_length"] != spec["max_length"] or changed["method"] != spec["method"]
        assert other == change.changes_meaning


# -- benchmarks ---------------------------------------------------------------------------------------------------------


def test_a_benchmark_needs_what_its_smallest_cell_does(llama: ModelFacts) -> None:
    def least(**fields: Any) -> Estimate:
        return made(dump(parse({"kind": "benchmark", "model": "m", **fields})), llama, None)

    small, whole = least(batch_sizes=[1], prompt_lengths=[128]), least(batch_sizes=[64, 1], prompt_lengths=[8192, 128])
    assert small.vram_bytes == whole.vram_bytes
    assert (small.steps, whole.steps) == (1, 4)
    assert 15 * GIB < (small.vram_bytes or 0) < 17 * GIB
    assert 5 * GIB < (least(quantizations=["none", "nf4"]).vram_bytes or 0) < 7 * GIB
    assert least(dtypes=["float32"]).parts["weights"] == 4 * llama.parameters


def test_a_cell_of_a_benchmark_needs_more_with_each_prompt_and_token(llama: ModelFacts) -> None:
    def cell(size: int, prompt: int, new_tokens: int = 128, **named: Any) -> int:
        return inference_bytes(llama, size, prompt, new_tokens, "bfloat16", on_gpu=True, **named)

    # of Llama 3 8B a token's keys and values take 128 KiB
    assert cell(8, 1024, 1152) - cell(8, 1024, 128) == pytest.approx(8 * 1024 * 128 * 1024 * 1.1, rel=0.02)
    assert cell(1, 128) < cell(2, 128) < cell(2, 256)
    assert cell(1, 128, quantization="nf4") < cell(1, 128, quantization="int8") < cell(1, 128)
