"""`overnight plan` draws what the rig says, and `submit` says when a job will be done."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api.cli import plan

NOW = datetime.now(UTC).replace(hour=22, minute=0, second=0, microsecond=0).astimezone()


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")


def at(hours: float) -> str:
    return (NOW + timedelta(hours=hours)).isoformat()


def run(job: str, start: float, end: float, *slots: str, done: bool = True) -> dict[str, Any]:
    return {"job": job, "slots": list(slots), "start_at": at(start), "end_at": at(end), "done": done}


def job(number: str, *runs: dict[str, Any], **facts: Any) -> dict[str, Any]:
    known = {
        "id": number, "name": f"job {number}", "kind": "command", "state": "queued", "priority": "normal", "gpus": 1,
        "slots": runs[0]["slots"] if runs else [], "start_at": runs[0]["start_at"] if runs else None,
        "end_at": runs[-1]["end_at"] if runs else None, "basis": "history", "sure": True, "late": False,
        "waiting_because": None, "never": None, "runs": list(runs),
    }  # fmt: skip
    return known | facts


def night(*jobs: dict[str, Any], **facts: Any) -> dict[str, Any]:
    slots = ("GPU-a", "GPU-b")
    lanes = [
        {"slot": s, "index": n, "name": "RTX", "runs": [r for j in jobs for r in j["runs"] if s in r["slots"]]}
        for n, s in enumerate(slots)
    ]
    known = {
        "at": at(0), "rig": "rig", "window_ends_at": at(10), "deadline": at(10), "jobs": list(jobs), "more": 0, "lanes": lanes,
        "late": [j["id"] for j in jobs if j["late"]], "give_way": None, "what_if": [], "until": at(24), "cut": False,
    }  # fmt: skip
    return known | facts


def test_each_gpu_is_a_lane_and_a_job_as_long_as_it_takes() -> None:
    found = night(
        job("1", run("1", 0, 5, "GPU-a")), job("2", run("2", 0, 10, "GPU-b")), job("3", run("3", 5, 10, "GPU-a"))
    )
    axis, first, second, *_ = plan.lanes(found, 80)
    assert first.startswith("0 RTX  ┃1━━━") and second.startswith("1 RTX  ┃2━━━")
    assert abs(first.index("┃3") - 7 - (len(first) - 7) / 2) <= 1
    assert set(second[9:]) == {"━"}
    assert f"{NOW:%H:%M}" in axis


def test_a_guess_is_drawn_thinner_and_a_gang_on_every_lane() -> None:
    gang = job("7", run("7", 1, 3, "GPU-a", "GPU-b"), gpus=2, sure=False, basis="guess")
    _, first, second, *_ = plan.lanes(night(gang), 80)
    assert first[7:] == second[7:] and "┃7╌╌" in first


def test_the_end_of_the_window_is_marked() -> None:
    found = night(job("1", run("1", 0, 20, "GPU-a"), late=True))
    assert any(line.rstrip().endswith("┃") and "window closes" in line for line in plan.lanes(found, 80))


def test_however_narrow_the_terminal_no_line_breaks() -> None:
    many = [job(str(n), run(str(n), n / 10, (n + 1) / 10, "GPU-a")) for n in range(100, 200)]
    for columns in (40, 80, 200):
        assert all(len(line) <= columns for line in plan.lanes(night(*many), columns))


def test_the_list_says_late_and_guess_and_why_a_job_will_not_start() -> None:
    rows = plan.jobs_table(
        found := night(
            job("1", run("1", 0, 1, "GPU-a"), state="running"),
            job("2", run("2", 1, 3, "GPU-a"), sure=False, basis="guess"),
            job("3", run("3", 3, 12, "GPU-a"), sure=False, basis="unknown", late=True),
            job("4", never="held until it is released"),
        ),
        found["jobs"],
    ).splitlines()
    assert "runs" in rows[1]
    assert "~ " in rows[2]
    assert "≥ " in rows[3] and rows[3].endswith("late")
    assert rows[4].endswith("held until it is released")


def test_the_verdict_answers_whether_all_will_be_done_by_morning() -> None:
    fine = night(job("1", run("1", 0, 1, "GPU-a")))
    assert list(plan.verdict(fine))[-1].startswith("Everything that can run will be done by ")
    late = job("3", run("3", 8, 12, "GPU-a"), late=True)
    [says, gives] = plan.verdict(night(late, give_way={"job": "3", "hold": ["1", "2"], "end_at": at(9)}))
    assert says.startswith("1 job will not be done by ") and says.endswith(": 3.")
    assert "1 and 2 would have to wait (overnight hold 1 2)" in gives
    [_, alone] = plan.verdict(night(late, give_way={"job": "3", "hold": [], "end_at": None}))
    assert alone == "Job 3 would be late even if nothing ran before it."


def test_submit_says_when_the_job_starts_and_ends() -> None:
    assert plan.expectation(job("1", run("1", 0, 2, "GPU-a")), now=NOW).startswith("Expected: starts now, ends about ")
    later = job("1", run("1", 1, 2, "GPU-a"), sure=False)
    assert plan.expectation(later, now=NOW).endswith("(jobs before it are of unknown length).")
    unknown = job("1", run("1", 1, 2, "GPU-a"), basis="unknown", sure=False)
    assert plan.expectation(unknown, now=NOW).endswith("when it ends is not known (nothing like it has run yet).")
    assert plan.expectation(job("1"), now=NOW) == ""
    assert "after the window closes" in plan.expectation(job("1", run("1", 1, 12, "GPU-a"), late=True), now=NOW)


def test_a_deadline_is_the_next_such_time_of_day() -> None:
    assert datetime.fromisoformat(plan._deadline("07:00", now=NOW)).strftime("%H:%M") == "07:00"
    assert datetime.fromisoformat(plan._deadline("07:00", now=NOW)) > NOW
    with pytest.raises(SystemExit):
        plan._deadline("soon")
