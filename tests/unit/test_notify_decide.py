"""What is sent when: at once only what cannot wait, the rest in one report."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from daemon.notify.decide import (
    AGAIN_S,
    BETWEEN_REPORTS_S,
    OVER_S,
    REST_S,
    Memory,
    Report,
    Rules,
    Seen,
    Trouble,
    decide,
    last_time,
)
from daemon.notify.message import Kind, Message
from jobs.model import Cause, End, Job, Outcome, State

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 24, 23, 0, tzinfo=BERLIN).timestamp()
HOUR = 3600.0
DISK = Trouble("disk", "The rig's disk is full: no job starts", "1.2 GB left.", after_s=20.0)
RULES = Rules(rig="rig", zone=BERLIN)


def ended(number: int, state: State = State.SUCCEEDED, *, cause: Cause = Cause.USER_ERROR, sweep: str = "", **spec: Any) -> Job:  # fmt: skip
    outcome = Outcome(
        end=End(state.value), cause=cause if state is State.FAILED else None, message="KeyError: 'x'" if state is State.FAILED else ""
    )  # fmt: skip
    return Job(
        id=str(number), kind="command", name=f"run {number}", spec=spec, created_at=0.0, rank=1.0, state=state,
        started_at=NOW - 600, finished_at=NOW, outcome=outcome, sweep=sweep,
    )  # fmt: skip


class Owner:
    """A rig's messages over time, with a memory that goes through JSON at every look, as through a restart."""

    def __init__(self, **rules: Any) -> None:
        self.rules, self.memory, self.asked = replace(RULES, **rules), Memory(), []  # type: ignore[var-annotated]
        self.report: Report | None = Report("2 of 14 failed", "12 done, 2 failed", needs_you=True)

    def night(self, since: float, now: float) -> Report | None:
        self.asked.append((since, now))
        return self.report

    def sees(self, after_s: float, *troubles: Trouble, ended: Sequence[Job] = (), running: int = 0, resting: bool | None = True) -> list[Message]:  # fmt: skip
        seen = Seen(now=NOW + after_s, troubles=troubles, ended=tuple(ended), running=running, resting=resting)
        messages, memory = decide(seen, self.memory, self.rules, self.night)
        self.memory = Memory.from_json(json.loads(json.dumps(memory.to_json())))
        assert self.memory == memory
        return messages


def titles(messages: Sequence[Message]) -> list[str]:
    return [message.title for message in messages]


# -- what cannot wait -------------------------------------------------------------------------------------------------------


def test_a_job_that_failed_in_its_preflight_is_told_while_its_owner_is_awake() -> None:
    failed = replace(ended(7, State.FAILED, cause=Cause.BAD_INPUT), preflight_due=True)
    [told] = Owner().sees(0, ended=[failed])
    assert (told.title, told.priority) == ("run 7 failed (bad input)", 4)
    assert Owner().sees(0, ended=[replace(failed, spec={"notify": "never"})]) == []
    assert Owner().sees(0, ended=[replace(failed, preflight_due=False)]) == []


def test_a_trouble_is_told_once_it_has_lasted_and_its_end_too() -> None:
    owner = Owner()
    assert owner.sees(0, DISK) == owner.sees(19, DISK) == []
    [told] = owner.sees(20, DISK)
    assert (told.title, told.kind, told.priority) == (DISK.title, Kind.URGENT, 4)
    assert owner.sees(21, DISK) == owner.sees(4000, DISK) == []
    assert owner.sees(4001) == owner.sees(4000 + OVER_S) == []
    assert titles(owner.sees(4001 + OVER_S)) == [f"Over: {DISK.title}"]
    assert owner.sees(4100 + OVER_S) == []


def test_a_trouble_that_was_short_is_not_told() -> None:
    owner = Owner()
    owner.sees(0, DISK)
    owner.sees(10)
    assert owner.sees(25, DISK) == []
    assert titles(owner.sees(45, DISK)) == [DISK.title]


