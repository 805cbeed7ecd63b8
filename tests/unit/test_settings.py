"""Configuration: flag over environment over file over default, and a misspelt key stops the start."""

from pathlib import Path

import pytest

from daemon.rig import ABSENT_KEPT_S, NoSuchSlot, Slot, choose_slots, with_absent
from daemon.settings import InvalidSettings, load
from daemon.supervisor import as_environment

GPUS = (Slot("GPU-a", "card", 0, 24), Slot("GPU-b", "card", 1, 24))


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('port = 1\nhost = "10.0.0.1"\nrig = "file"\n')
    settings = load({"port": 3}, {"OVERNIGHT_HOME": str(tmp_path), "OVERNIGHT_PORT": "2", "OVERNIGHT_RIG": "env"})
    assert (settings.port, settings.rig, settings.host, settings.grace_s) == (3, "env", "10.0.0.1", 60.0)


def test_a_misspelt_key_stops_the_start_and_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('windwo = "22:00-08:00"\n')
    with pytest.raises(InvalidSettings, match=r"windwo is not a setting; did you mean 'window'\?"):
        load({"home": tmp_path}, {})
    with pytest.raises(InvalidSettings, match="OVERNIGHT_PROT"):
        load({}, {"OVERNIGHT_HOME": str(tmp_path / "other"), "OVERNIGHT_PROT": "1"})


@pytest.mark.parametrize(
    ("key", "value"), [("window", "22-8"), ("timezone", "Mars/Base"), ("port", "99999"), ("window_end", "maybe")]
)
def test_a_value_that_cannot_be_used_stops_the_start(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(InvalidSettings, match=key):
        load({"home": tmp_path}, {f"OVERNIGHT_{key.upper()}": value})


def test_broken_toml_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("port = = 3")
    with pytest.raises(InvalidSettings, match="is not valid TOML"):
        load({"home": tmp_path}, {})


def test_what_is_started_gets_the_same_settings(tmp_path: Path) -> None:
    given = {"home": tmp_path, "port": 7, "allowed_paths": [tmp_path, "/data"], "window": "22:00-08:00", "rig": "r"}
    settings = load(given, {})
    assert load({}, as_environment(settings)) == settings


def test_slots_are_every_gpu_or_two_cpu_slots_or_what_was_asked_for() -> None:
    assert choose_slots("auto", GPUS) == GPUS
    assert [slot.id for slot in choose_slots("auto", ())] == ["cpu:0", "cpu:1"]
    assert [slot.id for slot in choose_slots("cpu:3", GPUS)] == ["cpu:0", "cpu:1", "cpu:2"]
    assert choose_slots("GPU-b", GPUS) == GPUS[1:]


@pytest.mark.parametrize("setting", ["GPU-x", "cpu:0", "cpu:many", "cpu:65"])
def test_a_slot_that_is_not_there_is_refused_with_what_is(setting: str) -> None:
    with pytest.raises(NoSuchSlot, match="slots"):
        choose_slots(setting, GPUS)


def test_a_gpu_that_was_there_before_is_missed_and_not_replaced_by_a_cpu_slot() -> None:
    slots = choose_slots("auto", with_absent([], GPUS, now=10.0))
    assert [(slot.id, slot.absent_since) for slot in slots] == [("GPU-a", 10.0), ("GPU-b", 10.0)]
    assert choose_slots("GPU-b", with_absent(GPUS[:1], GPUS, now=10.0))[0].absent_since == 10.0
    assert with_absent(GPUS, slots, now=20.0) == list(GPUS)


def test_a_gpu_that_stays_away_is_forgotten_after_a_week() -> None:
    missed = with_absent([], GPUS, now=10.0)
    assert [slot.absent_since for slot in with_absent([], missed, now=9.0 + ABSENT_KEPT_S)] == [10.0, 10.0]
    assert with_absent([], missed, now=11.0 + ABSENT_KEPT_S) == []


def test_what_a_job_finds_of_its_gpu_is_no_setting_and_what_is_one_is_read(tmp_path: Path) -> None:
    home = {"OVERNIGHT_HOME": str(tmp_path)}
    told = {"OVERNIGHT_GPU_UUID": "GPU-1", "OVERNIGHT_GPU_INDEX": "1", "OVERNIGHT_GPU_ENV": "index", "OVERNIGHT_GPU_POWER_LIMIT_W": "250"}  # fmt: skip
    settings = load({}, home | told)
    assert (settings.gpu_env, settings.gpu_power_limit_w) == ("index", 250.0)
