"""What differs between documents, and which way a metric gets better."""

import pytest

from jobs.differences import NOT_ITS_WORK, compared, differences, filled, same
from jobs.direction import direction
from jobs.spec import dump, parse

FINETUNE = {"kind": "finetune", "model": "org/model", "data": "rows.jsonl"}


def test_only_fields_that_differ_are_named_by_their_path() -> None:
    one = dump(parse({**FINETUNE, "learning_rate": 1e-4, "lora": {"r": 8}}))
    two = dump(parse({**FINETUNE, "learning_rate": 2e-4, "lora": {"r": 8}}))
    three = dump(parse({**FINETUNE, "learning_rate": 2e-4, "lora": {"r": 16}}))
    found = {field.name: field.values for field in differences([one, two, three])}
    assert found == {"learning_rate": (1e-4, 2e-4, 2e-4), "lora.r": (8, 8, 16)}


def test_a_field_that_is_left_out_has_its_default() -> None:
    assert differences([FINETUNE, {**FINETUNE, "learning_rate": 2e-4, "packing": False}]) == []
    assert filled(FINETUNE)["lora.r"] == 16


def test_documents_of_different_kinds_have_fields_that_the_other_lacks() -> None:
    found = {field.name: field.values for field in differences([FINETUNE, {"kind": "command", "argv": ["true"]}])}
    assert found["kind"] == ("finetune", "command") and found["argv"] == (None, ["true"])


def test_a_field_of_an_unknown_kind_is_compared_as_it_stands() -> None:
    assert [f.name for f in differences([{"kind": "x", "a": {"b": 1}}, {"kind": "x", "a": {"b": 2}}])] == ["a.b"]


def test_the_environment_stays_one_field() -> None:
    [field] = differences([{"kind": "command", "env": {"A": "1"}}, {"kind": "command", "env": {"A": "2"}}])
    assert field.name == "env"


def test_what_is_not_a_jobs_work_can_be_left_out() -> None:
    names = {field.name for field in compared([FINETUNE], without=NOT_ITS_WORK)}
    assert "learning_rate" in names and not names & NOT_ITS_WORK


@pytest.mark.parametrize(
    ("one", "other", "are"),
    [(1, 1.0, True), (True, 1, False), (None, [], True), ("", None, True), ([1], (1.0,), True), ([1], [1, 2], False), (0, None, False), (False, None, False), ({"a": 1}, {"a": 1}, True)],
)  # fmt: skip
def test_values_are_the_same_when_they_mean_the_same(one: object, other: object, are: bool) -> None:
    assert same(one, other) is are and same(other, one) is are


@pytest.mark.parametrize(
    ("metric", "better"),
    [("eval_loss", "lower"), ("train_loss", "lower"), ("wer", "lower"), ("perplexity", "lower"), ("accuracy", "higher"), ("mean_token_accuracy", "higher"), ("tokens_per_s", "higher"), ("exact_match", "higher"), ("f1_macro", "higher"), ("pass@1", "higher"), ("latency_p95_ms", "lower"), ("steps", None), ("learning_rate", None), ("loss_reduction", None), ("", None), ("<b>", None)],
)  # fmt: skip
def test_a_metrics_name_tells_which_way_is_better_or_nothing(metric: str, better: str | None) -> None:
    assert direction(metric) == better
