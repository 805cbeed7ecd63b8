"""Padded batches, longest first: works with every model. A batch that does not fit is halved. Loads torch and transformers."""

import time
from collections.abc import Sequence
from typing import Any

import torch  # noqa: TID253
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList  # noqa: TID253

from jobs.causes import is_out_of_memory
from jobs.generation.answers import Sample
from jobs.generation.drawing import Draw, Drawing
from jobs.generation.engine import OUT_OF_MEMORY, Deliver, Gathering, Loaded, Sequel
from jobs.generation.requests import Request
from jobs.log import say
from jobs.run import Interrupted, Run

#: A batch that runs when the job is asked to stop may take that long to finish; then it is left for the next attempt.
STOP_PATIENCE_S = 20.0
BEAT_EVERY_S = 1.0


class Batches:
    """Engine: one batch after the other."""

    def __init__(self, run: Run, loaded: Loaded, drawing: Drawing, rows: int):
        self.name = "padded batches"
        self._run, self._loaded, self._drawing, self._rows = run, loaded, drawing, rows

    def answer(self, requests: Sequence[Request], deliver: Deliver) -> None:
        gathering = Gathering(deliver)
        left = list(gathering.missing(requests))
        while left:
            if self._run.stop_requested:
                raise Interrupted
            batch = left[: self._rows]
            if (made := self._fitting(batch)) is not None:
                gathering.take(zip(batch, made, strict=True))
                left = left[len(batch) :]
            elif len(batch) > 1:
                self._rows = len(batch) // 2
                say(f"The memory ran out; going on with {self._rows} at a time.")
            else:
                gathering.fail(batch[0].request, OUT_OF_MEMORY)
                left = [each for each in left if each.request is not batch[0].request]

    def _fitting(self, batch: Sequence[Sequel]) -> list[Sample] | None:
        """Samples of a batch; None when the memory ran out."""
        try:
            return self.samples(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # outside of the handler, so that the traceback lets go of the tensors
        torch.cuda.empty_cache()
        return None

    def samples(self, batch: Sequence[Sequel]) -> list[Sample]:
        """Samples of one batch, in its order. Raises torch's OutOfMemoryError."""
        prompts = [each.request.tokens for each in batch]
        longest, pad = max(map(len, prompts)), self._loaded.tokenizer.pad_token_id
        # to the left: the answer follows the prompt
        rows = [[pad] * (longest - len(tokens)) + list(tokens) for tokens in prompts]
        mask = [[0] * (longest - len(tokens)) + [1] * len(tokens) for tokens in prompts]
        limits = [each.request.sampling.max_new_tokens for each in batch]
        watch = _Watch(self._run, longest, limits)
        plain = all(each.request.sampling.is_plain for each in batch)
        with torch.inference_mode():
            output = self._loaded.model.generate(
                input_ids=torch.tensor(rows, device=self._loaded.device),
                attention_mask=torch.tensor(mask, device=self._loaded.device),
                max_new_tokens=max(limits),
                logits_processor=LogitsProcessorList([] if plain else [_Drawn(self._drawing, batch, longest)]),
                stopping_criteria=StoppingCriteriaList([watch]),
            )
        if watch.lost:
            raise Interrupted
        answers = output[:, longest:].tolist()
        return [
            self._drawing.sample(each.request, tokens[:limit])
            for each, tokens, limit in zip(batch, answers, limits, strict=True)
        ]


class _Drawn(LogitsProcessor):  # type: ignore[misc]
    """Our own way to draw, inside of `generate`."""

    def __init__(self, drawing: Drawing, batch: Sequence[Sequel], prompt: int):
        self._drawing, self._batch, self._prompt = drawing, batch, prompt

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        tokens = input_ids[:, self._prompt :].tolist()
        draws = [Draw(each.request, each.sample, row) for each, row in zip(self._batch, tokens, strict=True)]
        return self._drawing(scores, draws)


class _Watch(StoppingCriteria):  # type: ignore[misc]
    """Asked at every new token: ends rows at their own limit, beats for the watchdog, and gives up when a stop has waited too long."""

    def __init__(self, run: Run, prompt: int, limits: Sequence[int]):
        self._run, self._prompt, self._limits = run, prompt, limits
        self._asked_at: float | None = None
        self._beat_at = time.monotonic()
        self.lost = False

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        now = time.monotonic()
        if now - self._beat_at > BEAT_EVERY_S:
            self._beat_at = now
            self._run.beat()
        if self._run.stop_requested:
            self._asked_at = self._asked_at or now
            self.lost = now - self._asked_at > STOP_PATIENCE_S
        made = input_ids.shape[1] - self._prompt
        return torch.tensor([self.lost or made >= limit for limit in self._limits], device=input_ids.device)
