"""How several GPUs share one training. Pure words; which way fits is jobs.fitting's to find.

ddp: every GPU has the whole model and learns from rows of its own. fsdp: they share weights, gradients and optimizer state, too
(FSDP2). device_map: every GPU has some of the layers; one process, and the GPUs work one after the other.
"""

from collections.abc import Mapping
from typing import Any

#: The fastest first.
WAYS = ("ddp", "fsdp", "device_map")
#: Optimizers whose states can be split between GPUs: those of torch. bitsandbytes' cannot.
SHARDED_OPTIMIZERS = frozenset({"adamw_torch_fused", "adamw_torch", "sgd"})


def way(spec: Mapping[str, Any]) -> str | None:
    """How this document's GPUs share the work; None with one. What is not chosen yet counts as ddp."""
    if spec["kind"] != "finetune" or spec.get("gpus", 1) == 1:
        return None
    chosen = str(spec.get("parallel", "auto"))
    return "ddp" if chosen == "auto" else chosen


def processes(spec: Mapping[str, Any]) -> int:
    """How many processes its attempt has."""
    return int(spec["gpus"]) if way(spec) in ("ddp", "fsdp") else 1


def no_fsdp(spec: Mapping[str, Any]) -> str | None:
    """Why FSDP cannot run it, to be read after its name; None when it can."""
    if spec["method"] == "qlora":
        return "does not split weights of 4 bits"
    if spec["objective"] != "sft":
        return f"is for objective sft, and this is {spec['objective']}"
    if spec["optim"] not in SHARDED_OPTIMIZERS:
        return f"does not split the states of {spec['optim']}; {', '.join(sorted(SHARDED_OPTIMIZERS))} can be split"
    if spec["dtype"] == "float16":
        return "needs bfloat16 or float32"
    return None
