"""Load a language model and its tokenizer for a job: safetensors only, no code of the model's own unless the rig allows it."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.causes import NETWORK_PACKAGES, chain, is_disk_full
from jobs.light_tokenizer import read_template, template_file
from jobs.model import Cause
from jobs.parallel import way
from jobs.run import JobError, Order

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
#: The hub answered, and its answer will be the same tomorrow.
REFUSED_BY_HUB = {"RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "EntryNotFoundError"}


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the weights come from: folders, or a hub id and its revision."""

    model: str
    revision: str | None = None
    adapter: str | None = None
    #: Several by their names; "" for the model itself.
    adapters: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        return self.model.startswith("/")


@dataclass(frozen=True, kw_only=True)
class Device:
    """What the job computes on, and in which precision."""

    name: str
    dtype: str
    #: Over how many GPUs one process lays the layers of the model.
    gpus: int = 1

    @property
    def is_gpu(self) -> bool:
        return self.name == "cuda"


def sources(order: Order) -> Sources:
    """The model and adapter of these orders."""
    model = order.paths.get("model") or str(order.spec["model"])
    adapter = order.paths.get("adapter")
    adapters = {name: order.paths.get(f"adapters.{name}", "") for name in order.spec.get("adapters") or ()}
    if model.startswith("/"):
        return Sources(model=model, adapter=adapter, adapters=adapters)
    name, _, revision = model.partition("@")
    return Sources(model=name, revision=revision or None, adapter=adapter, adapters=adapters)


def folder(order: Order) -> Path:
    """Where the weights are: the model's folder, or the hub's cache once it is loaded."""
    source = sources(order)
    if source.is_local:
        return Path(source.model)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.model, "config.json", revision=source.revision)
    return Path(found).parent if isinstance(found, str) else Path(source.model)


def device(spec: Mapping[str, Any]) -> Device:
    """The GPU that this job sees, or the CPU. Raises JobError when the document asks for what it cannot do."""
    import torch

    if not torch.cuda.is_available():
        if spec["dtype"] == "float16":
            raise JobError(Cause.BAD_INPUT, "A CPU cannot compute in float16.", "Set dtype to auto or float32.")
        return Device(name="cpu", dtype="float32" if spec["dtype"] == "auto" else spec["dtype"])
    gpus = torch.cuda.device_count()
    if gpus > 1 and way(spec) != "device_map":
        raise JobError(Cause.BAD_INPUT, f"This process uses one GPU and sees {gpus}.", "Set CUDA_VISIBLE_DEVICES to one.")  # fmt: skip
    best = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return Device(name="cuda", dtype=best if spec["dtype"] == "auto" else spec["dtype"], gpus=gpus)


def limit_threads() -> None:
    """Use the CPU threads that the worker gave; all of them when it gave none."""
    import torch

    given = os.environ.get("OVERNIGHT_CPU_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""
    if given.isdigit() and int(given) > 0:
        torch.set_num_threads(int(given))


def quiet_libraries() -> None:
    """A log is for the job's own lines: no bars drawn for a terminal, no notes of libraries to their developers."""
    import datasets
    import transformers

    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def load_tokenizer(order: Order) -> Any:
    """The model's tokenizer, with a token to pad with."""
    from transformers import AutoTokenizer

    source = sources(order)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.model, revision=source.revision, trust_remote_code=remote_code(order)
        )
    except Exception as error:  # every library below has its own: all mean that there is no usable tokenizer
        if (unusable := _unusable(error, f"The tokenizer of {order.spec['model']}", local=source.is_local)) is None:
            raise
        raise unusable from error
    if (file := template_file(order.paths)) is not None:
        try:
            tokenizer.chat_template = read_template(file)
        except ValueError as error:
            raise JobError(Cause.BAD_INPUT, f"chat_template: {error}.") from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise JobError(Cause.BAD_INPUT, f"The tokenizer of {order.spec['model']} has no end token.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(order: Order) -> Any:
    """The model's configuration, without its weights."""
    from transformers import AutoConfig

    source = sources(order)
    try:
        return AutoConfig.from_pretrained(source.model, revision=source.revision, trust_remote_code=remote_code(order))
    except Exception as error:  # as above
        if (unusable := _unusable(error, f"The model {order.spec['model']}", local=source.is_local)) is None:
            raise
        raise unusable from error


def load_generation_config(order: Order) -> Any:
    """What the model's folder says about generating; nothing where it does not."""
    from transformers import GenerationConfig

    source = sources(order)
    try:
        return GenerationConfig.from_pretrained(source.model, revision=source.revision)
    except OSError:  # many models have no such file
        return GenerationConfig()


def load_model(order: Order, to: Device, *, trainable: bool, dtype: str = "", quantization: Any = None) -> Any:
    """The model on its device, with its adapter. To generate, the adapter is merged into the weights.

    `dtype`: of its weights, where that is not what it computes in. `quantization`: a BitsAndBytesConfig to load it with.
    """
    import torch
    from transformers import AutoModelForCausalLM

    source = sources(order)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.model,
            revision=source.revision,
            dtype=getattr(torch, dtype or to.dtype),
            quantization_config=quantization,
            device_map=_device_map(to, quantization),
            use_safetensors=True,
            trust_remote_code=remote_code(order),
        )
    except Exception as error:  # as above; out of memory and network errors are told apart inside
        if (unusable := _unusable(error, f"The model {order.spec['model']}", local=source.is_local)) is None:
            raise
        raise unusable from error
    if source.adapter:
        model = _with_adapter(model, Path(source.adapter), trainable=trainable)
    try:
        if quantization is None and to.gpus == 1:
            model.to(to.name)
    except torch.OutOfMemoryError as error:
        # a smaller batch would not help, so none is proposed
        hint = "Use a smaller model, or a GPU with more free memory."
        raise JobError(Cause.OOM_GPU, "The model does not fit into the GPU's free memory.", hint) from error
    return model if trainable else model.eval()


