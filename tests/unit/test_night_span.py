"""Which hours a night is: with windows and without, on ordinary days and when the clocks change."""

from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from daemon.night.span import date_of, last, named, openings
from daemon.night.span import given as hours
from daemon.window import Windows

BERLIN = ZoneInfo("Europe/Berlin")
HOUR = 3600.0
NIGHTLY = Windows.parse("22:00-08:00")
ALWAYS = Windows()


def moment(text: str, zone: ZoneInfo = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def no_start(*_: float) -> None:
    return None


def test_a_night_is_its_window() -> None:
    found = named(date(2026, 11, 21), NIGHTLY, BERLIN, moment("2026-11-22 07:30"), no_start)
    assert (found.since, found.until, found.over) == (moment("2026-11-21 22:00"), moment("2026-11-22 07:30"), False)
    found = named(date(2026, 11, 21), NIGHTLY, BERLIN, moment("2026-11-25 12:00"), no_start, after_s=60)
    assert (found.until, found.over) == (moment("2026-11-22 08:01"), True)


def test_the_longest_opening_of_several_is_the_night() -> None:
    windows = Windows.parse(["12:30-13:30", "23:00-07:00"])
    found = named(date(2026, 11, 21), windows, BERLIN, moment("2026-11-25 12:00"), no_start)
    assert found.since == moment("2026-11-21 23:00")


def test_without_windows_it_begins_with_the_first_start_of_the_evening() -> None:
    first = moment("2026-11-21 19:20")
    found = named(date(2026, 11, 21), ALWAYS, BERLIN, moment("2026-11-22 07:00"), lambda a, b: first)
    assert (found.since, found.began_by) == (first, "start")
    found = named(date(2026, 11, 21), ALWAYS, BERLIN, moment("2026-11-23 07:00"), no_start)
    assert (found.since, found.until) == (moment("2026-11-21 18:00"), moment("2026-11-22 12:00"))


def test_in_the_afternoon_last_night_is_still_the_last_one() -> None:
    for windows in (NIGHTLY, ALWAYS):
        assert last(windows, BERLIN, moment("2026-11-22 15:00"), no_start).date == date(2026, 11, 21)
        assert last(windows, BERLIN, moment("2026-11-22 22:01"), no_start).date == date(2026, 11, 22)
        assert last(windows, BERLIN, moment("2026-11-22 03:00"), no_start).date == date(2026, 11, 21)


def test_the_last_visit_counts_where_nothing_else_says_more() -> None:
    now, visit = moment("2026-11-22 07:00"), moment("2026-11-22 01:00")
    assert last(ALWAYS, BERLIN, now, no_start, visit=visit).since == visit
    assert last(NIGHTLY, BERLIN, now, no_start, visit=visit).since == moment("2026-11-21 22:00")


def test_a_night_in_which_the_clocks_change_is_as_long_as_it_was() -> None:
    autumn = named(date(2026, 10, 24), NIGHTLY, BERLIN, moment("2026-10-26 12:00"), no_start)
    assert (autumn.until - autumn.since) / HOUR == 11
    spring = named(date(2026, 3, 28), NIGHTLY, BERLIN, moment("2026-03-30 12:00"), no_start)
    assert (spring.until - spring.since) / HOUR == 9
    noon_to_noon = named(date(2026, 10, 24), ALWAYS, BERLIN, moment("2026-10-26 12:00"), no_start)
    assert (noon_to_noon.until - noon_to_noon.since) / HOUR == 19


def test_windows_that_never_close_have_nights_like_none() -> None:
    windows = Windows.parse("00:00-24:00")
    found = named(date(2026, 11, 21), windows, BERLIN, moment("2026-11-23 12:00"), no_start)
    assert found.since == moment("2026-11-21 18:00")
    assert list(openings(windows, BERLIN, 0.0, HOUR)) == [(0.0, HOUR)]


def test_hours_of_ones_own_bear_the_date_of_their_evening() -> None:
    assert hours(moment("2026-11-21 20:00"), moment("2026-11-22 06:00"), BERLIN, moment("2026-11-25 06:00")).date == date(2026, 11, 21)  # fmt: skip


WINDOWS: Any = st.sampled_from([ALWAYS, NIGHTLY, Windows.parse("01:00-02:30"), Windows.parse({"sat": "00:00-24:00"}), Windows.parse(["02:00-03:00", "20:00-23:00"])])  # fmt: skip


@given(windows=WINDOWS, now=st.floats(moment("2026-01-01 00:00"), moment("2027-12-31 00:00")))
def test_the_last_night_has_always_begun_and_ends_now(windows: Windows, now: float) -> None:
    found = last(windows, BERLIN, now, no_start)
    assert found.since <= found.until == now
    assert found.date <= date_of(now, BERLIN) and now - found.since < 15 * 24 * HOUR


@given(windows=WINDOWS, day=st.dates(date(2026, 1, 1), date(2027, 12, 31)))
def test_every_dates_night_lies_between_two_noons(windows: Windows, day: date) -> None:
    found = named(day, windows, BERLIN, moment("2029-01-01 00:00"), no_start)
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=BERLIN).astimezone(UTC).timestamp()
    assert noon <= found.since < noon + 25 * HOUR and found.over and found.since <= found.until
