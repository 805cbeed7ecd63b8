"""What a fine-tune will need: rows, steps, memory by part, floating-point operations.

Its memory follows what TRL 1.16 does with PEFT: weights in the compute dtype, adapters, gradients and AdamW's two moments in
float32 (or what another method and optimizer keep), a loss that never holds all logits at once. Coefficients per token were
fitted (least squares) to dry runs of six architectures on fake tensors, mean error 2-3 %; the whole is within 10 % of 34 of 36
published GPU measurements (mean 4 %). It has not been measured on a GPU by ourselves: docs/gpu-checks.md.
"""

import math
from dataclasses import replace

from jobs import batches, parallel
from jobs.data import DataReport
from jobs.estimate.disk import checkpoint_bytes, export_bytes, merged_model_bytes
from jobs.estimate.facts import Estimate, Facts, Json, Part
from jobs.estimate.memory import (
    CPU_OVERHEAD_BYTES,
    GAPS,
    TEMPLATE_TOKENS,
    TRAINING_OVERHEAD_BYTES,
    USUAL_BYTES_PER_TOKEN,
    Batch,
    at_most,
    forward_bytes,
    row_tokens,
    weights_bytes,
    width_of,
)
from jobs.estimate.methods import Method, is_paged, method_of, optimizer_bytes
from jobs.model_facts import Linear, ModelFacts

#: What NCCL keeps on each GPU for its channels. A guess, to be measured.
COMMUNICATION_BYTES = round(0.4 * 2**30)
#: The tile of logits that TRL's fused loss computes at once (trl.kernels.chunked_logprob); without a GPU it makes copies of it.
TILE_TOKENS, TILE_VOCABULARY, TILE_COPIES_ON_CPU = 4096, 32768, 8
#: DoRA computes the norms of a layer's weights with its adapter, in float32. A guess, to be measured.
DORA_BYTES_PER_WEIGHT = 8


def of_finetune(spec: Json, facts: Facts, on_gpu: bool) -> Estimate:
    """Of a fine-tune."""
    rows, tokens, sequences = _counts(spec, facts.data)
    steps = optimizer_steps(spec, sequences) if sequences is not None else spec["max_steps"]
    if facts.model is None:
        return Estimate(rows=rows, steps=steps, tokens=tokens)
    learned, parts = _training_parts(spec, facts.model, facts, on_gpu)
    return Estimate(
        rows=rows,
        steps=steps,
        tokens=tokens,
        vram_bytes=sum(parts.values()),
        parts=parts,
        disk_bytes=checkpoint_bytes(spec, learned, facts.model, steps)
        + (export_bytes(spec["export"], facts.model, merged_model_bytes(spec, facts.model)) or 0),
        flops=_flops(spec, facts.model, steps, tokens, sequences),
    )


def optimizer_steps(spec: Json, rows: int) -> int:
    """How many steps a fine-tune takes over so many rows (packed ones, where it packs)."""
    micro_batches = math.ceil(rows / spec["per_device_train_batch_size"])
    per_epoch = math.ceil(micro_batches / (spec["gradient_accumulation_steps"] * batches.gpus(spec)))
    return int(spec["max_steps"] or math.ceil(spec["num_train_epochs"] * per_epoch))


def _flops(spec: Json, model: ModelFacts, steps: int | None, tokens: int | None, sequences: int | None) -> float | None:
    """Two per weight and token forward, two for the way back, two for the weights' own gradients where they learn, two more
    where activations are computed again (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)."""
    if not steps or not tokens or not sequences:
        return None
    per_weight = 4 + 2 * method_of(spec).learns_all + 2 * bool(spec["gradient_checkpointing"])
    seen = steps * batches.rows_per_step(spec) * tokens / sequences
    return float(per_weight * model.parameters * seen * _answers(spec))


