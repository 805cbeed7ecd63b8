"""A training row as tokens and labels: what the model reads, and which of it is learnt.

Our own, because what trainers do here surprises: they learn the user's words too, overlook OpenAI's `weight: 0`, and need markers in
the chat template that few models have. Does not load the tokenizer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.data import Message, Reading, Row, convert

#: Label of a token that is not learnt; torch's cross-entropy skips it.
IGNORED = -100
#: Stands in for a message's words to find their place. The outer characters are private ones that no text holds.
STAND_IN = "\ue000words\ue001"
#: How much a template may write differently around the stand-in (empty thinking tags, say) before we stop trusting it.
MAX_DIFFERENCE = 64

Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One training row as tokens; `labels` is IGNORED where nothing is learnt."""

    input_ids: list[int]
    labels: list[int]
    #: It was longer than allowed.
    cut: bool

    @property
    def trained(self) -> int:
        """Tokens that are learnt. The first one never is: nothing comes before it."""
        return sum(label != IGNORED for label in self.labels[1:])


def encode(row: Row, tokenizer: Any, max_length: int | None, assistant_only_loss: bool = True) -> Encoded:
    """Tokens of a training row, and which of them are learnt.

    Messages: the assistant's words with the token that ends its turn, or everything when `assistant_only_loss` is false.
    Prompt and completion: the completion. Text: everything, and the end token. Raises ValueError for a row that cannot be used.
    """
    converted = convert(row, Reading())
    row = converted.row
    if converted.shape == "text":
        input_ids = _ended(list(tokenizer(row["text"])["input_ids"]), tokenizer)
        return _cut(input_ids, list(input_ids), max_length)
    if converted.shape == "messages":
        return _encode_chat(row["messages"], row.get("tools"), tokenizer, max_length, assistant_only_loss)
    return encode_answer(row["prompt"], row["completion"], row.get("tools"), tokenizer, max_length)


def encode_answer(
    prompt: str | list[Message],
    answer: str | list[Message],
    tools: Any,
    tokenizer: Any,
    max_length: int | None,
) -> Encoded:
    """Tokens of a prompt and an answer, both texts or both messages; the answer is learnt. Raises ValueError."""
    if isinstance(prompt, str) and isinstance(answer, str):
        return _encode_pair(prompt, answer, tokenizer, max_length)
    assert not isinstance(prompt, str) and not isinstance(answer, str)
    messages = [*({**message, "weight": 0} for message in prompt), *answer]
    return _encode_chat(messages, tools, tokenizer, max_length, assistant_only_loss=True)


