"""Alpaca's shape: instruction, input, output, and the `system` and `history` that LLaMA-Factory adds."""

from typing import Any

from jobs.data.values import Message, Notes, Row, from_json, full_text, text


def conversation(row: Row, notes: Notes) -> Row:
    """A row `messages` from Alpaca's. Raises ValueError with what is wrong."""
    output = full_text(row.get("output"), "output") if row.get("output") is not None else None
    if output is None:
        raise ValueError("`output` is missing")
    notes["Alpaca's `instruction`, `input` and `output` read as `messages`"] = None
    return {"messages": [*prompt_of(row), {"role": "assistant", "content": output}]}


def prompt_of(row: Row) -> list[Message]:
    """Everything before the answer."""
    instruction = full_text(row.get("instruction"), "instruction")
    extra = text(row["input"], "input") if row.get("input") is not None else ""
    asked = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    system = text(row["system"], "system") if row.get("system") is not None else ""
    first = [{"role": "system", "content": system}] if system.strip() else []
    return [*first, *_history(row.get("history")), {"role": "user", "content": asked}]


def _history(value: Any) -> list[Message]:
    turns = from_json(value) if value is not None else []
    if not isinstance(turns, list) or not all(isinstance(turn, (list, tuple)) and len(turn) == 2 for turn in turns):
        raise ValueError("`history` must be a list of pairs: [[question, answer], …]")
    return [
        {"role": role, "content": full_text(words, f"history[{index}]")}
        for index, turn in enumerate(turns)
        for role, words in zip(("user", "assistant"), turn, strict=True)
    ]
