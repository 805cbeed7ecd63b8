"""What a job will need, before it runs: steps, memory on its GPU, room for checkpoints. Pure arithmetic; knows no torch.

The memory of a fine-tune follows what TRL 1.16 does with PEFT: weights in the compute dtype, adapters, gradients and AdamW's two
moments in float32 (or what another method and optimizer keep), a loss that never holds all logits at once. Coefficients per token were fitted (least squares) to dry runs of
six architectures on fake tensors, mean error 2-3 %; the whole is within 10 % of 34 of 36 published GPU measurements (mean 4 %).
It has not been measured on a GPU by ourselves: docs/gpu-checks.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jobs import batches, parallel
from jobs.data import DataReport
from jobs.generation import memory
from jobs.model_facts import Linear, ModelFacts

Json = Mapping[str, Any]
Part = Literal["weights", "adapter", "gradients", "optimizer", "activations", "logits", "kv_cache", "overhead"]

#: Left to the driver and the desktop beside what a job needs.
VRAM_RESERVE_BYTES = 512 << 20
#: CUDA context, cuBLAS and cuDNN workspaces, rounding of the allocator; and what its gaps add to all but the weights.
TRAINING_OVERHEAD_BYTES = round(1.1 * 2**30)
INFERENCE_OVERHEAD_BYTES = round(0.6 * 2**30)
GAPS = 0.03
#: What NCCL keeps on each GPU for its channels. A guess, to be measured.
COMMUNICATION_BYTES = round(0.4 * 2**30)
#: A cache that grows with every token leaves gaps behind. A guess, to be measured.
CACHE_GAPS = 0.10
#: On a CPU: Python with torch, transformers, PEFT and TRL loaded (measured: 531 MiB), and its allocator.
CPU_OVERHEAD_BYTES = round(0.6 * 2**30)
#: The tile of logits that TRL's fused loss computes at once (trl.kernels.chunked_logprob); without a GPU it makes copies of it.
TILE_TOKENS, TILE_VOCABULARY, TILE_COPIES_ON_CPU = 4096, 32768, 8
#: Logits that an evaluation holds at once (jobs.scoring): 256 MiB in float32.
SCORING_TILE = 1 << 26
#: English has four bytes or more to a token, code and other scripts about three: fewer for memory, the usual for counting.
FEWEST_BYTES_PER_TOKEN, USUAL_BYTES_PER_TOKEN = 3, 4
#: What a chat template adds to a row: roles, turns, and often a system prompt of its own.
TEMPLATE_TOKENS = 64
#: Checkpoints per run where the document does not say how often.
CHECKPOINTS_PER_RUN = 10
#: Checkpoints that lie on the disk at once: the newest two, and one that is being written; the best, where it is evaluated.
CHECKPOINTS_KEPT = 3
#: State of scheduler, random numbers and trainer in a checkpoint.
CHECKPOINT_REST_BYTES = 1 << 20
#: A weight in GGUF's Q8_0: 8 bits, and one scale of 16 for 32 of them.
Q8_0_BYTES = 1 + 2 / 32
#: A tokenizer's files beside a result.
TOKENIZER_BYTES = 16 << 20
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}


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
#: DoRA computes the norms of a layer's weights with its adapter, in float32. A guess, to be measured.
DORA_BYTES_PER_WEIGHT = 8


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a document's model and data. None: nothing."""

    model: ModelFacts | None = None
    data: DataReport | None = None
    eval_data: DataReport | None = None
    #: Of an adapter that is trained further; of all adapters of a generation together.
    adapter_parameters: int | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job will need. None: nobody knows."""

    rows: int | None = None
    #: Optimizer steps of a fine-tune.
    steps: int | None = None
    tokens: int | None = None
    #: On each GPU, and what it is made of.
    vram_bytes: int | None = None
    parts: Mapping[Part, int] = field(default_factory=dict)
    #: The most that checkpoints and results will take at once.
    disk_bytes: int | None = None
    #: Floating-point operations of a fine-tune; only its order of magnitude is to be trusted.
    flops: float | None = None

    @property
    def record(self) -> dict[str, float]:
        """What a job's record keeps of it."""
        counts = {"rows": self.rows, "steps": self.steps, "tokens": self.tokens, "disk_bytes": self.disk_bytes, "flops": self.flops}  # fmt: skip
        return {name: count for name, count in counts.items() if count is not None}


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a job's record tells of it before it runs."""

    vram_bytes: int | None = None
    estimate: Mapping[str, float] = field(default_factory=dict)
    #: Whether it is to be checked first (daemon.preflights).
    preflight: bool = False
    #: How its GPUs share the work, and why so: `way`, `why`; empty with one GPU.
    parallel: Mapping[str, str] = field(default_factory=dict)


