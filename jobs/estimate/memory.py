"""The memory that all kinds of work have in common: weights, a pass forward, what the process itself takes; and how long rows are."""

import math
from dataclasses import dataclass

from jobs.data import DataReport
from jobs.estimate.facts import Json
from jobs.estimate.methods import Method
from jobs.model_facts import ModelFacts

#: Left to the driver and the desktop beside what a job needs.
VRAM_RESERVE_BYTES = 512 << 20
#: CUDA context, cuBLAS and cuDNN workspaces, rounding of the allocator; and what its gaps add to all but the weights.
TRAINING_OVERHEAD_BYTES = round(1.1 * 2**30)
INFERENCE_OVERHEAD_BYTES = round(0.6 * 2**30)
GAPS = 0.03
#: On a CPU: Python with torch, transformers, PEFT and TRL loaded (measured: 531 MiB), and its allocator.
CPU_OVERHEAD_BYTES = round(0.6 * 2**30)
#: English has four bytes or more to a token, code and other scripts about three: fewer for memory, the usual for counting.
FEWEST_BYTES_PER_TOKEN, USUAL_BYTES_PER_TOKEN = 3, 4
#: What a chat template adds to a row: roles, turns, and often a system prompt of its own.
TEMPLATE_TOKENS = 64
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Batch:
    """Rows of one length that go through the model at once."""

    size: int
    length: int
    packed: bool

    @property
    def tokens(self) -> int:
        return self.size * self.length

    @property
    def mask_elements(self) -> int:
        """Packed rows are one long row with a mask of its own; rows of several lengths need one each; one row needs none."""
        if self.packed:
            return self.tokens**2
        return self.size * self.length**2 if self.size > 1 else 0


def weights_bytes(model: ModelFacts, method: Method, width: int) -> float:
    """All weights of the model. `width`: bytes of those that the method leaves as they are."""
    if model.quantised:
        return model.stored_bytes
    if method.linear_bytes is None:
        return model.parameters * width
    other = model.parameters - model.linear_parameters
    return model.linear_parameters * method.linear_bytes + other * (method.linear_bytes if method.learns_all else width)


def forward_bytes(model: ModelFacts, batch: Batch, width: int) -> float:
    """What one layer holds at once on the way forward."""
    return batch.tokens * width * (4 * model.hidden + 2 * model.feed_forward + model.attention + 2 * model.key_value)


def row_tokens(spec: Json, data: DataReport | None) -> int:
    """Tokens of the longest row as it is trained on."""
    longest = int(spec["max_length"])
    return longest if data is None or spec["packing"] else min(longest, longest_row_tokens(data))


def at_most(size: int, data: DataReport | None) -> int:
    """A batch is never larger than the data."""
    return size if data is None else min(size, data.rows)


def longest_row_tokens(data: DataReport) -> int:
    """The longest row, as tokens, counted generously."""
    return math.ceil(data.longest_bytes / FEWEST_BYTES_PER_TOKEN) + TEMPLATE_TOKENS


def width_of(spec: Json, on_gpu: bool) -> int:
    """Bytes of a number in the compute dtype."""
    return WIDTH.get(spec["dtype"], 2 if on_gpu else 4)
