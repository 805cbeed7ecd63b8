"""What a fine-tune would learn from: the first rows as the model sees them, lengths, how much is learnt and how much is cut.

The rig runs it in a process of its own (`python -m jobs.preview`, a request on stdin, the answer on stdout): the chat template is a
program of the model's, so it gets limits of time and memory, and the rig's API stays small. Loads no torch.
"""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from jobs.data import Converted, DataReport, InvalidData, Reading, Row, convert, format_of, read_rows
from jobs.encoding import IGNORED, Encoded, encode_answer, encode_converted
from jobs.light_tokenizer import LightTokenizer, NoTokenizer
from jobs.run import Run
from jobs.rundir import write_json

#: Of a larger file so many rows are measured, spread over it.
SAMPLE_ROWS = 2_000
#: After so long it is enough.
SAMPLE_S = 5.0
MEMORY_BYTES, CPU_S = 6 * 2**30, 30
#: Of an example so much text is shown.
SHOWN_CHARS = 6_000
#: Rows with the chat template's refusals that are told.
REFUSALS_TOLD = 20
NumberedRows = Iterable[tuple[int, Row]]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of an example. read: seen by the model; learnt: it learns to write it; cut: beyond max_length; left_out: not shown."""

    text: str
    part: Literal["read", "learnt", "cut", "left_out"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A row as the model sees it. `name`: chosen or rejected, of a preference."""

    line: int
    tokens: int
    trained: int
    name: str = ""
    segments: Sequence[Segment] = ()


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of a row before it is cut: half of the rows have at most p50."""

    p50: int
    p90: int
    p95: int
    p99: int
    longest: int
    mean: float


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What was found. Counts are of the rows that were measured; `rows` is how many there are."""

    shape: str = ""
    source: str = ""
    format: str = ""
    conversions: Sequence[str] = ()
    rows: int | None = None
    measured: int = 0
    #: Rows that nothing could be learnt from, and rows longer than max_length.
    dropped: int = 0
    cut: int = 0
    #: Tokens as they are in the file, those that are left after cutting, and of these those that are learnt.
    tokens: int = 0
    kept_tokens: int = 0
    trained_tokens: int = 0
    #: Tokens that would be learnt if nothing were cut.
    trained_whole: int = 0
    expected_tokens: int | None = None
    trained_share: float | None = None
    max_length: int | None = None
    lengths: Lengths | None = None
    examples: Sequence[Example] = ()
    notes: Sequence[str] = ()
    #: Rows that the model's chat template or the tokenizer refuse.
    problems: Sequence[str] = ()
    #: Why there are no tokens.
    unknown: str = ""


@dataclass
class Tally:
    """Counts, row by row."""

    max_length: int | None
    examples: list[Example] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    tokens: int = 0
    measured: int = 0
    dropped: int = 0
    cut: int = 0
    kept: int = 0
    trained: int = 0
    whole_trained: int = 0
    rewritten: int = 0

    def add(self, line: int, parts: Mapping[str, Encoded], tokenizer: Any) -> None:
        """A row: one sequence of tokens, or two that are compared."""
        if not self.examples:
            self.examples = [_example(line, name, encoded, tokenizer) for name, encoded in parts.items()]
        self.measured += 1
        self.lengths.append(max(encoded.whole for encoded in parts.values()))
        self.tokens += sum(encoded.whole for encoded in parts.values())
        self.cut += any(encoded.cut for encoded in parts.values())
        self.rewritten += any(encoded.rewritten for encoded in parts.values())
        self.whole_trained += sum(encoded.whole_trained for encoded in parts.values())
        if not all(encoded.trained for encoded in parts.values()):
            self.dropped += 1
            return
        self.kept += sum(len(encoded.input_ids) for encoded in parts.values())
        self.trained += sum(encoded.trained for encoded in parts.values())

    def preview(self, **facts: Any) -> Preview:
        """What was counted, with what is known beside."""
        rows = facts.get("rows")
        return Preview(
            measured=self.measured,
            dropped=self.dropped,
            cut=self.cut,
            tokens=self.tokens,
            kept_tokens=self.kept,
            trained_tokens=self.trained,
            trained_whole=self.whole_trained,
            expected_tokens=round(self.kept * rows / self.measured) if rows and self.measured else None,
            trained_share=round(self.trained / self.kept, 4) if self.kept else None,
            max_length=self.max_length,
            lengths=_lengths(self.lengths),
            examples=tuple(self.examples),
            notes=tuple(self._notes()),
            **facts,
        )

    def _notes(self) -> Iterator[str]:
        if self.rewritten:
            yield (
                f"The chat template changes the assistant's words in {self.rewritten} of {self.measured} rows "
                "(it drops the thinking of earlier turns, say); what it leaves is learnt."
            )
        if self.dropped:
            yield f"Nothing can be learnt from {self.dropped} of {self.measured} rows: max_length cuts off the whole answer."
        elif self.whole_trained and self.trained < 0.9 * self.whole_trained:
            lost = 1 - self.trained / self.whole_trained
            yield f"max_length cuts off {lost:.0%} of what would be learnt; a larger one, or shorter rows, would keep it."


def measure(
    numbered: NumberedRows,
    spec: Mapping[str, Any],
    tokenizer: Any,
    *,
    enough: Callable[[], bool] = lambda: False,
    **facts: Any,
) -> Preview:
    """Rows of a file as this fine-tune would learn them. `facts`: fields of the preview that are known."""
    reading, tally = Reading.of(spec), Tally(spec.get("max_length"))
    problems: list[str] = []
    first: Converted | None = None
    for line, row in numbered:
        try:
            converted = convert(row, reading)
            first = first or converted
            tally.add(line, encoded_parts(converted, spec, tokenizer), tokenizer)
        except ValueError as error:
            problems.append(f"line {line}: {error}")
            if len(problems) == REFUSALS_TOLD:
                break
        if enough():
            break
    if first is not None:
        known = {"shape": first.shape, "source": first.source, "conversions": first.notes}
        facts = known | {name: value for name, value in facts.items() if value}
    return tally.preview(problems=tuple(problems), **facts)


