"""What a fine-tune would learn from, for people: counts, lengths, what is cut, and the first row with what is learnt of it. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from api.wording import count, number, percent
from jobs.preview import Example, Lengths, Preview

#: What a job wrote into its run folder is its word: no number of rows or tokens is larger than this.
MOST = 2**53
#: How each part of an example is marked, and the word for it.
PARTS = {"learnt": "learnt", "cut": "cut off"}


@dataclass(frozen=True)
class Panel:
    """The preview as the page shows it. `unknown`: why there are no tokens; `kinds`: parts that occur, for the legend."""

    about: str
    facts: Sequence[tuple[str, str]]
    notes: Sequence[str]
    problems: Sequence[str]
    unknown: str
    examples: Sequence[Example]
    kinds: Sequence[tuple[str, str]]


def panel(view: Preview) -> Panel:
    """The preview in words."""
    present = {segment.part for example in view.examples for segment in example.segments}
    return Panel(
        about=" of ".join(filter(None, (view.format, view.source))),
        facts=tuple(_facts(view)),
        notes=(*view.conversions, *view.notes),
        problems=view.problems,
        unknown=view.unknown,
        examples=view.examples,
        kinds=tuple((part, word) for part, word in PARTS.items() if part in present),
    )


def title(example: Example) -> str:
    """Row 1, chosen: 41 tokens, 5 learnt."""
    name = f", {example.name}" if example.name else ""
    return f"Row {_number(example.line)}{name}: {count(_known(example.tokens), 'token')}, {_number(example.trained)} learnt"


def _facts(view: Preview) -> Iterator[tuple[str, str]]:
    is_sample = view.rows is not None and view.rows != view.measured
    if view.rows is not None:
        yield (
            "rows",
            _number(view.rows) + (f", {_number(view.measured)} measured" if is_sample and view.measured else ""),
        )
    if not view.measured:
        return
    if (tokens := view.expected_tokens if is_sample else view.kept_tokens) is not None:
        yield "tokens of an epoch", f"about {_number(tokens)}" if is_sample else _number(tokens)
    if view.kept_tokens:
        yield "learnt of them", percent(_share(view.trained_tokens, view.kept_tokens))
    if view.lengths is not None:
        yield "tokens of a row", _lengths(view.lengths)
    if view.max_length is not None:
        cut = f"{count(_known(view.cut), 'row')}, {percent(1 - _share(view.kept_tokens, view.tokens))} of all tokens"
        yield f"cut at {_number(view.max_length)}", cut if view.cut else "none"
    if view.dropped:
        yield "left out", f"{count(_known(view.dropped), 'row')}: nothing to learn is left"


def _lengths(lengths: Lengths) -> str:
    parts = ((lengths.p50, "half have at most"), (lengths.p90, "90 %"), (lengths.p99, "99 %"))
    return (
        ", ".join(f"{words} {_number(value)}" for value, words in parts) + f", the longest {_number(lengths.longest)}"
    )


def _known(value: int) -> int:
    return max(0, min(value, MOST))


def _number(value: int) -> str:
    return number(_known(value))


def _share(part: int, whole: int) -> float:
    return min(1.0, _known(part) / max(1, _known(whole)))
