"""Preferences as tokens: a prompt with two answers to compare (dpo), or with one that is good or bad (kto).

Does not load the tokenizer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.data import Row
from jobs.encoding import IGNORED, Encoded, encode_answer

#: The answers of a row, by objective.
ANSWERS = {"dpo": ("chosen", "rejected"), "kto": ("completion",)}


@dataclass(frozen=True, kw_only=True)
class Preference:
    """One row as its trainer takes it."""

    columns: Mapping[str, Any]
    #: Of all answers, each with its prompt, and of the answers alone: those are compared.
    tokens: int
    trained: int
    longest: int
    #: An answer was longer than allowed.
    cut: bool


def encode_preference(row: Row, tokenizer: Any, objective: str, max_length: int) -> Preference | None:
    """Tokens of a row (as jobs.data.training_rows gives it). None when its prompt leaves no room for an answer.

    Raises ValueError for a row that cannot be used.
    """
    names = ANSWERS[objective]
    encoded = [encode_answer(row["prompt"], row[name], row.get("tools"), tokenizer, None) for name in names]
    start = min(_common([each.input_ids for each in encoded]), *(_first_learnt(each) for each in encoded))
    whole = [_without_tail(each) for each in encoded]
    answers = [ids[start:max_length] for ids in whole]
    if start == 0 or not all(answers):
        return None
    columns: dict[str, Any] = {"prompt_ids": encoded[0].input_ids[:start]}
    columns |= {f"{name}_ids": answer for name, answer in zip(names, answers, strict=True)}
    if objective == "kto":
        columns["label"] = row["label"]
    return Preference(
        columns=columns,
        tokens=sum(start + len(answer) for answer in answers),
        trained=sum(map(len, answers)),
        longest=start + max(map(len, answers)),
        cut=any(len(ids) > max_length for ids in whole),
    )


def _first_learnt(encoded: Encoded) -> int:
    return next((at for at, label in enumerate(encoded.labels) if label != IGNORED), len(encoded.labels))


def _without_tail(encoded: Encoded) -> list[int]:
    """Without what a template writes after the end of the last turn."""
    last = max((at for at, label in enumerate(encoded.labels) if label != IGNORED), default=-1)
    return encoded.input_ids[: last + 1]


def _common(texts: list[list[int]]) -> int:
    """With how many tokens all of them begin."""
    for at, tokens in enumerate(zip(*texts, strict=False)):
        if len(set(tokens)) > 1:
            return at
    return min(map(len, texts))
