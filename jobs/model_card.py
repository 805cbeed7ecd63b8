"""The model card (README.md) beside a result: what it was made from, how well it went, how to load it, how to repeat it. Text only.

The front matter is what model hubs read: huggingface.co/docs/hub/model-cards#model-card-metadata. Nothing in it names this machine.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jobs.differences import NOT_ITS_WORK, defaults, filled, same
from jobs.run import Order
from jobs.spec import HUB_ID, JOB_REFERENCE
from jobs.spent import Spent

VERSIONS = ("torch", "transformers", "peft", "trl")
#: Fields that the card tells in words of their own.
TOLD_ELSEWHERE = {"kind", "model", "adapter", "data", "eval_data", "export", "trackers"} | NOT_ITS_WORK
#: What front matter of a base's own card is passed on.
TERMS = ("license", "license_name", "license_link")
LONGEST_TERM = 500


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A file that was learnt from or evaluated on. `rows`: those that were used."""

    field: str
    sha256: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model that it began with: its hub id, or the name of its folder, and what its own card says of its licence."""

    name: str
    terms: Mapping[str, str]

    @classmethod
    def of(cls, order: Order) -> "Base":
        """Looks into the model's folder, where it has one."""
        place = order.paths.get("model") or str(order.spec["model"])
        card = _front_matter(Path(place) / "README.md") if place.startswith("/") else _hub_card(place)
        named = str(order.spec["model"])
        if HUB_ID.fullmatch(named):
            name = named.partition("@")[0]
        elif place.startswith("/"):  # a job's result says what it was made from
            own = card.get("base_model")
            name = _term(own) if JOB_REFERENCE.fullmatch(named) and isinstance(own, str) else Path(place).name
        else:
            name = place.partition("@")[0]
        terms = {key: _term(card[key]) for key in TERMS if isinstance(card.get(key), str)}
        return cls(name=name, terms=terms)


def trained_card(order: Order, files: Sequence[DataFile], metrics: Mapping[str, Any], spent: Spent) -> str:
    """The card of a fine-tune's result."""
    spec, base = order.spec, Base.of(order)
    whole = spec["method"] == "full"
    kind = "All weights of" if whole else "A LoRA adapter for"
    front = {
        "base_model": base.name,
        "base_model_relation": "finetune" if whole else "adapter",
        **base.terms,
        "library_name": "transformers" if whole else "peft",
        "pipeline_tag": "text-generation",
        "tags": [spec["method"], spec["objective"], "overnight"],
    }
    return "\n".join([
        *_head(front, _title(spec, base)),
        f"{kind} `{base.name}`, made by job {order.job_id} of Overnight." + ("" if base.terms else " The base model's card names no licence: look at its terms before you pass this on."),
        "",
        "## How to load it",
        "",
        *_code("python", _loading_whole() if whole else _loading_adapter(base.name)),
        "",
        "## Results",
        "",
        *_table({key: value for key, value in {**metrics, **spent.told}.items() if value is not None}),
        "",
        "## Data",
        "",
        "| | file | rows | sha256 |",
        "|---|---|---|---|",
        *(f"| {file.field} | {_file_name(spec, file.field)} | {file.rows} | `{file.sha256}` |" for file in files),
        "",
        f"{metrics['trained_tokens']} tokens are learnt in each epoch; {metrics['cut_rows']} rows were cut at max_length, "
        f"{metrics['dropped_rows']} left out.",
        "",
        *_parameters(spec),
        "## How to repeat it",
        "",
        f"On the same rig: `overnight rerun {order.job_id} --exact`. Elsewhere save this as `job.json` and run `submit job.json`; "
        "`data` is then the file with the sum above; of files and folders of the rig only their names stand here.",
        "",
        *_code("json", json.dumps(_document(spec), indent=2)),
        "",
        "## Versions",
        "",
        *_table({package: version(package) for package in VERSIONS}),
        "",
    ])  # fmt: skip


