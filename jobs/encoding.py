"""A training row as tokens and labels: what the model reads, and which of it is learnt.

Our own, because what trainers do here surprises: they learn the user's words too, overlook OpenAI's `weight: 0`, and need markers in
the chat template that few models have. Does not load the tokenizer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

from jobs.data import Converted, Message, Reading, Row, convert

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
    #: How long it was before, and how many tokens of that would be learnt.
    whole: int = 0
    whole_trained: int = 0
    #: What was tokenised, and where each token stands in it, those that were cut off, too.
    text: str = field(default="", repr=False)
    places: Sequence[Span] = field(default=(), repr=False)
    #: Assistant messages whose words the chat template changes or leaves out.
    rewritten: int = 0

    @property
    def trained(self) -> int:
        """Tokens that are learnt. The first one never is: nothing comes before it."""
        return _learnt(self.labels)


def encode(row: Row, tokenizer: Any, max_length: int | None, assistant_only_loss: bool = True) -> Encoded:
    """Tokens of a row of supervised training, and which of them are learnt.

    Messages: the assistant's words with the token that ends its turn, or everything when `assistant_only_loss` is false.
    Prompt and completion: the completion. Text: everything, and the end token. Raises ValueError for a row that cannot be used.
    """
    return encode_converted(convert(row, Reading()), tokenizer, max_length, assistant_only_loss)


def encode_converted(
    converted: Converted, tokenizer: Any, max_length: int | None, assistant_only_loss: bool = True
) -> Encoded:
    """The same for a row that is converted already."""
    row = converted.row
    if converted.shape == "text":
        return _encode_text(row["text"], tokenizer, max_length)
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
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise ValueError(
            "the model's tokenizer has no chat template; use `prompt`/`completion` or `text`, or give a chat_template"
        )
    source = template if isinstance(template, str) else " ".join(map(str, template.values()))
    if tools and "tools" not in source:
        raise ValueError("the row offers tools, and the model's chat template has no place for them; leave `tools` out")
    if "tool_calls" not in source and any(message.get("tool_calls") for message in messages):
        raise ValueError("a message calls tools, and the model's chat template has no place for calls")
    plain = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(plain, tools=tools, tokenize=False, add_generation_prompt=to_answer))
    except Exception as error:  # a template is a program of the model's: anything may come out of it
        raise ValueError(f"the model's chat template refuses the messages: {str(error)[:200]}") from None


def _encode_text(text: str, tokenizer: Any, max_length: int | None) -> Encoded:
    input_ids, places = _tokens(tokenizer, text, special=True)
    input_ids, places = _ended(input_ids, places, text, tokenizer)
    return _cut(input_ids, list(input_ids), max_length, text, places)


def _encode_pair(prompt: str, completion: str, tokenizer: Any, max_length: int | None) -> Encoded:
    text = prompt + completion
    input_ids, places = _tokens(tokenizer, text, special=True)
    labels = [
        token if end > len(prompt) and end > start else IGNORED  # one that begins in the prompt's last space, too
        for token, (start, end) in zip(input_ids, places, strict=True)
    ]
    input_ids, places = _ended(input_ids, places, text, tokenizer)
    return _cut(input_ids, labels + input_ids[len(labels) :], max_length, text, places)


def _encode_chat(
    messages: Sequence[Message], tools: Any, tokenizer: Any, max_length: int | None, assistant_only_loss: bool
) -> Encoded:
    text = render(tokenizer, messages, tools)
    input_ids, places = _tokens(tokenizer, text, special=False)
    rewritten = sum(m["role"] == "assistant" and m["content"].strip() not in text for m in messages)
    muted = any(m["role"] == "assistant" and not m.get("weight", 1) for m in messages)
    if not assistant_only_loss and not muted:
        return replace(_cut(input_ids, list(input_ids), max_length, text, places), rewritten=rewritten)
    spans = list(_Chat(text, messages, tools, tokenizer).spans())
    labels = []
    for token, (start, end) in zip(input_ids, places, strict=True):
        owners = [message for message, (first, last) in spans if first <= start and end <= last]
        learnt = bool(owners[0].get("weight", 1)) if owners else not assistant_only_loss
        labels.append(token if learnt and end > start else IGNORED)
    return replace(_cut(input_ids, labels, max_length, text, places), rewritten=rewritten)


# -- where the assistant's words stand ----------------------------------------------------------------------------------


class _Chat:
    """A rendered conversation, and where in it the assistant speaks."""

    def __init__(self, text: str, messages: Sequence[Message], tools: Any, tokenizer: Any):
        self.text, self.messages, self.tools, self.tokenizer = text, messages, tools, tokenizer

    def spans(self) -> Iterator[tuple[Message, Span]]:
        """Each assistant message, and where its words with their end-of-turn token stand. Raises ValueError."""
        ends = _special_tokens(self.tokenizer)
        for index, message in enumerate(self.messages):
            if message["role"] == "assistant":
                span = self._by_prefix(index) or self._by_stand_in(index)
                if span is None:
                    raise ValueError(
                        "the model's chat template hides where the assistant's words are; "
                        "use `prompt` and `completion` as texts, or set assistant_only_loss to false"
                    )
                yield message, _to_end_of_turn(self.text, span, ends)

    def _by_prefix(self, index: int) -> Span | None:
        """Render up to the message and up to its end: what came between is the assistant's."""
        if index == 0:
            return None
        try:
            before = render(self.tokenizer, self.messages[:index], self.tools, to_answer=True)
            after = render(self.tokenizer, self.messages[: index + 1], self.tools)
        except ValueError:  # a template that wants turns in pairs, say: the whole conversation has passed
            return None
        if not (self.text.startswith(after) and after.startswith(before)):
            return None
        if self._opens_the_answer:
            return len(before), len(after)
        # without a header to answer after, the header would be taken for the assistant's words
        words = self._by_stand_in(index)
        return (max(len(before), words[0]), len(after)) if words else None

    def _by_stand_in(self, index: int) -> Span | None:
        """For templates that rewrite earlier turns (drop their thinking, say): put other words there and see what changes."""
        message = {**self.messages[index], "content": STAND_IN}
        try:
            changed = render(self.tokenizer, [*self.messages[:index], message, *self.messages[index + 1 :]], self.tools)
        except ValueError:
            return None
        place = changed.find(STAND_IN)
        start = _common_prefix(self.text, changed)
        tail = _common_prefix(self.text[start:][::-1], changed[start:][::-1])
        if place < 0 or len(changed) - start - tail > len(STAND_IN) + MAX_DIFFERENCE:
            return None
        while start and self.text[start - 1] == " ":  # many tokens begin with the space before a word
            start -= 1
        return start, len(self.text) - tail

    @cached_property
    def _opens_the_answer(self) -> bool:
        """Whether the template knows `add_generation_prompt`, or needs no header before an answer."""
        first = next(index for index, message in enumerate(self.messages) if message["role"] == "assistant" and index)
        asked = render(self.tokenizer, self.messages[:first], self.tools)
        return render(self.tokenizer, self.messages[:first], self.tools, to_answer=True) != asked


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


@lru_cache(maxsize=2)
def _special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Tokens that a text cannot hold by chance: one of them ends a turn, and it is not always the tokenizer's end token."""
    added = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys(token for token in (*tokenizer.all_special_tokens, *added) if token))


def _ended(input_ids: list[int], places: list[Span], text: str, tokenizer: Any) -> tuple[list[int], list[Span]]:
    end = tokenizer.eos_token_id
    if end is None or input_ids[-1:] == [end]:
        return input_ids, places
    return [*input_ids, end], [*places, (len(text), len(text))]


def _learnt(labels: Sequence[int]) -> int:
    return sum(label != IGNORED for label in labels[1:])


def _cut(input_ids: list[int], labels: list[int], max_length: int | None, text: str, places: Sequence[Span]) -> Encoded:
    return Encoded(
        input_ids=input_ids[:max_length],
        labels=labels[:max_length],
        cut=max_length is not None and len(input_ids) > max_length,
        whole=len(input_ids),
        whole_trained=_learnt(labels),
        text=text,
        places=places,
    )
