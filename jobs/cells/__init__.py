"""A benchmark's cells: which there are, what each measured, what it says of the next. Pure; knows no torch.

A cell is one precision, one batch size, one prompt length. Its row in `output/cells.jsonl` says what was measured, or why
it was not. Definitions are those of NVIDIA's "LLM benchmarking metrics" and of vLLM's benchmarks: the first token's time
covers the whole prompt, and neither the decode rate nor the time between tokens contains it.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.metrics import is_finite

Json = Mapping[str, Any]

MEASURED, DOES_NOT_FIT, NOT_RUN = "measured", "does_not_fit", "not_run"
#: An energy counter moves ten times a second at best: of a shorter interval it says too little.
SHORTEST_ENERGY_S = 1.0
#: What every measured row has.
NUMBERS = (
    "ttft_s", "prefill_tokens_per_s", "decode_tokens_per_s", "decode_min_tokens_per_s", "decode_max_tokens_per_s",
    "inter_token_latency_s", "inter_token_latency_p95_s", "repeats",
)  # fmt: skip
#: What the whole process needed at most, bytes: on a GPU, on a CPU.
PEAKS = ("peak_reserved_bytes", "peak_rss_bytes")
#: Of a batch or a prompt: what a document may ask for at most.
LARGEST = 1_048_576


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured at once."""

    dtype: str
    quantization: str
    batch_size: int
    prompt_length: int

    @property
    def variant(self) -> tuple[str, str]:
        return self.dtype, self.quantization

    @property
    def prompt_tokens(self) -> int:
        return self.batch_size * self.prompt_length

    def at_least(self, other: "Cell") -> bool:
        """Whether it needs as much as the other in every way."""
        same = self.variant == other.variant
        return same and self.batch_size >= other.batch_size and self.prompt_length >= other.prompt_length


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One run of a cell, seconds: until its first token, and from each token to the next."""

    first_token_s: float
    between_s: Sequence[float]


def plan(spec: Json, auto: str) -> list[list[Cell]]:
    """The cells of each variant, the smallest first: what does not fit is known before anything larger is tried.

    `auto`: the precision that this stands for here.
    """
    dtypes = dict.fromkeys(auto if dtype == "auto" else dtype for dtype in spec["dtypes"])
    variants = [(dtype, quantization) for dtype in dtypes for quantization in dict.fromkeys(spec["quantizations"])]  # fmt: skip
    sizes = [(batch, length) for batch in spec["batch_sizes"] for length in spec["prompt_lengths"]]
    sizes.sort(key=lambda size: (size[0] * size[1], size[1]))
    return [[Cell(dtype=d, quantization=q, batch_size=b, prompt_length=n) for b, n in sizes] for d, q in variants]


def cell_of(row: Json) -> Cell:
    """The cell that a row is about."""
    return Cell(
        dtype=str(row["dtype"]),
        quantization=str(row["quantization"]),
        batch_size=int(row["batch_size"]),
        prompt_length=int(row["prompt_length"]),
    )


def measured_row(cell: Cell, timings: Sequence[Timing], memory: Json, energy_j: float | None) -> dict[str, Any]:
    """The row of a cell that ran. `memory`: bytes by name. `energy_j`: of all timings together; None: not known."""
    first = [timing.first_token_s for timing in timings]
    rates = [cell.batch_size * len(t.between_s) / sum(t.between_s) for t in timings]
    between = sorted(wait for timing in timings for wait in timing.between_s)
    tokens = sum(cell.batch_size * (1 + len(timing.between_s)) for timing in timings)
    took_s = sum(timing.first_token_s + sum(timing.between_s) for timing in timings)
    energy = energy_j if energy_j is not None and took_s >= SHORTEST_ENERGY_S else None
    return {
        **asdict(cell),
        "state": MEASURED,
        "ttft_s": statistics.median(first),
        "ttft_min_s": min(first),
        "ttft_max_s": max(first),
        "prefill_tokens_per_s": cell.prompt_tokens / statistics.median(first),
        "decode_tokens_per_s": statistics.median(rates),
        "decode_min_tokens_per_s": min(rates),
        "decode_max_tokens_per_s": max(rates),
        "inter_token_latency_s": statistics.median(between),
        "inter_token_latency_p95_s": between[min(len(between) - 1, int(0.95 * len(between)))],
        **memory,
        "energy_j": energy,
        "joules_per_token": energy / tokens if energy is not None else None,
        "repeats": len(timings),
        "new_tokens": 1 + len(timings[0].between_s),
    }


def unmeasured_row(cell: Cell, state: str, reason: str) -> dict[str, Any]:
    """The row of a cell that did not run."""
    return {**asdict(cell), "state": state, "reason": reason}


def least_s(cell: Cell, rows: Iterable[Json], runs: int, new_tokens: int) -> float | None:
    """Seconds that a cell takes at least, by the nearest one that was measured; None before there is one.

    More prompt tokens take longer at the same rate, and a larger batch has no shorter waits between its tokens.
    """
    known = [row for row in rows if row["state"] == MEASURED]
    alike = [row for row in known if cell_of(row).variant == cell.variant] or known
    if not alike:
        return None
    near = min(alike, key=lambda row: abs(cell_of(row).prompt_tokens - cell.prompt_tokens))
    one_s = cell.prompt_tokens / near["prefill_tokens_per_s"] + new_tokens * near["inter_token_latency_s"]
    return float(runs * one_s)


def metrics(rows: Sequence[Json]) -> dict[str, Any]:
    """What stands for the whole: the best speeds, the least waits, and how much was measured."""
    known = [row for row in rows if row["state"] == MEASURED]
    if not known:
        return {"cells": len(rows), "cells_measured": 0}
    alone = [row for row in known if row["batch_size"] == min(other["batch_size"] for other in known)]
    shortest = [row for row in alone if row["prompt_length"] == min(other["prompt_length"] for other in alone)]
    fastest = max(known, key=lambda row: float(row["decode_tokens_per_s"]))
    made: dict[str, Any] = {
        "decode_tokens_per_s": fastest["decode_tokens_per_s"],
        "prefill_tokens_per_s": max(row["prefill_tokens_per_s"] for row in known),
        "ttft_s": min(row["ttft_s"] for row in shortest),
        "inter_token_latency_s": min(row["inter_token_latency_s"] for row in alone),
        "single_decode_tokens_per_s": max(row["decode_tokens_per_s"] / row["batch_size"] for row in alone),
        "best_batch_size": fastest["batch_size"],
        "best_precision": variant_words(cell_of(fastest).variant),
        "cells": len(rows),
        "cells_measured": len(known),
        "cells_not_fitting": sum(row["state"] == DOES_NOT_FIT for row in rows),
    }
    if joules := [row["joules_per_token"] for row in known if row.get("joules_per_token") is not None]:
        made["joules_per_token"] = min(joules)
    variants = dict.fromkeys(cell_of(row).variant for row in known)
    if len(variants) > 1:
        for variant in variants:
            rates = [row["decode_tokens_per_s"] for row in known if cell_of(row).variant == variant]
            made[f"{'_'.join(variant).removesuffix('_none')}_decode_tokens_per_s"] = max(rates)
    # more digits than four would be noise
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in made.items()}


def variant_words(variant: tuple[str, str]) -> str:
    """bfloat16, or nf4 in bfloat16."""
    dtype, quantization = variant
    return dtype if quantization == "none" else f"{quantization} in {dtype}"


def peak_bytes(row: Json) -> int:
    """What the whole process needed: on a GPU what torch reserved there, on a CPU its resident memory."""
    return int(next((row[name] for name in PEAKS if row.get(name)), 0))


def is_row(value: Json) -> bool:
    """Whether a line of the file is a row of ours. It was left by a job, so it may be anything."""
    if not all(isinstance(value.get(name), str) for name in ("dtype", "quantization", "state")):
        return False
    if not all(
        isinstance(value.get(name), int) and 0 < value[name] <= LARGEST for name in ("batch_size", "prompt_length")
    ):
        return False
    if value["state"] in (DOES_NOT_FIT, NOT_RUN):
        return isinstance(value.get("reason", ""), str)
    numbers = all(is_finite(value.get(name)) for name in NUMBERS)
    peaks = all(value.get(name) is None or is_finite(value[name]) for name in PEAKS)
    return value["state"] == MEASURED and numbers and peaks