def _counts(spec: Json, data: DataReport | None) -> tuple[int | None, int | None, int | None]:
    """Rows, tokens of one epoch, and sequences that are trained on."""
    if data is None:
        return None, None, None
    most = data.rows * spec["max_length"]
    tokens = min(data.text_bytes // USUAL_BYTES_PER_TOKEN + data.rows * TEMPLATE_TOKENS // 4, most)
    return data.rows, tokens, math.ceil(tokens / spec["max_length"]) if spec["packing"] else data.rows


def _training_parts(spec: Json, model: ModelFacts, facts: Facts, on_gpu: bool) -> tuple[int, dict[Part, int]]:
    """How many parameters are learned, and the memory that it takes on each GPU."""
    method, width, way = method_of(spec), width_of(spec, on_gpu), parallel.way(spec)
    targets = _targets(model, spec["lora"]["target_modules"])
    learned = model.parameters if method.learns_all else _adapter_parameters(spec, targets, model, facts)
    parts: dict[Part, float] = {
        "weights": weights_bytes(model, method, width) + _beside(spec, model, learned, method, width),
        "adapter": 0 if method.learns_all else learned * method.learned_bytes,
        "gradients": learned * method.gradient_bytes,
        "optimizer": 0 if is_paged(spec) else learned * optimizer_bytes(spec, method),
    }
    size = at_most(spec["per_device_train_batch_size"], facts.data) * _answers(spec)
    batch = Batch(size, row_tokens(spec, facts.data), packed=spec["packing"])
    adapted = sum(linear.inputs for linear in targets) / model.layers if not method.learns_all else 0.0
    here = replace(model, layers=math.ceil(model.layers / spec["gpus"])) if way == "device_map" else model
    activations = _activations(spec, here, batch, adapted, width)
    if method.linear_bytes is not None and not method.learns_all:
        activations += width * model.hidden * max(model.feed_forward, model.attention)  # one layer, unpacked
    logits = _loss(model, batch, width, on_gpu) + (4 * model.vocabulary * model.hidden if method.learns_all else 0)
    if spec["objective"] != "sft":  # a pass of the model that it must not stray from, or of the answers of others
        activations += forward_bytes(model, batch, width) + batch.mask_elements * 3
    if spec["lora"]["use_dora"] and not method.learns_all:
        activations += DORA_BYTES_PER_WEIGHT * model.hidden * max(model.feed_forward, model.attention)
    if spec["eval_data"] or spec["eval_fraction"]:
        held = facts.eval_data if spec["eval_data"] else facts.data
        size = at_most(spec["per_device_eval_batch_size"], held) * _answers(spec)
        evaluated = Batch(size, row_tokens({**spec, "packing": False}, held), packed=False)
        activations = max(activations, forward_bytes(model, evaluated, width) + evaluated.mask_elements * 3)
        logits = max(logits, _loss(model, evaluated, width, on_gpu))
    parts = _shared(spec, model, parts, learned, method, width) | {"activations": activations, "logits": logits}
    gaps = GAPS * (sum(parts.values()) - parts["weights"])
    parts["overhead"] = (TRAINING_OVERHEAD_BYTES if on_gpu else CPU_OVERHEAD_BYTES) + gaps
    if on_gpu and way in ("ddp", "fsdp"):
        parts["overhead"] += COMMUNICATION_BYTES
    return learned, {name: round(size) for name, size in parts.items()}


def _shared(
    spec: Json, model: ModelFacts, parts: dict[Part, float], learned: int, method: Method, width: int
) -> dict[Part, float]:
    """What each GPU has of weights, adapter, gradients and optimizer."""
    gpus, tables = spec.get("gpus", 1), model.parameters - model.linear_parameters
    match parallel.way(spec):
        case "ddp":  # DDP gathers gradients in buckets of its own
            return {**parts, "gradients": parts["gradients"] + learned * method.gradient_bytes}
        case "fsdp":
            # two layers are whole at a time, one of them on its way, and so are the tables of the vocabulary; of what
            # learns the gradients of one layer, too, in float32
            layer = model.linear_parameters / model.layers
            whole = (2 * layer + tables) * width + (layer * 4 if method.learns_all else 0)
            split = {name: size / gpus for name, size in parts.items()}
            if method.learns_all and method.learned_bytes > width:  # whole layers come in the compute dtype: no copies
                split["weights"] -= model.linear_parameters * width / gpus
            return {**split, "weights": split["weights"] + whole}
        case "device_map":  # whole layers are given out: the fullest GPU has up to one more than its share
            share = min(1.0, 1 / gpus + 1 / model.layers)
            return {name: size * share for name, size in parts.items()}
        case _:
            return parts


def _activations(spec: Json, model: ModelFacts, batch: Batch, adapted: float, width: int) -> float:
    """What a step keeps for its way back. `adapted`: inputs of one layer's adapters; they are kept in float32."""
    h, q, kv, ff = model.hidden, model.attention, model.key_value, model.feed_forward
    # preference trainers switch dropout off
    drops = spec["lora"]["lora_dropout"] > 0 and adapted > 0 and spec["objective"] == "sft"
    if spec["gradient_checkpointing"]:
        one = (
            9.67 * (h + q) - 3.08 * kv + 11.12 * ff + 8.71 * adapted
            if drops
            else 12.89 * (h + q) - 3.16 * kv + 10.73 * ff + 2.86 * adapted
        )
        per_token, masks = model.layers * h * 2 + one, 1
    else:
        one = (
            8.8 * (h + q) - 1.8 * kv + 5.4 * ff + 5.81 * adapted
            if drops
            else 10.85 * (h + q) - 1.84 * kv + 5.37 * ff + 2.08 * adapted
        )
        per_token, masks = model.layers * one, model.layers
    # the mask itself, and as the attention of each layer keeps it
    return batch.tokens * per_token * width / 2 + batch.mask_elements * (1 + 2 * masks)


def _answers(spec: Json) -> int:
    """Sequences that go through the model for one row: dpo compares two answers."""
    return 2 if spec["objective"] == "dpo" else 1


def _beside(spec: Json, model: ModelFacts, learned: int, method: Method, width: int) -> float:
    """Weights that are there a second time: what a preference must not stray from, and copies in the compute dtype."""
    total = 0.0
    if method.learns_all and spec["objective"] != "sft":
        total += model.parameters * width
    elif spec["adapter"] and spec["objective"] != "sft":
        total += learned * method.learned_bytes  # the adapter that it begins with
    if method.learns_all and method.learned_bytes > width:
        total += model.linear_parameters * width  # autocast keeps them for the way back
    return total


def _loss(model: ModelFacts, batch: Batch, width: int, on_gpu: bool) -> float:
    return fused_loss_bytes(batch.tokens, model.hidden, model.vocabulary, width, on_gpu)


def fused_loss_bytes(tokens: int, hidden: int, vocabulary: int, width: int, on_gpu: bool) -> float:
    """TRL's loss, one tile of logits at a time."""
    copies = 1 if on_gpu else 1 + TILE_COPIES_ON_CPU
    return min(tokens, TILE_TOKENS) * min(vocabulary, TILE_VOCABULARY) * width * copies + tokens * hidden * 6


def _targets(model: ModelFacts, names: object) -> list[Linear]:
    """The layers that get an adapter. A pattern is taken for all of them: that is the most it can mean."""
    if isinstance(names, str):
        return list(model.linears)
    wanted = tuple(str(name) for name in names) if isinstance(names, (list, tuple)) else ()
    return [each for each in model.linears if any(f".{each.path}".endswith(f".{name}") for name in wanted)]


def _adapter_parameters(spec: Json, targets: list[Linear], model: ModelFacts, facts: Facts) -> int:
    if facts.adapter_parameters is not None:
        return facts.adapter_parameters
    magnitudes = sum(each.outputs for each in targets) if spec["lora"]["use_dora"] else 0
    ranks = int(spec["lora"]["r"]) * sum(each.inputs + each.outputs for each in targets)
    return ranks + magnitudes + sum(_whole_layer(model, str(name)) for name in spec["lora"]["modules_to_save"])


def _whole_layer(model: ModelFacts, name: str) -> int:
    """Parameters of a layer that is learnt whole: a linear one by its name, else a table of the vocabulary."""
    linear = sum(each.inputs * each.outputs // each.count for each in _targets(model, (name,)))
    return linear or model.vocabulary * model.hidden
