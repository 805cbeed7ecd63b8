"""The document of a benchmark: how fast a model runs on this rig's GPUs."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from jobs.spec.common import DType, WithModel

Quantization = Literal["none", "nf4", "int8"]
#: More cells than this is a mistake: each takes seconds to minutes.
MOST_CELLS = 500


def _each_once(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) < len(values):
        raise ValueError("names a value twice")
    return values


Sizes = Annotated[tuple[Annotated[PositiveInt, Field(le=1_048_576)], ...], Field(min_length=1, max_length=32), AfterValidator(_each_once)]  # fmt: skip


class BenchmarkSpec(WithModel):
    """Prefill and decode speed, latency, memory and energy over batch sizes, prompt lengths and precisions."""

    kind: Literal["benchmark"] = "benchmark"
    batch_sizes: Sizes = Field((1, 8, 32), description="Requests at once.")
    prompt_lengths: Sizes = Field((128, 1024, 8192), description="Tokens of each prompt.")
    new_tokens: int = Field(128, ge=2, le=65_536, description="Tokens that each answer has.")
    dtypes: tuple[DType, ...] = Field(("auto",), min_length=1, max_length=4, description="Precisions to compute in; auto is what the GPU is best at.")  # fmt: skip
    quantizations: tuple[Quantization, ...] = Field(("none",), min_length=1, max_length=3, description="Weights as they are, in 4 bits (nf4) or 8 (int8); both need bitsandbytes.")  # fmt: skip
    repeats: int = Field(3, ge=1, le=100, description="Measured runs of each cell, after one that warms up.")
    max_cell_s: PositiveFloat = Field(900.0, description="A cell that would take longer is left out, seconds.")

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        cells = len(self.batch_sizes) * len(self.prompt_lengths) * len(self.dtypes) * len(self.quantizations)
        if cells > MOST_CELLS:
            raise ValueError(f"batch_sizes: these lists make {cells} cells; {MOST_CELLS} are the most")
        return self
