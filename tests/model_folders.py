"""Model folders with the real numbers of real models and no weights: `config.json`, and a safetensors file that ends after its header."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save_file

Config = dict[str, Any]

#: As their authors publish them; what memory does not depend on is left out.
LLAMA_3_8B: Config = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_32_1B: Config = {
    "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128256, "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}  # fmt: skip
MIXTRAL_8X7B: Config = {
    "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 32000, "max_position_embeddings": 32768, "tie_word_embeddings": False,
    "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip


def write_model(folder: Path, config: Mapping[str, Any], *, dtype: str = "BF16", shards: int = 1) -> Path:
    """A folder that says what a real one says about its size."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = list(llama_tensors(config).items())
    if shards == 1:
        write_header(folder / "model.safetensors", dict(tensors), dtype)
        return folder
    names = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    places = {tensor: names[n % shards] for n, (tensor, _) in enumerate(tensors)}
    for name in names:
        write_header(folder / name, {t: shape for t, shape in tensors if places[t] == name}, dtype)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def write_by_chance(base: Path, folder: Path, shape: Mapping[str, int]) -> None:
    """A whole model of a Llama's shape with weights of chance, and the tokenizer of another; by a process of its own, which loads torch."""
    program = (
        "import json, sys, torch; from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer\n"
        "base, target, shape = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])\n"
        "config = AutoConfig.from_pretrained(base)\n"
        "[setattr(config, key, value) for key, value in shape.items()]\n"
        "config.head_dim = shape['hidden_size'] // shape['num_attention_heads']\n"
        "config.max_position_embeddings = 16384\n"
        "config.vocab_size = 128256; config.layer_types = None\n"
        "torch.manual_seed(1)\n"
        "AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(target)\n"
        "AutoTokenizer.from_pretrained(base).save_pretrained(target)\n"
    )
    subprocess.run([sys.executable, "-c", program, base, folder, json.dumps(shape)], check=True)


#: Of the model of a few million weights.
HIDDEN, WIDE, LAYERS = 64, 128, 2


def write_small(tiny_model: Path, folder: Path) -> Path:
    """The tiny model's tokenizer and architecture with weights of chance, twenty times smaller."""
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "head_dim": HIDDEN // 4, "dtype": "float32", "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    chance = numpy.random.default_rng(1)

    def weights(*shape: int) -> Any:
        return (chance.standard_normal(shape) * 0.05).astype(numpy.float32)

    tensors = {"model.embed_tokens.weight": weights(config["vocab_size"], HIDDEN)}
    tensors["model.norm.weight"] = numpy.ones(HIDDEN, numpy.float32)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name, rows in (("q_proj", HIDDEN), ("k_proj", HIDDEN // 2), ("v_proj", HIDDEN // 2), ("o_proj", HIDDEN)):
            tensors[f"{at}self_attn.{name}.weight"] = weights(rows, HIDDEN)
        for name, shape in (("gate_proj", (WIDE, HIDDEN)), ("up_proj", (WIDE, HIDDEN)), ("down_proj", (HIDDEN, WIDE))):
            tensors[f"{at}mlp.{name}.weight"] = weights(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{name}.weight"] = numpy.ones(HIDDEN, numpy.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def copy_tokenizer(model: Path, folder: Path) -> Path:
    """A model's folder with its real tokenizer and no weights."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model / name, folder)
    (folder / "model.safetensors").touch()
    return folder


def llama_tensors(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Names and shapes as in a Llama's (or a Mixtral's) checkpoint."""
    h, ff, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    width = config.get("head_dim") or h // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    found = {"model.embed_tokens.weight": [vocabulary, h], "model.norm.weight": [h]}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = [vocabulary, h]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        found |= {f"{at}.input_layernorm.weight": [h], f"{at}.post_attention_layernorm.weight": [h]}
        found |= {f"{at}.self_attn.{name}_proj.weight": shape for name, shape in (("q", [q, h]), ("k", [kv, h]), ("v", [kv, h]), ("o", [h, q]))}  # fmt: skip
        if experts := config.get("num_local_experts"):
            found[f"{at}.block_sparse_moe.gate.weight"] = [experts, h]
            for n in range(experts):
                inside = f"{at}.block_sparse_moe.experts.{n}"
                found |= {
                    f"{inside}.w1.weight": [ff, h],
                    f"{inside}.w2.weight": [h, ff],
                    f"{inside}.w3.weight": [ff, h],
                }
        else:
            found |= {f"{at}.mlp.gate_proj.weight": [ff, h], f"{at}.mlp.up_proj.weight": [ff, h], f"{at}.mlp.down_proj.weight": [h, ff]}  # fmt: skip
    return found


def write_header(path: Path, tensors: Mapping[str, list[int]], dtype: str = "BF16") -> None:
    """A safetensors file without its data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    header |= {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()}
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
