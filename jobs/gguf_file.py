"""A Llama-shaped model as one GGUF file in Q8_0, tensor by tensor: no more than one of them is in memory.

The format: github.com/ggml-org/ggml/blob/master/docs/gguf.md; names of keys and tensors are those of the package `gguf`. Other
shapes, other ways to split text and other quantisations are for a converter of the rig's owner (jobs.exports).
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch  # noqa: TID253
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer  # noqa: TID253

#: Values that share one scale (gguf.GGML_QUANT_SIZES).
BLOCK = 32
#: How the tokenizers of well-known models cut text before they merge bytes, by the regular expression; names are llama.cpp's.
DIGITS_BY_THREE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS: Mapping[tuple[str, ...], str] = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (DIGITS_BY_THREE,): "llama-bpe",
    (DIGITS_BY_THREE.replace("{1,3}", ""),): "qwen2",
}


class CannotConvert(ValueError):
    """The model is not of a shape that is written here; the message says what of it."""


@dataclass(frozen=True)
class Shape:
    """How a kind of model is written. `permutes`: its queries and keys turn pairs that lie beside each other (Llama's rotary order)."""

    architecture: Any
    permutes: bool = False


SHAPES: Mapping[str, Shape] = {
    "llama": Shape(gguf.MODEL_ARCH.LLAMA, permutes=True),
    "mistral": Shape(gguf.MODEL_ARCH.LLAMA, permutes=True),
    "qwen2": Shape(gguf.MODEL_ARCH.QWEN2),
    "qwen3": Shape(gguf.MODEL_ARCH.QWEN3),
}


def write(model: Path, target: Path, *, name: str, license: str = "", beat: Callable[[], None] = lambda: None) -> None:
    """Convert a folder of safetensors. `beat` is called after every tensor. Raises CannotConvert before anything is written."""
    logging.getLogger("gguf").setLevel(logging.WARNING)  # it tells of every file
    config = AutoConfig.from_pretrained(model)
    shape = _shape(config)
    tokenizer = _Tokenizer(model, config.vocab_size)
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[shape.architecture])
    _describe(writer, config, name, license)
    tokenizer.describe(writer)
    planned = list(_tensors(model, config, shape))
    for tensor in planned:
        writer.add_tensor_info(tensor.name, tensor.stored, tensor.dtype, tensor.nbytes, raw_dtype=tensor.kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in planned:
            writer.write_tensor_data(tensor.data())
            beat()
    finally:
        writer.close()


def _shape(config: Any) -> Shape:
    if config.model_type not in SHAPES:
        raise CannotConvert(f"a {config.model_type} model ({', '.join(SHAPES)} are written)")
    rope = config.rope_parameters or {}
    if (kind := rope.get("rope_type", "default")) not in ("default", "llama3"):
        raise CannotConvert(f"a rotary embedding of type {kind}")
    if kind == "llama3" and not SHAPES[config.model_type].permutes:
        raise CannotConvert(f"a rotary embedding of type {kind} in a {config.model_type} model")
    if getattr(config, "mlp_bias", False):
        raise CannotConvert("a feed-forward layer with a bias")
    return SHAPES[config.model_type]


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _describe(writer: Any, config: Any, name: str, license: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    if license:
        writer.add_license(license)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(_head_width(config))
    writer.add_key_length(_head_width(config))
    writer.add_value_length(_head_width(config))
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


# -- weights ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file. `heads`: its rows are permuted by them."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]
    heads: int = 0

    @property
    def kind(self) -> Any:
        """Matrices in 8 bits; vectors, and what does not come in whole blocks, as they are."""
        if len(self.shape) < 2:
            return gguf.GGMLQuantizationType.F32
        return gguf.GGMLQuantizationType.Q8_0 if self.shape[-1] % BLOCK == 0 else gguf.GGMLQuantizationType.F16

    @property
    def dtype(self) -> Any:
        kinds = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
        return np.dtype(kinds.get(self.kind, np.uint8))

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape in bytes, where it is quantised."""
        if self.kind is not gguf.GGMLQuantizationType.Q8_0:
            return self.shape
        return tuple(gguf.quant_shape_to_byte_shape(self.shape, self.kind))

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.stored)) * int(self.dtype.itemsize)

    def data(self) -> np.ndarray[Any, Any]:
        values = self.load().to(torch.float32).numpy()
        if self.heads:
            values = _by_halves(values, self.heads)
        found: np.ndarray[Any, Any] = gguf.quants.quantize(values, self.kind)
        return found


def _tensors(model: Path, config: Any, shape: Shape) -> Iterator[_Tensor]:
    names = gguf.get_tensor_name_map(shape.architecture, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    if shape.permutes and (config.rope_parameters or {}).get("rope_type") == "llama3":
        factors = _rope_factors(config)
        yield _Tensor("rope_freqs.weight", tuple(factors.shape), lambda: factors)
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118 - no mapping
        for key, size in found.items():
            if key == "lm_head.weight" and config.tie_word_embeddings:
                continue  # it is the embedding
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise CannotConvert(f"a tensor {key}")
            turned = heads.get(key.split(".")[-2], 0) if shape.permutes else 0
            yield _Tensor(name, size, _Loaded(file, key), turned)


@dataclass(frozen=True)
class _Loaded:
    """Reads one tensor when it is asked for."""

    file: Path
    key: str

    def __call__(self) -> torch.Tensor:
        with safe_open(self.file, "pt") as opened:
            found: torch.Tensor = opened.get_tensor(self.key)
            return found


def _by_halves(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows from transformers' order (the halves of a head are turned together) to the one of the file (neighbours are)."""
    width = values.shape[0] // heads // 2
    return values.reshape(heads, 2, width, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _rope_factors(config: Any) -> torch.Tensor:
    """By how much each frequency of Llama 3's long context is lower than the plain one: shape (head width / 2,)."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    width, theta = _head_width(config), config.rope_parameters["rope_theta"]
    plain = 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return plain / scaled.to(torch.float32)


# -- tokens -------------------------------------------------------------------------------------------------------------


class _Tokenizer:
    """A byte-level tokenizer as the file has it: tokens, their kinds, merges, special ids, the chat template."""

    def __init__(self, model: Path, size: int):
        self._tokenizer, self._size = AutoTokenizer.from_pretrained(model), size
        self._parts = json.loads(self._tokenizer.backend_tokenizer.to_str())
        if self._parts["model"]["type"] != "BPE" or self._parts["model"].get("byte_fallback"):
            raise CannotConvert("a tokenizer that is not byte-level BPE (as SentencePiece's)")
        self._split = _split(self._parts["pre_tokenizer"])

    def describe(self, writer: Any) -> None:
        texts, kinds = self._tokens()
        writer.add_tokenizer_model("gpt2")  # byte-level BPE
        writer.add_tokenizer_pre(self._split)
        writer.add_token_list(texts)
        writer.add_token_types(kinds)
        writer.add_token_merges([" ".join(pair) for pair in self._merges()])
        special = self._tokenizer
        for add, number in (
            (writer.add_bos_token_id, special.bos_token_id),
            (writer.add_eos_token_id, special.eos_token_id),
            (writer.add_unk_token_id, special.unk_token_id),
            (writer.add_pad_token_id, special.pad_token_id),
        ):
            if number is not None:
                add(number)
        writer.add_add_bos_token(
            special.bos_token_id is not None and special("a")["input_ids"][:1] == [special.bos_token_id]
        )
        writer.add_add_space_prefix(False)
        if isinstance(special.chat_template, str):
            writer.add_chat_template(special.chat_template)

    def _tokens(self) -> tuple[list[str], list[int]]:
        """Every id that the model has scores for; those without a token are filled up."""
        texts = [f"[PAD{number}]" for number in range(self._size)]
        kinds = [int(gguf.TokenType.UNUSED)] * self._size
        for text, number in self._tokenizer.get_vocab().items():
            if number >= self._size:
                raise CannotConvert(f"a tokenizer with more tokens than the model has rows ({self._size})")
            texts[number], kinds[number] = text, int(gguf.TokenType.NORMAL)
        for number, token in self._tokenizer.added_tokens_decoder.items():
            kinds[number] = int(gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED)
        return texts, kinds

    def _merges(self) -> Iterator[tuple[str, str]]:
        for merge in self._parts["model"]["merges"]:
            first, second = merge.split(" ") if isinstance(merge, str) else merge
            yield first, second


def _split(pre_tokenizer: Mapping[str, Any] | None) -> str:
    """llama.cpp's name of how text is cut before bytes are merged."""
    parts = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    seen = tuple(
        part["pattern"].get("Regex", "") if part["type"] == "Split" else str(part["type"])
        for part in parts
        if part and not (part["type"] == "ByteLevel" and not part.get("use_regex", True))
    )
    if seen not in SPLITS:
        raise CannotConvert("a tokenizer that cuts text in a way of its own")
    return SPLITS[seen]
