"""What would make a job fit into a GPU: a search over changes of its document with jobs.estimate. Pure.

Changes that keep what the job means come first: a smaller micro-batch with the same effective batch, activations that are
computed again instead of kept, fewer prompts at once. Only where none of them is enough, one that makes it another job.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs import batches, parallel
from jobs.estimate import Facts, Json, estimate

SHORTEST_LENGTH, LENGTH_STEP = 128, 128
SHORTEST_ANSWER, ANSWER_STEP = 64, 64


@dataclass(frozen=True, kw_only=True)
class Change:
    """Fields that would make a job fit, and what it would need then."""

    fields: Mapping[str, Any]
    vram_bytes: int
    #: Whether the result would be another one, beside rounding.
    changes_meaning: bool = False


def what_fits(spec: Json, facts: Facts, room_bytes: int) -> list[Change]:
    """Changes that make the job need no more than `room_bytes`. Empty when nothing helps, or nobody knows its need."""
    if spec["kind"] == "finetune":
        ways = (_same_training, _shared_otherwise, _other_training)
        return next((found for way in ways if (found := list(way(spec, facts, room_bytes)))), [])
    if spec["kind"] in ("generate", "evaluate"):
        return list(_generations(spec, facts, room_bytes))
    return []


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How several GPUs share a training, and why so."""

    way: str
    why: str
    #: On each GPU; None when nobody knows.
    vram_bytes: int | None = None


def sharing(spec: Json, facts: Facts, room_bytes: int | None) -> Sharing:
    """The way that its document asks for, else the fastest that fits into `room_bytes` of each GPU. None: not limited.

    Where none fits, the one that needs least: its refusal then says how far it is.
    """
    needs = {way: estimate({**spec, "parallel": way}, facts).vram_bytes for way in parallel.WAYS}
    told = spec["parallel"]
    if told != "auto":
        return Sharing(way=told, why="as its document says", vram_bytes=needs[told])
    whole = needs["ddp"]
    if whole is None or room_bytes is None:
        why = "what it needs is not known" if whole is None else "each slot takes the whole model"
        return Sharing(way="ddp", why=why, vram_bytes=whole)
    if whole <= room_bytes:
        return Sharing(way="ddp", why="one GPU holds the whole model", vram_bytes=whole)
    short = f"one GPU cannot hold the whole model with what learning needs ({_gib(whole)} of {_gib(room_bytes)})"
    refused = parallel.no_fsdp(spec)
    split, layers = needs["fsdp"] or 0, needs["device_map"] or 0
    if refused is None and split <= room_bytes:
        return Sharing(way="fsdp", why=f"{short}, and split between {spec['gpus']} it fits", vram_bytes=split)
    beside = f"FSDP {refused}" if refused else f"split by FSDP it needs {_gib(split)}"
    if layers <= room_bytes:
        return Sharing(way="device_map", why=f"{short}, and {beside}", vram_bytes=layers)
    way, need = min(("fsdp", split), ("device_map", layers), key=lambda each: each[1]) if not refused else ("device_map", layers)  # fmt: skip
    return Sharing(way=way, why=f"{short}, and {beside}; no way fits", vram_bytes=need)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def micro_batch(spec: Json, facts: Facts, room_bytes: int) -> int | None:
    """The most rows that can go through the GPU at once, with the same effective batch; None when nobody knows."""
    most = min(batches.rows_per_step(spec), batches.MOST_ROWS_AT_ONCE)
    sizes = batches.sizes(spec, most)
    if not sizes or estimate(spec, facts).vram_bytes is None:
        return None
    found = _most(spec, facts, room_bytes, [batches.with_micro(spec, micro) for micro in sizes])
    return int(found.fields["per_device_train_batch_size"]) if found else sizes[0]


def _same_training(spec: Json, facts: Facts, room_bytes: int) -> Iterator[Change]:
    for fields in ({}, {"gradient_checkpointing": True}) if not spec["gradient_checkpointing"] else ({},):
        found = _largest_batch(spec, facts, room_bytes, fields)
        if found and found.fields:
            yield found


