"""Charts as numbers, and the palette that draws them."""

import math
import re
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import page, wording
from api.svg import BOX, MOST_POINTS, Series, chart, clock_ticks, nice, path, sparkline, steps, thin
from jobs.model import Cause, State

BERLIN = ZoneInfo("Europe/Berlin")
numbers = st.floats(-1e30, 1e30)
points = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=1500).map(lambda p: sorted(p))


def moment(*parts: int) -> float:
    return datetime(*parts, tzinfo=BERLIN).timestamp()  # type: ignore[arg-type, misc]


# -- lines ------------------------------------------------------------------------------------------------------------------


def test_a_line_goes_through_its_points_in_whole_numbers() -> None:
    assert path([(0, 1), (0.5, 0.25), (1, 0)]) == "M0 1000L500 250L1000 0"


def test_a_line_is_broken_where_nothing_was_read() -> None:
    assert path([(0, 0), (0.1, 0), (0.5, 0), (0.6, 0)], gap=0.2) == "M0 0L100 0M500 0L600 0"


def test_a_lone_point_is_still_seen() -> None:
    assert path([(0.5, 0.5)]) == "M500 500h1"


def test_a_spark_leaves_a_gap_open_and_fills_each_piece() -> None:
    line, under = sparkline([(0, 1.0), (10, 0.5), (90, 0.0), (100, 2.0)], 0, 100, gap=20)
    assert line == "M0 0L100 500M900 1000L1000 0"
    assert under == "M0 0L100 500L100 1000L0 1000ZM900 1000L1000 0L1000 1000L900 1000Z"
    assert sparkline([], 0, 100, gap=20) == ("", "")


def test_thinning_keeps_the_peak_the_dip_and_the_latest_value() -> None:
    many = [(float(x), math.sin(x / 50)) for x in range(10_000)]
    many[1234], many[7777] = (1234.0, 99.0), (7777.0, -99.0)
    kept = thin(many)
    assert len(kept) <= MOST_POINTS
    assert {many[1234], many[7777], many[-1]} <= set(kept)
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_a_short_line_is_left_as_it_is() -> None:
    few = [(float(x), 1.0) for x in range(MOST_POINTS)]
    assert thin(few) == few


# -- axes -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "levels"),
    [(0, 1, [0, 0.5, 1]), (1.16, 2.31, [1, 1.5, 2, 2.5]), (0, 100, [0, 50, 100]), (0, 350, [0, 100, 200, 300, 400]), (-3, 2, [-4, -2, 0, 2]), (0, 2e-4, [0, 5e-5, 1e-4, 1.5e-4, 2e-4])],
)  # fmt: skip
def test_levels_are_round_and_enclose_the_values(low: float, high: float, levels: list[float]) -> None:
    assert nice(low, high, 4) == pytest.approx(levels)


def test_steps_are_whole() -> None:
    assert [tick.label for tick in steps(1, 3)] == ["1", "2", "3"]
    assert [tick.label for tick in steps(1, 2000)] == ["500", "1\u202f000", "1\u202f500", "2\u202f000"]
    assert steps(0, 100)[0].anchor == "start" and steps(0, 100)[-1].anchor == "end"


def test_time_is_told_at_round_hours_of_the_rigs_zone() -> None:
    start, end = moment(2026, 11, 24, 21, 47), moment(2026, 11, 25, 6, 10)
    ticks = clock_ticks(BERLIN, end)(start, end)
    assert [tick.label for tick in ticks] == ["00:00", "04:00"]


def test_round_hours_stay_round_where_the_offset_is_half_an_hour() -> None:
    zone = ZoneInfo("Asia/Kolkata")
    start = datetime(2026, 11, 24, 21, 40, tzinfo=zone).timestamp()
    assert [tick.label for tick in clock_ticks(zone, start)(start, start + 3 * 3600)] == ["22:00", "23:00", "00:00"]


def test_a_short_span_is_told_in_seconds() -> None:
    start = moment(2026, 11, 24, 22, 0, 1)
    assert [tick.label for tick in clock_ticks(BERLIN, start)(start, start + 7)] == ["22:00:02", "22:00:04", "22:00:06", "22:00:08"]  # fmt: skip


# -- charts -----------------------------------------------------------------------------------------------------------------


def test_a_chart_says_its_latest_value_and_where_its_dots_are() -> None:
    drawn = chart([Series("loss", [(1, 2.0), (2, 1.0)]), Series("empty", [])], marks=[(2, 1.5)])
    assert drawn is not None and len(drawn.lines) == 1
    assert drawn.lines[0].last is not None and drawn.lines[0].last.text == "1"
    [mark] = drawn.marks
    assert mark.x == 100 and drawn.y_ticks[0].percent > mark.y > drawn.y_ticks[-1].percent


