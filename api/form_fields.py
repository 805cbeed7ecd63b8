"""The fields of a form, from the JSON schema of a kind of job: a new kind or field appears by itself. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from api.wording import number
from jobs.spec import KINDS, JobSpec

Json = Mapping[str, Any]

#: Besides what must be given: what most people set. Everything else is one click away.
ESSENTIAL = (
    "name", "method", "objective", "eval_data", "adapter", "learning_rate", "num_train_epochs", "max_steps", "max_length",
    "effective_batch_size", "per_device_train_batch_size", "lora.r", "max_new_tokens", "temperature", "engine", "metrics", "tasks",
    "limit", "env", "gpus",
)  # fmt: skip
#: Schemas tell no more of these than "a number" or "a list of texts".
SPECIAL = {"argv": "command", "not_before": "moment"}
FILES = frozenset({"data", "eval_data"})
#: Where the name alone would be a riddle.
LABELS = {"argv": "command", "env": "environment", "cwd": "folder", "max_runtime_s": "max runtime", "r": "LoRA rank r"}
SPELT = {
    "gpus": "GPUs", "lora": "LoRA", "vram": "VRAM", "lr": "LR", "bnb": "BnB", "num": "number of", "dtype": "data type",
    "kwargs": "options", "optim": "optimizer", "dora": "DoRA", "rslora": "rsLoRA",
}  # fmt: skip
UNITS = {"s": "seconds", "gib": "GiB", "bytes": "bytes", "w": "watts"}
PLAIN = frozenset({"string", "number", "integer", "boolean"})
#: Fields that nobody types: the tab says it.
HIDDEN = frozenset({"kind"})


class Widget(StrEnum):
    """How a value is typed."""

    TEXT = "text"
    NUMBER = "number"
    WHOLE = "whole"
    SECONDS = "seconds"
    SWITCH = "switch"
    CHOICE = "choice"
    #: Texts or numbers with commas.
    LIST = "list"
    #: NAME=VALUE, one a line.
    PAIRS = "pairs"
    #: A command line, as a shell would split it.
    COMMAND = "command"
    MOMENT = "moment"
    #: One of several plain types: a word, a number, true or false.
    EITHER = "either"
    #: Whatever has no form of its own.
    JSON = "json"


class Part(StrEnum):
    """Where in the form a field stands."""

    ESSENTIAL = "essential"
    OWN = "own"
    SHARED = "shared"


@dataclass(frozen=True)
class Field:
    """One field of a document."""

    path: str
    label: str
    widget: Widget
    part: Part
    required: bool
    default: Any
    description: str
    choices: tuple[str, ...] = ()
    #: The object that it belongs to, as "lora"; empty for the document itself.
    inside: str = ""

    @property
    def is_file(self) -> bool:
        return self.path in FILES

    @property
    def hint(self) -> str:
        """What stands in an empty field: the value that it has then."""
        if isinstance(self.default, bool):
            return str(self.default).lower() if self.widget is Widget.EITHER else ""
        if self.default in (None, "", [], {}) or isinstance(self.default, dict):
            return ""
        if isinstance(self.default, list):
            return ", ".join(map(str, self.default))
        return (
            number(self.default).replace("\u202f", "") if isinstance(self.default, (int, float)) else str(self.default)
        )


@cache
def fields_of(kind: str) -> tuple[Field, ...]:
    """Every field of a kind, in the order of its document."""
    schema = KINDS[kind].model_json_schema()
    shared = set(JobSpec.model_fields)
    return tuple(_fields(schema, schema.get("$defs", {}), shared))


def shown(kind: str, part: Part) -> list[tuple[str, list[Field]]]:
    """The fields of one part of the form, those of an object within it under its name; what must be given first."""
    found: dict[str, list[Field]] = {}
    for field in sorted(fields_of(kind), key=_place):
        if field.part is part:
            found.setdefault("" if part is Part.ESSENTIAL else field.inside, []).append(field)
    return sorted(found.items(), key=lambda item: bool(item[0]))


def _place(field: Field) -> tuple[bool, int]:
    if field.part is Part.ESSENTIAL:
        return not field.required, ESSENTIAL.index(field.path) if field.path in ESSENTIAL else 0
    return True, 0


def _fields(schema: Json, defs: Json, shared: set[str], above: str = "", default: Any = None) -> Iterator[Field]:
    required = set(schema.get("required", ()))
    for name, raw in schema.get("properties", {}).items():
        path = f"{above}{name}"
        if path in HIDDEN or "const" in raw:
            continue
        usual = default.get(name, raw.get("default")) if isinstance(default, Mapping) else raw.get("default")
        prop = _resolved(raw, defs)
        if prop.get("type") == "object" and "properties" in prop:
            yield from _fields(prop, defs, set(), f"{path}.", usual)
            continue
        is_required = name in required and not above
        yield _field(path, prop, defs, usual, required=is_required, shared=name in shared and not above)


def _field(path: str, prop: Json, defs: Json, default: Any, *, required: bool, shared: bool) -> Field:
    widget, choices = _widget(path, prop, defs)
    part = Part.ESSENTIAL if required or path in ESSENTIAL else Part.SHARED if shared else Part.OWN
    inside, _, name = path.rpartition(".")
    return Field(
        path=path,
        label=_label(inside, name),
        widget=widget,
        part=part,
        required=required,
        default=default,
        description=str(prop.get("description", "")),
        choices=choices,
        inside=inside,
    )


def _label(inside: str, name: str) -> str:
    """learning_rate: "learning rate"; lora.lora_alpha: "LoRA alpha"; lora.r: "LoRA r"; vram_gib: "VRAM (GiB)"."""
    if name in LABELS:
        return LABELS[name]
    words = name if not inside or inside in name.split("_") else f"{inside}_{name}"
    return spelt(words)


def spelt(name: str) -> str:
    """A field's name as words, with its unit behind them."""
    stem, _, unit = name.rpartition("_")
    if stem and unit in UNITS:
        return f"{spelt(stem)} ({UNITS[unit]})"
    return " ".join(SPELT.get(word, word) for word in name.split("_"))


