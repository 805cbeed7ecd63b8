"""What is learnt of a row. The first part is the table of what TRL's trainer does with these rows by itself, and what we do.

The tokenizer is a real one, without transformers (tests/contract/test_preview.py holds it to what transformers does).
"""

from pathlib import Path
from typing import Any

import pytest

from jobs.data import Reading, convert
from jobs.encoding import IGNORED, Encoded, encode, encode_answer
from jobs.light_tokenizer import LightTokenizer

Q1, A1 = {"role": "user", "content": "Where is the bolt kept?"}, {"role": "assistant", "content": "Shelf A1."}
Q2, A2 = {"role": "user", "content": "And the fan?"}, {"role": "assistant", "content": "Shelf C4."}
CHAT = {"messages": [Q1, A1, Q2, A2]}
BOTH = "Shelf A1.<|im_end|>Shelf C4.<|im_end|>"


@pytest.fixture(scope="module")
def folder(tiny_model: Path) -> Path:
    return tiny_model


def tokenizer(folder: Path, template: str | None = None) -> LightTokenizer:
    return LightTokenizer(folder, template)


def learnt_of(encoded: Encoded, tokens: LightTokenizer) -> str:
    return tokens.decode([label for label in encoded.labels if label != IGNORED])


def learnt(folder: Path, row: dict[str, Any], template: str | None = None, **options: Any) -> str:
    tokens = tokenizer(folder, template)
    return learnt_of(encode(row, tokens, None, **options), tokens)


# -- the table ----------------------------------------------------------------------------------------------------------

MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_chats_teach_the_assistants_words_and_not_the_users(folder: Path) -> None:
    """TRL: everything."""
    assert learnt(folder, CHAT) == BOTH


def test_a_template_without_generation_markers_is_no_obstacle(folder: Path) -> None:
    """TRL: ValueError with assistant_only_loss."""
    tokens = tokenizer(folder)
    assert "generation %}" not in str(tokens.chat_template)
    assert learnt_of(encode(CHAT, tokens, None, assistant_only_loss=True), tokens) == BOTH


def test_a_template_with_generation_markers_gives_the_same(folder: Path) -> None:
    assert learnt(folder, CHAT, MARKED) == BOTH


def test_pairs_teach_the_completion(folder: Path) -> None:
    assert learnt(folder, {"prompt": [Q1], "completion": [A1]}) == "Shelf A1.<|im_end|>"
    assert learnt(folder, {"prompt": "Q: 2+2?\nA:", "completion": " 4"}) == " 4<|im_end|>"


def test_texts_teach_everything_and_their_end(folder: Path) -> None:
    assert learnt(folder, {"text": "hello world"}) == "hello world<|im_end|>"


def test_sharegpt_becomes_the_same_tokens_as_messages(folder: Path) -> None:
    """TRL: accepted, with roles named human and gpt, and everything learnt."""
    turns = [("human", Q1), ("gpt", A1), ("human", Q2), ("gpt", A2)]
    row = {"conversations": [{"from": speaker, "value": message["content"]} for speaker, message in turns]}
    tokens = tokenizer(folder)
    assert encode(row, tokens, None) == encode(CHAT, tokens, None)


def test_alpaca_is_taken(folder: Path) -> None:
    """TRL: KeyError 'text'."""
    assert learnt(folder, {"instruction": "Say hi", "input": "", "output": "hi"}) == "hi<|im_end|>"


def test_openais_weight_is_heeded(folder: Path) -> None:
    """TRL: ignored."""
    assert learnt(folder, {"messages": [Q1, {**A1, "weight": 0}, Q2, {**A2, "weight": 1}]}) == "Shelf C4.<|im_end|>"


def test_openais_preferences_are_taken(folder: Path) -> None:
    """TRL: KeyError 'chosen'."""
    row = {"input": {"messages": [Q1]}, "preferred_output": [A1], "non_preferred_output": [A2]}
    found, tokens = convert(row, Reading("dpo")).row, tokenizer(folder)
    answers = [encode_answer(found["prompt"], found[name], None, tokens, None) for name in ("chosen", "rejected")]
    assert [learnt_of(each, tokens) for each in answers] == ["Shelf A1.<|im_end|>", "Shelf C4.<|im_end|>"]


