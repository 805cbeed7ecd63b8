"""What an evaluation's rows say together: the metrics' definitions, their errors by arithmetic that can be done by hand, and what may be compared."""

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from model_folders import LLAMA_3_8B, write_model

from jobs import environment
from jobs.data import DataReport
from jobs.direction import direction
from jobs.estimate import Estimate, Facts, estimate
from jobs.evaluation import basis, differences, includes, is_exact, is_telling, measured, summary, worst
from jobs.evaluation.questions import Item, fingerprint, in_batches, item
from jobs.fitting import what_fits
from jobs.model_facts import read_model
from jobs.rundir import write_json
from jobs.spec import InvalidSpec, dump, parse


def row(index: int, loss: float, tokens: int, correct: int = 0, **more: Any) -> dict[str, Any]:
    both = {"all_loss": loss, "all_tokens": tokens + 1}
    return {"index": index, "loss": loss, "tokens": tokens, "correct": correct, **both, **more}


# -- metrics ------------------------------------------------------------------------------------------------------------


def test_a_long_row_counts_by_its_tokens() -> None:
    found = measured([row(0, 1.0, 9, 9), row(1, 3.0, 1, 0)])
    assert found["eval_loss"].value == pytest.approx(1.2)
    assert found["perplexity"].value == pytest.approx(math.exp(1.2))
    assert found["token_accuracy"].value == pytest.approx(0.9)


def test_the_error_of_rows_of_one_length_is_that_of_a_mean() -> None:
    losses = [1.0, 2.0, 4.0, 5.0]
    found = measured([row(at, loss, 3) for at, loss in enumerate(losses)])["eval_loss"]
    by_hand = math.sqrt(sum((loss - 3.0) ** 2 for loss in losses) / 3 / 4)
    assert (found.value, found.stderr) == (pytest.approx(3.0), pytest.approx(by_hand))


def test_the_errors_hold_what_they_say() -> None:
    """Of a thousand samples of 60 rows out of one population, about 95 % have its loss within 1.96 errors."""
    chance = random.Random(1)
    rows = [row(at, chance.gauss(2.0, 0.7), chance.randint(1, 40)) for at in range(20_000)]
    truth = measured(rows)["eval_loss"].value
    samples = (measured(chance.sample(rows, 60))["eval_loss"] for _ in range(1000))
    within = sum(not is_telling(one.value - truth, one.stderr) for one in samples)
    assert 910 <= within <= 975


def test_answers_are_counted_among_the_rows_that_were_asked() -> None:
    answered = [
        row(0, 1.0, 2, exact=True, includes=True),
        row(1, 1.0, 2, exact=False, includes=True),
        row(2, 1.0, 2),
    ]
    found = summary(answered)
    assert (found["accuracy"], found["includes"], found["rows"]) == (0.5, 1.0, 3)
    assert found["measured_on"]["asked_rows"] == 2
    assert "accuracy" not in measured([row(0, 1.0, 2)])


def test_exact_leaves_out_spaces_at_the_ends_and_includes_looks_inside() -> None:
    assert is_exact(" Paris.\n", "Paris.") and not is_exact("paris.", "Paris.")
    assert includes("It is Paris.", " Paris.") and not includes("Lyon", "Paris")


def test_one_row_has_no_error_and_a_loss_beyond_numbers_no_perplexity() -> None:
    found = summary([row(0, 800.0, 2)])
    assert found["eval_loss_stderr"] is None
    assert "perplexity" not in found
    assert json.loads(json.dumps(found, allow_nan=False))["eval_loss"] == 800.0


def test_the_worst_rows_have_the_highest_loss_of_a_token() -> None:
    assert [one["index"] for one in worst([row(0, 1.0, 9), row(1, 3.0, 1), row(2, 2.0, 5)], 2)] == [1, 2]


# -- comparing ----------------------------------------------------------------------------------------------------------


def test_a_difference_is_taken_row_by_row() -> None:
    """All rows got better by the same: what rows differ in by themselves is no doubt about that."""
    base = [row(at, 1.0 + at, 4) for at in range(6)]
    tuned = [row(at, 0.9 + at, 4) for at in range(6)]
    found = differences(tuned, base)["eval_loss"]
    assert (found.value, found.stderr) == (pytest.approx(-0.1), pytest.approx(0.0, abs=1e-12))
    assert is_telling(found.value, found.stderr)
    apart = measured(tuned)["eval_loss"].stderr
    assert apart is not None and apart > 0.5


