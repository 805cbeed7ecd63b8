"""The model card that lies beside an adapter: what it was made from and how well it went. Pure text."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

PARAMETERS = (
    "method",
    "objective",
    "loss_type",
    "beta",
    "optim",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_ratio",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "packing",
    "assistant_only_loss",
    "weight_decay",
    "seed",
)
VERSIONS = ("torch", "transformers", "peft", "trl")


def model_card(job_id: str, spec: Mapping[str, Any], data_sha256: str, metrics: Mapping[str, Any]) -> str:
    """Markdown with the front matter that model hubs read."""
    name = spec.get("name") or f"{str(spec['model']).split('/')[-1]} fine-tuned"
    whole = spec["method"] == "full"
    parameters = {key: spec[key] for key in PARAMETERS if spec.get(key) is not None}
    parameters |= {} if whole else {key: value for key, value in spec["lora"].items() if value or key == "lora_dropout"}
    if "max_steps" in parameters:
        del parameters["num_train_epochs"]  # overridden
    lines = [
        "---",
        f"base_model: {spec['model']}",
        f"library_name: {'transformers' if whole else 'peft'}",
        "pipeline_tag: text-generation",
        f"tags: [{spec['method']}, {spec['objective']}, overnight]",
        "---",
        "",
        f"# {name}",
        "",
        f"{'All weights of' if whole else 'A LoRA adapter for'} `{spec['model']}`, made by job {job_id} of Overnight.",
        "",
        "## Data",
        "",
        f"{metrics['rows']} rows, {metrics['tokens']} tokens, {metrics['trained_tokens']} of them learnt; "
        f"{metrics['cut_rows']} rows were cut at max_length, {metrics['dropped_rows']} left out.",
        f"sha256 of the file: `{data_sha256}`",
        "",
        "## Results",
        "",
        *_table({key: value for key, value in metrics.items() if value is not None}),
        "",
        "## Parameters",
        "",
        *_table(parameters),
        "",
        "## Versions",
        "",
        *_table({package: version(package) for package in VERSIONS}),
        "",
    ]
    return "\n".join(lines)


def _table(facts: Mapping[str, Any]) -> list[str]:
    rows = [f"| {key} | {_shown(value)} |" for key, value in facts.items()]
    return ["| | |", "|---|---|", *rows]


def _shown(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
