"""Continuous batching: a sequence that ends makes room for the next one at once. By transformers 5.23. Loads torch and transformers.

Three traps of it. Its thread must not run in inference mode. A failed request is not raised but delivered with `error`. And when its
thread dies, all that is left is delivered with the same error, so that must be told apart from one request's own.
"""

import gc
import importlib.util
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

import torch  # noqa: TID253
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList  # noqa: TID253
from transformers.generation.continuous_batching.cb_logits_processors import (  # noqa: TID253
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)

from jobs.causes import is_out_of_memory
from jobs.generation.answers import Sample
from jobs.generation.drawing import Draw, Drawing
from jobs.generation.engine import Deliver, Gathering, Loaded, Sequel, Unsupported
from jobs.generation.memory import PAGE_TOKENS_FLASH, Size
from jobs.generation.requests import Problem, Request
from jobs.log import say
from jobs.run import Interrupted, Run

#: After a stop was asked for, sequences on their way may take that long; then they are left for the next attempt.
STOP_PATIENCE_S = 20.0
JOIN_S = 60.0
WAIT_S = 0.2
#: Answers are written together, this often or when there are so many.
WRITE_EVERY_S, WRITE_AT = 0.5, 64


def has_flash_attention() -> bool:
    """Whether attention can read pages as they lie, in 16 bits. Without it every step's attention looks at the whole cache."""
    return torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None


class Continuous:
    """Engine: a paged cache and as many sequences in it as fit."""

    def __init__(self, run: Run, loaded: Loaded, drawing: Drawing, size: Size):
        self.name = "continuous batching"
        self._run, self._loaded, self._drawing, self._size = run, loaded, drawing, size

    def answer(self, requests: Sequence[Request], deliver: Deliver) -> None:
        gathering = Gathering(deliver)
        longest = max((request.longest for request in requests), default=0)
        while left := list(gathering.missing(requests)):
            if not self._until_memory_runs_out(left, gathering):
                continue
            gc.collect()
            torch.cuda.empty_cache()
            if (smaller := self._size.halved(longest)) is None:
                raise Unsupported("the memory ran out with one sequence at a time")
            self._size = smaller
            say(f"The memory ran out; going on with {smaller.sequences} at a time.")

    def _until_memory_runs_out(self, sequences: Sequence[Sequel], gathering: Gathering) -> bool:
        """Answer these. Returns True when the memory ran out before the end."""
        try:
            manager = self._manager(sequences)
        except (AttributeError, ValueError, TypeError, NotImplementedError, ImportError) as error:
            raise Unsupported(_first_line(error)) from error
        manager.start()
        try:
            _Feeding(self._run, manager, self._drawing, sequences, gathering, 2 * self._size.sequences).run()
        finally:
            manager.stop(block=True, timeout=JOIN_S, hard_stop=True)
        fatal: BaseException | None = manager.background_thread_status.fatal_error
        if fatal is None:
            return False
        if is_out_of_memory(fatal):
            return True
        raise Unsupported(_first_line(fatal)) from fatal

    def _manager(self, sequences: Sequence[Sequel]) -> Any:
        plain = all(each.request.sampling.is_plain for each in sequences)
        config = ContinuousBatchingConfig(
            page_size=self._size.page_tokens,
            num_blocks=self._size.pages,
            max_batch_tokens=self._size.step_tokens,
            max_requests_per_batch=self._size.sequences,
            auto_switch_to_flash=self._size.page_tokens == PAGE_TOKENS_FLASH,
            # what draws must see each token before the next one
            **({} if plain else {"use_cuda_graph": False, "use_async_batching": False}),
        )
        pad, ends = self._loaded.tokenizer.pad_token_id, list(self._loaded.ends)
        generation = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=pad)
        manager = self._loaded.model.init_continuous_batching(
            generation_config=generation, continuous_batching_config=config
        )
        if not plain:
            requests = {_name(each): each for each in sequences}
            manager.logit_processor = _Processors(LogitsProcessorList([_Drawn(self._drawing, requests)]))
        return manager


