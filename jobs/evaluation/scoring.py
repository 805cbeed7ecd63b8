"""How well a model foretells given tokens: the loss and the first choice of each row, with bounded memory. Loads torch.

The logits of a batch (rows x length x vocabulary) are never held at once: the model's head sees a part of the positions at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch  # noqa: TID253

from jobs.encoding import IGNORED
from jobs.estimate import SCORING_TILE
from jobs.evaluation.questions import Item
from jobs.log import say
from jobs.weights import Device

#: Tokens on which the short way is held against the model's own.
PROBE = 16


@dataclass(frozen=True)
class Score:
    """Sums over one row's tokens: those that are measured, and all but the first. Losses in nats."""

    loss: float
    tokens: int
    correct: int
    all_loss: float
    all_tokens: int


class Scorer:
    """The model as a function from rows to scores. Raises torch's OutOfMemoryError when a batch is too large."""

    def __init__(self, model: Any, device: Device, pad: int):
        self._model, self._device, self._pad = model, device, pad
        self._decoder, self._head = model.get_decoder(), model.get_output_embeddings()
        self._is_plain: bool | None = None

    def __call__(self, items: Sequence[Item]) -> list[Score]:
        """Scores of one batch, in its order."""
        if self._is_plain is None:
            self._is_plain = self._probe(items[0])
            if not self._is_plain:
                say("The model does something to its logits after its head: one row at a time is measured.")
        if not self._is_plain and len(items) > 1:
            return [score for one in items for score in self([one])]
        losses, hits = self._foretold(items)
        scores, at = [], 0
        for one in items:
            after = max(0, len(one.tokens) - 1)
            mine, chosen = losses[at : at + after], hits[at : at + after]
            counts = torch.tensor([label != IGNORED for label in one.labels[1:]], dtype=torch.bool)
            scores.append(
                Score(
                    loss=float(mine[counts].sum()),
                    tokens=int(counts.sum()),
                    correct=int(chosen[counts].sum()),
                    all_loss=float(mine.sum()),
                    all_tokens=after,
                )
            )
            at += after
        return scores

    def _foretold(self, items: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor]:
        """For every token but the first of each row, one after the other: its loss (float64), and whether it was the first choice."""
        longest = max(len(one.tokens) for one in items)
        ids = torch.tensor([[*one.tokens, *[self._pad] * (longest - len(one.tokens))] for one in items])
        mask = torch.tensor([[1] * len(one.tokens) + [0] * (longest - len(one.tokens)) for one in items])
        ids, mask = ids.to(self._device.name), mask.to(self._device.name)
        told = mask[:, 1:].bool()  # a place tells the token after it, where there is one
        with torch.inference_mode():
            states = self._states(ids, mask)[:, :-1][told]
            targets = ids[:, 1:][told]
            losses, hits = [], []
            for start in range(0, len(targets), step := self._tile()):
                wanted = targets[start : start + step]
                logits = self._logits(states[start : start + step]).float()
                losses.append(logits.logsumexp(-1) - logits.gather(-1, wanted[:, None])[:, 0])
                hits.append(logits.argmax(-1) == wanted)
        if not losses:
            return torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool)
        return torch.cat(losses).double().cpu(), torch.cat(hits).cpu()

    def _states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What the head sees; the logits themselves for a model that goes on after its head."""
        model = self._decoder if self._is_plain else self._model
        output = model(input_ids=ids, attention_mask=mask, use_cache=False)
        states: torch.Tensor = output.last_hidden_state if self._is_plain else output.logits
        return states

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._head(states) if self._is_plain else states
        return found

    def _tile(self) -> int:
        return max(1, SCORING_TILE // int(self._head.weight.shape[0]))

    def _probe(self, one: Item) -> bool:
        """Whether its head's output is its logits: some models scale or cap them afterwards."""
        ids = torch.tensor([list(one.tokens[:PROBE])], device=self._device.name)
        with torch.inference_mode():
            own = self._model(input_ids=ids, use_cache=False).logits
            short = self._head(self._decoder(input_ids=ids, use_cache=False).last_hidden_state)
        return own.shape == short.shape and bool(torch.allclose(own.float(), short.float(), rtol=1e-3, atol=1e-3))
