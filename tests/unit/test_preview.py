"""What a preview counts and shows."""

import json
from pathlib import Path
from typing import Any

import pytest

from api.cli.previews import _text
from jobs.light_tokenizer import LightTokenizer
from jobs.preview import SHOWN_CHARS, Preview, measure, spread

SPEC = {"kind": "finetune", "max_length": 1024, "assistant_only_loss": True}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> LightTokenizer:
    return LightTokenizer(tiny_model)


def preview(tokenizer: LightTokenizer, *rows: dict[str, Any], **fields: Any) -> Preview:
    return measure(enumerate(rows, 1), {**SPEC, **fields}, tokenizer)


def shown(found: Preview, number: int = 0) -> str:
    segments = found.examples[number].segments
    return _text([{"text": part.text, "part": part.part} for part in segments], coloured=False)


def test_a_preference_is_shown_with_both_answers(tokenizer: LightTokenizer) -> None:
    row = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green, I think."}
    found = preview(tokenizer, row, objective="dpo")
    assert [example.name for example in found.examples] == ["chosen", "rejected"]
    assert shown(found) == "The sky is[[ blue.<|im_end|>]]"
    assert shown(found, 1) == "The sky is[[ green, I think.<|im_end|>]]"
    assert found.lengths is not None
    assert found.lengths.longest == found.examples[1].tokens
    assert found.tokens == found.kept_tokens == sum(example.tokens for example in found.examples)
    judged = {"prompt": "The sky is", "completion": " blue.", "label": True}
    assert shown(preview(tokenizer, judged, objective="kto")) == "The sky is[[ blue.<|im_end|>]]"


def test_what_max_length_cuts_off_is_shown(tokenizer: LightTokenizer) -> None:
    row = {"prompt": "Count:", "completion": " one two three four"}
    found = preview(tokenizer, row, max_length=6)
    assert shown(found).endswith("]]{{cut: <|im_end|>}}")
    assert (
        shown(found).replace("[[", "").replace("]]", "").replace("{{cut: ", "").replace("}}", "")
        == "Count: one two three four<|im_end|>"
    )
    assert (found.cut, found.dropped) == (1, 0)
    gone = preview(tokenizer, {"prompt": "a b c d e f g h", "completion": " x"}, max_length=4)
    assert (gone.dropped, gone.trained_tokens) == (1, 0)
    assert gone.notes == ("Nothing can be learnt from 1 of 1 rows: max_length cuts off the whole answer.",)


def test_texts_that_are_packed_are_not_cut(tokenizer: LightTokenizer) -> None:
    row = {"text": "one two three " * 20}
    assert preview(tokenizer, row, max_length=16, packing=True).cut == 0
    assert preview(tokenizer, row, max_length=16).cut == 1


def test_half_of_the_rows_are_not_longer_than_the_median(tokenizer: LightTokenizer) -> None:
    rows = [{"text": "a " * n} for n in range(1, 101)]
    found = preview(tokenizer, *rows)
    assert found.lengths is not None
    lengths = sorted(len(tokenizer(row["text"])["input_ids"]) + 1 for row in rows)
    assert (found.lengths.p50, found.lengths.p90, found.lengths.p99, found.lengths.longest) == (
        lengths[49], lengths[89], lengths[98], lengths[99],
    )  # fmt: skip


def test_a_long_row_is_shown_in_part(tokenizer: LightTokenizer) -> None:
    row = {"prompt": "question " * 5_000, "completion": " answer" * 5_000}
    text = shown(preview(tokenizer, row, max_length=100_000))
    assert len(text) < 2 * SHOWN_CHARS
    assert text.startswith("question question")
    assert text.endswith("answer<|im_end|>]]")


def test_of_a_large_file_rows_from_everywhere_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("".join(json.dumps({"text": str(n)}) + "\n" for n in range(10_000)))
    lines = [line for line, _ in spread(path, 10_000)]
    assert (len(lines), lines[0], lines[-1]) == (2_000, 1, 9_996)


def test_it_stops_when_time_is_up(tokenizer: LightTokenizer) -> None:
    rows = [(n, {"text": "a"}) for n in range(1, 1_000)]
    assert measure(rows, SPEC, tokenizer, enough=lambda: True, rows=999).measured == 1