def test_other_rows_have_no_difference() -> None:
    assert differences([row(0, 1.0, 4)], [row(0, 1.0, 5)]) == {}
    assert differences([row(0, 1.0, 4)], [row(1, 1.0, 4)]) == {}


def test_two_results_compare_when_the_same_was_measured() -> None:
    facts: Mapping[str, Any] = {"definition": 1, "tokens_sha256": "a", "data_sha256": "d", "rows": 3, "asked_rows": 3, "max_new_tokens": 9, "tasks_sha256": "t"}  # fmt: skip
    told = {"measured_on": facts}
    other = {
        "measured_on": {**facts, "tokens_sha256": "b"}
    }  # another tokenizer: its tokens are not these, its answers are to the same
    assert basis(told, "perplexity") != basis(other, "perplexity")
    assert basis(told, "accuracy") == basis(other, "accuracy")
    assert basis(told, "accuracy") != basis({"measured_on": {**facts, "max_new_tokens": 1}}, "accuracy")
    assert basis(told, "arc_easy/acc") != basis({"measured_on": {**facts, "tasks_sha256": "u"}}, "arc_easy/acc")
    assert basis({"eval_loss": 1.0}, "eval_loss") is None


@pytest.mark.parametrize(
    ("metric", "better"),
    [("eval_loss", "lower"), ("perplexity", "lower"), ("all_tokens_perplexity", "lower"), ("token_accuracy", "higher"),
     ("accuracy", "higher"), ("includes", "higher"), ("arc_easy/acc_norm", "higher"), ("gsm8k/strict-match/exact_match", "higher"),
     ("eval_loss_stderr", None)],
)  # fmt: skip
def test_the_names_tell_which_way_is_better(metric: str, better: str | None) -> None:
    assert direction(metric) == better


# -- rows as tokens -----------------------------------------------------------------------------------------------------


class Words:
    """A tokenizer that makes a token of every word and `<…>`, with a chat template that most models have."""

    is_fast, eos_token_id, model_max_length = True, 1, 1000
    all_special_tokens = ("<end>",)
    chat_template = "{% for m in messages %}{{ m.role }} tools tool_calls {{ m.content }}<end>{% endfor %}"
    added_tokens_decoder: Mapping[int, Any] = {}

    def __call__(self, text: str, add_special_tokens: bool = True, return_offsets_mapping: bool = False) -> Any:
        spans, at = [], 0
        for word in text.replace("<end>", " <end>").split(" "):
            at = text.find(word, at)
            if word:
                spans.append((at, at + len(word)))
            at += len(word)
        ids = [1 if text[a:b] == "<end>" else 2 + sum(text[a:b].encode()) for a, b in spans]
        return {"input_ids": ids, "offset_mapping": spans} if return_offsets_mapping else {"input_ids": ids}

    def apply_chat_template(self, messages: Any, add_generation_prompt: bool, **_: Any) -> str:
        text = "".join(f"{m['role']} : {m['content']}<end>" for m in messages)
        return text + "assistant :" if add_generation_prompt else text


def made(raw: Mapping[str, Any], context: int = 1000, **fields: Any) -> Item:
    spec = dump(parse({"kind": "evaluate", "model": "m", "data": "/d", **fields}))
    return item(0, raw, spec, Words(), context)


CHAT = {"id": "q7", "messages": [{"role": "user", "content": "where is it"}, {"role": "assistant", "content": "on shelf 4"}]}  # fmt: skip


def test_a_chat_is_asked_for_its_last_answer() -> None:
    found = made(CHAT)
    asked = Words()("user : where is it<end>assistant :")["input_ids"]
    assert (found.id, found.expected, list(found.question)) == ("q7", "on shelf 4", asked)
    assert sum(label != -100 for label in found.labels) == 4


def test_a_prompt_is_asked_as_it_stands_and_a_text_not_at_all() -> None:
    pair = made({"prompt": "2 and 2 is", "completion": " 4"})
    assert (list(pair.question), pair.expected) == (Words()("2 and 2 is")["input_ids"], " 4")
    text = made({"text": "just words here"})
    assert (list(text.question), text.expected, text.id) == ([], "", 0)


def test_without_room_for_an_answer_or_without_wanting_one_none_is_asked() -> None:
    assert not made(CHAT, max_new_tokens=0).expected
    assert not made(CHAT, context=6).expected


