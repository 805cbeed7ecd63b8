"""What a GPU has room for: the largest batch at each length, the longest length, by method. Pure arithmetic over jobs.estimate."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.estimate import VRAM_RESERVE_BYTES, Facts, Json, estimate, inference_bytes
from jobs.known_models import CONFIGS
from jobs.model_facts import ModelFacts, of_config
from jobs.spec import dump, parse

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
LENGTH_STEP = 128
#: More at once is no use: the GPU is full of work long before.
MOST_AT_ONCE = 512
#: Tokens that are generated after a prompt, where a length is that of both together.
NEW_TOKENS = 256
#: How a model is used, with the fields of its document that differ from the defaults.
TRAINING: Mapping[str, Json] = {
    "full": {"method": "full"},
    "full, pure bf16": {"method": "full", "pure_bf16": True, "optim": "adamw_8bit"},
    "lora": {"method": "lora"},
    "qlora": {"method": "qlora"},
}
GENERATION: Mapping[str, str] = {"generate": "none", "generate, int8": "int8", "generate, nf4": "nf4"}

#: Bytes for so many rows of so many tokens.
Need = Callable[[int, int], int]


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What one method has room for. `batches`: the most rows at each length; a length of which no row fits is missing."""

    method: str
    #: For one row of the shortest length: what the method needs at least.
    least_bytes: int
    batches: Mapping[int, int] = field(default_factory=dict)
    #: Of one row alone; 0 when none fits.
    longest: int = 0

    @property
    def fits(self) -> bool:
        return self.longest > 0


def capacities(model: ModelFacts, memory_bytes: int) -> list[Capacity]:
    """Every method, training (with activations computed again) before generating."""
    return [_capacity(method, need, model, memory_bytes) for method, need in _needs(model)]


def capacity(spec: Json, model: ModelFacts, memory_bytes: int) -> Capacity | None:
    """The same for a document's own method; None for a kind that has no batch and length."""
    if spec["kind"] == "finetune":
        return _capacity(spec["method"], _training(spec, model), model, memory_bytes)
    if spec["kind"] == "generate":
        return _capacity("generate", _generating(model, "none", spec["dtype"], spec["max_new_tokens"]), model, memory_bytes)  # fmt: skip
    return None


def known_sizes(memory_bytes: int) -> dict[str, list[Capacity]]:
    """The usual models, the smallest first."""
    return {name: capacities(of_config(config), memory_bytes) for name, config in CONFIGS.items()}


def _needs(model: ModelFacts) -> Iterator[tuple[str, Need]]:
    for method, fields in TRAINING.items():
        document = {"kind": "finetune", "model": "m", "data": "d", "gradient_checkpointing": True, **fields}
        yield method, _training(dump(parse(document)), model)
    for method, quantization in GENERATION.items():
        yield method, _generating(model, quantization, "auto", NEW_TOKENS)


def _training(spec: Json, model: ModelFacts) -> Need:
    def need(rows: int, length: int) -> int:
        fields: dict[str, Any] = {"per_device_train_batch_size": rows, "max_length": length}
        made = estimate({**spec, **fields, "eval_data": None, "eval_fraction": 0}, Facts(model=model))
        return made.vram_bytes or 0

    return need


def _generating(model: ModelFacts, quantization: str, dtype: str, new_tokens: int) -> Need:
    compute = "bfloat16" if dtype == "auto" else dtype

    def need(rows: int, length: int) -> int:
        prompt = max(1, length - new_tokens)
        return inference_bytes(model, rows, prompt, length - prompt, compute, quantization=quantization, on_gpu=True)

    return need


def _capacity(method: str, need: Need, model: ModelFacts, memory_bytes: int) -> Capacity:
    room_bytes = memory_bytes - VRAM_RESERVE_BYTES
    context = model.context or LENGTHS[-1]
    lengths = [length for length in LENGTHS if length <= context]
    found = {length: _most(range(1, MOST_AT_ONCE + 1), lambda rows, n=length: need(rows, n) <= room_bytes) for length in lengths}  # type: ignore[misc]  # fmt: skip
    longest = _most(range(LENGTH_STEP, context + 1, LENGTH_STEP), lambda length: need(1, length) <= room_bytes)
    return Capacity(
        method=method,
        least_bytes=need(1, min(LENGTH_STEP, context)),
        batches={length: rows for length, rows in found.items() if rows},
        longest=longest,
    )


def _most(tried: Sequence[int], fits: Callable[[int], bool]) -> int:
    """The last that fits; each needs at least as much as the one before. 0 when none does."""
    low, high = 0, len(tried)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(tried[middle]) else (low, middle)
    return tried[low - 1] if low else 0
