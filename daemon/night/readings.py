"""What the telemetry says of a night: energy, its cost, heat. From the minutes' summaries, so that a long night is cheap."""

import logging
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from daemon import telemetry
from daemon.night.model import Energy, Heat
from daemon.samples import THROTTLING, database_path
from daemon.settings import Settings
from daemon.tariff import co2_g

log = logging.getLogger(__name__)

MINUTE_S = 60.0
#: A shorter time is read second by second.
SHORT_S = 600.0
MINUTES = f"""
SELECT ts, n, energy_mj, power_avg, temp_max, {", ".join(f"thr_{name}_ms" for name in ("power", "sw_therm", "hw_therm", "brake"))}
FROM s60 WHERE gid = ? AND ts >= ? AND ts <= ? ORDER BY ts
"""  # noqa: S608 - of our own names


class _Piece(NamedTuple):
    """What a slot used between two moments."""

    start: float
    joules: float | None


def of_night(settings: Settings, slots: Sequence[str], start: float, end: float) -> tuple[Energy, Heat]:
    """Energy and heat of these slots in this time."""
    pieces: list[_Piece] = []
    covered_s = 0.0
    heats: list[Heat] = []
    for slot in slots:
        minutes = _minutes(settings.home, slot, start, end) if end - start > SHORT_S else []
        pieces += [_Piece(ts, joules) for ts, _, joules, _, _ in minutes]
        covered_s += sum(n for _, n, _, _, _ in minutes)
        heats += [Heat(temperature_max_c=temp, slot=slot, at=ts, throttled_s=thr) for ts, _, _, temp, thr in minutes]
        # what no whole minute covers: before the first, after the last, or all of it
        edges = [(start, minutes[0][0]), (minutes[-1][0] + MINUTE_S, end)] if minutes else [(start, end)]
        for begin, until in edges:
            rest = telemetry.summarize(settings.home, [slot], begin, until) if begin < until else None
            if rest is None or not rest.coverage:
                continue
            pieces.append(_Piece((begin + until) / 2, rest.energy_j))
            covered_s += rest.coverage * rest.gpu_s
            slowed = dict(rest.throttled_s or {})
            heats.append(Heat(temperature_max_c=rest.temperature_max_c, slot=slot, at=rest.temperature_max_at, throttled_s=slowed))  # fmt: skip
    whole_s = (end - start) * len(slots)
    return _energy(settings, pieces, start, end, min(1.0, covered_s / whole_s) if whole_s > 0 else 0.0), _heat(heats)


def _energy(settings: Settings, pieces: Sequence[_Piece], start: float, end: float, coverage: float) -> Energy:
    known = [piece for piece in pieces if piece.joules is not None]
    if not known:
        return Energy(currency=settings.currency, coverage=coverage)
    joules = sum(piece.joules or 0.0 for piece in known)
    wall_j = joules * settings.wall_factor

    def used_j(begin: float, until: float) -> float:
        return settings.wall_factor * sum(piece.joules or 0.0 for piece in known if begin <= piece.start < until)

    tariff = settings.prices
    return Energy(
        joules=joules,
        wall_j=wall_j,
        cost=tariff.cost(start, end, used_j) if tariff.known else None,
        currency=settings.currency,
        co2_g=co2_g(wall_j, settings.co2_g_per_kwh),
        coverage=coverage,
    )


def _heat(heats: Sequence[Heat]) -> Heat:
    hottest = max((h for h in heats if h.temperature_max_c is not None), key=lambda h: h.temperature_max_c or 0.0, default=Heat())  # fmt: skip
    total: dict[str, float] = {}
    for heat in heats:
        for name, seconds in heat.throttled_s.items():
            total[name] = total.get(name, 0.0) + seconds
    slowed = {name: seconds for name, seconds in total.items() if seconds > 0}
    return Heat(temperature_max_c=hottest.temperature_max_c, slot=hottest.slot, at=hottest.at, throttled_s=slowed)


#: Begin, seconds that were read, joules, highest temperature, seconds slowed down by reason.
_Minute = tuple[float, int, float | None, float | None, dict[str, float]]


def _minutes(home: Path, slot: str, start: float, end: float) -> list[_Minute]:
    try:
        opened = telemetry.open_readings(home, slot)
        if opened is None:
            return []
        with closing(opened[0]) as database:
            rows = database.execute(MINUTES, (opened[1], start, end - MINUTE_S)).fetchall()
    except sqlite3.Error as error:  # telemetry tells of the work and is no condition of it
        log.warning("%s cannot be read (%s)", database_path(home), error, extra={"action": "telemetry_unreadable"})
        return []
    return [_minute(*row) for row in rows]


def _minute(
    ts: int, n: int, energy_mj: int | None, power_mw: float | None, temp: int | None, *throttled_ms: int | None
) -> _Minute:
    joules = energy_mj / 1e3 if energy_mj is not None else power_mw / 1e3 * n if power_mw is not None else None
    slowed = {name: ms / 1e3 for name, ms in zip(THROTTLING, throttled_ms, strict=True) if ms}
    return float(ts), n, joules, float(temp) if temp is not None else None, slowed
