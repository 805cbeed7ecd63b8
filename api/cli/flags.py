"""Command-line flags from the fields of a job document, and a document from such flags.

Loads pydantic (jobs.spec), so only the command that needs its flags imports this.
"""

import types
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from api.cli.moments import Duration, Moment
from jobs.spec import FILE_FIELDS, KINDS, JobSpec

Json = dict[str, Any]

#: Flags whose name is not the field's.
NAMES = {
    "tags": ("--tag", "--tags"),
    "max_runtime_s": ("--max-runtime", "--max-runtime-s"),
    "max_new_tokens": ("--max-new-tokens", "--max-tokens"),
}
#: Fields that are not a flag: the command itself, and what follows `--`.
NOT_FLAGS = {"kind", "argv"}
#: Lists of texts that may have commas and spaces of their own.
WHOLE_TEXTS = {"stop"}
NESTED = "__"


class Pairs(click.ParamType[tuple[str, str]]):
    """`NAME=VALUE`."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, equals, text = str(value).partition("=")
        if not name or not equals:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, text


TYPES: Mapping[str, click.ParamType[Any]] = {"max_runtime_s": Duration(), "not_before": Moment()}


def options(kind: str | None) -> list[click.Parameter]:
    """The flags of a kind of job, or those that every kind has."""
    model = KINDS[kind] if kind else JobSpec
    # what must be given first, then what is the kind's own
    fields = sorted(_fields(model), key=lambda item: (not item[1].is_required(), item[0][0] in JobSpec.model_fields))
    made = [_option(path, field) for path, field in fields]
    if "retries" not in model.model_fields:
        made.append(click.Option(["--retries"], type=int, help="How often it is tried again (max_attempts - 1)."))
    return [*made]


def document(kind: str | None, values: Mapping[str, Any]) -> Json:
    """What was given, by the document's field names."""
    made: Json = {"kind": kind} if kind else {}
    for path, field in _fields(KINDS[kind] if kind else JobSpec):
        value = values.get(NESTED.join(path))
        if value is None or value == ():
            continue
        target = made
        for name in path[:-1]:
            target = target.setdefault(name, {})
        target[path[-1]] = _value(path, field, value)
    return made


def _fields(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for name, field in model.model_fields.items():
        if name in NOT_FLAGS:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, (*above, name))
        else:
            yield (*above, name), field


def _option(path: tuple[str, ...], field: FieldInfo) -> click.Option:
    flags = NAMES.get(path[-1]) or _names(path)
    text = field.description or ""
    shape = _shape(field.annotation)
    if shape is bool:
        flags = (f"{flags[0]}/--no-{flags[0].removeprefix('--')}",)
    return click.Option(
        [*flags, NESTED.join(path)],
        type=TYPES.get(path[-1]) or _type(shape),
        multiple=shape in (list, dict),
        default=None,
        help=" ".join(filter(None, (text, _default_words(field)))),
        metavar="DIR" if path[-1] == "workdir" else "FILE" if path[-1] in FILE_FIELDS else None,
    )


def _names(path: tuple[str, ...]) -> tuple[str, ...]:
    """`--lora.r`, and `--lora-alpha` for lora.lora_alpha. Dots, dashes and underscores are the same to the parser."""
    dotted = "--" + ".".join(path).replace("_", "-")
    if len(path) > 1 and path[-1].startswith(path[-2] + "_"):
        return "--" + path[-1].replace("_", "-"), dotted
    return (dotted,)


def _shape(annotation: Any) -> Any:
    """The plain type behind an annotation: str, int, float, bool, list, dict, or its Literal or Enum."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _shape(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        shapes = [_shape(part) for part in get_args(annotation) if part is not type(None)]
        return list if list in shapes else shapes[0]
    if origin is tuple:
        return list
    return dict if origin is dict else annotation


def _type(shape: Any) -> click.ParamType[Any]:
    if get_origin(shape) is Literal:
        return click.Choice([str(word) for word in get_args(shape)])
    if isinstance(shape, type) and issubclass(shape, StrEnum):
        return click.Choice([word.value for word in shape])
    if shape is dict:
        return Pairs()
    plain: dict[Any, click.ParamType[Any]] = {int: click.INT, float: click.FLOAT, bool: click.BOOL}
    return plain.get(shape, click.STRING)


def _value(path: tuple[str, ...], field: FieldInfo, value: Any) -> Any:
    shape = _shape(field.annotation)
    if shape is dict:
        return dict(value)
    if shape is not list:
        return value
    if path[-1] in WHOLE_TEXTS:
        return list(value)
    items = [part.strip() for item in value for part in str(item).split(",") if part.strip()]
    return items[0] if path[-1] == "target_modules" and len(items) == 1 else items


def _default_words(field: FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined:
        return "[required]"
    if default in (None, "", ()) or default == {}:
        return ""
    return f"[default: {','.join(map(str, default)) if isinstance(default, tuple) else default}]"