def test_what_is_cut_is_counted_and_a_row_without_anything_left_is_told(folder: Path) -> None:
    """TRL: cut at 1024 without a word, and left out without a word."""
    tokens = tokenizer(folder)
    whole = encode(CHAT, tokens, None)
    cut = encode(CHAT, tokens, whole.whole - 5)
    assert (cut.cut, cut.whole, cut.whole_trained) == (True, whole.whole, whole.trained)
    assert 0 < cut.trained < whole.trained
    assert encode(CHAT, tokens, 10).trained == 0


# -- templates that make it hard ----------------------------------------------------------------------------------------

#: Like Mistral's: no header before an answer, and the system's words go into the last question.
MERGING = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m.role == 'user' %}[INST] {% if system and (loop.last or loop.revindex == 2) %}{{ system }}\n\n{% endif %}"
    "{{ m.content }} [/INST]{% else %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)
#: ChatML that does not know add_generation_prompt.
HEADLESS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
#: Refuses a conversation that does not end with the assistant.
WHOLE_ONLY = (
    "{% if messages[-1].role != 'assistant' or messages|length % 2 %}{{ raise_exception('turns come in pairs') }}{% endif %}" + HEADLESS
)  # fmt: skip
#: Drops the thinking of all turns but the last, like Qwen3's and DeepSeek's.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and '</think>' in m.content and not loop.last %}"
    "{{ m.content.split('</think>')[-1].strip() }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_merges_the_system_into_the_last_question(folder: Path) -> None:
    row = {"messages": [{"role": "system", "content": "Be short."}, *CHAT["messages"]]}
    assert learnt(folder, row, MERGING) == " Shelf A1.<|im_end|> Shelf C4.<|im_end|>"


def test_a_template_without_a_header_to_answer_after_does_not_teach_the_header(folder: Path) -> None:
    assert learnt(folder, CHAT, HEADLESS) == BOTH


def test_a_template_that_takes_only_whole_conversations(folder: Path) -> None:
    assert learnt(folder, CHAT, WHOLE_ONLY) == BOTH


def test_thinking_that_the_template_drops_is_not_learnt_and_is_told(folder: Path) -> None:
    thought = {"role": "assistant", "content": "<think>A? B?</think>Shelf A1."}
    tokens = tokenizer(folder, FORGETFUL)
    early = encode({"messages": [Q1, thought, Q2, A2]}, tokens, None)
    assert (learnt_of(early, tokens), early.rewritten) == (BOTH, 1)
    late = encode({"messages": [Q1, thought]}, tokens, None)
    assert (learnt_of(late, tokens), late.rewritten) == ("<think>A? B?</think>Shelf A1.<|im_end|>", 0)


def test_a_template_that_hides_the_words_is_refused(folder: Path) -> None:
    loud = "{% for m in messages %}{{ m.role }}{{ m.content | length }}{% endfor %}"
    with pytest.raises(ValueError, match="hides where the assistant's words are"):
        learnt(folder, CHAT, loud)


def test_tools_without_a_place_in_the_template_are_refused(folder: Path) -> None:
    tools = [{"type": "function", "function": {"name": "find"}}]
    with pytest.raises(ValueError, match="offers tools, and the model's chat template has no place for them"):
        learnt(folder, {**CHAT, "tools": tools})
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {}}}],
    }
    with pytest.raises(ValueError, match="has no place for calls"):
        learnt(folder, {"messages": [Q1, call]})


def test_a_call_of_a_tool_is_learnt(folder: Path) -> None:
    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": '{"a": 1}'}}],
    }
    words = learnt(
        folder, {"messages": [Q1, call, {"role": "tool", "content": "A1"}, A1], "tools": [{"name": "find"}]}, template
    )
    assert (
        words
        == '[{"type": "function", "function": {"name": "find", "arguments": {"a": 1}}}]<|im_end|>Shelf A1.<|im_end|>'
    )


def test_a_token_that_begins_in_the_prompts_last_space_is_learnt(folder: Path) -> None:
    """Else a completion of one word would teach nothing."""
    assert learnt(folder, {"prompt": "Is it night? ", "completion": "Yes"}).endswith("Yes<|im_end|>")


@pytest.mark.parametrize("template", [None, MARKED, MERGING, HEADLESS, WHOLE_ONLY, FORGETFUL])
def test_nothing_that_a_user_said_is_ever_learnt(folder: Path, template: str | None) -> None:
    turns = [
        {"role": role, "content": f"{word} {n} é🔩"}
        for n in range(3)
        for role, word in (("user", "question"), ("assistant", "answer"))
    ]
    words = learnt(folder, {"messages": turns}, template)
    assert "question" not in words
    assert [f"answer {n} é🔩<|im_end|>" in words for n in range(3)] == [True] * 3
