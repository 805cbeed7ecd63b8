"""Recipes of other tools read as ours: names of Axolotl, LLaMA-Factory, torchtune, Unsloth and TRL. Pure; every change is told.

A name that means one of our fields is replaced by it; one that has no meaning here is left out; both are noted. A name that
nobody knows stays, and is an error like any other. Two names that say different things about one field are an error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.spec import FieldError, InvalidSpec

Fields = Mapping[str, Any]
Read = Callable[[Any], Fields]

KIND = "finetune"
#: A document without a kind that has one of these is a recipe for a fine-tune.
TELLING = (
    "base_model",
    "model_name_or_path",
    "finetuning_type",
    "stage",
    "datasets",
    "dataset",
    "dataset_name",
    "model_name",
)
#: Names that have no meaning here, and why.
LEFT_OUT: Mapping[str, str] = {
    name: why
    for why, names in {
        "results are in the run folder": "output_dir overwrite_output_dir logging_dir metric_logger log_every_n_steps log_level "
        "log_peak_memory_stats plot_loss dataset_prepared_path overwrite_cache dataset_dir",
        "the rig saves, resumes and keeps checkpoints by itself": "save_strategy save_total_limit save_only_model saves_per_epoch "
        "resume_from_checkpoint auto_resume_from_checkpoints save_safetensors",
        "with eval_steps it evaluates on the way": "eval_strategy evaluation_strategy evals_per_epoch do_eval do_train",
        "trackers are the rig's business": "report_to wandb_project wandb_entity wandb_watch wandb_name wandb_log_model wandb_run_id "
        "push_to_hub hub_model_id mlflow_experiment_name run_name use_tensorboard",
        "the model's own chat template is used (chat_template names another)": "template",
        "the tokenizer's own are used": "special_tokens tokens tokenizer_config",
        "attention and kernels are chosen by the GPU": "flash_attention flash_attn sdp_attention xformers_attention attn_implementation "
        "tf32 enable_liger_kernel use_liger_kernel",
        "workers and devices are the rig's business": "preprocessing_num_workers dataloader_num_workers dataset_num_proc "
        "dataset_processes ddp_timeout device local_rank",
        "how GPUs share the work is chosen by the estimate (gpus, parallel)": "fsdp fsdp_config fsdp_version fsdp_final_state_dict_type "
        "deepspeed ddp_backend ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers accelerator_config",
        "it has no counterpart here": "strict group_by_length shuffle lora_task_type loss gradient_checkpointing_kwargs profiler "
        "loftq_config eval_sample_packing pad_to_sequence_len model_type tokenizer_type is_llama_derived_model",
    }.items()
    for name in names.split()
}  # fmt: skip
OPTIMIZERS = {
    "adamw_bnb_8bit": "adamw_8bit", "adamw_hf": "adamw_torch", "adamw": "adamw_torch_fused",
    "torch.optim.AdamW": "adamw_torch_fused", "bitsandbytes.optim.PagedAdamW8bit": "paged_adamw_8bit",
    "bitsandbytes.optim.AdamW8bit": "adamw_8bit", "bitsandbytes.optim.PagedAdamW": "paged_adamw_32bit", "torch.optim.SGD": "sgd",
}  # fmt: skip
TYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "torch.bfloat16": "bfloat16",
    "torch.float16": "float16",
}
SCHEDULES = {"torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup": "cosine"}
OBJECTIVES = {"pt": "sft", "ipo": "dpo"}


class _Unusable(ValueError):
    """What a recipe asks for does not exist here."""


@dataclass
class _Reader:
    """One document on its way."""

    found: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    errors: list[FieldError] = field(default_factory=list)
    #: Which name gave a field its value.
    sources: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, value: Any, read: Read) -> None:
        """A name of another tool."""
        try:
            fields = read(value)
        except _Unusable as error:
            self.errors.append(FieldError(name, str(error)))
            return
        for target, meant in fields.items():
            self.put(name, target, meant)
        self.notes.append(_words(name, value, fields))

    def put(self, name: str, target: str, value: Any) -> None:
        """Set a field, one inside an object by `lora.r`."""
        holder, _, key = target.rpartition(".")
        place = self.found.setdefault(holder, {}) if holder else self.found
        if not isinstance(place, dict):
            return  # told by whoever reads the document
        if key in place and place[key] != value:
            other = self.sources.get(target, target)
            if target == "method" and {place[key], value} == {"lora", "qlora"}:
                value = "qlora"  # an adapter, and four bits
            else:
                message = (
                    f"means {target} = {_shown(value)}, and {other} says {_shown(place[key])}: leave one of the two out"
                )
                self.errors.append(FieldError(name, message))
                return
        place[key] = value
        self.sources.setdefault(target, name)


def translate(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The document in our names, and what was changed. Raises InvalidSpec for names that contradict each other."""
    if document.get("kind") == "generate":
        return _generation(document)
    is_recipe = "kind" not in document and any(name in document for name in TELLING)
    if not is_recipe and document.get("kind") != KIND:
        return dict(document), []
    reader = _Reader()
    if is_recipe:
        reader.found["kind"] = KIND
        reader.notes.append(f"kind = {KIND}")
    flat = {name: value for name, value in _flattened(document).items() if value is not None or not is_recipe}
    # our own names first: they are what others are compared with
    for name, value in flat.items():
        if _reading(name, value) is None and name not in LEFT_OUT:
            reader.found[name] = dict(value) if isinstance(value, Mapping) else value
    for name, value in flat.items():
        if (read := _reading(name, value)) is not None:
            if value is not None:
                reader.take(name, value, read)
        elif name in LEFT_OUT and value not in (None, "", False):
            reader.notes.append(f"{name}: not used, {LEFT_OUT[name]}")
    if reader.errors:
        raise InvalidSpec(reader.errors)
    return reader.found, reader.notes


