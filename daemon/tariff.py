"""What energy costs at which hour, and what it weighs in CO₂. Pure.

[[tariff]]                       the first entry whose hours fit counts; outside of all of them, `price_per_kwh`
hours = "22:00-06:00"            as in the setting `window`
price = 0.19
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from zoneinfo import ZoneInfo

from daemon.window import Windows

J_PER_KWH = 3.6e6
#: Prices change at most so often; a tariff that seems to change more often is not followed further.
MOST_STEPS = 10_000


@dataclass(frozen=True)
class Tariff:
    """Prices per kWh by the hour. `price` holds outside of all rates; None: not known."""

    zone: ZoneInfo
    rates: tuple[tuple[Windows, float], ...] = ()
    price: float | None = None

    @classmethod
    def parse(cls, setting: Sequence[Mapping[str, Any]], *, price: float | None, zone: ZoneInfo) -> Self:
        """From the settings `tariff` and `price_per_kwh`. Raises ValueError that says what is wrong."""
        return cls(zone, tuple(_rate(entry) for entry in setting), price)

    @property
    def known(self) -> bool:
        """Whether there is any price at all."""
        return self.price is not None or bool(self.rates)

    def at(self, moment: float) -> float | None:
        """The price at a moment (epoch seconds)."""
        return next((price for hours, price in self.rates if hours.is_open(moment, self.zone)), self.price)

    def steps(self, start: float, end: float) -> Iterator[tuple[float, float, float | None]]:
        """The time in between, cut where the price may change: (from, to, price)."""
        for _ in range(MOST_STEPS):
            if start >= end:
                return
            until = min(end, self._changes_after(start))
            yield start, until, self.at(start)
            start = until

    def cost(self, start: float, end: float, joules: Callable[[float, float], float]) -> float | None:
        """What the energy of this time cost; None where a part of it has no price."""
        total = 0.0
        for begin, until, price in self.steps(start, end):
            used_j = joules(begin, until)
            if price is None:
                if used_j > 0:
                    return None
                continue
            total += used_j / J_PER_KWH * price
        return total

    def _changes_after(self, moment: float) -> float:
        edges = [edge for hours, _ in self.rates for edge in (hours.closes_at(moment, self.zone), hours.opens_at(moment, self.zone))]  # fmt: skip
        return min((edge for edge in edges if edge is not None and edge > moment), default=float("inf"))


def co2_g(joules: float, g_per_kwh: float | None) -> float | None:
    """The CO₂ that this energy stands for, in grams."""
    return None if g_per_kwh is None else joules / J_PER_KWH * g_per_kwh


def tokens_of(metrics: Mapping[str, Any]) -> float | None:
    """How many tokens a result stands for: those that were trained on, or read and written."""
    known = [metrics.get(name) for name in ("tokens", "prompt_tokens", "completion_tokens")]
    counts = [float(count) for count in known if isinstance(count, (int, float)) and not isinstance(count, bool)]
    return sum(counts) if counts and sum(counts) > 0 else None


def _rate(entry: Mapping[str, Any]) -> tuple[Windows, float]:
    if not isinstance(entry, Mapping) or set(entry) != {"hours", "price"}:
        raise ValueError('tariff is a list of {hours = "22:00-06:00", price = 0.19}')
    price = entry["price"]
    if isinstance(price, bool) or not isinstance(price, (int, float)) or not entry["hours"]:
        raise ValueError(f'tariff: {dict(entry)!r} needs hours like "22:00-06:00" and a price per kWh')
    return Windows.parse(entry["hours"]), float(price)  # below 0 it is paid for using it: that happens