def test_what_is_measured_has_one_fingerprint_to_the_token() -> None:
    assert fingerprint([made(CHAT)]) == fingerprint([made(CHAT, max_new_tokens=3)])
    assert fingerprint([made(CHAT)]) != fingerprint([made(CHAT, max_length=8)])
    assert fingerprint([made(CHAT)]) != fingerprint([made(CHAT, assistant_only_loss=False)])


def test_batches_go_from_the_longest_to_the_shortest() -> None:
    items = [Item(index=at, id=at, tokens=[0] * length, labels=[0] * length) for at, length in enumerate((3, 9, 1, 9))]
    assert in_batches(items, 3) == [[1, 3, 0], [2]]


# -- the document -------------------------------------------------------------------------------------------------------


def wrong(**fields: Any) -> list[str]:
    with pytest.raises(InvalidSpec) as refused:
        parse({"kind": "evaluate", "model": "m", **fields})
    return [f"{error.field}: {error.message}" for error in refused.value.errors]


def test_there_must_be_something_to_measure_on() -> None:
    assert wrong() == ["data: give rows to measure on, or tasks of lm-eval"]
    assert parse({"kind": "evaluate", "model": "m", "tasks": ["arc_easy"]}).kind == "evaluate"


@pytest.mark.parametrize("field", [{"num_fewshot": 5}, {"apply_chat_template": True}, {"workdir": "tasks"}])
def test_what_belongs_to_tasks_is_not_taken_without_them(field: dict[str, Any]) -> None:
    [name] = field
    assert wrong(data="/d", **field) == [f"{name}: belongs to tasks of lm-eval, and there are none"]


def test_a_folder_of_tasks_stays_inside_what_came_along() -> None:
    assert "inside workdir" in wrong(tasks=["mine"], workdir="sha256:" + "0" * 64, task_path="../other")[0]


def test_the_content_of_a_task_folder_is_written_down(tmp_path: Path) -> None:
    seen: set[str] = set()
    for name, text in (
        ("mine.yaml", "task: a"),
        ("mine.yaml", "task: b"),
        ("data/rows.jsonl", "{}"),
        ("data/rows.jsonl", "[]"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        seen.add(environment.comparable({"kind": "evaluate"}, {"task_path": str(tmp_path)})["inputs"]["task_path"])
    assert len(seen) == 4
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/own.pyc").write_text("made by running it")
    assert environment.comparable({"kind": "evaluate"}, {"task_path": str(tmp_path)})["inputs"]["task_path"] in seen


def test_a_model_that_knows_nothing_has_numbers_that_can_be_written(tmp_path: Path) -> None:
    rows = [
        {"index": at, "loss": 400.0 + 90 * at, "tokens": 3, "correct": 0, "all_loss": 400.0, "all_tokens": 4}
        for at in range(3)
    ]
    told = summary(rows)
    assert told["perplexity"] > 1e200 and told["perplexity_stderr"] is None and told["eval_loss_stderr"] > 0
    write_json(tmp_path / "results.json", told)


# -- what it needs ------------------------------------------------------------------------------------------------------


def test_the_estimate_never_counts_all_logits_of_a_batch(tmp_path: Path) -> None:
    model = read_model(write_model(tmp_path / "llama", LLAMA_3_8B))
    data = DataReport(rows=100, shape="text", sha256="", text_bytes=10**7, longest_bytes=10**5)

    def needs(**fields: Any) -> Estimate:
        spec = dump(parse({"kind": "evaluate", "model": "m", "data": "/d", "max_length": 4096, **fields}))
        return estimate(spec, Facts(model=model, data=data))

    large, small = needs(batch_size=16, max_new_tokens=0), needs(batch_size=1, max_new_tokens=0)
    whole_logits = 16 * 4096 * 128_256 * 4
    assert large.parts["logits"] < 0.1 * whole_logits and (small.vram_bytes or 0) < (large.vram_bytes or 0)
    assert (large.rows, needs(limit=7).rows) == (100, 7)
    assert needs(tasks=["arc_easy"]).vram_bytes is None
    [change] = what_fits(dump(parse({"kind": "evaluate", "model": "m", "data": "/d", "batch_size": 64})), Facts(model=model, data=data), 20 * 2**30)  # fmt: skip
    assert 1 <= change.fields["batch_size"] < 64 and not change.changes_meaning