def test_one_that_comes_and_goes_is_told_once_an_hour() -> None:
    owner = Owner()
    now, found = 0.0, []
    while now < 3 * HOUR:
        found += [m for m in owner.sees(now, *([DISK] if now % 200 < 100 else [])) if m.priority == 4]
        now += 10
    assert 2 <= len(found) <= 3


def test_while_the_queue_does_not_answer_no_trouble_is_called_over() -> None:
    owner, queue = Owner(), Trouble("queue", "The queue does not answer", "", after_s=60)
    gpu = Trouble("quarantine:GPU-0:1", "GPU 0 is out of service", "XID 79")
    assert titles(owner.sees(0, gpu)) == [gpu.title]
    owner.sees(10, queue, resting=None)
    assert titles(owner.sees(200, queue, resting=None)) == [queue.title]
    assert owner.sees(300, gpu) == []
    assert titles(owner.sees(400, gpu)) == [f"Over: {queue.title}"]


@pytest.mark.parametrize("cause", [Cause.OOM_GPU, Cause.USER_ERROR])
def test_three_failures_in_a_row_for_one_cause_are_told_once(cause: Cause) -> None:
    owner = Owner()
    assert owner.sees(0, ended=[ended(1, State.FAILED, cause=cause), ended(2, State.FAILED, cause=cause)]) == []
    assert owner.sees(1, ended=[ended(2, State.FAILED, cause=cause)]) == [], "the same end, read twice"
    [told] = owner.sees(2, ended=[ended(3, State.FAILED, cause=cause), ended(4, State.FAILED, cause=cause)])
    assert told.title.startswith("3 jobs in a row failed (")
    assert "Jobs 1, 2, 3." in told.text
    assert "run 3" in told.text
    assert "run 3" not in told.words(names=False, short=True)[1]
    assert owner.sees(3, ended=[ended(5, State.FAILED, cause=cause)]) == []


def test_a_success_or_another_cause_breaks_the_row() -> None:
    owner = Owner()
    bad = [ended(n, State.FAILED) for n in range(1, 6)]
    assert owner.sees(0, ended=[bad[0], bad[1], ended(9), bad[2], bad[3]]) == []
    assert owner.sees(1, ended=[ended(10, State.FAILED, cause=Cause.NAN), ended(11, State.CANCELLED), bad[4]]) == []


def test_a_sweep_of_which_everything_fails_is_told_and_one_that_works_in_part_is_not() -> None:
    owner = Owner()
    causes = [Cause.NAN, Cause.OOM_GPU, Cause.NAN]
    jobs = [ended(20 + n, State.FAILED, cause=cause, sweep="20") for n, cause in enumerate(causes)]
    mixed = [ended(30, State.FAILED, sweep="30"), ended(31, sweep="30"), *(ended(n, State.FAILED, sweep="30") for n in range(32, 40))]  # fmt: skip
    [told] = owner.sees(0, ended=[*mixed, jobs[0], ended(5), jobs[1], ended(6), jobs[2]])
    assert told.title == "Sweep 20: all of its first 3 jobs failed"
    assert told.path == "/sweeps/20"


# -- jobs that asked for it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "default", "heard"),
    [
        ("end", "never", ["succeeded", "failed", "cancelled"]), ("failure", "end", ["failed"]), ("never", "end", []),
        (None, "end", ["succeeded", "failed", "cancelled"]), (None, "failure", ["failed"]), (None, "never", []),
    ],
)  # fmt: skip
def test_a_job_has_a_message_when_it_or_the_rig_says_so(asked: str | None, default: str, heard: list[str]) -> None:
    owner = Owner(jobs=default)
    states = [State.SUCCEEDED, State.FAILED, State.CANCELLED]
    messages = owner.sees(0, ended=[ended(n, state, notify=asked) for n, state in enumerate(states, 1)])
    assert [message.data["state"] for message in messages] == heard
    for message in messages:
        assert message.path == f"/jobs/{message.data['job']}"
        assert "run" not in "".join(message.words(names=False, short=True))


def test_the_end_of_a_job_has_the_same_key_however_often_it_is_read() -> None:
    owner, job = Owner(jobs="end"), ended(1)
    assert owner.sees(0, ended=[job])[0].key == owner.sees(1, ended=[job])[0].key
    assert owner.sees(2, ended=[replace(job, finished_at=NOW + 9)])[0].key != owner.sees(3, ended=[job])[0].key