def encoded_parts(converted: Converted, spec: Mapping[str, Any], tokenizer: Any) -> Mapping[str, Encoded]:
    """What the model reads for a row: one sequence, or the chosen and the rejected one. Raises ValueError."""
    row, most = converted.row, spec.get("max_length")
    if converted.shape == "preference":
        return {
            name: encode_answer(row["prompt"], row[name], row.get("tools"), tokenizer, most)
            for name in ("chosen", "rejected")
        }
    if converted.shape == "text" and spec.get("packing"):
        most = None  # it is split, not cut
    return {"": encode_converted(converted, tokenizer, most, bool(spec.get("assistant_only_loss", True)))}


def spread(path: Path, rows: int | None) -> NumberedRows:
    """Rows of a file: all, or of many some from everywhere."""
    step = max(1, (rows or 0) // SAMPLE_ROWS)
    return islice(read_rows(path), 0, None if rows else SAMPLE_ROWS, step)


def known_of(report: DataReport | None) -> dict[str, Any]:
    """What the check of a whole file has told."""
    if report is None:
        return {}
    return {name: getattr(report, name) for name in ("rows", "shape", "source", "format", "conversions")}


def until(seconds: float, clock: Callable[[], float] = time.monotonic) -> Callable[[], bool]:
    """Says when so much time has passed."""
    end = clock() + seconds
    return lambda: clock() > end


def answer(request: Mapping[str, Any]) -> Preview:
    """The preview for a request: `spec`, `model` (its folder), `template` (a text), `data` or `rows`, and `known`."""
    known: dict[str, Any] = dict(request.get("known") or {})
    if not request.get("model"):
        return Preview(**known, unknown="the model's tokenizer is not on the rig yet")
    try:
        tokenizer = LightTokenizer(Path(request["model"]), request.get("template"))
        if request.get("rows") is not None:
            rows: NumberedRows = [(int(line), row) for line, row in request["rows"]]
        else:
            rows = spread(Path(request["data"]), known.get("rows"))
        return measure(rows, request["spec"], tokenizer, enough=until(SAMPLE_S), **known)
    except (NoTokenizer, InvalidData) as error:
        return Preview(**known, unknown=str(error))


def leave(run: Run, tokenizer: Any, rows: int) -> None:
    """Put the preview of the job's own data into its run folder, by the tokenizer that it learns with."""
    path, spec = Path(run.order.paths["data"]), run.order.spec
    found = measure(spread(path, rows), spec, tokenizer, enough=until(SAMPLE_S), rows=rows, format=format_of(path))
    write_json(run.folder.preview, asdict(found), durable=False)


def main() -> None:
    """Command line of the rig."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    json.dump(asdict(answer(json.load(sys.stdin))), sys.stdout)


def _lengths(lengths: Sequence[int]) -> Lengths | None:
    if not lengths:
        return None
    ordered = sorted(lengths)

    def at(share: float) -> int:
        return ordered[math.ceil(share * len(ordered)) - 1]

    mean = round(sum(ordered) / len(ordered), 1)
    return Lengths(p50=at(0.5), p90=at(0.9), p95=at(0.95), p99=at(0.99), longest=ordered[-1], mean=mean)


def _example(line: int, name: str, encoded: Encoded, tokenizer: Any) -> Example:
    segments = tuple(_shortened(_segments(encoded, tokenizer)))
    return Example(line=line, name=name, tokens=encoded.whole, trained=encoded.trained, segments=segments)


def _segments(encoded: Encoded, tokenizer: Any) -> Iterator[Segment]:
    """Neighbouring tokens of a kind together, with the text between them."""
    text, at, run = encoded.text, 0, ""
    part: Literal["read", "learnt", "cut", "left_out"] | None = None
    for place, token in enumerate(encoded.input_ids):
        start, end = encoded.places[place]
        learnt: Literal["read", "learnt"] = "read" if encoded.labels[place] == IGNORED or place == 0 else "learnt"
        if learnt != part and part is not None:
            yield Segment(text=run, part=part)
            run = ""
        part = learnt
        # a token that stands nowhere in the text was put in by the tokenizer
        run += tokenizer.decode([token]) if start == end else text[at:end]
        at = max(at, end)
    if part is not None:
        yield Segment(text=run, part=part)
    if encoded.cut:
        ended = encoded.places[-1] == (len(text), len(text))  # by an end token that we have put there
        closing = str(tokenizer.special_tokens_map.get("eos_token", "")) if ended else ""
        yield Segment(text=text[at:] + closing, part="cut")


def _shortened(segments: Iterable[Segment]) -> Iterator[Segment]:
    """The beginning and end of each long segment, until enough is shown."""
    room = SHOWN_CHARS
    for segment in segments:
        most = max(200, room // 2)
        text = segment.text
        if len(text) > most:
            yield Segment(text=text[: most // 2], part=segment.part)
            yield Segment(text=f"… {len(text) - most // 2 * 2} characters …", part="left_out")
            yield Segment(text=text[-(most // 2) :], part=segment.part)
        else:
            yield segment
        room -= min(len(text), most)
        if room <= 0:
            yield Segment(text="… the rest is not shown …", part="left_out")
            return


if __name__ == "__main__":
    main()
