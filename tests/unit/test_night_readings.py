"""Energy and heat of a night: from the minutes' summaries, and second by second where no whole minute is."""

import pytest

from daemon.night.readings import of_night
from daemon.recorder import Recorder
from daemon.samples import Identity, Sample
from daemon.settings import Settings

#: A whole minute.
AT = 1_795_000_020
WATTS = 200


@pytest.fixture
def sampled(settings: Settings) -> Settings:
    """Half an hour at 200 W on two slots, the hottest moment in the middle of it."""
    recorder = Recorder(settings.home)
    for slot in ("GPU-a", "GPU-b"):
        recorder.know(Identity(slot, "card"))
    for begin in range(0, 1800, 300):  # so many wait to be saved at most
        for slot in ("GPU-a", "GPU-b"):
            for second in range(begin, begin + 300):
                hot = 83 if (slot, second) == ("GPU-b", 900) else 60
                energy = second * WATTS * 1000
                recorder.add(slot, Sample(AT + second, util=90, temp_c=hot, power_mw=WATTS * 1000, energy_mj=energy, thr_sw_therm_ms=0))  # fmt: skip
        recorder.save(now=AT + begin + 300)
    recorder.save(now=AT + 2000)
    recorder.close()
    return settings


@pytest.mark.parametrize(("start", "end"), [(0, 1800), (17, 1703), (100, 400)])
def test_energy_is_that_of_the_hours_whether_they_are_whole_minutes_or_not(
    sampled: Settings, start: int, end: int
) -> None:
    energy, _ = of_night(sampled, ["GPU-a", "GPU-b"], AT + start, AT + end)
    assert energy.joules == pytest.approx(2 * WATTS * (end - start), rel=0.01)
    assert energy.coverage > 0.98


def test_cost_follows_the_tariff_and_the_wall_factor(sampled: Settings) -> None:
    dear = sampled.model_copy(update={"price_per_kwh": 0.5, "wall_factor": 1.2, "co2_g_per_kwh": 400.0, "currency": "EUR"})  # fmt: skip
    energy, _ = of_night(dear, ["GPU-a", "GPU-b"], AT, AT + 1800)
    kwh = 2 * WATTS * 1800 * 1.2 / 3.6e6
    assert energy.cost == pytest.approx(0.5 * kwh, rel=0.01) and energy.currency == "EUR"
    assert energy.co2_g == pytest.approx(400 * kwh, rel=0.01)


def test_the_hottest_moment_and_its_slot_are_told(sampled: Settings) -> None:
    _, heat = of_night(sampled, ["GPU-a", "GPU-b"], AT, AT + 1800)
    assert (heat.temperature_max_c, heat.slot) == (83, "GPU-b")
    assert heat.at is not None and abs(heat.at - AT - 900) <= 60 and heat.throttled_s == {}


def test_a_rig_without_telemetry_has_a_night_all_the_same(settings: Settings) -> None:
    energy, heat = of_night(settings, ["cpu:0"], AT, AT + 7200)
    assert energy.joules is None and energy.coverage == 0 and heat.temperature_max_c is None
