"""Models of the usual sizes, as their authors' `config.json` describes them: what a rig's owner would think of first."""

from collections.abc import Mapping
from typing import Any

from jobs.model_facts import ModelFacts, of_config

_QWEN = {"model_type": "qwen2", "vocab_size": 152064, "max_position_embeddings": 32768, "tie_word_embeddings": False}
_LLAMA = {"model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 131072, "num_key_value_heads": 8, "tie_word_embeddings": False}  # fmt: skip
_TIED = {"tie_word_embeddings": True}


def _sizes(hidden: int, layers: int, heads: int, feed_forward: int, **more: Any) -> dict[str, Any]:
    return {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": feed_forward, **more}  # fmt: skip


CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "Qwen2.5-0.5B": _QWEN | _TIED | _sizes(896, 24, 14, 4864, num_key_value_heads=2, vocab_size=151936),
    "Llama-3.2-1B": _LLAMA | _TIED | _sizes(2048, 16, 32, 8192, head_dim=64),
    "Qwen2.5-1.5B": _QWEN | _TIED | _sizes(1536, 28, 12, 8960, num_key_value_heads=2, vocab_size=151936),
    "Llama-3.2-3B": _LLAMA | _TIED | _sizes(3072, 28, 24, 8192, head_dim=128),
    "Qwen2.5-7B": _QWEN | _sizes(3584, 28, 28, 18944, num_key_value_heads=4),
    "Llama-3.1-8B": _LLAMA | _sizes(4096, 32, 32, 14336),
    "Qwen2.5-14B": _QWEN | _sizes(5120, 48, 40, 13824, num_key_value_heads=8),
    "Qwen2.5-32B": _QWEN | _sizes(5120, 64, 40, 27648, num_key_value_heads=8),
    "Llama-3.3-70B": _LLAMA | _sizes(8192, 80, 64, 28672),
}


def known_model(name: str) -> ModelFacts | None:
    """A model by its name, with or without its owner and the -Instruct of its chat version."""
    config = config_of(name)
    return of_config(config) if config else None


def config_of(name: str) -> Mapping[str, Any] | None:
    """The configuration of such a model."""
    bare = name.partition("@")[0].rpartition("/")[2].lower().removesuffix("-instruct")
    return next((config for known, config in CONFIGS.items() if known.lower() == bare), None)
