"""A number in a document is a number: true and false are refused where Python would read 1 and 0."""

from typing import Any

import pytest

from jobs.spec import KINDS, InvalidSpec, parse
from jobs.sweep import Draw, RangeWords, read_words

LEAST: dict[str, dict[str, Any]] = {
    "finetune": {"model": "m", "data": "d"},
    "generate": {"model": "m", "data": "d"},
    "command": {"argv": ["true"]},
}


@pytest.mark.parametrize(
    ("kind", "fields", "where"),
    [
        ("finetune", {"learning_rate": True}, "learning_rate"),
        ("finetune", {"max_steps": False}, "max_steps"),
        ("finetune", {"lora": {"r": True}}, "lora.r"),
        ("finetune", {"lora": {"layers_to_transform": [1, True]}}, "lora.layers_to_transform"),
        (
            "finetune",
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": True}},
            "lr_scheduler_kwargs",
        ),
        ("generate", {"temperature": True}, "temperature"),
        ("command", {"gpus": True}, "gpus"),
        ("command", {"max_runtime_s": True}, "max_runtime_s"),
        ("command", {"not_before": True}, "not_before"),
    ],
)
def test_true_is_no_number(kind: str, fields: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse({"kind": kind, **LEAST[kind], **fields})
    [error] = caught.value.errors
    assert error.field == where and error.message.startswith("is a number here, not true or false")


@pytest.mark.parametrize("kind", list(LEAST))
def test_no_number_of_any_kind_takes_true(kind: str) -> None:
    for name, field in KINDS[kind].model_fields.items():
        if field.annotation in (int, float, int | None, float | None):
            with pytest.raises(InvalidSpec, match=f"{name}: is a number here"):
                parse({"kind": kind, **LEAST[kind], name: True})


def test_switches_stay_switches() -> None:
    spec: Any = parse({"kind": "finetune", **LEAST["finetune"], "packing": True, "lora": {"use_dora": True, "init_lora_weights": False}})  # fmt: skip
    assert spec.packing is True and spec.lora.use_dora is True and spec.lora.init_lora_weights is False


def test_a_sweep_takes_true_as_a_value_but_not_as_a_number_of_its_own() -> None:
    assert read_words(Draw, {"samples": 4}, "sweep").samples == 4
    for model, words in ((Draw, {"samples": True}), (RangeWords, {"min": False, "max": True})):
        with pytest.raises(InvalidSpec, match="is a number here"):
            read_words(model, words, "sweep")  # type: ignore[type-var]
