"""How the rows of one optimizer step are cut into what goes through the GPU at once. Pure arithmetic; knows no memory."""

from collections.abc import Mapping
from typing import Any

#: kto pairs each prompt of a micro-batch with another one's answer.
LEAST_FOR_KTO = 2
#: Micro-batches that nobody asked for are no larger: more rows at once than this make no GPU faster.
MOST_ROWS_AT_ONCE = 64


def least(objective: object) -> int:
    """Rows that must go through the model at once."""
    return LEAST_FOR_KTO if objective == "kto" else 1


def rows_per_step(spec: Mapping[str, Any]) -> int:
    """The effective batch: of all GPUs together, however they share the work."""
    return int(spec["per_device_train_batch_size"]) * int(spec["gradient_accumulation_steps"]) * gpus(spec)


def gpus(spec: Mapping[str, Any]) -> int:
    """How many GPUs share the rows of a step."""
    return int(spec.get("gpus") or 1)


def sizes(spec: Mapping[str, Any], most: int) -> list[int]:
    """Micro-batches of at most so many rows that keep the effective batch, smallest first."""
    each = rows_per_step(spec) // gpus(spec)
    return [micro for micro in range(least(spec.get("objective")), most + 1) if each % micro == 0]


def with_micro(spec: Mapping[str, Any], micro: int) -> dict[str, Any]:
    """The fields that say this micro-batch and the same effective batch."""
    each = rows_per_step(spec) // gpus(spec)
    return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": each // micro}
