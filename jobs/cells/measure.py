"""Measure one cell of a benchmark on a loaded model: the moments of its tokens, its memory, its energy. Loads torch and transformers.

The method is that of `generate`, the path that a generation job takes: one batch of prompts of exactly so many random tokens
(as llama-bench and vLLM's random data set do), greedy, no token that ends it. The clock is read at every new token, after
the GPU has finished it; so a token's time includes what a server that streams would wait, too.
"""

import gc
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from transformers import GenerationConfig, StoppingCriteria  # noqa: TID253

from jobs.cells import Cell, Timing
from jobs.energy_counter import EnergyCounter, spent_j
from jobs.run import Interrupted, Run
from jobs.weights import Device

#: Tokens of the run before the measured ones: it loads kernels and fills the allocator's pools with the cell's own shapes.
WARM_UP_TOKENS = 8
BEAT_EVERY_S = 1.0
#: Linux begins a process's peak of resident memory anew when this is written.
CLEAR_PEAK, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Meter:
    """Runs prompts through a model and keeps the time."""

    def __init__(self, run: Run, model: Any, device: Device, energy: EnergyCounter):
        self._run, self._model, self._device, self._energy = run, model, device, energy
        # what comes with a model (sampling, end tokens) would be merged into ours
        model.generation_config = GenerationConfig()

    def measure(self, cell: Cell, *, new_tokens: int, repeats: int, seed: int) -> tuple[list[Timing], dict[str, int], float | None]:  # fmt: skip
        """Timings, memory by name, joules of all repeats together. Raises torch.OutOfMemoryError, Interrupted."""
        prompts = self._prompts(cell, seed)
        self._once(prompts, min(WARM_UP_TOKENS, new_tokens))
        self._forget_peak()
        before = self._energy.read_j()
        timings = [self._once(prompts, new_tokens) for _ in range(repeats)]
        joules = spent_j(before, self._energy.read_j())
        return timings, self._memory(), joules

    def release(self) -> None:
        """Give back what a cell that did not fit has left behind."""
        gc.collect()
        if self._device.is_gpu:
            torch.cuda.empty_cache()

    def _prompts(self, cell: Cell, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (cell.batch_size, cell.prompt_length)
        vocabulary = self._model.get_input_embeddings().num_embeddings
        return torch.randint(vocabulary, shape, generator=generator).to(self._device.name)

    def _once(self, prompts: torch.Tensor, new_tokens: int) -> Timing:
        if self._run.stop_requested:
            raise Interrupted
        clock = TokenClock(self._run, self._synchronize)
        config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
        self._synchronize()
        began = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                generation_config=config,
                stopping_criteria=[clock],
            )
        if clock.stopped:
            raise Interrupted
        first_s, *between_s = [b - a for a, b in pairwise([began, *clock.moments])]
        return Timing(first_token_s=first_s, between_s=between_s)

    def _synchronize(self) -> None:
        if self._device.is_gpu:
            torch.cuda.synchronize()

    def _forget_peak(self) -> None:
        if self._device.is_gpu:
            torch.cuda.reset_peak_memory_stats()
        try:
            CLEAR_PEAK.write_text("5")
        except OSError:
            pass  # then the peak is that of the whole process so far

    def _memory(self) -> dict[str, int]:
        found = {"peak_rss_bytes": peak_rss_bytes()}
        if not self._device.is_gpu:
            return found
        found["peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
        found["peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
        if (used := self._energy.memory_used_bytes()) is not None:
            found["device_used_bytes"] = used  # torch still holds what it reserved
        return found


class TokenClock(StoppingCriteria):  # type: ignore[misc]
    """Asked at every new token: notes the moment, beats for the watchdog, and stops at once when the job is asked to."""

    def __init__(self, run: Run, synchronize: Callable[[], None]):
        self._run, self._synchronize = run, synchronize
        self._beat_at = time.monotonic()
        self.moments: list[float] = []
        self.stopped = False

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self._synchronize()
        self.moments.append(time.perf_counter())
        if time.monotonic() - self._beat_at > BEAT_EVERY_S:
            self._beat_at = time.monotonic()
            self._run.beat()
        self.stopped = self._run.stop_requested
        return torch.full((input_ids.shape[0],), self.stopped, device=input_ids.device, dtype=torch.bool)


def peak_rss_bytes() -> int:
    """The most resident memory that this process has had since `clear_refs` was written; 0 where Linux does not say."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
