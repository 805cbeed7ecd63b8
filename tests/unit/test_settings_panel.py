"""The settings as they are shown: where each comes from, and nothing that opens a door."""

from pathlib import Path
from typing import Any

import pytest

from api.settings_panel import HIDDEN, Shown, shown, text_of
from daemon.settings import Settings, load


def every(settings: Settings, **more: Any) -> dict[str, Shown]:
    groups = shown(settings, more.pop("origins", None), more.pop("file", None))
    return {one.name: one for _, group in groups for one in group}


def test_each_setting_tells_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('window = "22:00-08:00"\nport = 1\nlease_s = 30.0\n')
    flags, environment = {"home": tmp_path, "host": "::1"}, {"OVERNIGHT_PORT": "2"}
    found = every(load(flags, environment))
    told = {name: found[name].origin for name in ("home", "host", "port", "window", "lease_s", "renew_s")}
    assert told == {"home": "flag", "host": "flag", "port": "environment", "window": "file", "lease_s": "file", "renew_s": "default"}  # fmt: skip
    assert found["window"].value == "22:00-08:00" and found["window"].default == "none"


def test_the_daemons_word_on_it_wins_over_what_its_environment_looks_like(tmp_path: Path) -> None:
    settings = load({"home": tmp_path}, {"OVERNIGHT_PORT": "2", "OVERNIGHT_HOST": "::1"})
    found = every(settings, origins={"home": "default", "port": "flag", "host": "file"})
    assert (found["port"].origin, found["host"].origin, found["renew_s"].origin) == ("flag", "file", "default")


def test_a_file_that_was_changed_since_the_start_is_told(tmp_path: Path) -> None:
    running = load({"home": tmp_path}, {"OVERNIGHT_PORT": "5"})
    (tmp_path / "config.toml").write_text("port = 7\nlease_s = 60.0\n")
    found = every(running, file=load({"home": tmp_path}, {}))
    assert found["lease_s"].pending == "60"
    assert found["port"].pending == "", "the environment wins, now and at the next start"


def test_every_setting_is_there_with_a_meaning_and_in_a_group(tmp_path: Path) -> None:
    found = every(Settings(home=tmp_path))
    assert set(found) == set(Settings.model_fields)
    assert [name for name, one in found.items() if not one.meaning] == []
    titles = [title for title, _ in shown(Settings(home=tmp_path), None, None)]
    assert titles[0] == "The rig and its page" and "More" not in titles


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("redis_url", "redis://:CANARY@10.0.0.1:6379/0", "redis://…@10.0.0.1:6379/0"),
        ("redis_url", "redis://user:CANARY@host/0", "redis://…@host/0"),
        ("hook", "https://hooks.example/services/T0/CANARY", "https://hooks.example/…"),
        ("hook", "https://push.example/?key=CANARY", "https://push.example/…"),
        ("hooks", ("https://a.example/CANARY", "https://CANARY:x@b.example"), "https://a.example/…, https://…@b.example"),
        ("smtp_password", "CANARY", HIDDEN),
        ("ntfy_topic", "CANARY", HIDDEN),
        ("notify", {"phone": {"url": "https://ntfy.example/CANARY"}, "mail": {"user": "CANARY"}}, f"phone (ntfy.example), mail ({HIDDEN})"),
        ("channels", ({"token": "CANARY"},), "1, not shown"),
        ("public_url", "https://rig.example/night", "https://rig.example/night"),
        ("window", {"weekdays": "22:00-07:00", "sat": ["00:00-24:00"]}, "weekdays = 22:00-07:00, sat = 00:00-24:00"),
        ("tariff", ({"hours": "22:00-06:00", "price": 0.19},), "hours 22:00-06:00, price 0.19"),
        ("warm_start", True, "true"), ("hold_above_c", None, "none"), ("allowed_paths", (Path("/data"), Path("/srv")), "/data, /srv"),
    ],
)  # fmt: skip
def test_s34_what_could_open_a_door_is_not_shown(name: str, value: Any, text: str) -> None:
    assert text_of(name, value) == text
    assert "CANARY" not in text


def test_lengths_and_sizes_are_read_by_people(tmp_path: Path) -> None:
    found = every(Settings(home=tmp_path, lease_s=5400, disk_floor_bytes=2 << 30))
    assert (found["lease_s"].value, found["lease_s"].reading.replace("\u202f", " ")) == ("5400", "1 h 30 min")
    assert found["disk_floor_bytes"].reading.replace("\u202f", " ") == "2.0 GiB"
