"""Rows of a benchmark as a rig would have left them."""

from collections.abc import Iterator
from typing import Any

from jobs.cells import DOES_NOT_FIT, NOT_RUN, Cell, Timing, measured_row, unmeasured_row


def some_rows(card: str = "NVIDIA GeForce RTX 3090") -> Iterator[dict[str, Any]]:
    """Two precisions over two batches and two prompts; the largest cell does not fit, and a third precision cannot run."""
    for quantization, slower in (("none", 1.0), ("nf4", 1.6)):
        for batch in (1, 8):
            for prompt in (128, 1024):
                cell = Cell(dtype="bfloat16", quantization=quantization, batch_size=batch, prompt_length=prompt)
                if (quantization, batch, prompt) == ("none", 8, 1024):
                    yield unmeasured_row(cell, DOES_NOT_FIT, "the memory ran out")
                    continue
                first_s = 0.02 + slower * cell.prompt_tokens / 9_000
                timings = [
                    Timing(first_token_s=first_s * wobble, between_s=[0.021 * slower * wobble] * 127)
                    for wobble in (1.0, 0.98, 1.03)
                ]
                memory = {"peak_reserved_bytes": (17 if quantization == "none" else 7) << 30}
                row = measured_row(cell, timings, memory, energy_j=310.0 * sum(t.first_token_s + sum(t.between_s) for t in timings))  # fmt: skip
                yield row | {"card": card, "started_at": 1.0, "ended_at": 2.0}
    for batch in (1, 8):
        cell = Cell(dtype="bfloat16", quantization="int8", batch_size=batch, prompt_length=128)
        yield unmeasured_row(cell, NOT_RUN, "Weights in int8 need the package bitsandbytes.")
