"""What one GPU has room for, as tables. Loads pydantic."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from api.cli import output
from api.cli.session import USAGE, fail
from api.fit_views import FitView, fit_of, fit_of_sizes
from jobs.known_models import known_model
from jobs.model_facts import ModelFacts, NoFacts, read_model

Json = dict[str, Any]

GIB = 2**30
#: Of the usual models the batch at this length is shown.
LENGTH = 2048
METHODS = ("full", "lora", "qlora", "generate", "generate, nf4")


def without_a_rig(model: str, vram_gib: float | None) -> Json | None:
    """The answer where it needs no rig: for so much memory, of a folder here or of the usual models."""
    if vram_gib is None:
        return None
    memory_bytes = round(vram_gib * GIB)
    if not model:
        return _plain(fit_of_sizes(memory_bytes))
    facts = _facts_here(model)
    return _plain(fit_of(model, facts, memory_bytes)) if facts else None


def words(view: Mapping[str, Any], *, one: bool) -> str:
    """The tables of one model, or a line for each of the usual ones."""
    return "\n".join(_of_one(view) if one else _of_sizes(view))


def _of_one(view: Mapping[str, Any]) -> Iterator[str]:
    [model] = view["models"]
    yield f"{output.clean_line(model['name'])}, {_billions(model['parameters'])} parameters, on a GPU with {_gib(view['memory_bytes'])}."
    yield "The most rows at once, by method and by tokens of a row:"
    yield ""
    lengths = sorted({at["length"] for method in model["methods"] for at in method["batches"]})
    head = ("METHOD", "AT LEAST", *map(str, lengths), "LONGEST")
    yield output.table(head, ([m["method"], _gib(m["least_bytes"]), *_rows(m, lengths), m["longest"] or "-"] for m in model["methods"]))  # fmt: skip
    yield ""
    yield from NOTES


def _of_sizes(view: Mapping[str, Any]) -> Iterator[str]:
    yield f"What fits a GPU with {_gib(view['memory_bytes'])}: rows x tokens at once, or what one short row needs."
    yield ""
    yield output.table(("MODEL", "PARAMETERS", *(name.upper() for name in METHODS)), (_line(m) for m in view["models"]))
    yield ""
    yield from NOTES


NOTES = (
    "Training: activations are computed again (gradient_checkpointing), LoRA with r 16 on all linear layers, full in float32.",
    "Generating: a row is a prompt with its 256 new tokens. Estimated from the models' configurations: docs/fit.md.",
)


def _line(model: Mapping[str, Any]) -> list[str]:
    by_name = {method["method"]: method for method in model["methods"]}
    return [model["name"], _billions(model["parameters"]), *(_most(by_name[name]) for name in METHODS)]


def _most(method: Mapping[str, Any]) -> str:
    """8 x 2048; 1 x 1408 where no row of that length fits; else what it needs."""
    if rows := _rows(method, [LENGTH])[0].strip("-"):
        return f"{rows} x {LENGTH}"
    return f"1 x {method['longest']}" if method["longest"] else f"needs {_gib(method['least_bytes'])}"


def _rows(method: Mapping[str, Any], lengths: list[int]) -> list[str]:
    found = {at["length"]: at["rows"] for at in method["batches"]}
    return [str(found.get(length, "-")) for length in lengths]


def _facts_here(model: str) -> ModelFacts | None:
    """Of a folder on this machine, or of one of the usual models; None for what only the rig may know."""
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        try:
            return read_model(folder)
        except NoFacts as error:
            fail(f"{model}: {error}", USAGE)
    return known_model(model)


def _plain(view: FitView) -> Json:
    return view.model_dump(mode="json")


def _billions(count: int) -> str:
    return f"{count / 1e9:.3g} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"


def _gib(count: float) -> str:
    value = count / GIB
    return f"{value:.0f} GiB" if value >= 100 else f"{value:.3g} GiB"