def render(tokenizer: Any, messages: Sequence[Message], tools: Any = None, *, to_answer: bool = False) -> str:
    """The conversation in the tokenizer's chat template. Raises ValueError when the template refuses it."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the model's tokenizer has no chat template; use `prompt`/`completion` or `text`")
    plain = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(plain, tools=tools, tokenize=False, add_generation_prompt=to_answer))
    except Exception as error:  # a template is a program of the model's: anything may come out of it
        raise ValueError(f"the model's chat template refuses the messages: {str(error)[:200]}") from None


def _encode_pair(prompt: str, completion: str, tokenizer: Any, max_length: int | None) -> Encoded:
    input_ids, offsets = _tokens(tokenizer, prompt + completion, special=True)
    labels = [
        token if start >= len(prompt) and end > start else IGNORED
        for token, (start, end) in zip(input_ids, offsets, strict=True)
    ]
    ended = _ended(input_ids, tokenizer)
    return _cut(ended, labels + ended[len(labels) :], max_length)


def _encode_chat(
    messages: Sequence[Message], tools: Any, tokenizer: Any, max_length: int | None, assistant_only_loss: bool
) -> Encoded:
    text = render(tokenizer, messages, tools)
    input_ids, offsets = _tokens(tokenizer, text, special=False)
    muted = any(m["role"] == "assistant" and not m.get("weight", 1) for m in messages)
    if not assistant_only_loss and not muted:
        return _cut(input_ids, list(input_ids), max_length)
    spans = list(_assistant_spans(text, messages, tools, tokenizer))
    labels = []
    for token, (start, end) in zip(input_ids, offsets, strict=True):
        owners = [message for message, (first, last) in spans if first <= start and end <= last]
        learnt = bool(owners[0].get("weight", 1)) if owners else not assistant_only_loss
        labels.append(token if learnt and end > start else IGNORED)
    return _cut(input_ids, labels, max_length)


# -- where the assistant's words stand ----------------------------------------------------------------------------------


def _assistant_spans(
    text: str, messages: Sequence[Message], tools: Any, tokenizer: Any
) -> Iterator[tuple[Message, Span]]:
    """Each assistant message, and where its words with their end-of-turn token stand in the rendered text."""
    special = tuple(token for token in tokenizer.all_special_tokens if token)
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            span = _span_by_prefix(text, messages, index, tools, tokenizer)
            span = span or _span_by_stand_in(text, messages, index, tools, tokenizer)
            if span is None:
                raise ValueError(
                    "the model's chat template hides where the assistant's words are; "
                    "use `prompt` and `completion` as texts, or set assistant_only_loss to false"
                )
            yield message, _to_end_of_turn(text, span, special)


def _span_by_prefix(text: str, messages: Sequence[Message], index: int, tools: Any, tokenizer: Any) -> Span | None:
    """Render up to the message and up to its end: what came between is the assistant's."""
    if index == 0:
        return None
    before = render(tokenizer, messages[:index], tools, to_answer=True)
    after = render(tokenizer, messages[: index + 1], tools)
    if text.startswith(after) and after.startswith(before):
        return len(before), len(after)
    return None


def _span_by_stand_in(text: str, messages: Sequence[Message], index: int, tools: Any, tokenizer: Any) -> Span | None:
    """For templates that rewrite earlier turns (drop their thinking, say): put other words there and see what changes."""
    other = [*messages[:index], {**messages[index], "content": STAND_IN}, *messages[index + 1 :]]
    changed = render(tokenizer, other, tools)
    place = changed.find(STAND_IN)
    start = _common_prefix(text, changed)
    tail = _common_prefix(text[start:][::-1], changed[start:][::-1])
    if place < 0 or len(changed) - start - tail > len(STAND_IN) + MAX_DIFFERENCE:
        return None
    return start, len(text) - tail


def _common_prefix(one: str, other: str) -> int:
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))


def _to_end_of_turn(text: str, span: Span, special: tuple[str, ...]) -> Span:
    """The span up to the special token that ends the turn, which the model must learn; not the line break after it."""
    start, end = span
    inside = text[start:end].rstrip()
    if inside.endswith(special):
        return start, start + len(inside)
    rest = text[end:]
    gap = len(rest) - len(rest.lstrip())
    for token in special:
        if rest[gap:].startswith(token):
            return start, end + gap + len(token)
    return start, end


# -- tokens -------------------------------------------------------------------------------------------------------------


def _tokens(tokenizer: Any, text: str, *, special: bool) -> tuple[list[int], list[Span]]:
    if not tokenizer.is_fast:
        raise ValueError("the model's tokenizer cannot tell where its tokens stand in the text (it is not a fast one)")
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [(start, end) for start, end in encoded["offset_mapping"]]


def _ended(input_ids: list[int], tokenizer: Any) -> list[int]:
    end = tokenizer.eos_token_id
    return input_ids if end is None or input_ids[-1:] == [end] else [*input_ids, end]


def _cut(input_ids: list[int], labels: list[int], max_length: int | None) -> Encoded:
    cut = max_length is not None and len(input_ids) > max_length
    return Encoded(input_ids=input_ids[:max_length], labels=labels[:max_length], cut=cut)
