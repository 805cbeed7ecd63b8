"""What answering prompts will need: a batch generation, and a benchmark."""

import math

from jobs.data import DataReport
from jobs.estimate.facts import Estimate, Facts, Json, Part
from jobs.estimate.memory import (
    CPU_OVERHEAD_BYTES,
    GAPS,
    INFERENCE_OVERHEAD_BYTES,
    USUAL_BYTES_PER_TOKEN,
    WIDTH,
    Batch,
    forward_bytes,
    longest_row_tokens,
    weights_bytes,
    width_of,
)
from jobs.estimate.methods import QUANTISED_BYTES, Method
from jobs.generation import memory
from jobs.model_facts import ModelFacts

#: A cache that grows with every token leaves gaps behind. A guess, to be measured.
CACHE_GAPS = 0.10


def of_generate(spec: Json, facts: Facts, on_gpu: bool) -> Estimate:
    """Of a batch generation."""
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
    context, width = model.context or math.inf, width_of(spec, on_gpu)
    prompt = int(min(longest_row_tokens(data), context))
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


def of_benchmark(spec: Json, facts: Facts, on_gpu: bool) -> Estimate:
    """The least that it can do with: what does not fit beyond that is its result, and no reason to refuse it."""
    cells = len(spec["dtypes"]) * len(spec["quantizations"]) * len(spec["batch_sizes"]) * len(spec["prompt_lengths"])
    if facts.model is None:
        return Estimate(steps=cells)
    batch = Batch(min(spec["batch_sizes"]), min(spec["prompt_lengths"]), packed=False)
    longest = batch.length + spec["new_tokens"]
    width = min(width_of({"dtype": dtype}, on_gpu) for dtype in spec["dtypes"])
    ways = [
        inference_parts(facts.model, batch, longest, width, on_gpu, linear_bytes=QUANTISED_BYTES[name])
        for name in spec["quantizations"]
    ]
    parts = min(ways, key=lambda way: sum(way.values()))
    return Estimate(steps=cells, vram_bytes=sum(parts.values()), parts=parts)


def inference_bytes(
    model: ModelFacts, size: int, prompt: int, new_tokens: int, dtype: str, *, quantization: str = "none", on_gpu: bool
) -> int:
    """What a batch of `size` prompts of so many tokens needs while it is answered. `dtype`: float32, bfloat16 or float16."""
    batch = Batch(size, prompt, packed=False)
    bits = QUANTISED_BYTES[quantization]
    return sum(inference_parts(model, batch, prompt + new_tokens, WIDTH[dtype], on_gpu, linear_bytes=bits).values())


def inference_parts(
    model: ModelFacts,
    prompt: Batch,
    longest: int,
    width: int,
    on_gpu: bool,
    *,
    linear_bytes: float | None = None,
) -> dict[Part, int]:
    """A batch of prompts while it is answered. `longest`: tokens of a prompt with its answer. `linear_bytes`: of a quantised weight."""
    cache = prompt.size * longest * 2 * model.layers * model.key_value * width
    grown = cache / model.layers / 2  # a layer's keys are copied when a token is added
    repeated = prompt.tokens * 2 * model.attention * width  # keys and values for every query head, behind a mask
    scores = prompt.size * model.vocabulary * 12  # the last token's, in the compute dtype and float32
    unpacked = 0 if linear_bytes is None else width * model.hidden * max(model.feed_forward, model.attention)
    parts: dict[Part, float] = {
        "weights": weights_bytes(model, Method(linear_bytes=linear_bytes), width),
        "kv_cache": cache + grown,
        "activations": forward_bytes(model, prompt, width) + repeated + prompt.mask_elements * 3 + unpacked,
        "logits": scores,
    }
    gaps = GAPS * (parts["activations"] + scores) + CACHE_GAPS * parts["kv_cache"]
    parts["overhead"] = (INFERENCE_OVERHEAD_BYTES if on_gpu else CPU_OVERHEAD_BYTES) + gaps
    return {name: round(size) for name, size in parts.items()}
