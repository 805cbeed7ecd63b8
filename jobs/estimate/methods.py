"""What ways of fine-tuning, optimizers and quantised weights keep, in bytes of one parameter."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jobs.estimate.facts import Json


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a way of fine-tuning keeps in memory."""

    #: Bytes per weight of a linear layer; None: the compute dtype's.
    linear_bytes: float | None = None
    #: Whether it learns an adapter, or all weights; and bytes of one learned parameter and of its gradient.
    learns_all: bool = False
    learned_bytes: int = 4
    gradient_bytes: int = 4


METHODS: Mapping[str, Method] = {
    "lora": Method(),
    # NF4 with one float32 scale for 64 weights; TRL keeps its adapters, and so their optimizer, in bfloat16
    "qlora": Method(linear_bytes=0.5 + 4 / 64, learned_bytes=2, gradient_bytes=2),
    "full": Method(linear_bytes=4, learns_all=True),
}
#: The scales as 8-bit numbers, with one float32 scale for 256 of them (bitsandbytes' double quantisation).
DOUBLE_QUANTISED_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
#: One weight as bitsandbytes keeps it; int8 has one float32 scale for each row.
QUANTISED_BYTES: Mapping[str, float | None] = {"none": None, "nf4": 0.5 + 4 / 64, "int8": 1.0}
PURE_BF16 = Method(linear_bytes=2, learns_all=True, learned_bytes=2, gradient_bytes=2)
#: What optimizers keep for one learned parameter: so many numbers of its own type, and so many bytes besides.
#: bitsandbytes has one float32 scale for 256 numbers of 8 bits; adafactor keeps rows and columns of a matrix's moments.
OPTIMIZERS: Mapping[str, tuple[int, float]] = {
    "adamw_torch_fused": (2, 0), "adamw_torch": (2, 0), "adamw_8bit": (0, 2 + 8 / 256), "paged_adamw_8bit": (0, 2 + 8 / 256),
    "paged_adamw_32bit": (0, 8), "lion_8bit": (0, 1 + 4 / 256), "paged_lion_8bit": (0, 1 + 4 / 256), "lion_32bit": (0, 4),
    "paged_lion_32bit": (0, 4), "adafactor": (0, 0.5), "sgd": (0, 0),
}  # fmt: skip


def method_of(spec: Json) -> Method:
    """What this document's way of fine-tuning keeps."""
    if spec["pure_bf16"]:
        return PURE_BF16
    found = METHODS[spec["method"]]
    if spec["method"] == "qlora" and spec["bnb_4bit_use_double_quant"]:
        return replace(found, linear_bytes=DOUBLE_QUANTISED_BYTES)
    return found


def optimizer_bytes(spec: Json, method: Method) -> float:
    """What the optimizer keeps for one learned parameter."""
    numbers, besides = OPTIMIZERS[spec["optim"]]
    return numbers * method.learned_bytes + besides


def is_paged(spec: Json) -> bool:
    """Its states go to the machine's memory when the GPU's runs short."""
    return str(spec["optim"]).startswith("paged_")