def test_nothing_to_draw_is_no_chart() -> None:
    assert chart([Series("loss", [])]) is None


def test_a_line_without_change_has_a_chart() -> None:
    drawn = chart([Series("rate", [(1, 0.0), (2, 0.0)])])
    assert drawn is not None and len(drawn.y_ticks) >= 3


@given(points)
def test_whatever_is_drawn_stays_inside_the_box(drawn: list[tuple[float, float]]) -> None:
    made = chart([Series("x", drawn)], marks=drawn[:5])
    assert made is not None
    coordinates = [int(number) for number in re.findall(r"[ML](\d+) (\d+)", made.lines[0].path) for number in number]
    assert coordinates and all(0 <= number <= BOX for number in coordinates)
    assert all(0 <= mark.x <= 100 and 0 <= mark.y <= 100 for mark in made.marks)
    assert len(made.x_ticks) <= 12 and len(made.y_ticks) <= 12


# -- words ------------------------------------------------------------------------------------------------------------------


def test_every_cause_and_state_has_its_words() -> None:
    assert set(wording.CAUSE_WORDS) == set(Cause)
    assert set(wording.STATE_WORDS) == set(State)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1, "1"), (2000, "2 000"), (1.0, "1"), (1.21345, "1.213"), (0.0002, "2e-4"), (1.5e-7, "1.5e-7"), (12345.6, "12 346"), (-3.5, "-3.5"), (1e12, "1e12"), (True, "True"), (float("nan"), "nan")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert wording.number(value).replace(wording.THIN, " ") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.42, "0.4 s"), (9.96, "10.0 s"), (48, "48 s"), (61, "1 min 1 s"), (720, "12 min"), (3600, "1 h"), (4320, "1 h 12 min"), (90_000, "1 d 1 h"), (-5, "0 s")],
)  # fmt: skip
def test_durations_are_told_as_people_do(seconds: float, text: str) -> None:
    assert wording.duration(seconds).replace(wording.THIN, " ") == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (812, "812 B"), (4200, "4.1 KiB"), (139_000, "136 KiB"), (24 << 30, "24.0 GiB")]
)
def test_sizes_have_their_unit(count: int, text: str) -> None:
    assert wording.size(count).replace(wording.THIN, " ") == text


@pytest.mark.parametrize(
    ("joules", "text"), [(0, "0 Wh"), (1800, "0.5 Wh"), (180_000, "50 Wh"), (3.6e6, "1.00 kWh"), (4.4e7, "12.2 kWh")]
)
def test_energy_is_told_in_hours(joules: float, text: str) -> None:
    assert wording.energy(joules).replace(wording.THIN, " ") == text


def test_a_moment_has_its_day_when_it_is_far() -> None:
    now = moment(2026, 11, 24, 22, 0)
    assert wording.clock(moment(2026, 11, 25, 7, 30), now, BERLIN) == "07:30"
    assert wording.clock(moment(2026, 11, 26, 7, 30), now, BERLIN) == "Thu 07:30"
    assert wording.clock(moment(2026, 10, 1, 7, 30), now, BERLIN) == "1 Oct 07:30"
    assert wording.clock(moment(2025, 10, 1, 7, 30), now, BERLIN) == "1 Oct 2025"
    assert wording.stamp(now, BERLIN) == "Tue 24 Nov 2026, 22:00:00 CET"


# -- the palette ------------------------------------------------------------------------------------------------------------

STYLE = (Path(page.__file__).parent / "static/overnight.css").read_text()
LIGHT, DARK = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in STYLE.split("@media (prefers-color-scheme: dark)")[:2])  # fmt: skip
TEXT_ON = [(ink, ground) for ink in ("ink", "dim", "accent", "ok", "bad", "wait") for ground in ("bg", "card", "sunk")]
TEXT_ON += [("warn-ink", "warn-bg"), ("on-accent", "accent")]
SEEN_ON = [(line, "card") for line in ("k0", "k1", "k2", "k3", "edge", "off", "accent")] + [("edge", "bg")]


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(("ink", "ground"), TEXT_ON)
def test_text_can_be_read_on_its_ground(palette: dict[str, str], ink: str, ground: str) -> None:
    """WCAG 2.2 1.4.3 (AA): 4.5 to 1."""
    assert contrast(palette[ink], palette[ground]) >= 4.5


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(("line", "ground"), SEEN_ON)
def test_lines_and_edges_stand_out(palette: dict[str, str], line: str, ground: str) -> None:
    """WCAG 2.2 1.4.11 (AA): 3 to 1."""
    assert contrast(palette[line], palette[ground]) >= 3


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