def _widget(path: str, prop: Json, defs: Json) -> tuple[Widget, tuple[str, ...]]:
    if path in SPECIAL:
        return Widget(SPECIAL[path]), ()
    options = [_resolved(option, defs) for option in prop.get("anyOf", (prop,))]
    options = [option for option in options if option.get("type") != "null"]
    if len(options) != 1:
        kinds = {option.get("type") for option in options}
        if kinds == {"string", "array"} and _is_plain_list(options, defs):
            return Widget.LIST, ()
        return (Widget.EITHER if kinds <= PLAIN else Widget.JSON), ()
    option = options[0]
    if "enum" in option:
        return Widget.CHOICE, tuple(map(str, option["enum"]))
    match option.get("type"):
        case "boolean":
            # true, false, or left to the rig: a box has two states only
            return (Widget.CHOICE, ("true", "false")) if "anyOf" in prop else (Widget.SWITCH, ())
        case "integer":
            return Widget.WHOLE, ()
        case "number":
            return (Widget.SECONDS if path.endswith("_s") else Widget.NUMBER), ()
        case "string":
            return Widget.TEXT, ()
        case "array" if _is_plain_list([option], defs):
            return Widget.LIST, ()
        case "object" if _is_plain_table(option, defs):
            return Widget.PAIRS, ()
    return Widget.JSON, ()


def _is_plain_list(options: list[Json], defs: Json) -> bool:
    items = [_resolved(option.get("items", {}), defs) for option in options if option.get("type") == "array"]
    return all(item.get("type") in ("string", "integer", "number") for item in items)


def _is_plain_table(option: Json, defs: Json) -> bool:
    values = [option.get("additionalProperties"), *option.get("patternProperties", {}).values()]
    shapes = [_resolved(value, defs) for value in values if isinstance(value, Mapping)]
    kinds = {each.get("type") for shape in shapes for each in shape.get("anyOf", (shape,))}
    return bool(shapes) and kinds <= PLAIN


def _resolved(prop: Json, defs: Json) -> Json:
    """With what it refers to; words beside the reference win."""
    if "$ref" not in prop:
        return prop
    name = str(prop["$ref"]).rpartition("/")[2]
    return {**defs[name], **{key: value for key, value in prop.items() if key != "$ref"}}
