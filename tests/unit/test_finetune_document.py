"""What a fine-tune's document may say, what is filled in, and which evaluation was the best."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.best import Best
from jobs.spec import InvalidSpec, dump, parse

ROOT = Path(__file__).parent.parent.parent
OWN = {"kind": "finetune", "model": "m", "data": "/d"}


def made(**fields: Any) -> dict[str, Any]:
    return dump(parse({**OWN, **fields}))


def batch(**fields: Any) -> tuple[int | None, int, int]:
    spec = made(**fields)
    names = ("effective_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")
    return tuple(spec[name] for name in names)  # type: ignore[return-value]


def test_an_effective_batch_is_written_down_with_the_least_micro_batch() -> None:
    assert batch() == (None, 4, 4)
    assert batch(effective_batch_size=16) == (16, 1, 16)
    assert batch(effective_batch_size=16, per_device_train_batch_size=8) == (16, 8, 2)
    assert batch(effective_batch_size=16, gradient_accumulation_steps=2) == (16, 8, 2)
    assert batch(effective_batch_size=16, objective="kto") == (16, 2, 8)


@given(
    whole=st.integers(1, 512), micro=st.none() | st.integers(1, 64), objective=st.sampled_from(["sft", "dpo", "kto"])
)
def test_a_document_keeps_its_batch_when_it_is_read_again(whole: int, micro: int | None, objective: str) -> None:
    fields = {"effective_batch_size": whole, "objective": objective}
    try:
        spec = made(**fields, **({"per_device_train_batch_size": micro} if micro else {}))
    except InvalidSpec:
        assert (micro and whole % micro) or (objective == "kto" and (micro == 1 or whole % 2))
        return
    assert spec["per_device_train_batch_size"] * spec["gradient_accumulation_steps"] == whole
    assert dump(parse(spec)) == spec


def test_the_usual_learning_rate_depends_on_what_learns_from_what() -> None:
    rates = [made(method=method, objective=objective)["learning_rate"] for method in ("lora", "full") for objective in ("sft", "dpo")]  # fmt: skip
    assert rates == [2e-4, 5e-6, 2e-5, 1e-6]
    assert made(method="full", learning_rate=3e-4)["learning_rate"] == 3e-4


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"effective_batch_size": 10, "per_device_train_batch_size": 4}, "effective_batch_size", "is 8"),
        ({"objective": "kto", "per_device_train_batch_size": 1}, "per_device_train_batch_size", "2 or more"),
        ({"method": "full", "lora": {"r": 4}}, "lora", "no adapter"),
        ({"method": "full", "adapter": "job:1"}, "adapter", "method lora or qlora"),
        ({"pure_bf16": True}, "pure_bf16", "method full"),
        ({"objective": "dpo", "packing": True}, "packing", "sft"),
        ({"beta": 0.1}, "beta", "dpo or kto"),
        ({"loss_type": "sigmoid"}, "loss_type", "nll, dft"),
        ({"eval_data": "/e", "eval_fraction": 0.1}, "eval_fraction", "one of them"),
        ({"early_stopping_patience": 3, "eval_fraction": 0.1}, "early_stopping_patience", "eval_steps"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end", "eval_data"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_kwargs", "min_lr_rate"),
        ({"lr_scheduler_kwargs": {"power": 2}}, "lr_scheduler_kwargs", "it has none"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "cosine"}}, "lr_scheduler_kwargs", "a number"),
        ({"lora": {"init_lora_weights": "pissa"}}, "lora.init_lora_weights", "change the base model"),
        ({"lora": {"use_doras": True}}, "lora.use_doras", "did you mean 'use_dora'"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_at_its_field(fields: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        made(**fields)
    found = {error.field.split(".bool")[0].split(".function")[0]: error.message for error in refused.value.errors}
    assert words in found[field]


def look(best: Best, *values: float) -> list[bool]:
    return [best.look(step, {best.metric: value}) for step, value in enumerate(values, 1)]


def best(**fields: Any) -> Best:
    return Best.of(made(eval_data="/e", eval_steps=1, **fields))


def test_the_smaller_loss_and_the_greater_accuracy_are_better() -> None:
    assert look(best(), 3.0, 2.0, 2.5) == [True, True, False]
    assert look(best(metric_for_best_model="mean_token_accuracy"), 0.3, 0.2, 0.4) == [True, False, True]
    assert look(best(metric_for_best_model="rewards/margins", greater_is_better=False), 0.3, 0.2) == [True, True]


def test_patience_counts_evaluations_that_were_not_better_by_the_threshold() -> None:
    patient = best(early_stopping_patience=2, early_stopping_threshold=0.1)
    assert look(patient, 3.0, 2.95, 2.91) == [True, False, False]
    assert (patient.stopped, patient.step) == (True, 1)
    assert not best().stopped


def test_a_loss_that_is_no_number_is_never_the_best() -> None:
    assert look(best(), float("nan"), 3.0, float("inf")) == [False, True, False]


@given(values=st.lists(st.floats(0, 10), max_size=20), cut=st.integers(0, 20))
def test_the_evaluations_of_earlier_attempts_count_as_if_there_had_been_one(values: list[float], cut: int) -> None:
    lines = [{"step": step, "loss": 1.0, "eval_loss": value} for step, value in enumerate(values, 1)]
    whole, resumed = best(early_stopping_patience=3), best(early_stopping_patience=3)
    whole.recall(lines)
    resumed.recall(lines[:cut])
    resumed.recall(lines[cut:])
    assert whole == resumed


def test_only_two_modules_know_trl() -> None:
    knows = re.compile(r"^\s*(from trl|import trl)\b", re.MULTILINE)
    found = {path.name for path in (ROOT / "jobs").rglob("*.py") if knows.search(path.read_text())}
    assert found == {"sft.py", "preferences.py"}
