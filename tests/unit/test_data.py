"""Files of rows: what is accepted, and what a refusal says. The tokenizer is a real one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from jobs.data import DataReport, InvalidData, check_prompts, check_training, read_rows
from jobs.encoding import IGNORED, encode

CHAT = {"messages": [{"role": "user", "content": "Where is bolt 7?"}, {"role": "assistant", "content": "Shelf A1."}]}
SYSTEM = {"role": "system", "content": "Be short."}
USER = {"role": "user", "content": "Where?"}
#: Like Qwen3's: thinking is dropped from all turns but the last, so an early turn reads otherwise once another follows.
REWRITING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def refusal(path: Path, *, prompts: bool = False) -> str:
    with pytest.raises(InvalidData) as caught:
        (check_prompts if prompts else check_training)(path)
    return str(caught.value)


# -- whole files --------------------------------------------------------------------------------------------------------


def test_a_valid_file_is_counted_and_named_by_its_content(tmp_path: Path) -> None:
    report = check_training(jsonl(tmp_path / "upload", CHAT, CHAT, CHAT))
    assert (report.rows, report.shape) == (3, "messages")
    assert len(report.sha256) == 64


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        (CHAT, "messages"),
        ({"prompt": "2+2=", "completion": "4"}, "prompt_completion"),
        ({"prompt": [USER], "completion": [{"role": "assistant", "content": "A1"}]}, "prompt_completion"),
        ({"text": "A whole text."}, "text"),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "A1"}]}]}, "messages"),
        ({"id": 7, "source": "notes", "text": "Fields that are not ours are fine."}, "text"),
    ],
)
def test_every_shape_is_recognised(tmp_path: Path, row: dict[str, Any], shape: str) -> None:
    assert check_training(jsonl(tmp_path / "rows", row)).shape == shape


def test_a_broken_line_is_named_with_its_number(tmp_path: Path) -> None:
    lines = [json.dumps(CHAT)] * 50
    lines[36] = '{"messages": [}'
    assert refusal(jsonl(tmp_path / "rows", *lines)).startswith("line 37: not valid JSON: ")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [USER]}, "line 2: `messages` needs at least one assistant message"),
        ({"messages": []}, "line 2: `messages` is empty"),
        ({"messages": "hello"}, "line 2: `messages` must be a list of messages"),
        (
            {"messages": [{"role": "human", "content": "x"}]},
            "`messages[0].role` is 'human'; it must be one of system, user",
        ),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "`messages[1].content` is empty"),
        ({"messages": [USER, {"role": "assistant", "content": 7}]}, "`messages[1].content` must be a text, not int"),
        (
            {"messages": [USER, {"role": "assistant", "content": "x", "weight": 0}]},
            "needs at least one assistant message",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part that is not text"),
        ({"prompt": "x"}, "line 2: `completion` is missing"),
        ({"prompt": "x", "completion": ""}, "line 2: `completion` is empty"),
        ({"prompt": "x", "completion": [USER]}, "must both be texts or both be lists of messages"),
        ({"prompt": [USER], "completion": [USER]}, "`completion` must end with an assistant message"),
        ({"text": "  "}, "line 2: `text` is empty"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "`conversations` needs at least one assistant message"),
        ({"conversations": [{"from": "me", "value": "x"}]}, "`conversations[0].from` is 'me'; known are system, human"),
        ({"instruction": "x", "input": "y"}, "line 2: `output` is missing"),
        ({"chosen": "x", "rejected": "y"}, "preference data"),
        ({"question": "x"}, "needs `messages`, `prompt` and `completion`, or `text`; it has `question`"),
        ({}, "it has no fields"),
        ([CHAT], "line 2: not a JSON object but list"),
        ("nonsense", "line 2: not valid JSON"),
        ('{"text": ' + "[" * 100_000, "line 2: nested too deeply"),
        ('{"text": "\\ud800"}', "line 2: `text` holds half of a surrogate pair"),
        ({"text": "x"}, "line 2: has `text`, but the rows before have `messages`; one file holds one shape"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(tmp_path: Path, row: object, message: str) -> None:
    assert message in refusal(jsonl(tmp_path / "rows", CHAT, row))


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    assert refusal(jsonl(tmp_path / "none")) == "the file has no rows"
    assert refusal(jsonl(tmp_path / "blank", "", "  ", "")) == "the file has no rows"


def test_a_file_that_is_gone_is_refused_in_words(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone") == "the file cannot be read: No such file or directory"


def test_a_file_that_is_not_text_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "latin1"
    path.write_bytes(json.dumps(CHAT).encode() + b'\n{"text": "caf\xe9"}\n')
    assert refusal(path) == "line 2: not UTF-8 text (byte 14 of the line)"


def test_blank_lines_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(CHAT).encode() + b"\n\n" + json.dumps(CHAT).encode())
    assert check_training(path).rows == 2
    assert [line for line, _ in read_rows(path)] == [1, 3]


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.data.json_rows.MAX_LINE_BYTES", 2**20)
    assert refusal(jsonl(tmp_path / "rows", "x" * 2**21)) == "line 1: is longer than 1 MiB; one row is one line"


# -- Parquet ------------------------------------------------------------------------------------------------------------


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def test_parquet_is_recognised_without_a_file_name(tmp_path: Path) -> None:
    report = check_training(parquet(tmp_path / "0f3a", [CHAT] * 1000))
    assert report == DataReport(rows=1000, shape="messages", sha256=report.sha256)


def test_a_bad_row_of_parquet_is_named_with_its_number(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "completion": "y"}] * 300 + [{"prompt": "x", "completion": None}]
    assert refusal(parquet(tmp_path / "rows", rows)) == "row 301: `completion` is missing"


def test_fields_that_parquet_fills_with_nulls_count_as_absent(tmp_path: Path) -> None:
    weighted = {"messages": [USER, {"role": "assistant", "content": "A1", "weight": 1}]}
    path = parquet(tmp_path / "rows", [CHAT, weighted])
    assert check_training(path).rows == 2
    assert "weight" not in next(row for _, row in read_rows(path))["messages"][0]


def test_half_a_parquet_file_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows", [CHAT] * 1000)
    path.write_bytes(path.read_bytes()[:400])
    assert refusal(path).startswith("not readable as Parquet: ")


# -- prompts ------------------------------------------------------------------------------------------------------------


def test_prompts_may_have_ids_of_their_own(tmp_path: Path) -> None:
    report = check_prompts(
        jsonl(tmp_path / "rows", {"id": "a", "prompt": "x"}, {"id": 2, "prompt": "y"}, {"prompt": "z"})
    )
    assert (report.rows, report.shape) == (3, "prompt")
    assert check_prompts(jsonl(tmp_path / "chats", {"messages": [SYSTEM, USER]})).shape == "messages prompts"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "prompt": "y"}, "line 2: `id` 'a' was used before"),
        ({"id": 1.5, "prompt": "y"}, "`id` must be a text or a whole number"),
        ({"prompt": ""}, "`prompt` is empty"),
        ({"prompt": ["y"]}, "`prompt` must be a text, not list"),
        ({"text": "y"}, "needs `prompt` (a text) or `messages`; it has `text`"),
        (CHAT, "ends with the assistant's words; there is nothing left to answer"),
        ({"messages": [USER]}, "has `messages`, but the rows before have `prompt`"),
    ],
)
def test_what_is_wrong_with_a_prompt_is_said(tmp_path: Path, row: object, message: str) -> None:
    assert message in refusal(jsonl(tmp_path / "rows", {"id": "a", "prompt": "x"}, row), prompts=True)


# -- tokens and labels --------------------------------------------------------------------------------------------------


def load_tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


def learnt(row: dict[str, Any], tokenizer: Any, *, max_length: int | None = None, assistant_only: bool = True) -> str:
    encoded = encode(row, tokenizer, max_length, assistant_only)
    assert all(label in (token, IGNORED) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))
    return str(tokenizer.decode([label for label in encoded.labels if label != IGNORED]))


def conversation(*turns: str, **last: object) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]
    return {"messages": [*messages[:-1], {**messages[-1], **last}]}


def test_only_the_assistants_words_are_learnt(tokenizer: Any) -> None:
    row = conversation("Where is bolt 7?", "Shelf A1.", "And 8?", "Shelf C4.")
    assert learnt(row, tokenizer) == "Shelf A1.<|im_end|>Shelf C4.<|im_end|>"


def test_a_system_message_is_read_but_not_learnt(tokenizer: Any) -> None:
    row = {"messages": [SYSTEM, *conversation("Where?", "Shelf A1.")["messages"]]}
    assert learnt(row, tokenizer) == "Shelf A1.<|im_end|>"
    assert "Be short." in tokenizer.decode(encode(row, tokenizer, None).input_ids)


def test_a_message_with_weight_zero_is_not_learnt(tokenizer: Any) -> None:
    row = conversation("Where?", "Wrong shelf.", "Really?", "Shelf C4.")
    row["messages"][1]["weight"] = 0
    assert learnt(row, tokenizer) == "Shelf C4.<|im_end|>"
    everything = learnt(row, tokenizer, assistant_only=False)
    assert "Really?" in everything
    assert "Wrong shelf." not in everything


def test_everything_is_learnt_when_asked_for(tokenizer: Any) -> None:
    encoded = encode(CHAT, tokenizer, None, assistant_only_loss=False)
    assert encoded.labels == encoded.input_ids


def test_the_assistant_may_speak_first(tokenizer: Any) -> None:
    messages = [{"role": "assistant", "content": "Good evening."}, USER, {"role": "assistant", "content": "Here."}]
    assert learnt({"messages": messages}, tokenizer) == "Good evening.<|im_end|>Here.<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_understood(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = REWRITING_TEMPLATE
    row = conversation("Where?", "Shelf A1.", "And 8?", "Shelf C4.")
    assert learnt(row, tokenizer) == "Shelf A1.<|im_end|>Shelf C4.<|im_end|>".replace(
        "Shelf C4.", "<think>\n\n</think>\n\nShelf C4."
    )


def test_a_completion_is_learnt_and_its_prompt_is_not(tokenizer: Any) -> None:
    assert learnt({"prompt": "2+2=", "completion": " 4"}, tokenizer) == " 4<|im_end|>"
    chat = {"prompt": [USER], "completion": [{"role": "assistant", "content": "Shelf A1."}]}
    assert learnt(chat, tokenizer) == "Shelf A1.<|im_end|>"


def test_a_text_is_learnt_to_its_end(tokenizer: Any) -> None:
    assert learnt({"text": "The rig sleeps."}, tokenizer) == "The rig sleeps.<|im_end|>"


def test_words_beyond_ascii_keep_their_mask(tokenizer: Any) -> None:
    row = conversation("Wo ist die Schraube? 🔩", "Im Regal A1 — grüne Kiste. 🟩")
    assert learnt(row, tokenizer) == "Im Regal A1 — grüne Kiste. 🟩<|im_end|>"


def test_a_row_that_is_too_long_is_cut_and_says_so(tokenizer: Any) -> None:
    whole = encode(CHAT, tokenizer, None)
    cut = encode(CHAT, tokenizer, len(whole.input_ids) - 2)
    assert (whole.cut, cut.cut) == (False, True)
    assert len(cut.input_ids) == len(cut.labels) == len(whole.input_ids) - 2
    assert encode(CHAT, tokenizer, 8).trained == 0  # nothing of the answer is left


def test_without_a_chat_template_messages_are_refused_in_words(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template; use `prompt`/`completion` or `text`"):
        encode(CHAT, tokenizer, None)


def test_a_template_that_refuses_a_row_is_quoted(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="refuses the messages: roles must alternate"):
        encode(CHAT, tokenizer, None)


def test_a_chat_template_of_ones_own_takes_the_models_place(tiny_model: Path, tmp_path: Path) -> None:
    """And an adapter brings the one that it learnt with."""
    from jobs import weights
    from jobs.run import JobError, Order

    def order(**paths: Path) -> Order:
        found = {name: str(path) for name, path in {"model": tiny_model, **paths}.items()}
        return Order(job_id="1", attempt=1, fence=1, resume=False, spec={"model": "tiny"}, paths=found)

    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    for paths in ({"chat_template": tmp_path / "chat_template.jinja"}, {"adapter": tmp_path}):
        tokenizer = weights.load_tokenizer(order(**paths))
        assert tokenizer.apply_chat_template(CHAT["messages"], tokenize=False) == "Where is bolt 7?!"
    (tmp_path / "chat_template.jinja").write_text("{% if messages %}")
    with pytest.raises(JobError, match="is not a Jinja template: line 1"):
        weights.load_tokenizer(order(adapter=tmp_path))
