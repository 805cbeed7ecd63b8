"""The form that submits: its fields come from the documents' own schema, and what is typed becomes a document."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field as SchemaField

from api import form_fields
from api.form_fields import Field, Part, Widget, fields_of, shown, spelt
from api.form_values import NotADocument, document_of, read_document, text_of, texts_of
from jobs.spec import KINDS, JobSpec, dump, parse
from jobs.spec.common import Document

BERLIN = ZoneInfo("Europe/Berlin")
EXAMPLES: list[dict[str, Any]] = [
    {"kind": "finetune", "name": "a 'quoted' <name>", "model": "org/model", "data": "/data/rows.jsonl", "learning_rate": 3e-5, "lora": {"r": 8, "target_modules": ["q_proj", "v_proj"]}, "tags": ["a", "b"], "packing": True, "assistant_only_loss": False, "after": ["3", "ended:4"], "max_runtime_s": 5400.5},
    {"kind": "generate", "model": "job:12", "data": "sha256:" + "0" * 64, "temperature": 0.7, "max_new_tokens": 64, "priority": "high", "not_before": "2026-11-25T22:00:00+01:00"},
    {"kind": "benchmark", "model": "org/model", "batch_sizes": [1, 64], "dtypes": ["bfloat16", "float16"], "quantizations": ["none", "int8"], "repeats": 5, "max_cell_s": 60.5},
    {"kind": "command", "argv": ["python", "-c", "print('x y')", ""], "env": {"A": "1=2 3", "B": "x"}, "cwd": "/data", "retries": 2, "gpus": 2, "window": "any", "secrets": ["HF_TOKEN"]},
]  # fmt: skip


class Inner(Document):
    depth: int = 3
    names: tuple[str, ...] = ()


class StrangeSpec(JobSpec):
    """A kind of every shape of field."""

    kind: Literal["strange"] = "strange"
    needed: str = SchemaField(description="It must be given.")
    fixed: Literal["one"] = "one"
    maybe: bool | None = None
    either: bool | str = True
    layers: tuple[int, ...] = ()
    options: dict[str, float] = SchemaField({})
    named: dict[Annotated[str, SchemaField(pattern="^[a-z]+$")], float | Literal["none"]] = SchemaField({})
    rows: tuple[Inner, ...] = ()
    inner: Inner = Inner()


def widget_of(kind: str, path: str) -> Widget:
    return next(field.widget for field in fields_of(kind) if field.path == path)


@pytest.fixture
def strange(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Field]:
    """A kind that nobody has thought of."""
    monkeypatch.setattr(form_fields, "KINDS", {**KINDS, "strange": StrangeSpec})
    return {field.path: field for field in fields_of.__wrapped__("strange")}


def test_every_field_of_every_kind_has_a_place_in_the_form() -> None:
    for kind, model in KINDS.items():
        placed = [field.path for part in Part for _, fields in shown(kind, part) for field in fields]
        assert len(placed) == len(set(placed)) == len(fields_of(kind))
        for name, schema in model.model_json_schema()["properties"].items():
            here = [path for path in placed if path.partition(".")[0] == name]
            assert here or name == "kind" or "const" in schema, f"{kind}.{name}"


def test_what_must_be_given_comes_first_and_is_never_hidden() -> None:
    [(_, fields)] = shown("finetune", Part.ESSENTIAL)
    assert [field.path for field in fields][:2] == ["model", "data"]
    assert all(field.required == (field.path in ("model", "data")) for field in fields)


@pytest.mark.parametrize(
    ("kind", "path", "widget"),
    [
        ("finetune", "learning_rate", Widget.NUMBER), ("finetune", "max_steps", Widget.WHOLE), ("finetune", "packing", Widget.SWITCH),
        ("finetune", "lr_scheduler_type", Widget.CHOICE), ("finetune", "lora.target_modules", Widget.LIST), ("finetune", "priority", Widget.CHOICE),
        ("command", "argv", Widget.COMMAND), ("command", "env", Widget.PAIRS), ("command", "not_before", Widget.MOMENT),
        ("command", "max_runtime_s", Widget.SECONDS), ("command", "tags", Widget.LIST),
    ],
)  # fmt: skip
def test_a_field_is_typed_as_its_schema_says(kind: str, path: str, widget: Widget) -> None:
    assert widget_of(kind, path) is widget


def test_a_new_kind_appears_by_itself_whatever_its_fields_are(strange: Mapping[str, Field]) -> None:
    widgets = {path: str(field.widget) for path, field in strange.items() if path not in JobSpec.model_fields}
    assert widgets == {
        "needed": "text", "maybe": "choice", "either": "either", "layers": "list", "options": "pairs", "named": "pairs", "rows": "json",
        "inner.depth": "whole", "inner.names": "list",
    }  # fmt: skip
    assert strange["needed"].part is Part.ESSENTIAL and strange["inner.depth"].inside == "inner"
    typed = {"needed": "x", "maybe": "false", "either": "gaussian", "layers": "1, 2", "options": "a=0.5\nb=2", "rows": '[{"depth": 1}]', "inner.names": "u,v"}  # fmt: skip
    made = document_of("strange", strange.values(), typed, BERLIN)
    spec = StrangeSpec.model_validate(made)
    assert (spec.maybe, spec.either, spec.layers, spec.options) == (False, "gaussian", (1, 2), {"a": 0.5, "b": 2.0})
    assert spec.rows[0].depth == 1 and spec.inner.names == ("u", "v")


@pytest.mark.parametrize("document", EXAMPLES, ids=lambda document: str(document["kind"]))
def test_a_document_fills_the_form_and_comes_out_the_same(document: dict[str, Any]) -> None:
    spec, kind = dump(parse(document)), str(document["kind"])
    texts = texts_of(fields_of(kind), spec, BERLIN)
    again = document_of(kind, fields_of(kind), texts, BERLIN)
    assert dump(parse(again)) == spec
    usual = {field.path for field in fields_of(kind)} - set(texts)
    assert len(usual) > 8, "what has its default is left empty"


def test_an_empty_form_leaves_everything_to_the_defaults() -> None:
    assert document_of("command", fields_of("command"), {"argv": "  "}, BERLIN) == {"kind": "command"}


def test_a_box_that_is_on_by_default_and_was_cleared_says_so() -> None:
    made = document_of("finetune", fields_of("finetune"), {"model": "m", "packing": "on", "trackers": "on"}, BERLIN)
    assert made == {"kind": "finetune", "model": "m", "packing": True, "assistant_only_loss": False}


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("learning_rate", "2e-4", 2e-4), ("learning_rate", "fast", "fast"), ("max_steps", "1 000", 1000), ("max_steps", "9" * 400, "9" * 400),
        ("max_runtime_s", "1h30m", 5400.0), ("max_runtime_s", "90", 90.0), ("max_runtime_s", "soon", "soon"),
        ("not_before", "2026-11-25T22:00", "2026-11-25T22:00:00+01:00"), ("not_before", "tomorrow", "tomorrow"),
        ("lora.target_modules", "all-linear", "all-linear"), ("lora.target_modules", "q_proj, v_proj", ["q_proj", "v_proj"]),
        ("tags", "one", ["one"]), ("after", "3,ended:4", ["3", "ended:4"]),
    ],
)  # fmt: skip
def test_what_is_typed_is_read_or_left_for_the_check_to_refuse(path: str, text: str, value: Any) -> None:
    made = document_of("finetune", fields_of("finetune"), {path: text, "assistant_only_loss": "on"}, BERLIN)
    *above, name = path.split(".")
    assert (made[above[0]] if above else made)[name] == value


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([field.path for field in fields_of("finetune")]), st.text(max_size=30)))
def test_nothing_that_can_be_typed_breaks_it(texts: dict[str, str]) -> None:
    json.dumps(document_of("finetune", fields_of("finetune"), texts, BERLIN))


@pytest.mark.parametrize("name", ["env", "argv", "tags"])
def test_every_value_has_a_text(name: str) -> None:
    field = next(field for field in fields_of("command") if field.path == name)
    assert text_of(field, {"env": {"A": "b c"}, "argv": ["a", "b c"], "tags": ["x", "y"]}[name], BERLIN) == {"env": "A=b c", "argv": "a 'b c'", "tags": "x, y"}[name]  # fmt: skip


def test_names_are_spelt_for_people() -> None:
    assert [spelt(name) for name in ("learning_rate", "vram_gib", "lr_scheduler_type", "gpus")] == ["learning rate", "VRAM (GiB)", "LR scheduler type", "GPUs"]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('kind = "command"\nargv = ["true"]', {"kind": "command", "argv": ["true"]}),
        ('{"kind": "command", "argv": ["true"]}', {"kind": "command", "argv": ["true"]}),
        ('[base]\nkind = "command"', {"base": {"kind": "command"}}),
        ("not_before = 2026-11-25T22:00:00+01:00", {"not_before": "2026-11-25T22:00:00+01:00"}),
        ("a = 2026-11-25\nb = 07:00:00", {"a": "2026-11-25", "b": "07:00:00"}),
    ],
)
def test_a_pasted_document_is_toml_or_json(text: str, value: Any) -> None:
    assert read_document(text) == value


@pytest.mark.parametrize("text", ["kind = command", '{"kind": ', "x = nan", '{"x": NaN}', "x = " + "9" * 30, "[" * 5000, '{"a": 1, "a": 2}', "a = 1\na = 2"])  # fmt: skip
def test_what_is_neither_is_refused_in_words(text: str) -> None:
    with pytest.raises(NotADocument, match=r"."):
        read_document(text)
