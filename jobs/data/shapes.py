"""Which shape a row has, and the row as ours: what training and generation see is one of few shapes, whoever wrote the file.

    messages            {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    prompt_completion   {"prompt": "…", "completion": "…"}, both texts or both lists of messages
    text                {"text": "…"}
    preference          {"prompt": …, "chosen": …, "rejected": …}
    unpaired            {"prompt": …, "completion": …, "label": true}

What an objective learns from decides which fields of a row count: many files have several.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jobs.data import alpaca, chat, openai_batch, pairs, preference, sharegpt
from jobs.data.values import Notes, Row, full_text, has, text

Shape = Literal[
    "messages", "prompt_completion", "text", "preference", "unpaired", "prompt", "messages prompts", "batch request"
]
Convert = Callable[[Row, Notes], Row]

#: Fields that a row may have, for `data_fields` and for the head of a CSV file.
KNOWN_FIELDS = (
    "messages", "conversations", "conversation", "prompt", "completion", "text", "instruction", "input", "output",
    "system", "history", "chosen", "rejected", "preferred_output", "non_preferred_output", "label", "kto_tag", "tools",
    "functions", "id", "adapter", "custom_id", "body",
)  # fmt: skip
#: Objectives by what they learn from; every other one learns like `sft`.
PREFERRING = frozenset({"dpo", "orpo", "cpo", "simpo", "ipo"})
JUDGING = frozenset({"kto"})

NEEDS_TRAINING = "needs `messages`, `prompt` and `completion`, or `text`"
NEEDS_PREFERENCE = "needs `prompt`, `chosen` and `rejected`"
NEEDS_LABEL = "needs `prompt`, `completion` and `label`, or `chosen` and `rejected`"
NEEDS_PROMPT = "needs `prompt` (a text) or `messages`"


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A row as ours, the shape in which it was written, and what was read as something else."""

    shape: Shape
    row: Row
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """How a job reads its rows. `fields`: a file's own names of columns, and the known ones that they are read as.

    `tolerant`: rows that are wrong are reported by the job itself, and are no reason to refuse the file.
    """

    objective: str = "sft"
    fields: tuple[tuple[str, str], ...] = ()
    tolerant: bool = False

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Reading":
        """As a job document says."""
        fields = tuple(sorted((document.get("data_fields") or {}).items()))
        if document.get("kind") == "generate":
            return cls("generate", fields, document.get("bad_rows") == "report")
        return cls(str(document.get("objective") or "sft"), fields)

    def named(self, row: Row) -> Row:
        """The row with known names."""
        if not self.fields:
            return row
        renamed = dict(row)
        values = {known: renamed.pop(own) for own, known in self.fields if own in row}
        return renamed | values


def convert(row: Row, reading: Reading) -> Converted:
    """The row as ours. Raises ValueError with what is wrong."""
    row = reading.named(row)
    if reading.objective == "generate":
        return _prompt(row)
    if reading.objective in PREFERRING:
        return _preference(row)
    if reading.objective in JUDGING:
        return _judged(row)
    return _supervised(row)


def training_rows_of(converted: Converted, objective: str) -> Iterator[Row]:
    """The rows to learn from: for KTO a preference is two."""
    if converted.shape == "preference" and objective in JUDGING:
        yield from preference.unpair(converted.row)
    else:
        yield converted.row


def training_shape(row: Row) -> Shape:
    """The shape of a row of supervised training. Raises ValueError with what is wrong."""
    return _supervised(row).shape


def prompt_shape(row: Row) -> Shape:
    """The shape of a prompt. Raises ValueError with what is wrong."""
    return _prompt(row).shape


def words(shape: Shape) -> str:
    """The fields of a shape, for messages."""
    return {
        "prompt_completion": "`prompt`/`completion`",
        "messages prompts": "`messages`",
        "batch request": "`custom_id`/`body`",
        "preference": "`chosen`/`rejected`",
        "unpaired": "`completion`/`label`",
    }.get(shape, f"`{shape}`")


def _supervised(row: Row) -> Converted:
    if has(row, "messages"):
        return _as("messages", "messages", chat.conversation, row)
    if preference.is_preference(row) and not has(row, "completion"):
        raise ValueError(
            "this is preference data; supervised fine-tuning needs `messages`, `prompt`/`completion` or `text` "
            "(objective dpo or kto learns from preferences)"
        )
    if has(row, *sharegpt.FIELDS):
        return _as("messages", "ShareGPT", sharegpt.conversation, row)
    if has(row, "prompt", "completion"):
        if preference.is_unpaired(row):
            raise ValueError(
                "this is preference data with a `label`; supervised fine-tuning would learn the bad answers, too: "
                "use objective kto, or keep the good rows and leave `label` out"
            )
        return _as("prompt_completion", "prompt/completion", pairs.pair, row)
    if has(row, "instruction"):
        return _as("messages", "Alpaca", alpaca.conversation, row)
    if has(row, "text"):
        return _as("text", "text", _text, row)
    raise ValueError(_lacks(row, NEEDS_TRAINING))


def _preference(row: Row) -> Converted:
    if has(row, "preferred_output", "non_preferred_output"):
        return _as("preference", "OpenAI preference", preference.preference, row)
    if has(row, "chosen", "rejected"):
        return _as("preference", "chosen/rejected", preference.preference, row)
    raise ValueError(_lacks(row, NEEDS_PREFERENCE))


def _judged(row: Row) -> Converted:
    if preference.is_preference(row):
        return _preference(row)
    if has(row, *preference.LABELS):
        return _as("unpaired", "completion/label", preference.unpaired, row)
    raise ValueError(_lacks(row, NEEDS_LABEL))


def _prompt(row: Row) -> Converted:
    if openai_batch.is_request(row):
        return _as("batch request", "OpenAI batch", openai_batch.request, row)
    notes: Notes = {}
    if has(row, "messages") or (has(row, *sharegpt.FIELDS) and not has(row, "prompt")):
        own = has(row, "messages")
        messages = (
            chat.checked_messages(row["messages"], "messages", notes) if own else sharegpt.messages_of(row, notes)[1]
        )
        if messages[-1]["role"] == "assistant":
            raise ValueError("`messages` ends with the assistant's words; there is nothing left to answer")
        found = {**row, "messages": messages, **chat.tools_of(row, notes)}
        return Converted(
            shape="messages prompts", row=found, source="messages" if own else "ShareGPT", notes=tuple(notes)
        )
    if has(row, "prompt"):
        if not text(row["prompt"], "prompt"):
            raise ValueError("`prompt` is empty")
        return Converted(shape="prompt", row=row, source="prompt")
    raise ValueError(_lacks(row, NEEDS_PROMPT))


def _text(row: Row, _notes: Notes) -> Row:
    return {"text": full_text(row["text"], "text")}


def _as(shape: Shape, source: str, to: Convert, row: Row) -> Converted:
    notes: Notes = {}
    found = to(row, notes)
    return Converted(shape=shape, row=found, source=source, notes=tuple(notes))


def _lacks(row: Row, needs: str) -> str:
    names = [str(name)[:40] for name in list(row)[:6]]
    fields = ", ".join(f"`{name}`" for name in names) or "no fields"
    strange = bool(names) and not set(names) & set(KNOWN_FIELDS)
    hint = "; data_fields says which column is which, as in data_fields.question=prompt" if strange else ""
    return f"{needs}; it has {fields}{hint}"
