"""What a model's folder says about its size: `config.json` and the headers of its safetensors files. Loads no torch, reads no weights.

A safetensors file begins with 8 bytes (the header's length, little-endian) and a JSON header: tensor -> dtype, shape, offsets.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
#: Files that the size depends on.
TELLING = (".safetensors", "config.json", "index.json")
MAX_CONFIG_BYTES = 1 << 20
#: Headers of the largest known models have a few MB; the format itself allows 100.
MAX_HEADER_BYTES = 32 << 20
MAX_FILES = 1_000
MAX_NUMBER = 1 << 40
MAX_PARAMETERS = 1 << 50
MAX_DIMENSIONS = 8
BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
        "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # fmt: skip
#: Matrices that are no linear layer of a block: tables of embeddings, and the output layer, which LoRA leaves alone.
NOT_LINEAR = re.compile(r"(^|\.)(lm_head|output|embed_out|wte|wpe|shared)$|embed", re.IGNORECASE)
#: transformers 5 holds a layer's experts in one parameter of three dimensions, which is no linear layer either.
EXPERT = re.compile(r"(^|\.)experts\.")
LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class NoFacts(ValueError):
    """The folder does not say what is needed; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Linear:
    """All linear layers of one name, over the whole model. `path` is the first one's."""

    path: str
    count: int
    inputs: int
    outputs: int


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The numbers that memory depends on. Widths are in elements."""

    parameters: int
    #: Bytes as they are stored: what a quantised checkpoint takes on a GPU, too.
    stored_bytes: int
    quantised: bool
    layers: int
    hidden: int
    #: Query heads and key/value heads times their width.
    attention: int
    key_value: int
    #: Width of the part between attention layers that one token goes through (of experts: those that it is sent to).
    feed_forward: int
    vocabulary: int
    #: Longest sequence; None when the configuration does not say.
    context: int | None
    linears: tuple[Linear, ...]

    @property
    def linear_parameters(self) -> int:
        """Weights that a quantising method would store in few bits."""
        return sum(linear.inputs * linear.outputs // linear.count for linear in self.linears)


def read_model(folder: Path) -> ModelFacts:
    """The facts of a model's folder: from its weights' headers, or where there are no weights from its configuration. Raises NoFacts."""
    raw = _read_json(folder / CONFIG)
    return _facts(raw, *_counted(folder)) if weight_files(folder) else of_config(raw)


def read_config(folder: Path) -> Mapping[str, Any]:
    """The part of a model's `config.json` about the language model. Raises NoFacts."""
    return _text_config(_read_json(folder / CONFIG))