# -- the report -------------------------------------------------------------------------------------------------------------


def test_at_the_fixed_hour_one_report_goes_out_about_what_came_since_the_last_one() -> None:
    owner = Owner(report="07:00")
    owner.sees(0, running=1, resting=False)
    assert owner.sees(7.99 * HOUR, ended=[ended(1)]) == []
    [report] = owner.sees(8 * HOUR)
    assert (report.kind, report.title, report.priority) == (Kind.REPORT, "2 of 14 failed", 4)
    assert owner.asked == [(NOW, NOW + 8 * HOUR)]
    assert owner.sees(9 * HOUR) == owner.sees(31 * HOUR) == []
    assert owner.sees(40 * HOUR) == [], "nothing has ended since"
    owner.sees(41 * HOUR, ended=[ended(2)])
    assert len(owner.sees(56.5 * HOUR)) == 1
    assert owner.asked[-1] == (NOW + 40 * HOUR, NOW + 56.5 * HOUR)


def test_a_report_whose_hour_passed_while_the_rig_was_off_goes_out_when_it_is_on_again() -> None:
    owner = Owner(report="07:00")
    owner.sees(0, ended=[ended(1)])
    assert len(owner.sees(11 * HOUR)) == 1


def test_no_report_is_lost_because_the_queue_is_away_at_its_hour() -> None:
    owner = Owner(report="07:00")
    owner.sees(0, ended=[ended(1)])
    assert owner.sees(8 * HOUR, resting=None) == []
    assert len(owner.sees(8.1 * HOUR)) == 1


def test_at_the_queues_end_the_report_waits_until_nothing_more_comes() -> None:
    owner = Owner(report="queue_end")
    owner.sees(0, running=2, resting=False)
    owner.sees(10, ended=[ended(1)])
    assert owner.sees(10 + REST_S - 1) == []
    owner.sees(10 + REST_S - 0.5, running=1, resting=False)
    owner.sees(100, ended=[ended(2)])
    assert owner.sees(100 + REST_S - 1) == []
    assert len(owner.sees(100 + REST_S)) == 1
    owner.sees(300, ended=[ended(3)])
    assert owner.sees(500) == [], "not one report for every job of an afternoon"
    assert len(owner.sees(100 + REST_S + BETWEEN_REPORTS_S)) == 1
    assert owner.sees(9 * HOUR) == []


@pytest.mark.parametrize("rule", ["", "07:00", "queue_end"])
def test_an_idle_rig_reports_nothing(rule: str) -> None:
    owner = Owner(report=rule)
    assert [owner.sees(hour * HOUR) for hour in range(30)] == [[]] * 30
    assert owner.asked == []


def test_the_hour_is_the_zones_across_a_change_of_its_clocks() -> None:
    noon = datetime(2026, 10, 25, 12, 0, tzinfo=BERLIN).timestamp()  # clocks went back at 3
    assert datetime.fromtimestamp(last_time("07:00", noon, BERLIN), BERLIN).isoformat() == "2026-10-25T07:00:00+01:00"
    assert datetime.fromtimestamp(last_time("13:00", noon, BERLIN), BERLIN).isoformat() == "2026-10-24T13:00:00+02:00"


def test_of_several_rigs_each_message_names_its_own() -> None:
    owner = Owner(prefix="east: ", jobs="end")
    messages = owner.sees(0, replace(DISK, after_s=0), ended=[ended(1)])
    assert all(message.title.startswith("east: ") for message in messages)
    assert all(message.words(names=False, short=True)[0].startswith("east: ") for message in messages)


def test_memory_stays_small() -> None:
    owner = Owner()
    for number in range(300):
        owner.sees(number, Trouble(f"gpu:{number}", "x", "y"), ended=[ended(number, State.FAILED, sweep=str(number))])
    owner.sees(AGAIN_S * 2)
    owner.sees(AGAIN_S * 2 + OVER_S)
    assert len(json.dumps(owner.memory.to_json())) < 30_000
