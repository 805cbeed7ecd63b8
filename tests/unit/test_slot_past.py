"""A slot's past: an hour from seconds, a month from summaries, and the last minutes in both."""

from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from long_past import remember

from daemon.recorder import Recorder
from daemon.rig import Slot
from daemon.samples import Identity, Sample
from daemon.slot_past import past
from daemon.tariff import Tariff

NOW = 1_795_000_000.0
DAY_S, HOUR_S = 86_400.0, 3600.0
GPU = Slot("GPU-0", "NVIDIA GeForce RTX 3090", 0, 24 << 30)


def seconds(home: Path, start: float, end: float, *, power_w: int = 300, thr_power_ms: int = 0, counter: bool = True) -> None:  # fmt: skip
    """What the sampler writes second by second."""
    recorder = Recorder(home)
    recorder.know(Identity(GPU.id, GPU.name))
    for count, ts in enumerate(range(int(start), int(end))):
        energy_mj = count * power_w * 1000 if counter else None
        recorder.add(GPU.id, Sample(ts, util=90, mem_mib=8192, temp_c=70, power_mw=power_w * 1000, energy_mj=energy_mj, reasons=0, thr_power_ms=count * thr_power_ms))  # fmt: skip
        if count % 250 == 0:
            recorder.save(now=ts)
    recorder.save(now=end)
    recorder.close()


def test_a_month_is_made_of_at_most_as_many_points_as_can_be_seen(home: Path) -> None:
    remember(home, [GPU], NOW - 31 * DAY_S, NOW, lambda slot, ts: 0.5)
    found = past(home, GPU.id, NOW - 30 * DAY_S, NOW)
    assert 250 <= len(found.points) <= 320
    assert {round(point.utilization or 0, 2) for point in found.points} == {0.49}
    assert found.gaps == () and found.coverage == 1.0


@pytest.mark.parametrize(("span_s", "most_s"), [(HOUR_S, 15), (6 * HOUR_S, 120), (DAY_S, 360), (7 * DAY_S, 2 * HOUR_S)])
def test_what_was_not_read_is_a_gap_and_no_line(home: Path, span_s: float, most_s: float) -> None:
    away = (NOW - 0.6 * span_s, NOW - 0.4 * span_s)
    remember(home, [GPU], NOW - 8 * DAY_S, NOW - 7200, lambda slot, ts: None if away[0] <= ts < away[1] else 0.5)
    for start, end in ((NOW - 7200, away[0]), (max(away[1], NOW - 7200), NOW)):
        seconds(home, start, min(end, NOW))
    found = past(home, GPU.id, NOW - span_s, NOW)
    [(start, end)] = found.gaps
    assert abs(start - away[0]) <= most_s and abs(end - away[1]) <= most_s
    assert not [point for point in found.points if start + most_s < point.at < end - most_s]
    assert found.coverage == pytest.approx(0.8, abs=0.02)


def test_a_slot_of_which_nothing_is_known_is_one_gap(home: Path) -> None:
    found = past(home, GPU.id, NOW - DAY_S, NOW)
    assert found.points == () and found.energy_j is None and found.utilization_mean is None and found.hottest is None
    assert found.coverage == 0.0 and found.slowed_s == {}


def test_the_last_minutes_that_no_summary_has_yet_are_there(home: Path) -> None:
    remember(home, [GPU], NOW - 8 * DAY_S, NOW - 1800, lambda slot, ts: 0.0)
    seconds(home, NOW - 1800, NOW)
    found = past(home, GPU.id, NOW - 7 * DAY_S, NOW)
    assert found.gaps == ()
    assert found.points[-1].utilization_max == pytest.approx(0.9) and found.points[-3].utilization_max == pytest.approx(
        0.02
    )


@pytest.mark.parametrize("counter", [True, False], ids=["counter", "power x time"])
def test_energy_is_the_counters_and_power_times_time_without_one(home: Path, counter: bool) -> None:
    seconds(home, NOW - HOUR_S, NOW, power_w=200, counter=counter)
    assert past(home, GPU.id, NOW - HOUR_S, NOW).energy_j == pytest.approx(200 * HOUR_S, rel=0.01)


def test_a_month_of_energy_is_the_sum_of_its_summaries_at_the_prices_of_its_hours(home: Path) -> None:
    remember(home, [GPU], NOW - 31 * DAY_S, NOW, lambda slot, ts: 0.0)  # idle: 28 W
    found = past(home, GPU.id, NOW - 30 * DAY_S, NOW)
    assert found.energy_j == pytest.approx(28 * 30 * DAY_S, rel=0.01)
    zone = ZoneInfo("UTC")
    flat = Tariff.parse((), price=0.30, zone=zone)
    half = Tariff.parse(({"hours": "00:00-12:00", "price": 0.10},), price=0.30, zone=zone)
    assert found.cost(flat) == pytest.approx(0.30 * 28 * 30 * 24 / 1000, rel=0.01)
    assert found.cost(half) == pytest.approx(0.20 * 28 * 30 * 24 / 1000, rel=0.02)
    assert found.cost(Tariff.parse((), price=None, zone=zone)) is None


def test_a_counter_that_began_anew_takes_nothing_away(home: Path) -> None:
    seconds(home, NOW - HOUR_S, NOW - HOUR_S / 2, power_w=100)
    seconds(home, NOW - HOUR_S / 2, NOW, power_w=100)  # the driver was loaded again: from 0
    assert past(home, GPU.id, NOW - HOUR_S, NOW).energy_j == pytest.approx(100 * HOUR_S, rel=0.01)


def test_slow_downs_are_told_by_reason_in_seconds_and_in_minutes(home: Path) -> None:
    remember(home, [GPU], NOW - 3 * DAY_S, NOW - 2 * DAY_S, lambda slot, ts: 0.95)  # a third of each minute
    found = past(home, GPU.id, NOW - 3.5 * DAY_S, NOW)
    assert found.slowed_s["power_cap"] == pytest.approx(DAY_S / 3, rel=0.02)
    assert found.slowed_s["hw_thermal"] == 0
    seconds(home, NOW - 1000, NOW, thr_power_ms=250)
    near = past(home, GPU.id, NOW - HOUR_S, NOW)
    assert near.slowed_s["power_cap"] == pytest.approx(250, rel=0.05)
    assert near.points[-1].slowed["power_cap"] == pytest.approx(0.25, abs=0.03)


def test_a_database_that_cannot_be_read_is_an_empty_past(home: Path) -> None:
    (home / "telemetry.sqlite").write_bytes(b"no database at all" * 100)
    assert past(home, GPU.id, NOW - HOUR_S, NOW).points == ()