UNKNOWN = Outlook()


def estimate(spec: Json, facts: Facts, *, on_gpu: bool = True) -> Estimate:
    """What a document (jobs.spec.dump) will need. Without facts about its model or data, what can be told without them."""
    match spec["kind"]:
        case "finetune":
            return _finetune(spec, facts, on_gpu)
        case "generate":
            return _generate(spec, facts, on_gpu)
        case "evaluate":
            return _evaluate(spec, facts, on_gpu)
        case "benchmark":
            return _benchmark(spec, facts, on_gpu)
        case "export":
            return Estimate(disk_bytes=_export_bytes(spec["to"], facts.model, _stored(spec, facts.model)))
        case _:
            return Estimate()


def optimizer_steps(spec: Json, rows: int) -> int:
    """How many steps a fine-tune takes over so many rows (packed ones, where it packs)."""
    micro_batches = math.ceil(rows / spec["per_device_train_batch_size"])
    per_epoch = math.ceil(micro_batches / (spec["gradient_accumulation_steps"] * batches.gpus(spec)))
    return int(spec["max_steps"] or math.ceil(spec["num_train_epochs"] * per_epoch))


def save_every(spec: Json, steps: int) -> int:
    """Steps from one checkpoint to the next."""
    return int(spec["save_steps"] or max(1, math.ceil(steps / CHECKPOINTS_PER_RUN)))


# -- fine-tuning --------------------------------------------------------------------------------------------------------


def _finetune(spec: Json, facts: Facts, on_gpu: bool) -> Estimate:
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
        disk_bytes=_checkpoint_bytes(spec, learned, facts.model, steps)
        + (_export_bytes(spec["export"], facts.model, _stored(spec, facts.model)) or 0),
        flops=_flops(spec, facts.model, steps, tokens, sequences),
    )


def _flops(spec: Json, model: ModelFacts, steps: int | None, tokens: int | None, sequences: int | None) -> float | None:
    """Two per weight and token forward, two for the way back, two for the weights' own gradients where they learn, two more
    where activations are computed again (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)."""
    if not steps or not tokens or not sequences:
        return None
    per_weight = 4 + 2 * _method(spec).learns_all + 2 * bool(spec["gradient_checkpointing"])
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
    method, width, way = _method(spec), _width(spec, on_gpu), parallel.way(spec)
    targets = _targets(model, spec["lora"]["target_modules"])
    learned = model.parameters if method.learns_all else _adapter_parameters(spec, targets, model, facts)
    parts: dict[Part, float] = {
        "weights": _weights(model, method, width) + _beside(spec, model, learned, method, width),
        "adapter": 0 if method.learns_all else learned * method.learned_bytes,
        "gradients": learned * method.gradient_bytes,
        "optimizer": 0 if _is_paged(spec) else learned * _optimizer_bytes(spec, method),
    }
    size = _at_most(spec["per_device_train_batch_size"], facts.data) * _answers(spec)
    batch = _Batch(size, _length(spec, facts.data), packed=spec["packing"])
    adapted = sum(linear.inputs for linear in targets) / model.layers if not method.learns_all else 0.0
    here = replace(model, layers=math.ceil(model.layers / spec["gpus"])) if way == "device_map" else model
    activations = _activations(spec, here, batch, adapted, width)
    if method.linear_bytes is not None and not method.learns_all:
        activations += width * model.hidden * max(model.feed_forward, model.attention)  # one layer, unpacked
    logits = _loss(model, batch, width, on_gpu) + (4 * model.vocabulary * model.hidden if method.learns_all else 0)
    if spec["objective"] != "sft":  # a pass of the model that it must not stray from, or of the answers of others
        activations += _forward(model, batch, width) + batch.mask_elements * 3
    if spec["lora"]["use_dora"] and not method.learns_all:
        activations += DORA_BYTES_PER_WEIGHT * model.hidden * max(model.feed_forward, model.attention)
    if spec["eval_data"] or spec["eval_fraction"]:
        held = facts.eval_data if spec["eval_data"] else facts.data
        size = _at_most(spec["per_device_eval_batch_size"], held) * _answers(spec)
        evaluated = _Batch(size, _length({**spec, "packing": False}, held), packed=False)
        activations = max(activations, _forward(model, evaluated, width) + evaluated.mask_elements * 3)
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


