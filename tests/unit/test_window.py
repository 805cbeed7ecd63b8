"""Windows: the hours in which jobs may run, right at their edges and over daylight-saving changes."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.window import Windows

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


NIGHT = Windows.parse("22:00-08:00")


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("2026-11-24T21:59:59", False),
        ("2026-11-24T22:00:00", True),
        ("2026-11-25T03:00:00", True),
        ("2026-11-25T07:59:59", True),
        ("2026-11-25T08:00:00", False),
    ],
)
def test_a_night_crosses_midnight(moment: str, is_open: bool) -> None:
    assert NIGHT.is_open(at(moment), BERLIN) is is_open


def test_an_empty_window_is_always_open() -> None:
    always = Windows.parse("")
    assert always.is_open(0.0, BERLIN)
    assert always.opens_at(0.0, BERLIN) is None and always.closes_at(0.0, BERLIN) is None


def test_it_says_when_it_opens_and_closes() -> None:
    assert NIGHT.opens_at(at("2026-11-24T12:00:00"), BERLIN) == at("2026-11-24T22:00:00")
    assert NIGHT.closes_at(at("2026-11-24T23:00:00"), BERLIN) == at("2026-11-25T08:00:00")


def test_the_wall_clock_rules_over_daylight_saving_changes() -> None:
    spring = NIGHT.closes_at(at("2026-03-28T23:00:00"), BERLIN)
    autumn = NIGHT.closes_at(at("2026-10-24T23:00:00"), BERLIN)
    assert spring == at("2026-03-29T08:00:00") and autumn == at("2026-10-25T08:00:00")
    assert spring - at("2026-03-28T22:00:00") == 9 * 3600
    assert autumn - at("2026-10-24T22:00:00") == 11 * 3600


def test_days_have_their_own_hours() -> None:
    windows = Windows.parse({"weekdays": "22:00-07:00", "weekend": ["00:00-24:00"]})
    assert windows.is_open(at("2026-11-28T12:00:00"), BERLIN)  # a Saturday
    assert not windows.is_open(at("2026-11-24T12:00:00"), BERLIN)  # a Tuesday
    # Friday's night runs into Saturday and Sunday into Monday's morning: one opening from Friday 22:00 to Monday 00:00
    assert windows.closes_at(at("2026-11-27T23:00:00"), BERLIN) == at("2026-11-30T00:00:00")


@pytest.mark.parametrize("bad", ["22-8", "25:00-08:00", "22:00", "22:00-22:00", {"someday": "22:00-08:00"}, 7])
def test_what_cannot_be_read_is_refused_with_words(bad: object) -> None:
    with pytest.raises(ValueError, match="window"):
        Windows.parse(bad)


@given(start=st.integers(0, 1439), length=st.integers(1, 1439), now=st.integers(1_700_000_000, 1_800_000_000))
def test_openings_and_closings_agree_with_the_state(start: int, length: int, now: int) -> None:
    end = (start + length) % 1440
    windows = Windows.parse(f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}")
    if windows.is_open(now, BERLIN):
        closes = windows.closes_at(now, BERLIN)
        assert closes is not None and closes > now and not windows.is_open(closes, BERLIN)
    else:
        opens = windows.opens_at(now, BERLIN)
        assert opens is not None and opens > now and windows.is_open(opens, BERLIN)
