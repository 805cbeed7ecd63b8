"""The next token of each sequence, from the scores of all: penalties, filters, and draws that do not depend on the company.

Each sequence has a stream of random numbers of its own, made from its seed, its place and the token's number. So an answer is drawn
the same in whatever batch, by either engine, and after whatever interruption, as far as the scores themselves are the same:
in float32 on one machine they are; in bfloat16 another batch size rounds them differently. A draw is the argmax of scores plus
Gumbel noise, which draws from their softmax (Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030). Loads torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch  # noqa: TID253

from jobs.generation.answers import Sample
from jobs.generation.requests import Request
from jobs.generation.sampling import keys

#: The finaliser of MurmurHash3 (public domain, A. Appleby), which mixes 32 bits so that each depends on all.
MIX_1, MIX_2 = 0x85EBCA6B - 2**32, 0xC2B2AE35 - 2**32
#: A token is at least one byte, and a character at most four.
BYTES_PER_CHARACTER = 4

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Draw:
    """A sequence at one moment: which answer of which request, and its tokens so far without the prompt."""

    request: Request
    sample: int
    tokens: Sequence[int]


class Drawing:
    """Scores in, scores out; the largest of a row is the row's next token."""

    def __init__(self, ends: Sequence[int], decode: Decode):
        self._ends, self._decode = list(ends), decode

    def __call__(self, scores: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
        """`scores`: float32, a row for each draw and a column for each token of the vocabulary."""
        scores = scores.clone()
        for row, draw in enumerate(draws):
            _penalise(scores[row], draw)
        drawn = [row for row, draw in enumerate(draws) if draw.request.sampling.temperature > 0]
        if drawn:
            chosen = [draws[row] for row in drawn]
            part = scores if len(drawn) == len(draws) else scores[drawn]
            scores[drawn] = _filtered(part, chosen) + _noise(part, chosen)
        for row, draw in enumerate(draws):
            if draw.request.sampling.stop and self._has_stopped(draw):
                scores[row] = -torch.inf
                scores[row, self._ends[0]] = 0.0
        return scores

    def sample(self, request: Request, tokens: Sequence[int]) -> Sample:
        """The answer that these tokens are, up to its end."""
        end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
        text = self._decode(tokens[:end])
        stopped = stop_at(text, request.sampling.stop)
        return Sample(text[:stopped], len(tokens[:end]), "length" if end is None and stopped is None else "stop")

    def _has_stopped(self, draw: Draw) -> bool:
        stops = draw.request.sampling.stop
        tail = BYTES_PER_CHARACTER * max(map(len, stops)) + BYTES_PER_CHARACTER
        return stop_at(self._decode(draw.tokens[-tail:]), stops) is not None


def stop_at(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of these texts begins; None when there is none."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)


def _penalise(scores: torch.Tensor, draw: Draw) -> None:
    """Tokens of prompt and answer become less likely (Keskar et al. 2019, arXiv:1909.05858), as in transformers."""
    penalty = draw.request.sampling.repetition_penalty
    if penalty != 1.0:
        seen = torch.tensor(sorted({*draw.request.tokens, *draw.tokens}), device=scores.device)
        found = scores[seen]
        scores[seen] = torch.where(found < 0, found * penalty, found / penalty)


def _filtered(scores: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Scores by temperature, without the tokens that top_k, top_p and min_p leave out, in transformers' order."""

    def column(name: str) -> torch.Tensor:
        values = [getattr(draw.request.sampling, name) for draw in draws]
        return torch.tensor(values, dtype=torch.float32, device=scores.device).unsqueeze(1)

    scores = scores / column("temperature")
    if any(draw.request.sampling.top_k for draw in draws):
        ordered = scores.sort(dim=-1, descending=True).values
        places = [min(draw.request.sampling.top_k or scores.shape[1], scores.shape[1]) - 1 for draw in draws]
        least = ordered.gather(1, torch.tensor(places, device=scores.device).unsqueeze(1))
        scores = scores.masked_fill(scores < least, -torch.inf)
    if any(draw.request.sampling.top_p < 1 for draw in draws):
        ordered, order = scores.sort(dim=-1)
        left_out = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - column("top_p")
        left_out[:, -1] = False
        # rounding must not leave out anything where everything is wanted
        left_out &= column("top_p") < 1
        scores = scores.masked_fill(left_out.scatter(1, order, left_out), -torch.inf)
    if any(draw.request.sampling.min_p for draw in draws):
        shares = scores.softmax(dim=-1)
        scores = scores.masked_fill(shares < column("min_p") * shares.amax(dim=-1, keepdim=True), -torch.inf)
    return scores


def _noise(scores: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Gumbel noise for every token of every row: a hash of the row's keys and the token's number, the same on every device."""
    both = [keys(draw.request.sampling.stream, draw.sample, len(draw.tokens)) for draw in draws]
    first, second = torch.tensor(both, dtype=torch.int32, device=scores.device).unsqueeze(2).unbind(1)
    tokens = torch.arange(scores.shape[1], dtype=torch.int32, device=scores.device)
    bits = _mixed(_mixed(tokens ^ first) ^ second) & 0x7FFFFFFF
    # small numbers are exact in float32, and it is small ones that are chosen
    share = (bits.to(torch.float32) + 0.5) * 2.0**-31
    return -torch.log(-torch.log1p(-share.clamp_(max=1 - 2.0**-24)))


def _mixed(bits: torch.Tensor) -> torch.Tensor:
    for shift, factor in ((16, MIX_1), (13, MIX_2)):
        bits = (bits ^ _shifted(bits, shift)) * factor
    return bits ^ _shifted(bits, 16)


def _shifted(bits: torch.Tensor, places: int) -> torch.Tensor:
    """To the right, filled with zeros."""
    return (bits >> places) & ((1 << (32 - places)) - 1)
