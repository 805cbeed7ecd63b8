"""Weights of which every GPU has a part (FSDP2): gathered for a checkpoint, and given out again. Loads torch.

A checkpoint has them whole, under the names and in the file that any other training has. Every process must make these calls.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch  # noqa: TID253
from peft import PeftModel, get_peft_model_state_dict  # noqa: TID253
from safetensors import safe_open
from torch.distributed.fsdp import FSDPModule  # noqa: TID253
from torch.distributed.tensor import DTensor, distribute_tensor  # noqa: TID253

from jobs.weights import ADAPTER_WEIGHTS

#: What FSDP's activation checkpointing puts into the names of a layer's weights.
WRAPPED = "_checkpoint_wrapped_module."


def gathered(model: Any, *, keep: bool) -> dict[str, Any]:
    """The weights that learn, by name, in the machine's memory; nothing where they are not kept."""
    found = {}
    for name, parameter in _learning(model):
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if keep:
            found[name] = whole.detach().cpu()
    return found


def load(model: Any, checkpoint: Path) -> None:
    """Give out the weights of a checkpoint's folder. Raises KeyError when one that learns is not there."""
    names = _saved_names(model)
    parts = dict(_parts(checkpoint))
    for name, parameter in _learning(model):
        with safe_open(parts[names[name]], framework="pt") as file:
            whole = file.get_tensor(names[name]).to(device=parameter.device, dtype=parameter.dtype)
        if isinstance(parameter, DTensor):
            whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements)
        with torch.no_grad():
            parameter.copy_(whole)


def apart(model: Any) -> None:
    """Parts again, after a pass forwards without one back: until then the last layers stay whole, and their parts hidden."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _learning(model: Any) -> Iterator[tuple[str, Any]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name.replace(WRAPPED, ""), parameter


def _saved_names(model: Any) -> dict[str, str]:
    """Each weight's name, and the one that it has in a file."""
    numbered = {name: torch.tensor(at) for at, (name, _) in enumerate(_learning(model))}
    if not isinstance(model, PeftModel):
        return {name: name for name in numbered}
    names = list(numbered)
    saved = get_peft_model_state_dict(model, numbered, save_embedding_layers=False)
    return {names[int(at)]: name for name, at in saved.items()}


def _parts(checkpoint: Path) -> Iterator[tuple[str, Path]]:
    """Every weight in a folder, and its file."""
    adapter = checkpoint / ADAPTER_WEIGHTS
    for path in [adapter] if adapter.exists() else sorted(checkpoint.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            yield from ((name, path) for name in file.keys())  # noqa: SIM118 - not a mapping