@dataclass(frozen=True)
class _Batch:
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


def _activations(spec: Json, model: ModelFacts, batch: _Batch, adapted: float, width: int) -> float:
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


def _method(spec: Json) -> Method:
    if spec["pure_bf16"]:
        return PURE_BF16
    found = METHODS[spec["method"]]
    if spec["method"] == "qlora" and spec["bnb_4bit_use_double_quant"]:
        return replace(found, linear_bytes=DOUBLE_QUANTISED_BYTES)
    return found


def _optimizer_bytes(spec: Json, method: Method) -> float:
    numbers, besides = OPTIMIZERS[spec["optim"]]
    return numbers * method.learned_bytes + besides


def _is_paged(spec: Json) -> bool:
    """Its states go to the machine's memory when the GPU's runs short."""
    return str(spec["optim"]).startswith("paged_")


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


def _loss(model: ModelFacts, batch: _Batch, width: int, on_gpu: bool) -> float:
    return _fused_loss(batch.tokens, model.hidden, model.vocabulary, width, on_gpu)


def _fused_loss(tokens: int, hidden: int, vocabulary: int, width: int, on_gpu: bool) -> float:
    copies = 1 if on_gpu else 1 + TILE_COPIES_ON_CPU
    return min(tokens, TILE_TOKENS) * min(vocabulary, TILE_VOCABULARY) * width * copies + tokens * hidden * 6


def _weights(model: ModelFacts, method: Method, width: int) -> float:
    if model.quantised:
        return model.stored_bytes
    if method.linear_bytes is None:
        return model.parameters * width
    other = model.parameters - model.linear_parameters
    return model.linear_parameters * method.linear_bytes + other * (method.linear_bytes if method.learns_all else width)


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


def _length(spec: Json, data: DataReport | None) -> int:
    """Tokens of the longest row as it is trained on."""
    longest = int(spec["max_length"])
    return longest if data is None or spec["packing"] else min(longest, _tokens(data))


def _at_most(size: int, data: DataReport | None) -> int:
    return size if data is None else min(size, data.rows)


def _tokens(data: DataReport) -> int:
    """The longest row, as tokens, counted generously."""
    return math.ceil(data.longest_bytes / FEWEST_BYTES_PER_TOKEN) + TEMPLATE_TOKENS


def _width(spec: Json, on_gpu: bool) -> int:
    return WIDTH.get(spec["dtype"], 2 if on_gpu else 4)


def _checkpoint_bytes(spec: Json, learned: int, model: ModelFacts, steps: int | None) -> int:
    method = _method(spec)
    result = learned * method.learned_bytes
    one = round(result + learned * _optimizer_bytes(spec, method)) + CHECKPOINT_REST_BYTES
    kept = CHECKPOINTS_KEPT + bool(spec["eval_data"] or spec["eval_fraction"])
    if steps:
        kept = min(kept, math.ceil(steps / save_every(spec, steps)))
    return kept * one + result + TOKENIZER_BYTES


def _stored(spec: Json, model: ModelFacts | None) -> int:
    """A merged model: in the type that is asked for, else in the one that its base is stored in."""
    if model is None:
        return 0
    if spec["dtype"] in WIDTH:
        return model.parameters * WIDTH[spec["dtype"]]
    return model.parameters * 2 if spec.get("method") == "qlora" else model.stored_bytes


def _export_bytes(formats: Sequence[str], model: ModelFacts | None, merged_bytes: int) -> int | None:
    """Room for what an export leaves; a GGUF file is made from a merged model, whether that stays or not."""
    if model is None:
        return None
    return (merged_bytes if formats else 0) + (round(model.parameters * Q8_0_BYTES) if "gguf" in formats else 0)


# -- generating ---------------------------------------------------------------------------------------------------------


