"""A model as a function from rows to what rows.jsonl says of them: its scores, and its own answers. Loads torch and transformers."""

import time
from collections.abc import Sequence
from typing import Any

import torch  # noqa: TID253
from transformers import GenerationConfig, StoppingCriteria  # noqa: TID253

from jobs import evaluation, weights
from jobs.evaluation.questions import Item
from jobs.evaluation.scoring import Score, Scorer
from jobs.rows_file import Row
from jobs.run import Interrupted, Run

#: A batch of answers that is on its way when the job is asked to stop may take that long; then it is left for the next attempt.
STOP_PATIENCE_S = 20.0
BEAT_EVERY_S = 1.0


def context_of(run: Run, tokenizer: Any) -> int:
    """How many tokens the model takes, told by its configuration."""
    config = weights.load_config(run.order)
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
    return min(int(limit) for limit in limits if limit)


class Measurer:
    """Scores and answers of a batch as rows."""

    def __init__(self, run: Run, model: Any, tokenizer: Any, device: weights.Device):
        self._run, self._tokenizer, self._device = run, tokenizer, device
        self._model, self._scorer = model, Scorer(model, device, tokenizer.pad_token_id)
        self._ends = _end_tokens(model, tokenizer)
        self._context = context_of(run, tokenizer)

    def __call__(self, items: Sequence[Item]) -> list[Row]:
        """One row of rows.jsonl for each item."""
        scores = self._scorer(items)
        self._run.beat()
        asked = [one for one in items if one.expected]
        answers = dict(zip((one.index for one in asked), self._answers(asked), strict=True)) if asked else {}
        return [_row(one, score, answers.get(one.index)) for one, score in zip(items, scores, strict=True)]

    def _answers(self, items: Sequence[Item]) -> list[str]:
        """What the model says itself, greedily."""
        longest, pad = max(len(one.question) for one in items), self._tokenizer.pad_token_id
        ids = [[pad] * (longest - len(one.question)) + list(one.question) for one in items]  # left: the answer follows
        mask = [[0] * (longest - len(one.question)) + [1] * len(one.question) for one in items]
        watch = _Watch(self._run)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=torch.tensor(ids, device=self._device.name),
                attention_mask=torch.tensor(mask, device=self._device.name),
                generation_config=GenerationConfig(
                    max_new_tokens=min(self._run.order.spec["max_new_tokens"], self._context - longest),
                    do_sample=False,
                    eos_token_id=self._ends,
                    pad_token_id=pad,
                ),
                stopping_criteria=[watch],
            )
        if watch.lost:
            raise Interrupted
        return [self._text(tokens) for tokens in output[:, longest:].tolist()]

    def _text(self, tokens: Sequence[int]) -> str:
        end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
        return str(self._tokenizer.decode(tokens[:end], skip_special_tokens=True))


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: chat models often have several."""
    configured = model.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return sorted({int(token) for token in (*several, tokenizer.eos_token_id) if token is not None})


def _row(one: Item, score: Score, answer: str | None) -> Row:
    row: Row = {
        "index": one.index,
        "id": one.id,
        "loss": score.loss / score.tokens if score.tokens else 0.0,
        "tokens": score.tokens,
        "correct": score.correct,
        "all_loss": score.all_loss / score.all_tokens if score.all_tokens else 0.0,
        "all_tokens": score.all_tokens,
        "cut": one.cut,
    }
    if answer is not None:
        row["answer"], row["expected"] = answer, one.expected
        row["exact"] = evaluation.is_exact(answer, one.expected)
        row["includes"] = evaluation.includes(answer, one.expected)
    return row


class _Watch(StoppingCriteria):  # type: ignore[misc]
    """Asked at every new token: beats for the watchdog, and gives a batch up when a stop has waited long enough."""

    def __init__(self, run: Run):
        self._run = run
        self._stops_at: float | None = None
        self._beats_at = time.monotonic() + BEAT_EVERY_S
        self.lost = False

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        now = time.monotonic()
        if now > self._beats_at:
            self._beats_at = now + BEAT_EVERY_S
            self._run.beat()
        if self._run.stop_requested and self._stops_at is None:
            self._stops_at = now + STOP_PATIENCE_S
        self.lost = self._stops_at is not None and now > self._stops_at
        return torch.full((input_ids.shape[0],), self.lost, device=input_ids.device, dtype=torch.bool)
