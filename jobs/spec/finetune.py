"""The document of a fine-tune. Names as in transformers, TRL and PEFT; docs/finetune.md explains each."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from jobs import batches, parallel
from jobs.spec.common import DataFields, Document, Line, ModelSpec, PreflightSpec, Text
from jobs.spec.export import ExportFormat

Method = Literal["lora", "qlora", "full"]
Objective = Literal["sft", "dpo", "kto"]
#: How several GPUs share one training; names as accelerate's users know them.
Parallel = Literal["auto", "ddp", "fsdp", "device_map"]
Optimizer = Literal[
    "adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "lion_32bit",
    "paged_lion_8bit", "paged_lion_32bit", "adafactor", "sgd",
]  # fmt: skip
Schedule = Literal[
    "linear", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay",
]  # fmt: skip
#: Options of the schedules, as transformers names them.
SCHEDULE_OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate", "num_cycles"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate", "num_cycles", "warmup_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"),
})  # fmt: skip
#: Written by packages that only some rigs have: quantised weights, and optimizers with states of 8 bits.
NEEDS_BITSANDBYTES = frozenset(
    {"adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"} | {"lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit"}
)  # fmt: skip
#: TRL's names of losses; the first one is the usual.
LOSSES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "sft": ("nll", "dft"),
    "dpo": ("sigmoid", "hinge", "ipo", "sigmoid_norm", "apo_zero", "apo_down", "nca_pair", "bco_pair", "sppo_hard"),
    "kto": ("kto",),
})  # fmt: skip
#: What the literature and TRL begin with.
LEARNING_RATES: Mapping[tuple[bool, bool], float] = MappingProxyType({
    # (learns all weights, learns from preferences)
    (False, False): 2e-4, (True, False): 2e-5, (False, True): 5e-6, (True, True): 1e-6,
})  # fmt: skip
BETA = 0.1
USUAL_MICRO_BATCH = USUAL_ACCUMULATION = 4
MOST_ROWS_PER_STEP = 1_048_576


def _keeps_the_base(value: bool | str) -> bool | str:
    if isinstance(value, str) and value not in ("gaussian", "orthogonal"):
        raise ValueError(
            "is true, false, gaussian or orthogonal; others (pissa, olora, loftq, …) change the base model's weights, "
            "and the adapter would not fit the model that it is put on later"
        )
    return value


OptionName = Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
Option = Annotated[float | Literal["linear", "cosine", "1-sqrt"], Field(union_mode="left_to_right")]
Layer = Annotated[int, Field(ge=0, le=10_000)]
Initialisation = Annotated[bool | str, AfterValidator(_keeps_the_base)]


class LoraSpec(Document):
    """Low-rank adapter settings, as PEFT names them."""

    r: PositiveInt = Field(16, le=1024)
    lora_alpha: PositiveFloat = 32
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Line | tuple[Line, ...] = "all-linear"
    exclude_modules: tuple[Line, ...] = Field((), max_length=256, description="Layers that get no adapter.")
    use_rslora: bool = Field(False, description="Scale by lora_alpha / sqrt(r) (rank-stabilised LoRA).")
    use_dora: bool = Field(False, description="Learn magnitude and direction apart (DoRA); slower, more memory.")
    bias: Literal["none", "all", "lora_only"] = "none"
    modules_to_save: tuple[Line, ...] = Field((), max_length=64, description="Layers that are learnt whole, as embed_tokens.")  # fmt: skip
    init_lora_weights: Initialisation = Field(True, description="How the adapter begins; ways that change the base model are not offered.")  # fmt: skip
    layers_to_transform: tuple[Layer, ...] = Field((), max_length=1024, description="Numbers of the blocks that get an adapter; all when left out.")  # fmt: skip


class FinetuneSpec(ModelSpec, PreflightSpec):
    """Fine-tuning: an adapter or all weights, from examples or preferences. Names as in transformers, TRL and PEFT."""

    kind: Literal["finetune"] = "finetune"
    data: Text = Field(description="JSONL, JSON, CSV, Parquet or Arrow: chats, prompt/completion, text, preferences.")
    eval_data: Text | None = None
    eval_fraction: float | None = Field(None, gt=0, lt=1, description="Share of `data` that is kept for evaluation.")
    data_fields: DataFields = Field({}, description="The file's own names of columns: question=prompt.")
    chat_template: Text | None = Field(None, description="A Jinja file to use in place of the model's own template.")
    method: Method = Field("lora", description="lora, qlora (weights in 4 bits), or full (all weights).")
    objective: Objective = Field("sft", description="sft: examples; dpo: pairs of better and worse; kto: good or bad.")
    loss_type: str | None = Field(None, max_length=40, description="TRL's name of a loss of this objective.")
    beta: PositiveFloat | None = Field(None, le=100, description="dpo, kto: how close it stays to the model it began with (0.1).")  # fmt: skip
    desirable_weight: PositiveFloat = Field(1.0, description="kto: weight of the good rows.")
    undesirable_weight: PositiveFloat = Field(1.0, description="kto: weight of the bad rows.")
    learning_rate: PositiveFloat = Field(2e-4, description="When left out: full 2e-5, dpo and kto 5e-6, both 1e-6.")
    num_train_epochs: PositiveFloat = Field(1.0, le=10_000)
    max_steps: PositiveInt | None = Field(None, description="Stop after this many optimizer steps; overrides epochs.")
    effective_batch_size: PositiveInt | None = Field(None, le=MOST_ROWS_PER_STEP, description="Rows per optimizer step; how many go through the GPU at once is found by the rig.")  # fmt: skip
    per_device_train_batch_size: PositiveInt = Field(USUAL_MICRO_BATCH, le=4096)
    per_device_eval_batch_size: PositiveInt = Field(4, le=4096)
    gradient_accumulation_steps: PositiveInt = Field(USUAL_ACCUMULATION, le=MOST_ROWS_PER_STEP)
    parallel: Parallel = Field("auto", description="With several GPUs: ddp (each learns from its own rows), fsdp (they share the weights, too), device_map (each holds some layers); chosen by the estimate when auto.")  # fmt: skip
    max_length: int = Field(1024, ge=8, le=1_048_576)
    packing: bool = False
    assistant_only_loss: bool = Field(True, description="Learn the assistant's words only (messages).")
    gradient_checkpointing: bool = False
    pure_bf16: bool = Field(False, description="full: weights and optimizer in bfloat16, half the memory.")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = Field(False, description="qlora: quantise the scales, too.")
    optim: Optimizer = "adamw_torch_fused"
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: PositiveFloat = 1e-8
    max_grad_norm: float = Field(1.0, ge=0, description="0: gradients are not clipped.")
    weight_decay: float = Field(0.0, ge=0)
    neftune_noise_alpha: PositiveFloat | None = Field(None, description="Noise on the embeddings (NEFTune).")
    torch_compile: bool = False
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    warmup_steps: int | None = Field(None, ge=0, description="Overrides warmup_ratio.")
    lr_scheduler_type: Schedule = "linear"
    lr_scheduler_kwargs: dict[OptionName, Option] = Field({}, max_length=16, description="Options of the schedule, as min_lr_rate=0.1.")  # fmt: skip
    logging_steps: PositiveInt = 1
    save_steps: PositiveInt | None = Field(None, description="Steps between checkpoints; about ten per run when left out.")  # fmt: skip
    eval_steps: PositiveInt | None = Field(None, description="Steps between evaluations; only at the end when left out.")  # fmt: skip
    metric_for_best_model: str = Field("eval_loss", pattern=r"^[A-Za-z0-9_/]{1,64}$")
    greater_is_better: bool | None = Field(None, description="Told by the metric's name when left out.")
    load_best_model_at_end: bool = Field(False, description="The result is the best evaluated checkpoint, not the last.")  # fmt: skip
    early_stopping_patience: PositiveInt | None = Field(None, description="End after so many evaluations without a better one; the best is kept.")  # fmt: skip
    early_stopping_threshold: float = Field(0.0, ge=0, description="Less than this is not better.")
    export: tuple[ExportFormat, ...] = Field((), max_length=2, description="What is made of the result: merged, gguf.")
    trackers: bool = Field(True, description="Tell the trackers that the rig is set up for; false: nobody.")
    lora: LoraSpec = LoraSpec()

    @property
    def needs_bitsandbytes(self) -> str | None:
        """The field that asks for it."""
        if self.method == "qlora":
            return "method"
        return "optim" if self.optim in NEEDS_BITSANDBYTES else None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, document: Any) -> Any:
        """Defaults that depend on other fields, so that a stored document says all of them."""
        if not isinstance(document, Mapping):
            return document
        full, prefers = document.get("method") == "full", document.get("objective") in ("dpo", "kto")
        filled = {"learning_rate": LEARNING_RATES[full, prefers], **_batches(document)}
        given = {name: value for name, value in document.items() if name not in filled or value is not None}
        return {**filled, **given}

    @model_validator(mode="after")
    def _fits_together(self) -> "FinetuneSpec":
        for wrong in (
            self._wrong_batch(),
            self._wrong_method(),
            self._wrong_objective(),
            self._wrong_schedule(),
            self._wrong_evaluation(),
        ):
            if wrong:
                raise ValueError(wrong)
        return self

    def _wrong_batch(self) -> str | None:
        product = batches.rows_per_step(self.model_dump())
        if self.effective_batch_size and self.effective_batch_size % self.gpus:
            return f"effective_batch_size: {self.effective_batch_size} rows cannot be shared evenly by {self.gpus} GPUs"
        if self.effective_batch_size not in (None, product):
            gpus = f" x {self.gpus} GPUs" if self.gpus > 1 else ""
            return (
                f"effective_batch_size: is {self.effective_batch_size}, but per_device_train_batch_size "
                f"{self.per_device_train_batch_size} x gradient_accumulation_steps {self.gradient_accumulation_steps}{gpus} "
                f"is {product}; leave those two out, or make them fit"
            )
        if self.per_device_train_batch_size < batches.least(self.objective):
            return "per_device_train_batch_size: kto compares the rows of a batch with each other, so it needs 2 or more (and an even effective_batch_size)"  # fmt: skip
        return None

    def _wrong_method(self) -> str | None:
        if self.parallel != "auto" and self.gpus == 1:
            return "parallel: says how several GPUs share the work; set gpus to 2 or more, or leave it out"
        if self.parallel == "fsdp" and (why := parallel.no_fsdp(self.model_dump())):
            return f"parallel: fsdp {why}; leave it out, and the rig chooses"
        if self.method == "full" and self.lora != LoraSpec():
            return "lora: a full fine-tune has no adapter; leave it out, or set method to lora"
        if self.method == "full" and self.adapter:
            return "adapter: a full fine-tune learns the model's own weights; continue an adapter with method lora or qlora"  # fmt: skip
        if self.pure_bf16 and (self.method != "full" or self.dtype not in ("auto", "bfloat16")):
            return "pure_bf16: is for method full with dtype auto or bfloat16"
        if self.lora.use_dora and self.lora.init_lora_weights == "orthogonal":
            return "lora.init_lora_weights: orthogonal does not go with use_dora"
        return None

    def _wrong_objective(self) -> str | None:
        known = LOSSES[self.objective]
        if self.loss_type is not None and self.loss_type not in known:
            return f"loss_type: of {self.objective} is one of {', '.join(known)}"
        if self.objective == "sft" and self.beta is not None:
            return "beta: belongs to objective dpo or kto"
        if self.objective != "sft" and self.packing:
            return "packing: is for objective sft"
        weights = (self.desirable_weight, self.undesirable_weight)
        if self.objective != "kto" and weights != (1.0, 1.0):
            return "desirable_weight: and undesirable_weight belong to objective kto"
        return None

    def _wrong_schedule(self) -> str | None:
        name, options = self.lr_scheduler_type, self.lr_scheduler_kwargs
        known = SCHEDULE_OPTIONS.get(name, ())
        if strange := sorted(set(options) - set(known)):
            has = f"it has {', '.join(known)}" if known else "it has none"
            return f"lr_scheduler_kwargs: {strange[0]} is no option of {name}; {has}"
        if wrong := [option for option, value in options.items() if isinstance(value, str) is not option.endswith("_type")]:  # fmt: skip
            return f"lr_scheduler_kwargs: {wrong[0]} {'is linear, cosine or 1-sqrt' if wrong[0].endswith('_type') else 'is a number'}"  # fmt: skip
        if "min_lr_rate" in known and ("min_lr" in options) is ("min_lr_rate" in options):
            return f"lr_scheduler_kwargs: {name} needs min_lr_rate (a share of learning_rate) or min_lr, not both"
        if name == "warmup_stable_decay" and "num_decay_steps" not in options:
            return "lr_scheduler_kwargs: warmup_stable_decay needs num_decay_steps"
        return None

    def _wrong_evaluation(self) -> str | None:
        if self.eval_data and self.eval_fraction:
            return "eval_fraction: is instead of eval_data; give one of them"
        evaluates = bool(self.eval_data or self.eval_fraction)
        if self.load_best_model_at_end and not evaluates:
            return "load_best_model_at_end: needs eval_data or eval_fraction"
        if self.early_stopping_patience and not (evaluates and self.eval_steps):
            return "early_stopping_patience: needs eval_steps, and eval_data or eval_fraction"
        return None


def _batches(document: Mapping[str, Any]) -> dict[str, int]:
    """Micro-batch and accumulation where the document leaves them out.

    With `effective_batch_size` alone the least micro-batch is written down, and the attempt finds how many fit
    (jobs.fitting.micro_batch). That is what the planner needs to know: it can run wherever the least one can.
    """
    whole, micro, accumulation, gpus = (
        document.get(name) if type(document.get(name)) is int and document[name] > 0 else None
        for name in ("effective_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps", "gpus")
    )
    if whole is None:
        return {
            "per_device_train_batch_size": USUAL_MICRO_BATCH,
            "gradient_accumulation_steps": USUAL_ACCUMULATION,
        }
    each = whole // (gpus or 1)
    if micro is None:
        micro = each // accumulation if accumulation else min(each, batches.least(document.get("objective")))
    return {"per_device_train_batch_size": max(1, micro), "gradient_accumulation_steps": max(1, each // max(1, micro))}