def _generation(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Names of OpenAI's API, vLLM and llama.cpp in a generation."""
    reader = _Reader(found={name: value for name, value in document.items() if name not in GENERATION})
    for name, value in document.items():
        if name in GENERATION and value is not None:
            reader.take(name, value, GENERATION[name])
    if reader.errors:
        raise InvalidSpec(reader.errors)
    return reader.found, reader.notes


# -- what a name means --------------------------------------------------------------------------------------------------


def _same(target: str) -> Read:
    return lambda value: {target: value}


def _named(target: str, names: Mapping[str, str]) -> Read:
    return lambda value: {target: names.get(str(value), value)}


def _names(value: Any) -> Any:
    """`q_proj,v_proj` or a list."""
    if not isinstance(value, str):
        return value
    if value in ("all", "all-linear"):
        return "all-linear"
    names = [name.strip() for name in value.split(",") if name.strip()]
    return names if len(names) > 1 or value.endswith("_proj") else value


def _four_bits(value: Any) -> Fields:
    if value in (4, "4", True):
        return {"method": "qlora"}
    if value in (False, 0):
        return {}
    raise _Unusable("quantised training is in 4 bits here: method qlora")


def _eight_bits(value: Any) -> Fields:
    return _four_bits(8 if value else 0)


def _method(value: Any) -> Fields:
    if value in ("lora", "qlora", "full"):
        return {"method": value}
    raise _Unusable(f"{_shown(value)} is not offered; method is lora, qlora or full")


def _objective(value: Any) -> Fields:
    known = OBJECTIVES.get(str(value), value)
    if known not in ("sft", "dpo", "kto"):
        raise _Unusable(f"{_shown(value)} is not offered; objective is sft, dpo or kto")
    return {"objective": known} | ({"loss_type": "ipo"} if value == "ipo" else {})


def _dataset(value: Any) -> Fields:
    """A file's name, a list with one entry, or torchtune's component."""
    if isinstance(value, list):
        if len(value) != 1:
            raise _Unusable(f"lists {len(value)} data sets, and a job learns from one file: put them together")
        value = value[0]
    if not isinstance(value, Mapping):
        return {"data": value}
    place = value.get("data_files") or value.get("path") or value.get("source")
    if isinstance(place, list) and len(place) == 1:
        place = place[0]
    if not isinstance(place, str):
        raise _Unusable("names no file (path or data_files)")
    fields: dict[str, Any] = {"data": place}
    if value.get("packed") is not None:
        fields["packing"] = value["packed"]
    return fields


def _held_back(value: Any) -> Fields:
    """A share of the rows; their number is not known here."""
    if isinstance(value, (int, float)) and value >= 1:
        raise _Unusable("counts rows; eval_fraction is a share of them, such as 0.05")
    return {"eval_fraction": value} if value else {}


def _precision(name: str) -> Read:
    def read(value: Any) -> Fields:
        if value == "auto":
            return {"dtype": "auto"}
        return {"dtype": name} if value is True else {}

    return read


def _prompts_are_learnt(value: Any) -> Fields:
    return {"assistant_only_loss": not value}


def _checkpointing(value: Any) -> Fields:
    return {"gradient_checkpointing": value if isinstance(value, bool) else str(value).lower() in ("unsloth", "true")}


def _component(value: Any) -> Fields:
    """torchtune's builder of a model: its name tells the method."""
    last = str(value).rpartition(".")[2]
    return {"method": "qlora" if "qlora" in last else "lora" if "lora" in last else "full"}


def _if_true(fields: Fields) -> Read:
    return lambda value: fields if value else {}


def _steps_per_epoch(value: Any) -> Fields:
    raise _Unusable("has no counterpart: max_steps counts the steps of the whole training")


def _greedy(value: Any) -> Fields:
    return {} if value else {"temperature": 0.0}


GENERATION: Mapping[str, Read] = {
    "max_tokens": _same("max_new_tokens"), "max_completion_tokens": _same("max_new_tokens"), "n_predict": _same("max_new_tokens"),
    "num_return_sequences": _same("n"), "stop_strings": _same("stop"), "stop_sequences": _same("stop"),
    "repeat_penalty": _same("repetition_penalty"), "do_sample": _greedy, "input_file": _same("data"),
    "lora_path": _same("adapter"), "lora_modules": _same("adapters"), "model_name_or_path": _same("model"),
    "adapter_name_or_path": _same("adapter"), "torch_dtype": _named("dtype", TYPES),
}  # fmt: skip
MEANINGS: Mapping[str, Read] = {
    # the model and how it learns
    "base_model": _same("model"), "model_name_or_path": _same("model"), "model_name": _same("model"),
    "checkpointer.checkpoint_dir": _same("model"), "adapter_name_or_path": _same("adapter"), "lora_model_dir": _same("adapter"),
    "finetuning_type": _method, "use_peft": lambda value: {"method": "lora" if value else "full"},
    "full_finetuning": _if_true({"method": "full"}), "model._component_": _component,
    "load_in_4bit": _four_bits, "quantization_bit": _four_bits, "load_in_8bit": _eight_bits, "quantization_method": lambda value: {},
    "stage": _objective, "rl": _objective, "rl_beta": _same("beta"), "dpo_beta": _same("beta"), "pref_beta": _same("beta"),
    "pref_loss": _same("loss_type"),
    "bf16": _precision("bfloat16"), "fp16": _precision("float16"), "torch_dtype": _named("dtype", TYPES),
    # the data
    "datasets": _dataset, "dataset": _dataset, "dataset_name": _dataset, "train_file": _same("data"), "training_file": _same("data"),
    "test_datasets": lambda value: {"eval_data": _dataset(value)["data"]}, "eval_dataset": _same("eval_data"),
    "validation_file": _same("eval_data"), "val_set_size": _held_back, "val_size": _held_back,
    "dataset_text_field": lambda value: {} if value == "text" else {"data_fields": {value: "text"}},
    "sequence_len": _same("max_length"), "cutoff_len": _same("max_length"), "max_seq_length": _same("max_length"),
    "max_seq_len": _same("max_length"), "tokenizer.max_seq_len": _same("max_length"),
    "sample_packing": _same("packing"), "train_on_inputs": _prompts_are_learnt, "train_on_prompt": _prompts_are_learnt,
    # the adapter
    "lora_r": _same("lora.r"), "lora_rank": _same("lora.r"), "r": _same("lora.r"), "model.lora_rank": _same("lora.r"),
    "lora_alpha": _same("lora.lora_alpha"), "model.lora_alpha": _same("lora.lora_alpha"),
    "lora_dropout": _same("lora.lora_dropout"), "model.lora_dropout": _same("lora.lora_dropout"),
    **{name: lambda value: {"lora.target_modules": _names(value)}
       for name in ("lora_target_modules", "lora_target", "target_modules", "model.lora_attn_modules")},
    "lora_target_linear": _if_true({"lora.target_modules": "all-linear"}),
    **{name: lambda value: {"lora.modules_to_save": [value] if isinstance(value, str) and "," not in value else _names(value)}
       for name in ("lora_modules_to_save", "additional_target", "modules_to_save")},
    "use_dora": _same("lora.use_dora"), "peft_use_dora": _same("lora.use_dora"), "model.use_dora": _same("lora.use_dora"),
    "use_rslora": _same("lora.use_rslora"), "peft_use_rslora": _same("lora.use_rslora"), "bias": _same("lora.bias"),
    # the steps
    "micro_batch_size": _same("per_device_train_batch_size"), "batch_size": _same("per_device_train_batch_size"),
    "eval_batch_size": _same("per_device_eval_batch_size"), "num_epochs": _same("num_train_epochs"), "epochs": _same("num_train_epochs"),
    "max_steps_per_epoch": _steps_per_epoch, "enable_activation_checkpointing": _same("gradient_checkpointing"),
    "use_gradient_checkpointing": _checkpointing, "optimizer": _named("optim", OPTIMIZERS),
    "optimizer._component_": _named("optim", OPTIMIZERS), "optimizer.lr": _same("learning_rate"), "lr": _same("learning_rate"),
    "optimizer.weight_decay": _same("weight_decay"), "optimizer.fused": lambda value: {},
    "lr_scheduler": _same("lr_scheduler_type"), "lr_scheduler._component_": _named("lr_scheduler_type", SCHEDULES),
    "lr_scheduler.num_warmup_steps": _same("warmup_steps"), "clip_grad_norm": _same("max_grad_norm"), "compile": _same("torch_compile"),
    "random_state": _same("seed"), "noisy_embedding_alpha": _same("neftune_noise_alpha"),
}  # fmt: skip
#: Our own names that other tools give another meaning, by the values that tell.
OTHER_VALUES: Mapping[str, Mapping[Any, Read]] = {
    "adapter": {"lora": _method, "qlora": _method},
    "optim": {name: _named("optim", OPTIMIZERS) for name in OPTIMIZERS},
    "dtype": {name: _named("dtype", TYPES) for name in TYPES},
}
#: Objects of torchtune, whose names count with the object's.
OBJECTS = ("model", "tokenizer", "checkpointer", "optimizer", "lr_scheduler")
#: What is inside them and has no meaning here.
INSIDE_LEFT_OUT = (
    "_component_",
    "path",
    "checkpoint_files",
    "recipe_checkpoint",
    "output_dir",
    "model_type",
    "apply_lora_to_output",
)


def _reading(name: str, value: Any) -> Read | None:
    if name in OTHER_VALUES:
        return OTHER_VALUES[name].get(value) if isinstance(value, str) else None
    return MEANINGS.get(name)


def _flattened(document: Mapping[str, Any]) -> Mapping[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if name in OBJECTS and isinstance(value, Mapping):
            inside = {f"{name}.{key}": inner for key, inner in value.items()}
            flat |= {
                key: inner
                for key, inner in inside.items()
                if key in MEANINGS or key.rpartition(".")[2] not in INSIDE_LEFT_OUT
            }
        else:
            flat[str(name)] = value
    return flat


def _words(name: str, value: Any, fields: Fields) -> str:
    if not fields:
        return f"{name}: not used"
    meant = next(iter(fields.values()))
    same = meant == value and isinstance(meant, bool) is isinstance(value, bool)
    if len(fields) == 1 and not isinstance(value, (list, Mapping)) and same:
        return f"{name} -> {next(iter(fields))}"
    shown = name if not isinstance(value, list) else f"{name}[0]"
    return f"{shown} -> {', '.join(f'{target} = {_shown(meant)}' for target, meant in fields.items())}"


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
