"""The plan as lanes and words."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from plan_facts import NOW, facts, job, running

from api import plan_panel
from api.plan_views import GiveWayView, PlanView
from daemon.forecast import forecast
from daemon.plan import Facts
from daemon.window import Windows
from jobs.model import Job, Priority


def plan_of(*jobs: Job, hours: float | None = None, by_s: float | None = None, **more: Any) -> tuple[PlanView, Facts]:
    """Jobs of an hour each on two GPUs, in a window that closes after so many hours."""
    closes_at = None if hours is None else NOW + hours * 3600
    known = facts(*jobs, closes_at=closes_at, expected_s={each.id: 3600.0 for each in jobs}, **more)
    found = forecast(known, Windows(), by=None if by_s is None else NOW + by_s)
    return PlanView.of(found, known, gives=None, what_if=[], limit=1000), known


def test_the_sentence_tells_when_all_is_done() -> None:
    plan, known = plan_of(job(1), job(2), job(3))
    assert plan_panel.headline(plan, known) == "All done about 15:46"  # NOW is 13:46
    assert plan_panel.headline(*plan_of()) == "Nothing runs and nothing waits"


def test_late_jobs_are_counted_and_marked_on_their_lane() -> None:
    plan, known = plan_of(*(job(n) for n in range(1, 6)), by_s=2 * 3600 + 60)
    assert plan_panel.headline(plan, known) == "1 job will not be done by 15:47"
    drawn = plan_panel.drawing(plan, known)
    late = [s for lane in drawn.lanes for s in lane.stretches if s.late]
    assert [s.job for s in late] == ["5"] and "late" in late[0].text
    assert drawn.deadline is not None and 50 < drawn.deadline < 100 and drawn.deadline_text == "deadline 15:47"
    assert [group.key for group in plan_panel.groups(plan, known)] == ["late", "waiting"]


def test_every_lane_says_in_words_what_it_draws() -> None:
    plan, known = plan_of(running(1, "GPU-0", eta_s=1800.0), job(2))
    [one, other] = plan_panel.drawing(plan, known).lanes
    assert one.alt == "GPU 0: job 1 13:46 to 14:46."
    assert one.stretches[0].state == "running" and one.stretches[0].x == 0.0
    assert other.alt.startswith("GPU 1: job 2 13:46 to")


def test_lanes_end_soon_after_the_deadline_and_say_that_more_comes() -> None:
    plan, known = plan_of(*(job(n) for n in range(1, 60)), by_s=3600.0)
    drawn = plan_panel.drawing(plan, known)
    assert drawn.end - drawn.start < 1.2 * 3600 and drawn.beyond
    assert all(0 <= s.x <= 100 and s.x + s.width <= 100.5 for lane in drawn.lanes for s in lane.stretches)


def test_held_jobs_and_those_without_a_start_stand_apart_with_the_reason() -> None:
    plan, known = plan_of(job(1), job(2, held=True), job(3, gpus=8), job(4, priority=Priority.BACKLOG))
    groups = {group.key: group for group in plan_panel.groups(plan, known)}
    assert [line.job.id for line in groups["stuck"].lines] == ["2", "3"]
    assert "held" in groups["stuck"].lines[0].why[0]
    assert [line.job.id for line in groups["waiting"].lines] == ["1", "4"]
    assert "backlog priority" in groups["waiting"].lines[1].why
    assert plan_panel.headline(plan, known).startswith("All but 2 jobs done about")


def test_times_are_told_with_what_they_rest_on() -> None:
    known = facts(job(1), job(2), job(3))
    plan = PlanView.of(forecast(known), known, gives=None, what_if=[], limit=1000)
    [group] = plan_panel.groups(plan, known)
    assert group.lines[0].times.startswith("starts now, done about 14:46")
    assert "its kind has never run here: an hour is assumed" in group.lines[0].why
    assert plan_panel.subline(plan, known) == "3 jobs are of unknown length: an hour is assumed."


@pytest.mark.parametrize(
    ("text", "hours"),
    [("15:00", 1.23), ("13:00", 23.23), (" 15:00 ", 1.23), ("25:00", None), ("noon", None), ("", None)],
)
def test_a_deadline_is_the_next_such_time_of_day(text: str, hours: float | None) -> None:
    found = plan_panel.deadline_of(text, NOW, ZoneInfo("UTC"))
    assert (found is None) == (hours is None)
    if found is not None and hours is not None:
        assert (found.timestamp() - NOW) / 3600 == pytest.approx(hours, abs=0.01)


def test_what_would_have_to_give_is_a_sentence() -> None:
    plan, known = plan_of(*(job(n) for n in range(1, 6)), by_s=3600.0)
    end = datetime.fromtimestamp(NOW + 3600, UTC)

    def words(hold: Sequence[str]) -> str:
        return plan_panel.give_way_words(GiveWayView(job="5", hold=list(hold), end_at=end), plan, known)

    assert words(["1", "2"]) == "For job 5 to be done by 14:46, job 1 and job 2 would have to wait: it would be done about 14:46."  # fmt: skip
    assert words([]) == "Job 5 would be late even if nothing ran before it."
    assert plan_panel.give_way_words(None, plan, known) == ""
