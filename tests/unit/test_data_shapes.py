"""Rows as other tools write them, and the few shapes that they become."""

from typing import Any

import pytest

from jobs.data import Reading, convert, training_rows_of

USER = {"role": "user", "content": "Where is bolt 7?"}
SYSTEM = {"role": "system", "content": "Be short."}
GOOD = {"role": "assistant", "content": "Shelf A1."}
BAD = {"role": "assistant", "content": "No idea."}


def read(row: dict[str, Any], objective: str = "sft", **fields: str) -> Any:
    return convert(row, Reading(objective, tuple(fields.items())))


# -- supervised ---------------------------------------------------------------------------------------------------------


def test_sharegpt_is_read_as_messages_with_the_roles_that_templates_know() -> None:
    turns = [("system", "Be short."), ("human", "Where is bolt 7?"), ("gpt", "Shelf A1.")]
    found = read({"conversations": [{"from": speaker, "value": words} for speaker, words in turns]})
    assert found.row == {"messages": [SYSTEM, USER, GOOD]}
    assert (found.shape, found.source) == ("messages", "ShareGPT")
    assert found.notes == ("ShareGPT's `conversations` read as `messages`",)


def test_sharegpt_with_a_system_beside_it_and_roles_of_openai() -> None:
    assert read({"conversations": [USER, GOOD], "system": "Be short."}).row == {"messages": [SYSTEM, USER, GOOD]}
    assert read({"conversation": [USER, GOOD]}).row == {"messages": [USER, GOOD]}


def test_a_call_in_sharegpt_becomes_a_tool_call() -> None:
    call = {"from": "function_call", "value": '{"name": "find", "arguments": {"bolt": 7}}'}
    turns = [
        {"from": "human", "value": "Where?"},
        call,
        {"from": "observation", "value": "A1"},
        {"from": "gpt", "value": "A1."},
    ]
    found = read({"conversations": turns, "tools": '[{"name": "find"}]'}).row
    assert found["tools"] == [{"name": "find"}]
    assert found["messages"][1]["tool_calls"] == [
        {"type": "function", "function": {"name": "find", "arguments": {"bolt": 7}}}
    ]
    assert found["messages"][2]["role"] == "tool"
    with pytest.raises(ValueError, match="must be a call as JSON"):
        read({"conversations": [{"from": "function_call", "value": "find the bolt"}]})


def test_alpaca_is_read_as_messages() -> None:
    found = read({"instruction": "Find the bolt.", "input": "Bolt 7", "output": "Shelf A1.", "text": "### whole"})
    assert found.row == {"messages": [{"role": "user", "content": "Find the bolt.\n\nBolt 7"}, GOOD]}
    assert read({"instruction": "Where is bolt 7?", "input": "", "output": "Shelf A1."}).row == {
        "messages": [USER, GOOD]
    }


def test_alpaca_may_have_a_system_and_earlier_turns() -> None:
    row = {
        "instruction": "Where is bolt 7?",
        "output": "Shelf A1.",
        "system": "Be short.",
        "history": [["Hi", "Hello"]],
    }
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert read(row).row == {"messages": [SYSTEM, *earlier, USER, GOOD]}
    with pytest.raises(ValueError, match="`history` must be a list of pairs"):
        read({**row, "history": ["Hi"]})


def test_openai_weights_and_tools_are_kept() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"bolt": 7}'}}
    row = {
        "messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
                     {"role": "tool", "tool_call_id": "1", "content": "A1"}, GOOD],
        "tools": [{"type": "function", "function": {"name": "find"}}],
    }  # fmt: skip
    found = read(row).row
    assert found["tools"] == row["tools"]
    assert found["messages"][1]["weight"] == 0
    assert found["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"bolt": 7}
    old = {"messages": [USER, {"role": "assistant", "content": None, "function_call": {"name": "find"}}]}
    with pytest.raises(ValueError, match="old function calls; write them as `tool_calls`"):
        read(old)


def test_the_developer_speaks_as_the_system() -> None:
    found = read({"messages": [{**SYSTEM, "role": "developer"}, USER, GOOD]})
    assert found.row == {"messages": [SYSTEM, USER, GOOD]}
    assert found.notes == ("role `developer` read as `system`",)


def test_columns_may_have_names_of_their_own() -> None:
    found = read({"question": "2+2=", "answer": "4"}, question="prompt", answer="completion")
    assert found.row == {"prompt": "2+2=", "completion": "4"}
    with pytest.raises(ValueError, match="it has `question`, `answer`; data_fields says which column is which"):
        read({"question": "2+2=", "answer": "4"})


def test_an_answer_that_is_json_stays_an_answer() -> None:
    row = {"prompt": "Extract.", "completion": '[{"part": "bolt"}]'}
    assert read(row).row == row


def test_supervised_training_does_not_learn_answers_that_were_disliked() -> None:
    with pytest.raises(ValueError, match="this is preference data; supervised fine-tuning needs"):
        read({"prompt": "x", "chosen": "a", "rejected": "b"})
    with pytest.raises(ValueError, match="would learn the bad answers, too: use objective kto"):
        read({"prompt": "x", "completion": "a", "label": False})
    assert read({"prompt": "x", "completion": "a", "label": 3}).shape == "prompt_completion"


# -- preferences --------------------------------------------------------------------------------------------------------

PREFERENCE = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}


