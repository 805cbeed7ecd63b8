"""A dry run's step (jobs.dry_run) in place of fitted coefficients: what to step through, and the memory that follows from it."""

from collections.abc import Mapping

from jobs.data import DataReport
from jobs.estimate.facts import Json, Part
from jobs.estimate.memory import GAPS, TRAINING_OVERHEAD_BYTES, at_most, row_tokens, width_of
from jobs.estimate.methods import is_paged, method_of, optimizer_bytes
from jobs.estimate.training import fused_loss_bytes


def longest_batch(spec: Json, data: DataReport | None) -> dict[str, int]:
    """The document's batch as its longest rows make it: what a dry run (jobs.dry_run) is to step through."""
    rows = at_most(spec["per_device_train_batch_size"], data)
    return {"per_device_train_batch_size": rows, "max_length": row_tokens(spec, data)}


def of_step(spec: Json, step: Mapping[str, int]) -> dict[Part, int]:
    """The memory of a fine-tune on a GPU from its dry run's step (jobs.dry_run.Step): what is counted there is taken as it is.

    Optimizer, the loss, weights in few bits and what CUDA takes are no fake tensors, and come from the same arithmetic as ever.
    The activations have the loss with them: the larger of the two moments counts.
    """
    method, width = method_of(spec), width_of(spec, on_gpu=True)
    tokens, learned = spec["per_device_train_batch_size"] * spec["max_length"], step["learned"]
    gradients = learned * method.gradient_bytes
    linear_bytes = method.linear_bytes or width
    rest_bytes = linear_bytes if method.learns_all else width
    loss = fused_loss_bytes(tokens, step["hidden"], step["vocabulary"], width, on_gpu=True)
    output = 4 * step["vocabulary"] * step["hidden"] if method.learns_all else 0
    unpacked = width * step["largest_linear"] if method.linear_bytes and not method.learns_all else 0
    alive = max(step["peak_bytes"] + unpacked, step["kept_bytes"] + loss + output, gradients)
    parts: dict[Part, float] = {
        "weights": step["linear_parameters"] * linear_bytes + (step["parameters"] - step["linear_parameters"]) * rest_bytes,
        "adapter": 0 if method.learns_all else learned * method.learned_bytes,
        "gradients": gradients,
        "optimizer": 0 if is_paged(spec) else learned * optimizer_bytes(spec, method),
        "activations": alive - gradients,
    }  # fmt: skip
    parts["overhead"] = TRAINING_OVERHEAD_BYTES + GAPS * (sum(parts.values()) - parts["weights"])
    return {name: round(size) for name, size in parts.items()}
