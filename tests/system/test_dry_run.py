"""The dry run on fake tensors: its counts are exact where they can be counted by hand, and near the arithmetic elsewhere."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from model_folders import LLAMA_32_1B, MIXTRAL_8X7B

from daemon import dry_runs
from daemon.dry_runs import NoDryRun, dry_parts
from jobs.dry_run import Step, dry_run
from jobs.estimate import Facts, estimate, of_step
from jobs.model_facts import of_config
from jobs.spec import FinetuneSpec, dump, parse

#: Two layers of it: every term is there, and a step takes a second.
CONFIG = {**LLAMA_32_1B, "num_hidden_layers": 2}
LINEARS = 2 * (2048 * 2048 * 2 + 2048 * 512 * 2 + 3 * 2048 * 8192)
PARAMETERS = 128256 * 2048 + LINEARS + 2 * 2 * 2048 + 2048
ADAPTERS = 2 * 16 * (2 * 4096 + 2 * 2560 + 3 * 10240)


def document(**fields: Any) -> dict[str, Any]:
    made = {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 2, "max_length": 512, **fields}
    return dump(parse({"kind": "finetune", "model": "m", "data": "d", "gradient_checkpointing": True, **made}))


def step(**fields: Any) -> Step:
    return dry_run(CONFIG, document(**fields))


def parts(**fields: Any) -> dict[str, int]:
    return {str(name): size for name, size in of_step(document(**fields), vars(step(**fields))).items()}


def test_what_can_be_counted_by_hand_is_counted_exactly() -> None:
    found = step()
    assert (found.parameters, found.linear_parameters, found.learned) == (PARAMETERS, LINEARS, ADAPTERS)
    assert (found.hidden, found.vocabulary, found.largest_linear) == (2048, 128256, 2048 * 8192)
    # bfloat16, adapters in float32, and the small tables of the rotary embedding
    assert 0 <= found.weights_bytes - 2 * PARAMETERS - 4 * ADAPTERS < 4096
    made = parts()
    assert (made["weights"], made["adapter"], made["optimizer"]) == (2 * PARAMETERS, 4 * ADAPTERS, 8 * ADAPTERS)
    assert step(method="full", pure_bf16=True).learned == PARAMETERS


def test_each_token_more_keeps_as_much_more() -> None:
    one, two, four = (step(per_device_train_batch_size=rows).kept_bytes for rows in (1, 2, 4))
    assert four - two == 2 * (two - one) > 0
    assert step(gradient_checkpointing=False).kept_bytes > 3 * two


def test_gradients_of_the_micro_batch_before_count_where_it_accumulates() -> None:
    once, often = step(), step(gradient_accumulation_steps=4)
    assert often.kept_bytes - once.kept_bytes == pytest.approx(4 * ADAPTERS, rel=0.01)


@pytest.mark.parametrize(
    ("fields", "least", "most"),
    [
        ({}, 0.97, 1.03),
        # of two layers only, the one that is on its way back weighs much; of sixteen it is 1 %
        ({"gradient_checkpointing": False}, 0.75, 1.1),
        # the arithmetic takes its adapters for float32 ones, which cost more on the way
        ({"method": "qlora"}, 0.97, 1.4),
    ],
    ids=["lora", "no checkpointing", "qlora"],
)
def test_the_arithmetic_is_near_it_and_never_much_below(fields: dict[str, Any], least: float, most: float) -> None:
    named = {**fields, "max_length": 2048, "gradient_accumulation_steps": 4}
    arithmetic, stepped = estimate(document(**named), Facts(model=of_config(CONFIG))).parts, parts(**named)
    assert least < arithmetic["activations"] / stepped["activations"] < most
    assert (arithmetic["weights"], arithmetic["optimizer"]) == (stepped["weights"], stepped["optimizer"])
    # the loss's moment and the backward pass's are two: the arithmetic adds them up to be safe
    assert sum(arithmetic.values()) > 0.99 * sum(stepped.values())


def spec_of(**fields: Any) -> FinetuneSpec:
    spec = parse({"kind": "finetune", "model": "m", "data": "d", "max_length": 64, **fields})
    assert isinstance(spec, FinetuneSpec)
    return spec


def model_of(folder: Path, config: object) -> dict[str, str]:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return {"model": str(folder)}


def test_a_model_that_no_arithmetic_knows_is_stepped_through_by_the_rig(tmp_path: Path) -> None:
    small = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 512}  # fmt: skip
    found = dry_parts(spec_of(), model_of(tmp_path / "m", {**MIXTRAL_8X7B, **small}), None)
    assert found["weights"] > 2 * 2 * 8 * 3 * 64 * 128  # two bytes of eight experts in two layers
    assert found["activations"] > 0


def test_what_cannot_be_stepped_through_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoDryRun, match="this is dpo"):
        dry_parts(spec_of(objective="dpo"), {}, None)
    with pytest.raises(NoDryRun, match="still on the hub"):
        dry_parts(spec_of(model="org/unheard-of"), {}, None)
    broken = model_of(tmp_path / "m", {"model_type": "nonsense"})
    answers = iter(['{"problem": "ValueError: nonsense is no model"}', "Killed"])
    monkeypatch.setattr(dry_runs.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=next(answers).encode()))
    with pytest.raises(NoDryRun, match=r"its config.json cannot be stepped through: ValueError: nonsense is no model"):
        dry_parts(spec_of(), broken, None)
    with pytest.raises(NoDryRun, match="it did not succeed"):
        dry_parts(spec_of(max_length=65), broken, None)