@pytest.mark.parametrize(
    "row",
    [
        PREFERENCE,
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": USER["content"], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": USER["content"], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": "Shelf A1.", "rejected": "No idea."},
        {"prompt": [USER], "chosen": GOOD, "rejected": BAD},
        {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        {"instruction": "Where is bolt 7?", "input": "", "chosen": "Shelf A1.", "rejected": "No idea."},
        {
            "conversations": [{"from": "human", "value": "Where is bolt 7?"}],
            "chosen": {"from": "gpt", "value": "Shelf A1."},
            "rejected": {"from": "gpt", "value": "No idea."},
        },
    ],
)  # fmt: skip
def test_every_way_to_write_a_preference_becomes_one(row: dict[str, Any]) -> None:
    found = read(row, "dpo")
    assert found.row == PREFERENCE
    assert found.shape == "preference"


def test_a_system_message_in_the_answers_goes_to_the_prompt() -> None:
    row = {"prompt": USER["content"], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}
    assert read(row, "dpo").row == {"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD]}


def test_preferences_as_texts_stay_texts() -> None:
    row = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
    assert read(row, "dpo").row == row


def test_the_prompt_is_found_in_texts_that_begin_alike() -> None:
    asked = "\n\nHuman: Where is bolt 7?\n\nAssistant:"
    found = read({"chosen": f"{asked} I think A1.", "rejected": f"{asked} I think not."}, "dpo")
    assert found.row == {"prompt": asked, "chosen": " I think A1.", "rejected": " I think not."}
    assert read({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "dpo").row["prompt"] == "The sky is"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "chosen": "a"}, "`rejected` is missing"),
        ({"prompt": "x", "chosen": "", "rejected": "b"}, "`chosen` is empty"),
        ({"prompt": "x", "chosen": "a", "rejected": [BAD]}, "must both be texts or both be lists of messages"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "`prompt` is missing, and `chosen` and `rejected` do not begin alike"),
        ({"chosen": [USER, GOOD], "rejected": [USER, USER]}, "`rejected` must end with an assistant message"),
        ({"preferred_output": [GOOD], "non_preferred_output": [BAD]}, "`input` must be an object with `messages`"),
        ({"messages": [USER, GOOD]}, "needs `prompt`, `chosen` and `rejected`; it has `messages`"),
    ],
)
def test_what_is_wrong_with_a_preference_is_said(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(row, "dpo")
    assert message in str(caught.value)


def test_answers_that_are_the_same_are_told() -> None:
    assert "teach nothing" in read({"prompt": "x", "chosen": "a", "rejected": "a"}, "dpo").notes[0]


def test_a_file_with_chats_and_preferences_serves_both() -> None:
    both = {"messages": [USER, GOOD], "prompt": USER["content"], "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    assert read(both).row == {"messages": [USER, GOOD]}
    assert read(both, "dpo").row == PREFERENCE


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "completion": [GOOD], "label": True},
        {"messages": [USER, GOOD], "label": True},
        {"messages": [USER, GOOD], "kto_tag": "true"},
        {"instruction": "Where is bolt 7?", "output": "Shelf A1.", "label": 1},
        {"conversations": [{"from": "human", "value": "Where is bolt 7?"}, {"from": "gpt", "value": "Shelf A1."}], "label": "1"},
    ],
)  # fmt: skip
def test_every_way_to_judge_an_answer_becomes_one(row: dict[str, Any]) -> None:
    found = read(row, "kto")
    assert found.row == {"prompt": [USER], "completion": [GOOD], "label": True}
    assert found.shape == "unpaired"


def test_kto_learns_from_preferences_as_two_answers_each() -> None:
    found = read(PREFERENCE, "kto")
    assert list(training_rows_of(found, "kto")) == [
        {"prompt": [USER], "completion": [GOOD], "label": True},
        {"prompt": [USER], "completion": [BAD], "label": False},
    ]
    assert list(training_rows_of(found, "dpo")) == [PREFERENCE]


def test_a_judgement_that_is_no_yes_or_no_is_refused() -> None:
    with pytest.raises(ValueError, match="`label` must be true or false, not 'maybe'"):
        read({"prompt": "x", "completion": "y", "label": "maybe"}, "kto")
    with pytest.raises(ValueError, match="needs `prompt`, `completion` and `label`"):
        read({"prompt": "x", "completion": "y"}, "kto")
