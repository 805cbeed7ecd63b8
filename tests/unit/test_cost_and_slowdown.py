"""What a job cost and what slowed it down: prices by the hour, the driver's counters, and sums over attempts."""

from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.views import total_usage, usage_of
from daemon.recorder import Recorder
from daemon.samples import Identity, Sample
from daemon.settings import InvalidSettings, load
from daemon.slowdown import Slowed, slowed_s
from daemon.supervisor import as_environment
from daemon.tariff import J_PER_KWH, Tariff, co2_g, tokens_of
from daemon.telemetry import summarize
from jobs.model import Attempt, End, Job, Outcome, State

ZONE = ZoneInfo("Europe/Berlin")
T0 = 1_800_000_000  # 2027-01-15, 09:00 in Berlin
GPU = "GPU-1"
NIGHT = ({"hours": "22:00-06:00", "price": 0.20},)


def steady(watts: float):
    return lambda start, end: watts * (end - start)


# -- prices


def test_each_hour_has_its_own_price() -> None:
    tariff = Tariff.parse(NIGHT, price=0.40, zone=ZONE)
    evening = T0 + 12 * 3600  # 21:00
    assert (tariff.at(evening), tariff.at(evening + 7200)) == (0.40, 0.20)
    # an hour of a kilowatt at the high price, one at the low one
    assert tariff.cost(evening, evening + 7200, steady(1000)) == pytest.approx(0.60)
    assert [price for _, _, price in tariff.steps(evening, evening + 86_400)] == [0.40, 0.20, 0.40]


def test_the_first_rate_that_fits_counts() -> None:
    setting = ({"hours": {"sun": "00:00-24:00"}, "price": 0.1}, *NIGHT)
    tariff = Tariff.parse(setting, price=None, zone=ZONE)
    sunday, friday = T0 + 2 * 86_400, T0
    assert (tariff.at(sunday), tariff.at(friday), tariff.at(friday + 14 * 3600)) == (0.1, None, 0.20)


def test_energy_at_an_hour_without_a_price_has_no_cost() -> None:
    tariff = Tariff.parse(NIGHT, price=None, zone=ZONE)
    assert tariff.cost(T0, T0 + 60, steady(300)) is None
    assert tariff.cost(T0 + 14 * 3600, T0 + 15 * 3600, steady(1000)) == pytest.approx(0.20)


@given(
    start=st.floats(T0, T0 + 400 * 86_400), lasts_s=st.floats(1, 10 * 86_400), watts=st.floats(0, 1000),
    price=st.floats(0.01, 2),
)  # fmt: skip
def test_one_price_everywhere_is_that_price_however_the_hours_are_cut(
    start: float, lasts_s: float, watts: float, price: float
) -> None:
    cut = Tariff.parse(({"hours": "22:00-06:00", "price": price},), price=price, zone=ZONE)
    expected = watts * lasts_s / J_PER_KWH * price
    assert cut.cost(start, start + lasts_s, steady(watts)) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_hours_follow_the_clock_across_the_change_of_summer_time() -> None:
    tariff = Tariff.parse(NIGHT, price=0.40, zone=ZONE)
    # 28 March 2027: 02:00 becomes 03:00, so the cheap night has seven hours
    night = 1_806_181_200  # 27 March, 22:00 CET
    steps = list(tariff.steps(night, night + 12 * 3600))
    assert steps[0] == (night, night + 7 * 3600, 0.20)


@pytest.mark.parametrize(
    "setting", ['[{"hours": "22-6", "price": 1}]', '[{"hours": "22:00-06:00"}]', '[{"hours": "", "price": 1}]', '["x"]']
)
def test_a_tariff_that_cannot_be_read_stops_the_start(tmp_path: Path, setting: str) -> None:
    with pytest.raises(InvalidSettings, match="tariff"):
        load({"home": tmp_path}, {"OVERNIGHT_TARIFF": setting})


def test_the_processes_of_a_rig_get_the_same_tariff(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[[tariff]]\nhours = "22:00-06:00"\nprice = 0.2\n')
    settings = load({"home": tmp_path}, {})
    assert settings.prices.rates[0][1] == 0.2
    assert load({}, as_environment(settings)) == settings


def test_co2_goes_by_the_grids_intensity() -> None:
    assert co2_g(J_PER_KWH, 380.0) == 380.0
    assert co2_g(J_PER_KWH, None) is None


# -- slowed down


def test_the_drivers_counters_tell_how_long_it_was_slowed_down() -> None:
    rows = [Slowed(T0 + n, None, (n * 250, 0, None, 0)) for n in range(11)]
    assert slowed_s(rows, T0 + 2, T0 + 8) == {"power_cap": 1.5, "sw_thermal": 0, "power_brake": 0}


def test_a_counter_that_begins_anew_counts_no_time_twice() -> None:
    rows = [Slowed(T0, 0, (90_000, 0, 0, 0)), Slowed(T0 + 1, 0, (100, 0, 0, 0)), Slowed(T0 + 2, 0, (600, 0, 0, 0))]
    assert slowed_s(rows, T0, T0 + 2)["power_cap"] == 0.5


def test_without_counters_the_reasons_of_each_second_count() -> None:
    unknown = (None,) * 4
    rows = [Slowed(T0 + n, 0x20 if n in (3, 4) else 0, unknown) for n in range(10)]
    assert slowed_s(rows, T0, T0 + 9) == {"power_cap": 0, "sw_thermal": 2, "hw_thermal": 0, "power_brake": 0}
    assert slowed_s([Slowed(T0, None, unknown), Slowed(T0 + 1, None, unknown)], T0, T0 + 1) == {}


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=20))
def test_nothing_is_slower_than_the_time_that_passed(counts: list[int]) -> None:
    rows = [Slowed(T0 + n, None, (count, None, None, None)) for n, count in enumerate(counts)]
    assert 0 <= slowed_s(rows, T0, T0 + len(counts))["power_cap"] <= len(counts) - 1