def _generate(spec: Json, facts: Facts, on_gpu: bool) -> Estimate:
    data, model = facts.data, facts.model
    each = max(1, len(spec["adapters"]))  # every row is answered by each, unless it names one
    rows = data.rows * each if data else None
    tokens = each * (data.text_bytes // USUAL_BYTES_PER_TOKEN + data.rows * spec["max_new_tokens"] * spec["n"]) if data else None  # fmt: skip
    if model is None or data is None:
        return Estimate(rows=rows, tokens=tokens)
    parts = _generating_parts(spec, facts, model, data, on_gpu)
    return Estimate(rows=rows, tokens=tokens, vram_bytes=sum(parts.values()), parts=parts)


def _generating_parts(spec: Json, facts: Facts, model: ModelFacts, data: DataReport, on_gpu: bool) -> dict[Part, int]:
    """With the `batch_size` that is asked for; where none is, with one sequence at a time: more is taken where there is room."""
    context, width = model.context or math.inf, _width(spec, on_gpu)
    prompt = int(min(_tokens(data), context))
    longest = int(min(prompt + spec["max_new_tokens"], context))
    sequences = min(spec["batch_size"] or 1, data.rows * spec["n"])
    step = memory.STEP_TOKENS_ON_GPU if on_gpu else memory.STEP_TOKENS_ON_CPU
    size = memory.Size(
        sequences=sequences,
        pages=sequences * memory.pages_of(longest, memory.PAGE_TOKENS),
        step_tokens=max(sequences, min(step, sequences * prompt)),
    )
    widths = memory.Widths(
        layers=model.layers,
        hidden=model.hidden,
        attention=model.attention,
        key_value=model.key_value,
        feed_forward=model.feed_forward,
        vocabulary=model.vocabulary,
        width=width,
    )
    parts: dict[Part, float] = {
        "weights": model.stored_bytes if model.quantised else model.parameters * width,
        # one adapter is merged into them, several lie beside them
        "adapter": (facts.adapter_parameters or 0) * width if spec["adapters"] else 0,
    }
    beside = memory.parts(widths, size, drawn=spec["temperature"] > 0)
    parts |= {name: beside[name] for name in beside}
    parts = {name: size / spec["gpus"] for name, size in parts.items()}  # vLLM spreads every layer over them
    gaps = GAPS * (parts["activations"] + parts["logits"])
    parts["overhead"] = (INFERENCE_OVERHEAD_BYTES if on_gpu else CPU_OVERHEAD_BYTES) + gaps
    return {name: round(size) for name, size in parts.items()}


def inference_bytes(
    model: ModelFacts, size: int, prompt: int, new_tokens: int, dtype: str, *, quantization: str = "none", on_gpu: bool
) -> int:
    """What a batch of `size` prompts of so many tokens needs while it is answered. `dtype`: float32, bfloat16 or float16."""
    batch = _Batch(size, prompt, packed=False)
    bits = QUANTISED_BYTES[quantization]
    return sum(_inference_parts(model, batch, prompt + new_tokens, WIDTH[dtype], on_gpu, linear_bytes=bits).values())


def _inference_parts(
    model: ModelFacts,
    prompt: _Batch,
    longest: int,
    width: int,
    on_gpu: bool,
    *,
    linear_bytes: float | None = None,
) -> dict[Part, int]:
    """`longest`: tokens of a prompt with its answer. `linear_bytes`: of a quantised weight."""
    cache = prompt.size * longest * 2 * model.layers * model.key_value * width
    grown = cache / model.layers / 2  # a layer's keys are copied when a token is added
    repeated = prompt.tokens * 2 * model.attention * width  # keys and values for every query head, behind a mask
    scores = prompt.size * model.vocabulary * 12  # the last token's, in the compute dtype and float32
    unpacked = 0 if linear_bytes is None else width * model.hidden * max(model.feed_forward, model.attention)
    parts: dict[Part, float] = {
        "weights": _weights(model, Method(linear_bytes=linear_bytes), width),
        "kv_cache": cache + grown,
        "activations": _forward(model, prompt, width) + repeated + prompt.mask_elements * 3 + unpacked,
        "logits": scores,
    }
    gaps = GAPS * (parts["activations"] + scores) + CACHE_GAPS * parts["kv_cache"]
    parts["overhead"] = (INFERENCE_OVERHEAD_BYTES if on_gpu else CPU_OVERHEAD_BYTES) + gaps
    return {name: round(size) for name, size in parts.items()}


# -- evaluating ---------------------------------------------------------------------------------------------------------


def _evaluate(spec: Json, facts: Facts, on_gpu: bool) -> Estimate:
    """Of rows. How long the questions of lm-eval's tasks are, nobody knows before."""
    data, model = facts.data, facts.model
    if data is None:
        return Estimate()
    rows = min(data.rows, spec["limit"] or data.rows)
    tokens = data.text_bytes // USUAL_BYTES_PER_TOKEN * rows // max(1, data.rows) + rows * spec["max_new_tokens"]
    if model is None or spec["tasks"]:
        return Estimate(rows=rows, tokens=tokens)
    width = _width(spec, on_gpu)
    batch = _Batch(_at_most(spec["batch_size"], data), _length({**spec, "packing": False}, data), packed=False)
    parts = _inference_parts(model, batch, batch.length + spec["max_new_tokens"], width, on_gpu)
    tile = min(SCORING_TILE, batch.tokens * model.vocabulary)
    # of the tile: as the head gives it, in float32, and the sum of its exponentials on the way
    parts["logits"] = max(parts["logits"], tile * (width + 4 + 4) + batch.tokens * model.hidden * width)
    return Estimate(rows=rows, tokens=tokens, vram_bytes=sum(parts.values()), parts=parts)


def _forward(model: ModelFacts, batch: _Batch, width: int) -> float:
    """What one layer holds at once on the way forward."""
    return batch.tokens * width * (4 * model.hidden + 2 * model.feed_forward + model.attention + 2 * model.key_value)


# -- benchmarks ---------------------------------------------------------------------------------------------------------


def _benchmark(spec: Json, facts: Facts, on_gpu: bool) -> Estimate:
    """The least that it can do with: what does not fit beyond that is its result, and no reason to refuse it."""
    cells = len(spec["dtypes"]) * len(spec["quantizations"]) * len(spec["batch_sizes"]) * len(spec["prompt_lengths"])
    if facts.model is None:
        return Estimate(steps=cells)
    batch = _Batch(min(spec["batch_sizes"]), min(spec["prompt_lengths"]), packed=False)
    longest = batch.length + spec["new_tokens"]
    width = min(_width({"dtype": dtype}, on_gpu) for dtype in spec["dtypes"])
    ways = [
        _inference_parts(facts.model, batch, longest, width, on_gpu, linear_bytes=QUANTISED_BYTES[name])
        for name in spec["quantizations"]
    ]
    parts = min(ways, key=lambda way: sum(way.values()))
    return Estimate(steps=cells, vram_bytes=sum(parts.values()), parts=parts)


# -- dry runs -----------------------------------------------------------------------------------------------------------


def longest_batch(spec: Json, data: DataReport | None) -> dict[str, int]:
    """The document's batch as its longest rows make it: what a dry run (jobs.dry_run) is to step through."""
    rows = _at_most(spec["per_device_train_batch_size"], data)
    return {"per_device_train_batch_size": rows, "max_length": _length(spec, data)}


def of_step(spec: Json, step: Mapping[str, int]) -> dict[Part, int]:
    """The memory of a fine-tune on a GPU from its dry run's step (jobs.dry_run.Step): what is counted there is taken as it is.

    Optimizer, the loss, weights in few bits and what CUDA takes are no fake tensors, and come from the same arithmetic as ever.
    The activations have the loss with them: the larger of the two moments counts.
    """
    method, width = _method(spec), _width(spec, on_gpu=True)
    tokens, learned = spec["per_device_train_batch_size"] * spec["max_length"], step["learned"]
    gradients = learned * method.gradient_bytes
    linear_bytes = method.linear_bytes or width
    rest_bytes = linear_bytes if method.learns_all else width
    loss = _fused_loss(tokens, step["hidden"], step["vocabulary"], width, on_gpu=True)
    output = 4 * step["vocabulary"] * step["hidden"] if method.learns_all else 0
    unpacked = width * step["largest_linear"] if method.linear_bytes and not method.learns_all else 0
    alive = max(step["peak_bytes"] + unpacked, step["kept_bytes"] + loss + output, gradients)
    parts: dict[Part, float] = {
        "weights": step["linear_parameters"] * linear_bytes + (step["parameters"] - step["linear_parameters"]) * rest_bytes,
        "adapter": 0 if method.learns_all else learned * method.learned_bytes,
        "gradients": gradients,
        "optimizer": 0 if _is_paged(spec) else learned * _optimizer_bytes(spec, method),
        "activations": alive - gradients,
    }  # fmt: skip
    parts["overhead"] = TRAINING_OVERHEAD_BYTES + GAPS * (sum(parts.values()) - parts["weights"])
    return {name: round(size) for name, size in parts.items()}
