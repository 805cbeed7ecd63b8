"""Preferences: two answers to one prompt (for DPO, ORPO), or single answers that were liked or not (for KTO).

    preference  {"prompt": …, "chosen": …, "rejected": …}      all three texts, or all three lists of messages
    unpaired    {"prompt": …, "completion": …, "label": true}  both texts, or both lists of messages

What other tools write is read as one of these: chosen and rejected that hold the prompt too (TRL's implicit form), OpenAI's
`preferred_output`, ShareGPT's and Alpaca's beside `chosen` and `rejected`, `messages` beside a `label`.
"""

from collections.abc import Iterator
from typing import Any

from jobs.data import alpaca, pairs, sharegpt
from jobs.data.chat import checked_messages, tools_of
from jobs.data.values import Message, Notes, Row, from_json, full_text, has, text, truth

#: Names of the answer's verdict: TRL's, LLaMA-Factory's.
LABELS = ("label", "kto_tag")
#: How texts in the style of Anthropic's HH-RLHF begin an answer.
ASSISTANT_TURN = "\n\nAssistant:"
IMPLICIT = "the prompt taken from what `chosen` and `rejected` share"

Answers = tuple[str, str]


def is_preference(row: Row) -> bool:
    """Whether a row compares two answers."""
    return has(row, "chosen", "rejected", "preferred_output", "non_preferred_output")


def is_unpaired(row: Row) -> bool:
    """Whether a row judges one answer. A `label` that is a class number, say, does not."""
    return any(isinstance(row.get(name), bool) for name in LABELS) and not is_preference(row)


def preference(row: Row, notes: Notes) -> Row:
    """A row `prompt`, `chosen`, `rejected`. Raises ValueError with what is wrong."""
    if has(row, "preferred_output", "non_preferred_output"):
        return _openai(row, notes)
    for field in ("chosen", "rejected"):
        if row.get(field) is None:
            raise ValueError(f"`{field}` is missing")
    tools = tools_of(row, notes)
    chosen, rejected = (_single(row[field], field) for field in ("chosen", "rejected"))
    prompt = _prompt(row, notes)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("`chosen` and `rejected` must both be texts or both be lists of messages")
    if prompt is None and isinstance(chosen, str):
        return _compared(_split_texts(chosen, str(rejected), notes), notes)
    if isinstance(prompt, str) and isinstance(chosen, str):
        answers = (full_text(chosen, "chosen"), full_text(rejected, "rejected"))
        found = {"prompt": text(prompt, "prompt"), "chosen": answers[0], "rejected": answers[1]}
        return _compared(found, notes)
    better, worse = (_messages(value, name, notes) for name, value in (("chosen", chosen), ("rejected", rejected)))
    return _compared({**_split_messages(_as_messages(prompt, notes), better, worse, notes), **tools}, notes)


def unpaired(row: Row, notes: Notes) -> Row:
    """A row `prompt`, `completion`, `label`. Raises ValueError with what is wrong."""
    name = next((name for name in LABELS if row.get(name) is not None), None)
    if name is None:
        raise ValueError("`label` is missing: true for an answer that was liked, false for one that was not")
    label = truth(row[name], name)
    if name != "label":
        notes[f"`{name}` read as `label`"] = None
    if has(row, "prompt", "completion"):
        return {**pairs.pair(row, notes), "label": label}
    messages = _conversation(row, notes)
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        raise ValueError("the conversation must end with the assistant's answer that `label` judges")
    notes["the last answer of each conversation read as `completion`"] = None
    return {"prompt": messages[:-1], "completion": messages[-1:], **tools_of(row, notes), "label": label}


def unpair(row: Row) -> Iterator[Row]:
    """A preference as two single answers."""
    kept = {name: value for name, value in row.items() if name not in ("chosen", "rejected")}
    yield {**kept, "completion": row["chosen"], "label": True}
    yield {**kept, "completion": row["rejected"], "label": False}


def _openai(row: Row, notes: Notes) -> Row:
    """OpenAI's: {"input": {"messages": …, "tools": …}, "preferred_output": […], "non_preferred_output": […]}."""
    asked = from_json(row.get("input"))
    if not isinstance(asked, dict) or asked.get("messages") is None:
        raise ValueError("`input` must be an object with `messages`")
    for field in ("preferred_output", "non_preferred_output"):
        if row.get(field) is None:
            raise ValueError(f"`{field}` is missing")
    notes["OpenAI's `preferred_output` and `non_preferred_output` read as `chosen` and `rejected`"] = None
    found = {
        "prompt": checked_messages(asked["messages"], "input.messages", notes),
        "chosen": pairs.answer_of(row["preferred_output"], "preferred_output", notes),
        "rejected": pairs.answer_of(row["non_preferred_output"], "non_preferred_output", notes),
    }
    return _compared({**found, **tools_of(asked, notes)}, notes)


