"""Points of a search space: independent ones from a seed, and evenly spread ones from SciPy's quasi-Monte Carlo samplers."""

import importlib.util
import math
import random
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Digits that a drawn number keeps: it must be readable in a table and repeatable by hand.
DIGITS = 6


class SamplerMissing(Exception):
    """This sampler's library is not installed."""


@dataclass(frozen=True)
class Range:
    """Numbers from `min` to `max`, evenly or (`log`) evenly in their logarithm; whole numbers where both ends are."""

    min: float
    max: float
    log: bool = False

    def at(self, unit: float) -> float | int:
        """The number at this part (0 to 1) of the way."""
        if isinstance(self.min, int) and isinstance(self.max, int):
            # each whole number gets the same share of the way, the last one too
            low, high = (math.log(self.min), math.log(self.max + 1)) if self.log else (self.min, self.max + 1)
            value = low + unit * (high - low)
            return min(self.max, max(self.min, math.floor(math.exp(value) if self.log else value)))
        low, high = (math.log(self.min), math.log(self.max)) if self.log else (self.min, self.max)
        value = low + unit * (high - low)
        # rounding must not lead out of the range
        return min(self.max, max(self.min, float(f"{math.exp(value) if self.log else value:.{DIGITS}g}")))


Axis = Range | Sequence[Any]


def drawn(space: Mapping[str, Axis], samples: int, sampler: str, seed: int) -> list[dict[str, Any]]:
    """So many points of the space; the same again for the same seed. Raises SamplerMissing."""
    units = (
        _independent(samples, len(space), seed) if sampler == "random" else _spread(sampler, samples, len(space), seed)
    )
    return [{name: _at(axis, unit) for (name, axis), unit in zip(space.items(), point, strict=True)} for point in units]


def _at(axis: Axis, unit: float) -> Any:
    return axis.at(unit) if isinstance(axis, Range) else axis[min(len(axis) - 1, int(unit * len(axis)))]


def _independent(samples: int, width: int, seed: int) -> Iterable[Sequence[float]]:
    source = random.Random(seed)  # noqa: S311 - nothing secret is drawn
    return ([source.random() for _ in range(width)] for _ in range(samples))


def _spread(sampler: str, samples: int, width: int, seed: int) -> Iterable[Sequence[float]]:
    if importlib.util.find_spec("scipy") is None:
        raise SamplerMissing(
            f'{sampler!r} needs SciPy on the rig: `pip install scipy` in its environment, or take "random"'
        )
    from scipy.stats import qmc  # here: it takes a second that nobody else need wait for

    makers: Mapping[str, Callable[..., Any]] = {"sobol": qmc.Sobol, "halton": qmc.Halton, "lhs": qmc.LatinHypercube}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sobol says that powers of two are spread best
        points: list[list[float]] = makers[sampler](width, rng=seed).random(samples).tolist()
    return points