def of_config(raw: Mapping[str, Any]) -> ModelFacts:
    """The facts of a model that is not here, from its `config.json` alone; weights of 2 bytes. Raises NoFacts."""
    config = _text_config(raw)
    linears, others = _llama_shaped(config)
    parameters = others + sum(each.inputs * each.outputs // each.count for each in linears)
    return _facts(raw, parameters, 16 * parameters, linears)


def _facts(raw: Mapping[str, Any], parameters: int, stored_bits: int, linears: tuple[Linear, ...]) -> ModelFacts:
    config = _text_config(raw)
    hidden, layers = _first(config, "hidden_size", "n_embd", "d_model"), _first(config, "num_hidden_layers", "n_layer", "num_layers")  # fmt: skip
    vocabulary = _first(config, "vocab_size")
    if not hidden or not layers or not vocabulary:
        raise NoFacts(f"its {CONFIG} has no hidden_size, num_hidden_layers and vocab_size")
    heads = _first(config, "num_attention_heads", "n_head") or 1
    head_width = _first(config, "head_dim") or max(1, hidden // heads)
    return ModelFacts(
        parameters=parameters,
        stored_bytes=stored_bits // 8,
        quantised=isinstance(config.get("quantization_config"), Mapping),
        layers=layers,
        hidden=hidden,
        attention=heads * head_width,
        key_value=(_first(config, "num_key_value_heads") or heads) * head_width,
        feed_forward=_feed_forward(config, hidden),
        vocabulary=vocabulary,
        context=_first(config, "max_position_embeddings", "n_positions"),
        linears=linears,
    )


#: Models whose layers are a Llama's: four matrices of attention, three of a gated part, norms; and what is beside that in each
#: layer, by widths of queries and keys (biases) or of one head (norms). Others are counted by a dry run.
BESIDE: Mapping[str, Callable[[int, int, int], int]] = {
    "llama": lambda q, kv, head: 0,
    "mistral": lambda q, kv, head: 0,
    "smollm3": lambda q, kv, head: 0,
    "granite": lambda q, kv, head: 0,
    "qwen2": lambda q, kv, head: q + 2 * kv,
    "qwen3": lambda q, kv, head: 2 * head,
}


def _llama_shaped(config: Mapping[str, Any]) -> tuple[tuple[Linear, ...], int]:
    """Linear layers, and how many parameters are in no linear layer."""
    kind = str(config.get("model_type"))
    if kind not in BESIDE:
        raise NoFacts(f"its weights are not here, and how many a {kind[:40]} has is told by a dry run only")
    hidden, layers, vocabulary, heads, ff = (
        _first(config, name) for name in ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size")
    )  # fmt: skip
    if not (hidden and layers and vocabulary and heads and ff):
        raise NoFacts(f"its {CONFIG} has no hidden_size, num_hidden_layers, vocab_size, num_attention_heads and intermediate_size")  # fmt: skip
    head = _first(config, "head_dim") or hidden // heads
    q, kv = heads * head, (_first(config, "num_key_value_heads") or heads) * head
    inside = {
        "mlp.down_proj": (ff, hidden), "mlp.gate_proj": (hidden, ff), "mlp.up_proj": (hidden, ff), "self_attn.k_proj": (hidden, kv),
        "self_attn.o_proj": (q, hidden), "self_attn.q_proj": (hidden, q), "self_attn.v_proj": (hidden, kv),
    }  # fmt: skip
    linears = tuple(_linear(f"model.layers.0.{name}", [shape] * layers) for name, shape in inside.items())
    # transformers takes the tables for tied where the configuration does not say
    tables = 1 if config.get("tie_word_embeddings", kind != "llama" and kind != "mistral") else 2
    return linears, tables * vocabulary * hidden + layers * (2 * hidden + BESIDE[kind](q, kv, head)) + hidden


def read_adapter(folder: Path) -> int:
    """How many parameters an adapter has. Raises NoFacts."""
    return sum(math.prod(shape) for _, _, shape in _tensors(folder / ADAPTER))


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load: one, or those that the index names. Raises NoFacts."""
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if (folder / INDEX).is_file():
        places = _read_json(folder / INDEX, MAX_HEADER_BYTES).get("weight_map")
        names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
        if not names or len(names) > MAX_FILES or any(Path(name).name != name for name in names):
            raise NoFacts(f"its {INDEX} names no usable files")
        return [folder / name for name in names]
    return sorted(folder.glob("*.safetensors"))[:MAX_FILES]


def identity(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """What changes when the model does: its files, by number, size and time. Empty when the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.stat()) for entry in entries if entry.name.endswith(TELLING)]
    except OSError:
        return ()
    return tuple(sorted((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found))


def _counted(folder: Path) -> tuple[int, int, tuple[Linear, ...]]:
    """Parameters, bits as stored, and the linear layers."""
    parameters = bits = 0
    found: dict[str, list[tuple[int, int]]] = {}
    for file in weight_files(folder):
        for name, dtype, shape in _tensors(file):
            count = math.prod(shape)
            parameters, bits = parameters + count, bits + count * BITS.get(dtype, 8)
            path = name.removesuffix(".weight")
            if len(shape) == 2 and path != name and not NOT_LINEAR.search(path) and not EXPERT.search(path):
                found.setdefault(LAYER_NUMBER.sub("0", path), []).append((shape[1], shape[0]))
    if not 0 < parameters < MAX_PARAMETERS:
        raise NoFacts("its safetensors files hold no weights")
    return parameters, bits, tuple(_linear(path, shapes) for path, shapes in sorted(found.items()))


def _linear(path: str, shapes: list[tuple[int, int]]) -> Linear:
    inputs, outputs = (sum(widths) for widths in zip(*shapes, strict=True))
    return Linear(path=path, count=len(shapes), inputs=inputs, outputs=outputs)


def _tensors(file: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Name, dtype and shape of every tensor in a file."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= MAX_HEADER_BYTES:
                raise NoFacts(f"{file.name} does not begin with a safetensors header")
            header = json.loads(stream.read(length))
    except FileNotFoundError:
        raise NoFacts(f"{file.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise error if isinstance(error, NoFacts) else NoFacts(f"{file.name} cannot be read") from None
    if not isinstance(header, dict):
        raise NoFacts(f"{file.name} does not begin with a safetensors header")
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        shape = facts.get("shape") if isinstance(facts, dict) else None
        if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_size, shape)):
            raise NoFacts(f"{file.name} has a tensor without a shape")
        yield name, str(facts.get("dtype")), shape


def _is_size(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < MAX_NUMBER


def _feed_forward(config: Mapping[str, Any], hidden: int) -> int:
    width = _first(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    if not _first(config, "num_experts", "num_local_experts", "n_routed_experts"):
        return width
    chosen = _first(config, "num_experts_per_tok", "num_experts_per_token", "moe_top_k") or 2
    shared = _first(config, "shared_expert_intermediate_size") or 0
    return chosen * (_first(config, "moe_intermediate_size") or width) + shared


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about the language model: models that also see pictures keep it inside."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of these that is a sane number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < MAX_NUMBER:
            return value
    return None


def _read_json(path: Path, limit_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(limit_bytes))
    except (OSError, ValueError, RecursionError):
        raise NoFacts(f"its {path.name} cannot be read") from None
    if not isinstance(value, dict):
        raise NoFacts(f"its {path.name} is not an object")
    return value