def _single(value: Any, field: str) -> Any:
    """A text, or a list of messages; a single message counts as a list of one."""
    if isinstance(value, dict):
        return [value]
    found = value if pairs.is_text(value) else from_json(value)
    if not isinstance(found, (str, list)):
        raise ValueError(f"`{field}` must be a text or a list of messages, not {type(found).__name__}")
    return found


def _messages(value: Any, field: str, notes: Notes) -> list[Message]:
    if isinstance(value, str):
        notes["texts `chosen` and `rejected` read as the assistant's messages"] = None
        return [{"role": "assistant", "content": full_text(value, field)}]
    if value and all(isinstance(turn, dict) and "from" in turn for turn in value):
        value = [sharegpt.message_of(turn, f"{field}[{index}]") for index, turn in enumerate(value)]
    return pairs.answer_of(value, field, notes)


def _prompt(row: Row, notes: Notes) -> str | list[Message] | None:
    """What both answers answer; None when it must be found in them."""
    if row.get("prompt") is not None:
        return str(row["prompt"]) if pairs.is_text(row["prompt"]) else checked_messages(row["prompt"], "prompt", notes)
    if row.get("instruction") is not None:
        notes["Alpaca's `instruction` and `input` read as the prompt"] = None
        return alpaca.prompt_of(row)
    if has(row, *sharegpt.FIELDS):
        return sharegpt.messages_of(row, notes)[1]
    return None


def _as_messages(prompt: str | list[Message] | None, notes: Notes) -> list[Message] | None:
    if not isinstance(prompt, str):
        return prompt
    notes["a text `prompt` beside messages read as the user's message"] = None
    return [{"role": "user", "content": full_text(prompt, "prompt")}]


def _split_messages(
    prompt: list[Message] | None, chosen: list[Message], rejected: list[Message], notes: Notes
) -> dict[str, Any]:
    """Prompt and answers apart. Answers may repeat the prompt, and are the only place of it when there is no other."""
    shared = _shared(chosen, rejected)
    if prompt is None and not shared:
        raise ValueError("`prompt` is missing, and `chosen` and `rejected` do not begin alike")
    repeats = (
        prompt is not None and shared and [_words(m) for m in chosen[: len(prompt)]] == [_words(m) for m in prompt]
    )
    if prompt is None or (repeats and len(prompt) <= shared):
        cut = len(prompt) if prompt is not None else shared
        notes[IMPLICIT] = None
        return {"prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]}
    if any(message["role"] in ("system", "user") for message in (chosen[0], rejected[0])):
        # a system message, say, in the answers that the prompt lacks
        if not shared:
            raise ValueError("`chosen` and `rejected` begin with other messages than `prompt`")
        notes[IMPLICIT] = None
        return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _words(message: Message) -> Answers:
    return message["role"], message["content"]


def _shared(chosen: list[Message], rejected: list[Message]) -> int:
    """How many messages both begin with; at least one is left to each."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if _words(chosen[i]) != _words(rejected[i])), most)


def _split_texts(chosen: str, rejected: str, notes: Notes) -> dict[str, Any]:
    """The words that both begin with are the prompt: up to the assistant's turn, or to the last space or line break."""
    full_text(chosen, "chosen")
    full_text(rejected, "rejected")
    most = min(len(chosen), len(rejected))
    same = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    turn = chosen.rfind(ASSISTANT_TURN, 0, same)
    cut = turn + len(ASSISTANT_TURN) if turn >= 0 else max(chosen.rfind(gap, 0, same) for gap in (" ", "\n"))
    if cut < 1 or cut >= most:
        raise ValueError("`prompt` is missing, and `chosen` and `rejected` do not begin alike")
    notes[IMPLICIT] = None
    return {"prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]}


def _compared(row: dict[str, Any], notes: Notes) -> dict[str, Any]:
    if row["chosen"] == row["rejected"]:
        notes["`chosen` and `rejected` are the same: such rows teach nothing"] = None
    return row


def _conversation(row: Row, notes: Notes) -> list[Message]:
    if row.get("messages") is not None:
        return checked_messages(row["messages"], "messages", notes)
    if has(row, *sharegpt.FIELDS):
        return sharegpt.messages_of(row, notes)[1]
    if row.get("instruction") is not None:
        return list(alpaca.conversation(row, notes)["messages"])
    raise ValueError("needs `prompt` and `completion`, or `messages`, beside `label`")
