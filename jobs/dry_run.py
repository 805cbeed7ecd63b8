"""What a step of training really allocates, tensor by tensor, without weights and without a GPU: torch's fake tensors.

    python -m jobs.dry_run    a request on stdin (`config`: a config.json, `spec`: a fine-tune's document), the answer on stdout

A fake tensor has a shape and a type and no data; what is counted is the storage of all that are alive at once. For models of
which the arithmetic (jobs.estimate) knows no shape, and to check it where it does. It runs on fake CPU tensors: kernels that
only a GPU has (bitsandbytes, Triton) allocate nothing here, so their share is added by the arithmetic (daemon.dry_runs).
A process of its own: it loads torch, takes seconds and a GB, and a model's configuration is not ours.
"""

import gc
import json
import resource
import sys
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

#: Kept from a configuration that means harm, or is only too large.
MEMORY_BYTES, CPU_S = 24 * 2**30, 120


@dataclass(frozen=True, kw_only=True)
class Step:
    """Bytes of one training step. `peak_bytes`: the most that was alive at once beside the weights, gradients with it."""

    #: Of the model itself, and of those the ones that a quantising method would store in few bits.
    parameters: int
    linear_parameters: int
    largest_linear: int
    hidden: int
    vocabulary: int
    learned: int
    weights_bytes: int
    peak_bytes: int
    #: What is alive when the loss is computed: kept from the way forward, and gradients of the micro-batches before.
    kept_bytes: int


def main() -> None:
    """One request, one answer: a Step, or `{"problem": ...}`."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    request = json.loads(sys.stdin.buffer.read())
    try:
        answer: dict[str, Any] = asdict(dry_run(request["config"], request["spec"]))
    except Exception as error:  # a configuration may be anything, and transformers may say anything to it
        said = str(error).strip().splitlines() or [""]
        answer = {"problem": f"{type(error).__name__}: {said[0][:200]}"}
    sys.stdout.write(json.dumps(answer) + "\n")


def dry_run(config: Mapping[str, Any], spec: Mapping[str, Any]) -> Step:
    """One step of a LoRA or full fine-tune with the document's batch and length, the loss aside."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = _on_meta(config, spec)
    live = _live_bytes()
    with FakeTensorMode(allow_non_fake_inputs=True), live.mode:
        _materialise(model)
        model.train()
        if spec["gradient_checkpointing"]:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        gc.collect()
        weights = live.peak = live.now
        # with accumulation the gradients of the micro-batch before are there from the beginning
        for _ in range(2 if spec["gradient_accumulation_steps"] > 1 else 1):
            tokens = torch.zeros(spec["per_device_train_batch_size"], spec["max_length"], dtype=torch.long)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=spec["dtype"] != "float32"):
                # the loss is TRL's, which never holds all logits: the arithmetic knows it
                hidden = _body(model)(input_ids=tokens, use_cache=False).last_hidden_state
                kept = live.now - weights
                loss = hidden.float().sum()
            loss.backward()
            width = int(hidden.shape[-1])
            del hidden, loss, tokens
            gc.collect()
    linears = [module.weight.numel() for name, module in model.named_modules() if _is_quantised(name, module)]
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Step(
        parameters=sum(p.numel() for p in model.parameters()) - (0 if spec["method"] == "full" else learned),
        linear_parameters=sum(linears),
        largest_linear=max(linears, default=0),
        hidden=width,
        vocabulary=int(model.get_output_embeddings().weight.shape[0]),
        learned=learned,
        weights_bytes=weights,
        peak_bytes=live.peak - weights,
        kept_bytes=kept,
    )


def _is_quantised(name: str, module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear) and "lora_" not in name and not name.endswith("lm_head")


def _on_meta(config: Mapping[str, Any], spec: Mapping[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {name: value for name, value in config.items() if name not in ("model_type", "quantization_config", "auto_map", "dtype", "torch_dtype")}  # fmt: skip
    learns_all = spec["method"] == "full"
    wide = spec["dtype"] == "float32" or (learns_all and not spec["pure_bf16"])
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **shape),
            dtype=torch.float32 if wide else torch.bfloat16,
            attn_implementation="sdpa",
            trust_remote_code=False,
        )
        if learns_all:
            return made
        from peft import LoraConfig, get_peft_model

        lora = {name: value for name, value in spec["lora"].items() if name in ("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora")}  # fmt: skip
        targets = spec["lora"]["target_modules"]
        adapted = get_peft_model(made, LoraConfig(**lora, target_modules=targets, task_type="CAUSAL_LM"))
        # TRL keeps the adapters of a quantised model in bfloat16
        return adapted.to(torch.bfloat16) if spec["method"] == "qlora" else adapted


def _materialise(model: Any) -> None:
    """Every parameter and buffer as a fake tensor on the CPU; shared ones stay shared."""
    import torch

    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                made[id(parameter)] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _body(model: Any) -> Any:
    """The model without its output layer."""
    inner = model.base_model.model if hasattr(model, "peft_config") else model
    return inner.base_model


class _Live:
    """Bytes of the storages that are alive, now and at most."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._known: set[int] = set()
        self.mode: Any = None

    def saw(self, tensor: Any) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        if key in self._known:
            self._known.remove(key)
            self.now -= size


def _live_bytes() -> _Live:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    live = _Live()

    class Watch(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            _each(result)
            return result

    def _each(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            live.saw(value)
        elif isinstance(value, (tuple, list)):
            for item in value:
                _each(item)

    live.mode = Watch()
    return live


if __name__ == "__main__":
    main()