def _shared_otherwise(spec: Json, facts: Facts, room_bytes: int) -> Iterator[Change]:
    """Another way for several GPUs to share it."""
    told = parallel.way(spec)
    for way in parallel.WAYS if told else ():
        possible = way != told and (way != "fsdp" or parallel.no_fsdp(spec) is None)
        if possible and (found := _largest_batch(spec, facts, room_bytes, {"parallel": way})):
            yield found
            return


def _other_training(spec: Json, facts: Facts, room_bytes: int) -> Iterator[Change]:
    sparing = {} if spec["gradient_checkpointing"] else {"gradient_checkpointing": True}
    tried_methods = (_largest_batch(spec, facts, room_bytes, {**sparing, **fields}) for fields in _sparing_methods(spec, facts))  # fmt: skip
    found = next((change for change in tried_methods if change), None)
    if found is None:
        lengths = range(SHORTEST_LENGTH, spec["max_length"], LENGTH_STEP)
        tried = [
            {**sparing, **_micro(spec, batches.least(spec["objective"])), "max_length": length} for length in lengths
        ]
        found = _most(spec, facts, room_bytes, tried)
    if found is not None:
        yield Change(fields=found.fields, vram_bytes=found.vram_bytes, changes_meaning=True)


def _sparing_methods(spec: Json, facts: Facts) -> Iterator[Json]:
    """Methods that keep less of the model in memory, the nearest first."""
    if facts.model is not None and facts.model.quantised:
        return
    if spec["method"] == "full" and not spec["pure_bf16"] and spec["dtype"] in ("auto", "bfloat16"):
        yield {"pure_bf16": True}
    other: dict[str, Any] = {"pure_bf16": False} if spec["pure_bf16"] else {}
    if spec["method"] == "full":
        yield {**other, "method": "lora"}
    if spec["method"] != "qlora":
        yield {**other, "method": "qlora"}


def _generations(spec: Json, facts: Facts, room_bytes: int) -> Iterator[Change]:
    asked = spec["batch_size"] or 1
    fewer: list[Json] = [{"batch_size": size} for size in range(1, asked)]
    if found := _most(spec, facts, room_bytes, fewer):
        yield found
        return
    alone = {"batch_size": 1} if asked > 1 else {}
    shorter: list[Json] = [
        {**alone, "max_new_tokens": count} for count in range(SHORTEST_ANSWER, spec["max_new_tokens"], ANSWER_STEP)
    ]
    if found := _most(spec, facts, room_bytes, shorter):
        yield Change(fields=found.fields, vram_bytes=found.vram_bytes, changes_meaning=True)


def _largest_batch(spec: Json, facts: Facts, room_bytes: int, fields: Mapping[str, Any]) -> Change | None:
    """The largest micro-batch that fits together with these changes; the effective batch stays."""
    sizes = batches.sizes(spec, spec["per_device_train_batch_size"])
    tried = [{**fields, **_micro(spec, micro)} for micro in sizes]
    found = _most(spec, facts, room_bytes, tried)
    if found is None:
        return None
    # the evaluation is left as it is, where that fits, too
    rest = {name: value for name, value in found.fields.items() if name != "per_device_eval_batch_size"}
    return _most(spec, facts, room_bytes, [rest]) or found


def _micro(spec: Json, micro: int) -> dict[str, Any]:
    """The fields of a smaller micro-batch; an evaluation takes no more rows at once than that."""
    size = spec["per_device_train_batch_size"]
    fields: dict[str, Any] = {}
    if micro != size:
        fields = batches.with_micro(spec, micro)
    if (spec["eval_data"] or spec["eval_fraction"]) and spec["per_device_eval_batch_size"] > micro:
        fields["per_device_eval_batch_size"] = micro
    return fields


def _most(spec: Json, facts: Facts, room_bytes: int, tried: Sequence[Json]) -> Change | None:
    """The last of these changes that fits; each needs at least as much as the one before."""
    found: Change | None = None
    low, high = 0, len(tried)
    while low < high:
        middle = (low + high) // 2
        need = estimate({**spec, **tried[middle]}, facts).vram_bytes
        if need is not None and need <= room_bytes:
            found, low = Change(fields=tried[middle], vram_bytes=need), middle + 1
        else:
            high = middle
    return found
