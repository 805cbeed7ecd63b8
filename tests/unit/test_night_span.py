"""Which hours a night is: with windows and without, on ordinary days and when the clocks change; and that no end is lost between two."""

from datetime import date, datetime, time, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.night.span import Calendar, Span, openings
from daemon.window import Windows

BERLIN = ZoneInfo("Europe/Berlin")
HOUR = 3600.0
NIGHTLY = Windows.parse("22:00-08:00")
ALWAYS = Windows()
SATURDAY = date(2026, 11, 21)


def calendar(windows: Windows = ALWAYS, report: str = "07:00", after_s: float = 0.0) -> Calendar:
    return Calendar(windows, BERLIN, time.fromisoformat(report), after_s)


def moment(text: str, zone: ZoneInfo = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def no_work(*_: float) -> None:
    return None


def worked(*moments: str) -> Any:
    """Jobs that ran or ended at these moments."""
    known = [moment(text) for text in moments]

    def work(start: float, end: float) -> tuple[float, float] | None:
        seen = [at for at in known if start <= at < end]
        return (min(seen), max(seen)) if seen else None

    return work


def test_a_night_is_its_window() -> None:
    found = calendar(NIGHTLY).named(SATURDAY, moment("2026-11-22 07:30"), no_work)
    assert (found.since, found.until, found.over) == (moment("2026-11-21 22:00"), moment("2026-11-22 07:30"), False)
    found = calendar(NIGHTLY, after_s=60).named(SATURDAY, moment("2026-11-25 12:00"), no_work)
    assert (found.until, found.over) == (moment("2026-11-22 08:01"), True)


def test_it_is_over_at_the_reports_hour_or_when_the_window_closes_after_it() -> None:
    early, late = Windows.parse("22:00-05:00"), Windows.parse("22:00-09:30")
    assert calendar(early).ends(SATURDAY) == moment("2026-11-22 07:00")
    assert calendar(late).ends(SATURDAY) == moment("2026-11-22 09:30")
    assert calendar(late, "09:30", after_s=60).ends(SATURDAY) == moment("2026-11-22 09:31"), "they may still save"
    assert calendar(late, "10:15").ends(SATURDAY) == moment("2026-11-22 10:15")
    assert calendar(Windows.parse("00:00-24:00")).ends(SATURDAY) == moment("2026-11-22 07:00")
    found = calendar(early).named(SATURDAY, moment("2026-11-22 12:00"), no_work)
    assert found.until == moment("2026-11-22 05:00"), "of the hours in which nothing may run nothing is drawn"


def test_a_job_that_ended_by_day_belongs_to_the_night_that_follows() -> None:
    by_day = worked("2026-11-21 14:00", "2026-11-21 14:20")
    now = moment("2026-11-25 12:00")
    before = calendar(NIGHTLY).named(SATURDAY - timedelta(days=1), now, by_day)
    after = calendar(NIGHTLY).named(SATURDAY, now, by_day)
    assert before.until == moment("2026-11-21 08:00")
    assert (after.since, after.began_by) == (moment("2026-11-21 14:00"), "start")
    assert calendar(NIGHTLY).last(moment("2026-11-21 15:00"), by_day).until == moment("2026-11-21 15:00"), (
        "it is seen at once"
    )


def test_the_longest_opening_of_several_is_the_night() -> None:
    windows = Windows.parse(["12:30-13:30", "23:00-07:00"])
    assert calendar(windows).named(SATURDAY, moment("2026-11-25 12:00"), no_work).since == moment("2026-11-21 23:00")


def test_without_windows_it_begins_with_the_first_work_after_the_last_report() -> None:
    found = calendar().named(SATURDAY, moment("2026-11-22 06:00"), worked("2026-11-21 06:30", "2026-11-21 19:20"))
    assert (found.since, found.began_by) == (moment("2026-11-21 19:20"), "start")
    found = calendar().named(SATURDAY, moment("2026-11-23 07:00"), no_work)
    assert (found.since, found.until) == (moment("2026-11-21 18:00"), moment("2026-11-22 07:00"))


@pytest.mark.parametrize("windows", [NIGHTLY, ALWAYS])
def test_by_day_last_night_is_still_the_last_one(windows: Windows) -> None:
    nights = calendar(windows)
    for hour, day in (
        ("2026-11-22 03:00", 21),
        ("2026-11-22 07:30", 21),
        ("2026-11-22 15:00", 21),
        ("2026-11-22 22:01", 22),
    ):
        assert nights.last(moment(hour), no_work).date == date(2026, 11, day)


def test_a_window_by_day_is_the_night_of_its_own_date() -> None:
    nights = calendar(Windows.parse("09:00-17:00"))
    found = nights.named(SATURDAY, moment("2026-11-25 12:00"), no_work)
    assert (found.since, found.until) == (moment("2026-11-21 09:00"), moment("2026-11-21 17:00"))
    assert nights.last_date(moment("2026-11-21 09:30")) == SATURDAY


def test_a_report_in_the_evening_ends_the_night_then() -> None:
    found = calendar(ALWAYS, "20:00").named(SATURDAY, moment("2026-11-25 12:00"), no_work)
    assert (found.since, found.until) == (moment("2026-11-21 20:00"), moment("2026-11-22 20:00"))


def test_the_last_visit_counts_where_nothing_else_says_more() -> None:
    now, visit = moment("2026-11-22 06:00"), moment("2026-11-22 01:00")
    assert calendar().last(now, no_work, visit=visit).since == visit
    assert calendar(NIGHTLY).last(now, no_work, visit=visit).since == moment("2026-11-21 22:00")


def test_a_night_in_which_the_clocks_change_is_as_long_as_it_was() -> None:
    autumn = calendar(NIGHTLY).named(date(2026, 10, 24), moment("2026-10-26 12:00"), no_work)
    assert (autumn.until - autumn.since) / HOUR == 11
    spring = calendar(NIGHTLY).named(date(2026, 3, 28), moment("2026-03-30 12:00"), no_work)
    assert (spring.until - spring.since) / HOUR == 9
    evening_to_report = calendar().named(date(2026, 10, 24), moment("2026-10-26 12:00"), no_work)
    assert (evening_to_report.until - evening_to_report.since) / HOUR == 14


def test_windows_that_never_close_have_nights_like_none() -> None:
    windows = Windows.parse("00:00-24:00")
    assert calendar(windows).named(SATURDAY, moment("2026-11-23 12:00"), no_work).since == moment("2026-11-21 18:00")
    assert list(openings(windows, BERLIN, 0.0, HOUR)) == [(0.0, HOUR)]


def test_hours_of_ones_own_bear_the_date_of_their_evening() -> None:
    found = calendar().given(moment("2026-11-21 20:00"), moment("2026-11-22 07:00:05"), moment("2026-11-22 07:00:05"))
    assert found.date == SATURDAY, "the message of the morning leads to the night that was"


WINDOWS: Any = st.sampled_from([ALWAYS, NIGHTLY, Windows.parse("01:00-02:30"), Windows.parse("09:00-17:00"), Windows.parse({"sat": "00:00-24:00"}), Windows.parse({"fri": "22:00-24:00", "sat": "00:00-24:00", "sun": "00:00-08:00"}), Windows.parse(["02:00-03:00", "20:00-23:00"])])  # fmt: skip
REPORTS: Any = st.sampled_from(["07:00", "05:30", "12:00", "21:15"])
TIMES: Any = st.floats(moment("2026-01-01 00:00"), moment("2027-12-31 00:00"))


@given(windows=WINDOWS, report=REPORTS, now=TIMES)
def test_the_last_night_has_always_begun_and_ends_now(windows: Windows, report: str, now: float) -> None:
    nights = calendar(windows, report)
    found = nights.last(now, no_work)
    assert found.since <= found.until == now and nights.begins(found.date) <= now < nights.begins(
        found.date + timedelta(days=1)
    )
    assert now - found.since < 60 * HOUR


@given(windows=WINDOWS, report=REPORTS, at=TIMES, after_s=st.sampled_from([0.0, 60.0, 900.0]))
def test_every_end_of_a_job_belongs_to_exactly_one_night(
    windows: Windows, report: str, at: float, after_s: float
) -> None:
    nights, later = calendar(windows, report, after_s), moment("2029-01-01 00:00")

    def work(start: float, end: float) -> tuple[float, float] | None:
        return (at, at) if start <= at < end else None

    around = datetime.fromtimestamp(at, BERLIN).date()
    spans = [nights.named(around + timedelta(days=offset), later, work) for offset in (-2, -1, 0, 1)]
    holding: list[Span] = [span for span in spans if span.since <= at <= span.until]
    on_the_edge = any(at == nights.ends(span.date) for span in spans)
    assert len(holding) == 1 or on_the_edge
    assert all(one.until <= two.since for one, two in pairwise(spans)), "and no night overlaps the next"