def exported_card(order: Order, facts: Mapping[str, Any], difference: float) -> str:
    """The card of a model that an adapter was merged into. `facts`: what it was made of, as jobs.exports notes it."""
    spec, base = order.spec, Base.of(order)
    front = {
        "base_model": base.name,
        "base_model_relation": "finetune",
        **base.terms,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merged", "overnight"],
    }
    adapter = f" with the adapter of sha256 `{facts['adapter_sha256']}`" if facts["adapter_sha256"] else ""
    return "\n".join([
        *_head(front, _title(spec, base)),
        f"`{base.name}`{adapter} merged into it, in {facts['dtype']}, by job {order.job_id} of Overnight.",
        "",
        "It was loaded again and compared with model and adapter: its scores are apart by "
        f"{difference:.2g} of their spread, which is rounding.",
        "",
        "## How to load it",
        "",
        *_code("python", _loading_whole()),
        "",
        "With llama.cpp, after `convert_hf_to_gguf.py`, or with the `.gguf` file beside it: `llama-cli -m model-Q8_0.gguf`.",
        "",
        "## Versions",
        "",
        *_table({package: version(package) for package in VERSIONS}),
        "",
    ])  # fmt: skip


# -- parts --------------------------------------------------------------------------------------------------------------


def _head(front: Mapping[str, Any], title: str) -> Iterator[str]:
    yield "---"
    yield from (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items())  # JSON is YAML
    yield from ("---", "", f"# {title}", "")


def _title(spec: Mapping[str, Any], base: Base) -> str:
    return str(spec.get("name") or f"{base.name.split('/')[-1]} fine-tuned").replace("\n", " ")


def _parameters(spec: Mapping[str, Any]) -> Iterator[str]:
    """Those that were chosen first; those that are as they come after them."""
    usual = filled({"kind": spec["kind"]})
    fields = {name: value for name, value in filled(spec).items() if name.split(".")[0] not in TOLD_ELSEWHERE}
    if spec["method"] == "full":
        fields = {name: value for name, value in fields.items() if not name.startswith("lora.")}
    chosen = {name: value for name, value in fields.items() if not same(value, usual.get(name))}
    rest = {name: value for name, value in fields.items() if name not in chosen and value not in (None, "", [], {})}
    yield from ("## Parameters", "", *_table(chosen), "")
    yield from ("<details><summary>As they come</summary>", "", *_table(rest), "", "</details>", "")


def _document(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The job document without what has its default, and without when and where it ran."""
    usual = defaults(str(spec["kind"]))
    lora = {name: value for name, value in spec["lora"].items() if not same(value, usual["lora"].get(name))}
    fields = {name: value for name, value in spec.items() if name not in usual or not same(value, usual[name])}
    kept = {name: _without_folders(value) for name, value in fields.items() if name not in NOT_ITS_WORK}
    return {"kind": spec["kind"], **kept, **({"lora": lora} if lora else {})}


def _file_name(spec: Mapping[str, Any], field: str) -> str:
    named = str(spec.get(field) or "")
    if named.startswith("sha256:"):
        return "uploaded"
    return f"`{named.rpartition('/')[2]}`" if named else "a part of `data`"


def _loading_adapter(base: str) -> str:
    return "\n".join([
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({json.dumps(base)}, dtype=\"auto\")",
        'model = PeftModel.from_pretrained(model, "path/to/this/folder")',
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
    ])  # fmt: skip


def _loading_whole() -> str:
    return "\n".join([
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", dtype="auto")',
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
    ])  # fmt: skip


def _code(language: str, text: str) -> list[str]:
    return [f"```{language}", text, "```"]


def _table(facts: Mapping[str, Any]) -> list[str]:
    rows = [f"| {key} | {_shown(_without_folders(value))} |" for key, value in facts.items()]
    return ["| | |", "|---|---|", *rows]


def _shown(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _without_folders(value: Any) -> Any:
    """Of a file or folder of this rig its name alone: where it lay is nobody else's business."""
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) and value.startswith("/") else value


def _term(text: str) -> str:
    """A stranger's words, as far as every YAML reader takes them."""
    return "".join(c for c in text if c.isprintable())[:LONGEST_TERM]


def _front_matter(card: Path) -> Mapping[str, Any]:
    """What a model's own card says of it; nothing when it has none, or not a readable one."""
    from huggingface_hub import metadata_load

    try:
        found = metadata_load(card) if card.is_file() else None
    except Exception:  # whatever a stranger's YAML does to its parser
        return {}
    return found if isinstance(found, Mapping) else {}


def _hub_card(name: str) -> Mapping[str, Any]:
    from huggingface_hub import try_to_load_from_cache

    model, _, revision = name.partition("@")
    found = try_to_load_from_cache(model, "README.md", revision=revision or None)
    return _front_matter(Path(found)) if isinstance(found, str) else {}