class _Feeding:
    """Sequences into the manager, answers out of it. At most so many are on their way."""

    def __init__(
        self, run: Run, manager: Any, drawing: Drawing, sequences: Sequence[Sequel], gathering: Gathering, most: int
    ):
        self._run, self._manager, self._drawing, self._gathering, self._most = run, manager, drawing, gathering, most
        self._waiting = iter(sequences)
        self._there: dict[str, Sequel] = {}
        self._made: list[tuple[Sequel, Sample]] = []
        self._written_at = time.monotonic()
        self._step = -1

    def run(self) -> None:
        """Until all are answered, or the manager's thread has died. Raises Interrupted."""
        asked_at: float | None = None
        try:
            while True:
                if asked_at is None:
                    self._feed()
                if not self._there:
                    break
                self._take(self._manager.get_result(timeout=WAIT_S))
                if self._died():
                    return
                if self._run.stop_requested:
                    asked_at = asked_at or time.monotonic()
                    if time.monotonic() - asked_at > STOP_PATIENCE_S:
                        break
        finally:
            self._write()
        if asked_at is not None and (self._there or next(self._waiting, None) is not None):
            raise Interrupted

    def _feed(self) -> None:
        for each in islice(self._waiting, self._most - len(self._there)):
            self._there[_name(each)] = each
            self._manager.add_request(
                list(each.request.tokens), _name(each), max_new_tokens=each.request.sampling.max_new_tokens
            )

    def _take(self, output: Any) -> None:
        now = time.monotonic()
        if output is not None and output.error is None and (each := self._there.pop(output.request_id, None)):
            self._made.append((each, self._drawing.sample(each.request, output.generated_tokens)))
        elif output is not None and not self._died() and (each := self._there.pop(output.request_id, None)):
            self._gathering.fail(each.request, Problem("engine_error", str(output.error)[:300], 500))
        if len(self._made) >= WRITE_AT or now - self._written_at > WRITE_EVERY_S:
            self._write()
            # a step that does not end is no beat: the watchdog must see it
            if (step := getattr(self._manager, "current_batch", 0)) != self._step:
                self._step = step
                self._run.beat()

    def _write(self) -> None:
        self._written_at = time.monotonic()
        made, self._made = self._made, []
        self._gathering.take(made)

    def _died(self) -> bool:
        return self._manager.background_thread_status.can_accept_new_requests() is not None


class _Processors(ContinuousBatchingLogitsProcessorList):  # type: ignore[misc]
    """Ours alone; it keeps its arguments itself, and has one number of room for each sequence because one is asked for."""

    def __init__(self, processors: Any):
        super().__init__(processors)
        self.tensors_required = 1


class _Drawn(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Our own way to draw. Its two halves are called in turns: first whose scores come next, then the scores."""

    supported_kwargs: ClassVar[dict[str, type]] = {}
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self, drawing: Drawing, sequences: Mapping[str, Sequel]):
        self._drawing, self._sequences = drawing, sequences
        self._draws: list[Draw] = []

    def fill_defaults(self, int32_tensor: Any) -> None:
        int32_tensor.fill_(0)

    def prepare_tensor_args(self, requests_with_new_token: Any) -> Any:
        self._draws = [self._draw(each.state) for each in requests_with_new_token]
        return torch.zeros(len(self._draws), dtype=torch.int32)

    def __call__(self, scores: Any, tensor_arg: Any) -> Any:
        # rows behind the last draw belong to prompts that are not read to their ends: nothing comes of them
        count = len(self._draws)
        scores[:count] = self._drawing(scores[:count], self._draws)
        return scores

    def _draw(self, state: Any) -> Draw:
        each = self._sequences[state.request_id]
        # one that had to make room begins again with what it had said as a part of its prompt
        said = [*state.initial_tokens[len(each.request.tokens) :], *state.generated_tokens]
        return Draw(each.request, each.sample, said)


def _name(each: Sequel) -> str:
    return f"{each.request.key}#{each.sample}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