def few_bits(name: str, to: Device, *, double: bool = False) -> Any:
    """The BitsAndBytesConfig of a quantisation: nf4 and fp4 (`double`: their scales, too), or int8. Raises JobError without bitsandbytes."""
    import torch

    try:
        import bitsandbytes  # noqa: F401
        from transformers import BitsAndBytesConfig
    except ImportError as error:
        hint = "On the rig: pip install 'overnight[qlora]'."
        raise JobError(Cause.BAD_INPUT, f"Weights in {name} need the package bitsandbytes.", hint) from error
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=name,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=getattr(torch, to.dtype),
    )


def _device_map(to: Device, quantization: Any) -> Any:
    """What from_pretrained places itself: layers over several GPUs, and weights that it quantises on the way."""
    if to.gpus > 1:
        return "balanced"
    return {"": to.name} if quantization is not None else None


def put_on(model: Any, adapters: Mapping[str, str]) -> Any:
    """The model with several adapters beside its weights, by their names: none is merged, and one at a time is switched on."""
    adapted = model
    for name, place in adapters.items():
        folder = _checked_adapter(Path(place), name)
        try:
            if adapted is model:
                adapted = _peft_model(model, folder, adapter_name=name)
            else:
                adapted.load_adapter(str(folder), adapter_name=name)
        except Exception as error:  # as above
            if (unusable := _unusable(error, f"The adapter {name}", local=True)) is None:
                raise
            raise unusable from error
    return adapted.eval()


def _with_adapter(model: Any, adapter: Path, *, trainable: bool) -> Any:
    folder = _checked_adapter(adapter)
    try:
        adapted = _peft_model(model, folder, is_trainable=trainable)
    except Exception as error:  # as above
        if (unusable := _unusable(error, "The adapter", local=True)) is None:
            raise
        raise unusable from error
    return adapted if trainable else adapted.merge_and_unload()


def _peft_model(model: Any, folder: Path, **options: Any) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder), **options)


def _checked_adapter(folder: Path, name: str = "") -> Path:
    if not (folder / ADAPTER_WEIGHTS).is_file() or not (folder / ADAPTER_CONFIG).is_file():
        which, hint = f"The adapter {name}".rstrip(), "Only adapters saved as safetensors are loaded."
        raise JobError(Cause.BAD_INPUT, f"{which} has no {ADAPTER_WEIGHTS} with its {ADAPTER_CONFIG}.", hint)
    return folder


def remote_code(order: Order) -> bool:
    """Whether code that comes with the model may run: asked for, and allowed by the rig."""
    return bool(order.spec.get("trust_remote_code")) and order.allow_remote_code


def _unusable(error: Exception, what: str, *, local: bool) -> JobError | None:
    """That the input is bad; None when it was memory, disk or network that failed, and the error speaks for itself."""
    errors = list(chain(error))
    names = {type(e).__name__ for e in errors}
    if "OutOfMemoryError" in names or any(isinstance(e, MemoryError) or is_disk_full(e) for e in errors):
        return None
    if not local and os.environ.get("HF_HUB_OFFLINE") == "1":
        hint = "Put it into the models folder, or allow downloads in the rig's settings."
        return JobError(Cause.BAD_INPUT, f"{what} is not on this rig, and the rig does not download.", hint)
    from_network = any(type(e).__module__.split(".")[0] in NETWORK_PACKAGES for e in errors)
    if not local and from_network and not names & REFUSED_BY_HUB:
        return None
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    hint = "It must be a folder with config.json, a tokenizer and safetensors; pickle files (.bin) are never loaded."
    return JobError(Cause.BAD_INPUT, f"{what} cannot be used: {reason[:300]}", hint)
