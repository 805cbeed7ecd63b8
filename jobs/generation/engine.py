"""What an engine is: requests in, answers out as they come. And what those on torch share."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from jobs.generation.answers import Answer, Sample
from jobs.generation.requests import Problem, Request, longest_first
from jobs.model import Cause
from jobs.run import JobError

#: Takes answers and keeps them, durably.
Deliver = Callable[[Sequence[Answer]], None]
#: So many requests in a row that do not fit by themselves: it is the GPU, not the requests.
HOPELESS = 3
OUT_OF_MEMORY = Problem("out_of_memory", "The memory ran out with this prompt alone.", 503)


class Unsupported(Exception):
    """This engine cannot answer with this model; another one may."""


class Engine(Protocol):
    """Answers requests. Raises Interrupted when the run is asked to stop, JobError, Unsupported."""

    @property
    def name(self) -> str:
        """With its version, for the result."""
        ...

    def answer(self, requests: Sequence[Request], deliver: Deliver) -> None:
        """Every request, in the engine's own order; each is delivered once, when all of its samples are there."""
        ...


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to generate."""

    model: Any
    tokenizer: Any
    #: As torch knows it: "cuda", "cpu".
    device: str
    #: Tokens that end an answer.
    ends: Sequence[int]


@dataclass(frozen=True)
class Sequel:
    """One answer on its way."""

    request: Request
    sample: int


@dataclass
class Gathering:
    """Samples of requests until each has all of its own."""

    deliver: Deliver
    _found: dict[str, dict[int, Sample]] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)
    _alone: int = 0

    def missing(self, requests: Iterable[Request]) -> Iterator[Sequel]:
        """What is still to be made, the longest prompts first."""
        for request in longest_first(each for each in requests if each.key not in self._ended):
            found = self._found.get(request.key, {})
            yield from (Sequel(request, n) for n in range(request.sampling.n) if n not in found)

    def take(self, made: Iterable[tuple[Sequel, Sample]]) -> None:
        """Samples that are made; requests that are whole are delivered together."""
        whole: list[Answer] = []
        for sequence, sample in made:
            request = sequence.request
            if request.key in self._ended:
                continue
            found = self._found.setdefault(request.key, {})
            found[sequence.sample] = sample
            if len(found) == request.sampling.n:
                whole.append(Answer(request, [found[n] for n in range(request.sampling.n)]))
                self._end(request)
        if whole:
            self._alone = 0
            self.deliver(whole)

    def fail(self, request: Request, problem: Problem) -> None:
        """A request that has no answer. Raises JobError when it is the memory, again and again."""
        if request.key in self._ended:
            return
        self._alone = self._alone + 1 if problem is OUT_OF_MEMORY else 0
        if self._alone >= HOPELESS:
            hint = "Use a smaller model, a smaller max_new_tokens, or a GPU with more free memory."
            raise JobError(Cause.OOM_GPU, "The memory ran out, even one prompt at a time.", hint)
        self._end(request)
        self.deliver([Answer(request, problem=problem)])

    def _end(self, request: Request) -> None:
        self._ended.add(request.key)
        self._found.pop(request.key, None)