# -- one job


def recorded(home: Path) -> None:
    """100 s at 300 W: 95 of them at 50 % and 65 °C, five at 100 %, and second 42 at 80 °C."""
    recorder = Recorder(home)
    recorder.know(Identity(GPU, "NVIDIA GeForce RTX 3090"))
    for n in range(100):
        util, temp = 100 if n >= 95 else 50, 80 if n == 42 else 65
        recorder.add(
            GPU, Sample(T0 + n, util, temp_c=temp, power_mw=300_000, energy_mj=n * 300_000, thr_power_ms=n * 500)
        )
    recorder.save(now=T0 + 100)
    recorder.close()


def test_a_jobs_summary_has_p95_hottest_moment_slow_time_and_cost(tmp_path: Path) -> None:
    recorded(tmp_path)
    tariff = Tariff.parse((), price=0.36, zone=ZONE)
    usage = summarize(tmp_path, [GPU], T0 + 0.5, T0 + 99.5, tariff=tariff)
    assert (usage.utilization_p95, usage.temperature_max_c) == (0.5, 80)
    assert (usage.temperature_max_at, usage.temperature_max_slot) == (T0 + 42.5, GPU)
    assert usage.throttled_s == {"power_cap": 49.5}
    assert usage.energy_j == pytest.approx(99 * 300)
    assert usage.cost == pytest.approx(99 * 300 / J_PER_KWH * 0.36)


def test_a_database_of_an_earlier_version_gets_its_new_columns(tmp_path: Path) -> None:
    recorded(tmp_path)
    first = Recorder(tmp_path)
    first._database.execute("ALTER TABLE s DROP COLUMN thr_brake_ms")
    first.close()
    again = Recorder(tmp_path)
    again.know(Identity(GPU, "NVIDIA GeForce RTX 3090"))
    again.add(GPU, Sample(T0 + 200, thr_brake_ms=7))
    again.save(now=T0 + 201)
    rows = again._database.execute("SELECT ts, thr_brake_ms FROM s ORDER BY ts DESC LIMIT 2").fetchall()
    assert rows == [(T0 + 200, 7), (T0 + 99, None)]


def attempt(fence: int, **usage: object) -> Attempt:
    return Attempt(number=1, fence=fence, rig="rig", slots=(GPU,), started_at=T0, usage=usage)


def test_attempts_add_up_and_the_hottest_moment_is_one_of_them() -> None:
    runs = [
        attempt(1, gpu_s=10.0, energy_j=100.0, cost=0.1, throttled_s={"power_cap": 1.0}, temperature_max_c=60,
                temperature_max_at=1.0, temperature_max_slot="a", utilization_p95=0.5),
        attempt(2, gpu_s=30.0, energy_j=300.0, cost=0.3, throttled_s={"power_cap": 2.0, "sw_thermal": 5.0},
                temperature_max_c=80, temperature_max_at=2.0, temperature_max_slot="b", utilization_p95=0.9),
        attempt(3, gpu_s=0.0, temperature_max_c=70, temperature_max_at=3.0, temperature_max_slot="c"),
    ]  # fmt: skip
    total = total_usage(runs)
    assert (total["energy_j"], total["cost"]) == (400.0, pytest.approx(0.4))
    assert total["throttled_s"] == {"power_cap": 3.0, "sw_thermal": 5.0}
    assert (total["temperature_max_c"], total["temperature_max_at"], total["temperature_max_slot"]) == (80, 2.0, "b")
    assert total["utilization_p95"] == pytest.approx(0.8)


def test_tokens_per_joule_count_the_energy_of_all_attempts() -> None:
    outcome = Outcome(end=End.SUCCEEDED, metrics={"prompt_tokens": 300, "completion_tokens": 500, "tokens_per_s": 9.0})
    runs = (attempt(1, energy_j=100.0), attempt(2, energy_j=300.0))
    job = Job(id="1", kind="generate", name="n", spec={}, created_at=0, rank=0, state=State.SUCCEEDED, attempts=runs, outcome=outcome)  # fmt: skip
    assert usage_of(job)["tokens_per_j"] == 2.0
    assert tokens_of({"tokens": 10}) == 10 and tokens_of({"tokens_per_s": 3.0}) is None
