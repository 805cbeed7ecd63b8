"""Rows of a file as requests: tokens, parameters, adapter; or why a row cannot be answered. Does not load the model."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.data import Reading, Row, RowError, convert, scan, unit_of
from jobs.encoding import render
from jobs.generation import sampling
from jobs.generation.sampling import Sampling
from jobs.reading import usable, while_beating
from jobs.run import Run


@dataclass(frozen=True)
class Problem:
    """Why a request has no answer. `code`: for programs; `message`: for people. `status`: what a server would answer."""

    code: str
    message: str
    status: int = 400


@dataclass(frozen=True)
class Request:
    """A row as tokens, for one adapter; or why it cannot be answered. `index`: its place in the file, from 0."""

    index: int
    row: Row
    tokens: Sequence[int] = ()
    sampling: Sampling = field(default_factory=Sampling)
    #: A name of the job's `adapters`; None where it has none.
    adapter: str | None = None
    problem: Problem | None = None

    @property
    def key(self) -> str:
        """Tells a request from every other one of the job."""
        return f"{self.index}" if self.adapter is None else f"{self.index}/{self.adapter}"

    @property
    def longest(self) -> int:
        """Tokens of the prompt and its answer at most."""
        return len(self.tokens) + self.sampling.max_new_tokens


def read_requests(run: Run, tokenizer: Any, context: int) -> Iterator[Request]:
    """Every row of the job's data, once for each adapter that answers it, in their order. A row that cannot be answered
    carries its problem. Raises JobError when the file itself cannot be read, Interrupted."""
    path, spec = Path(run.order.paths["data"]), run.order.spec
    reading = Reading.of(spec)
    reader = _Reader(tokenizer, context, sampling.of_document(spec), int(spec["seed"]), tuple(spec["adapters"]))
    with usable("data"):
        unit = unit_of(path)
        for index, (number, row) in enumerate(while_beating(run, scan(path))):
            yield from reader.requests(index, row, reading, f"{unit} {number}")


def longest_first(requests: Iterable[Request]) -> list[Request]:
    """What does not fit into memory shows at once, little is padded, and the end has no long stragglers."""
    return sorted(requests, key=lambda request: (-len(request.tokens), request.index, request.adapter or ""))


@dataclass(frozen=True)
class _Reader:
    tokenizer: Any
    context: int
    sampling: Sampling
    seed: int
    adapters: Sequence[str]

    def requests(self, index: int, row: Row | RowError, reading: Reading, place: str) -> Iterator[Request]:
        if isinstance(row, RowError):
            yield Request(index, {}, problem=Problem("invalid_row", f"{place}: {row.message}"))
            return
        try:
            found = convert(row, reading).row
        except ValueError as error:
            yield Request(index, row, problem=Problem("invalid_row", f"{place}: {error}"))
            return
        answerers: Sequence[str | None] = (None,)
        try:
            answerers = self._answerers(found)
            drawn = sampling.of_row(self.sampling, self.seed, index)
            if isinstance(body := found.get("body"), Mapping):
                drawn = sampling.of_body(drawn, body)
            text, special = _text(found, self.tokenizer)
        except ValueError as error:
            for adapter in answerers:
                yield Request(index, found, adapter=adapter, problem=Problem("invalid_request", str(error)))
            return
        # 4 bytes each: all prompts are kept
        tokens = array("i", self.tokenizer(text, add_special_tokens=special)["input_ids"])
        problem = self._too_long(tokens)
        for adapter in answerers:
            yield Request(index, found, tokens, self._within_context(drawn, tokens), adapter, problem)

    def _answerers(self, row: Row) -> Sequence[str | None]:
        """The adapters that answer a row: all, or the one that it names (OpenAI requests by their `model`, as vLLM does it)."""
        if not self.adapters:
            return (None,)
        if isinstance(body := row.get("body"), Mapping):
            named = body.get("model")
            return (str(named),) if named in self.adapters else self.adapters
        if (named := row.get("adapter")) is None:
            return self.adapters
        if named not in self.adapters:
            raise ValueError(f"`adapter` is {str(named)[:60]!r}; the job's adapters are {', '.join(self.adapters)}")
        return (str(named),)

    def _within_context(self, drawn: Sampling, tokens: Sequence[int]) -> Sampling:
        return replace(drawn, max_new_tokens=max(1, min(drawn.max_new_tokens, self.context - len(tokens))))

    def _too_long(self, tokens: Sequence[int]) -> Problem | None:
        if not len(tokens):
            return Problem("invalid_request", "The prompt has no tokens.")
        if len(tokens) >= self.context:
            message = f"The prompt has {len(tokens)} tokens; the model takes {self.context} with its answer."
            return Problem("context_length_exceeded", message)
        return None


def _text(row: Row, tokenizer: Any) -> tuple[str, bool]:
    """The text to continue, and whether the tokenizer must add its own first token (a chat template has it)."""
    if row.get("messages") is not None:
        return render(tokenizer, row["messages"], row.get("tools"), to_answer=True), False
    # a completion of OpenAI's continues its text as it stands
    if getattr(tokenizer, "chat_template", None) and "body" not in row:
        return render(tokenizer, [{"role": "user", "content": row["prompt"]}], to_answer=True), False
    return row["prompt"], True
