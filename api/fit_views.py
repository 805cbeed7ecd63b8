"""What fits, in the API's words. Knows nothing of a rig: `overnight fit --vram` makes the same without one."""

from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import BaseModel

from jobs.capacity import Capacity, capacities, known_sizes
from jobs.known_models import CONFIGS
from jobs.model_facts import ModelFacts, of_config


class RowsAt(BaseModel):
    """The most rows (micro-batch, or prompts at once) of so many tokens."""

    length: int
    rows: int


class CapacityView(BaseModel):
    """What one method has room for. `least_bytes`: for one short row. `longest`: of one row alone, in tokens; 0 when none fits."""

    method: str
    fits: bool
    least_bytes: int
    batches: list[RowsAt]
    longest: int

    @classmethod
    def of(cls, found: Capacity) -> Self:
        batches = [RowsAt(length=length, rows=rows) for length, rows in found.batches.items()]
        return cls(method=found.method, fits=found.fits, least_bytes=found.least_bytes, batches=batches, longest=found.longest)  # fmt: skip


class ModelFit(BaseModel):
    """A model, and what each method has room for."""

    name: str
    parameters: int
    methods: list[CapacityView]

    @classmethod
    def of(cls, name: str, model: ModelFacts, found: Sequence[Capacity]) -> Self:
        return cls(name=name, parameters=model.parameters, methods=[CapacityView.of(one) for one in found])


class FitView(BaseModel):
    """One GPU with so much memory, and the models that were asked about: the named one, or those of the usual sizes."""

    memory_bytes: int
    models: list[ModelFit]


def fit_of(name: str, model: ModelFacts, memory_bytes: int) -> FitView:
    """Of one model."""
    return FitView(memory_bytes=memory_bytes, models=[ModelFit.of(name, model, capacities(model, memory_bytes))])


def fit_of_sizes(memory_bytes: int) -> FitView:
    """Of the usual sizes."""
    found: Mapping[str, list[Capacity]] = known_sizes(memory_bytes)
    models = [ModelFit.of(name, of_config(CONFIGS[name]), each) for name, each in found.items()]
    return FitView(memory_bytes=memory_bytes, models=models)
