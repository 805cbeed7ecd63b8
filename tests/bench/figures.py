"""What a benchmark finds: named series of numbers, and how they are shown."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

#: How a series is shown, by its unit: factor and decimals.
SHOWN = {"ms": (1e3, 1), "ms of CPU": (1e3, 1), "s": (1.0, 2), "MiB": (1 / 2**20, 1)}


@dataclass
class Figures:
    """Series by name. Times go in as seconds and memory as bytes; the unit says how they are shown."""

    unit: str
    series: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, *values: float) -> None:
        """More of one series."""
        self.series.setdefault(name, []).extend(values)

    def summaries(self) -> dict[str, Mapping[str, Any]]:
        """Least, median, nine tenths, most and count of each series, in its unit."""
        factor, decimals = SHOWN.get(self.unit, (1.0, 2))
        return {
            name: {
                key: round(value * factor, decimals)
                for key, value in (
                    ("min", min(values)),
                    ("median", statistics.median(values)),
                    ("p90", sorted(values)[int(len(values) * 0.9)]),
                    ("max", max(values)),
                )
            }
            | {"unit": self.unit, "n": len(values)}
            for name, values in self.series.items()
        }

    def lines(self) -> Iterator[str]:
        """A table for the terminal."""
        yield f"  {'':38s} {'min':>9} {'median':>9} {'p90':>9} {'max':>9}  {self.unit}"
        for name, row in self.summaries().items():
            numbers = " ".join(f"{row[key]:9g}" for key in ("min", "median", "p90", "max"))
            yield f"  {name:38s} {numbers}  n={row['n']}"
