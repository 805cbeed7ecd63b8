"""What the planner is told of each GPU: strangers, memory that is not free, heat. A clock that the test sets."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.conditions import Condition, Conditions
from daemon.owner import MIB
from daemon.samples import GpuProcess, SlotNow
from daemon.settings import Settings
from daemon.telemetry import Live

GPU = "GPU-0"
TOTAL = 24 << 30
#: For these tests the daemon is another process than this one, from which all that they start descends.
NOBODY = 2**22 + 1


class Card:
    """One GPU whose readings the test writes, looked at once a second."""

    def __init__(self, home: Path, *, daemon: int = NOBODY, **settings: Any):
        self._conditions = Conditions(Settings(home=home, rig="rig", **settings), daemon=daemon)
        self.now = 1000.0
        self.reading = SlotNow("card", 0, memory_used_bytes=300 * MIB, memory_total_bytes=TOTAL, temperature_c=40)
        self.job: str | None = None

    def set(self, **values: Any) -> None:
        self.reading = replace(self.reading, **values)

    def used(self, mib: int) -> None:
        self.set(memory_used_bytes=mib * MIB)

    def after(self, seconds: int) -> Condition:
        """The condition when so many more seconds have been looked at."""
        for _ in range(seconds):
            self.now += 1
            found = self.look()
        return found

    def look(self) -> Condition:
        live = Live(self.now - 0.2, 0.2, "nvml", None, {GPU: self.reading})
        return self._conditions.look(live, {GPU: self.job} if self.job else {}, self.now)[GPU]


@pytest.fixture
def stranger() -> Iterator[GpuProcess]:
    process = subprocess.Popen(["tail", "-f", "/dev/null"], start_new_session=True)
    yield GpuProcess(process.pid, 3174 * MIB, "C")
    process.kill()
    process.wait()


def test_a_stranger_stops_new_starts_after_two_looks_and_until_a_quiet_time(
    tmp_path: Path, stranger: GpuProcess
) -> None:
    card = Card(tmp_path)
    assert card.after(5).problem is None
    card.set(processes=(stranger,))
    assert card.after(5).problem is None, "it may only look"
    assert card.after(7).problem == f"in use by tail (pid {stranger.pid}, 3.1 GiB)"
    card.set(processes=())
    left = card.after(100).problem
    assert left == f"not taken yet: tail (pid {stranger.pid}, 3.1 GiB) left it less than 120 s ago"
    assert card.after(25).problem is None


def test_a_stranger_who_only_looks_stops_nothing(tmp_path: Path, stranger: GpuProcess) -> None:
    card = Card(tmp_path)
    card.set(processes=(stranger,))
    card.after(5)
    card.set(processes=())
    card.after(3)
    card.set(processes=(stranger,))
    assert card.after(8).problem is None


@pytest.mark.parametrize(
    ("use", "leaves", "held"), [("hold", False, True), ("yield", True, True), ("ignore", False, False)]
)
def test_a_running_job_leaves_for_a_stranger_only_where_the_owner_says_so(
    tmp_path: Path, stranger: GpuProcess, use: str, leaves: bool, held: bool
) -> None:
    card = Card(tmp_path, foreign_use=use)
    card.job = "1"
    card.set(processes=(stranger,))
    found = card.after(15)
    assert (found.leave is not None, found.problem is not None) == (leaves, held)


def test_our_own_processes_are_no_strangers(tmp_path: Path, stranger: GpuProcess) -> None:
    card = Card(tmp_path, daemon=os.getpid())
    card.set(processes=(stranger,))
    assert card.after(30).problem is None


def test_the_next_job_waits_until_the_memory_of_the_last_one_is_free(tmp_path: Path) -> None:
    card = Card(tmp_path)
    card.after(10)
    card.job = "1"
    card.used(20_000)
    assert card.after(5) == Condition(room_bytes=TOTAL - 300 * MIB)
    card.job = None
    assert card.look().resting, "the reading is older than the job's end"
    assert card.after(1).resting == "not free yet: 19.2 GiB of the last job's memory are still held"
    card.used(400)
    assert card.after(1).resting is None


def test_memory_that_does_not_come_back_takes_the_gpu_out(tmp_path: Path) -> None:
    card = Card(tmp_path)
    card.after(10)
    card.job = "1"
    card.used(20_000)
    card.after(5)
    card.job = None
    assert card.after(20).problem is None
    assert "still held" in (card.after(15).problem or "")
    card.used(300)
    assert card.after(1).problem is None


def test_memory_that_no_process_explains_is_somebody_s(tmp_path: Path) -> None:
    card = Card(tmp_path)
    card.after(10)
    card.used(5000)
    assert "not listed (4.6 GiB)" in (card.after(12).problem or "")


def test_work_on_an_idle_gpu_is_somebody_s(tmp_path: Path) -> None:
    card = Card(tmp_path)
    card.set(utilization_ratio=0.9)
    assert card.after(60).problem is None
    assert "90% busy" in (card.after(15).problem or "")


def test_a_job_may_use_what_the_desktop_leaves(tmp_path: Path) -> None:
    card = Card(tmp_path)
    card.used(600)
    assert card.after(5).room_bytes == TOTAL - 600 * MIB
    card.job = "1"
    card.used(22_000)
    assert card.after(1).room_bytes == TOTAL - 600 * MIB


def test_a_hot_gpu_gets_no_job_and_one_that_stays_too_hot_loses_its_own(tmp_path: Path) -> None:
    card = Card(tmp_path, hold_above_c=75, stop_above_c=88, stop_after_s=60)
    card.job = "1"
    card.set(temperature_c=80)
    assert card.after(100).leave is None
    card.set(temperature_c=90)
    assert card.after(60).leave is None
    assert "stayed at 88 °C or more" in (card.after(2).leave or "")
    card.job = None
    card.set(temperature_c=80)
    found = card.after(2)
    assert (found.leave, found.resting) == (None, "hot (80 °C); jobs start there below 75 °C")
    card.set(temperature_c=74)
    assert card.after(1).resting is None


def test_a_gpu_that_does_not_cool_is_out_of_order(tmp_path: Path) -> None:
    card = Card(tmp_path, hold_above_c=75)
    card.set(temperature_c=80)
    assert card.after(800).problem is None
    assert "hot" in (card.after(150).problem or "")


def test_heat_is_no_concern_unless_the_owner_says_so(tmp_path: Path) -> None:
    card = Card(tmp_path)
    card.set(temperature_c=99)
    assert card.after(100) == Condition(room_bytes=TOTAL - 300 * MIB)


def test_without_a_sampler_nothing_is_known_and_nothing_held(tmp_path: Path) -> None:
    conditions = Conditions(Settings(home=tmp_path, rig="rig"))
    assert conditions.look(Live(None, None, "none", None), {}, 1.0) == {}


def test_a_condition_survives_the_wire() -> None:
    told = Condition(problem="lost", room_bytes=3, power_w=1.5)
    assert Condition.from_json({**told.to_json(), "of_a_newer_version": 1}) == told


# -- processes of our own jobs that are where they should not be


SECOND = "GPU-1"


class Pair(Card):
    """Two GPUs; the reading is that of the second one."""

    def __init__(self, home: Path, **settings: Any):
        super().__init__(home, **settings)
        self.jobs: dict[str, str] = {}

    def look(self) -> Condition:
        other = SlotNow("card", 0, memory_used_bytes=300 * MIB, memory_total_bytes=TOTAL)
        live = Live(self.now - 0.2, 0.2, "nvml", None, {GPU: other, SECOND: self.reading})
        return self._conditions.look(live, self.jobs, self.now)[SECOND]

    def left_behind(self) -> list[int]:
        return list(self._conditions.left_behind)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[GpuProcess]:
    """A process that the worker of the first GPU started."""
    mark = f"{tmp_path}:rig"
    own = {**os.environ, "OVERNIGHT_MARK": mark, "OVERNIGHT_MARK_SLOT": f"{mark}:{GPU}"}
    process = subprocess.Popen(["tail", "-f", "/dev/null"], env=own)
    yield GpuProcess(process.pid, 3174 * MIB, "C")
    process.kill()
    process.wait()


@pytest.mark.parametrize("use", ["hold", "yield"])
def test_a_job_on_a_gpu_that_it_was_not_given_is_told_and_nothing_starts_beside_it(
    tmp_path: Path, started: GpuProcess, use: str
) -> None:
    pair = Pair(tmp_path, foreign_use=use)
    pair.jobs = {GPU: "12", SECOND: "13"}
    pair.set(processes=(started,))
    told = pair.after(15)
    words = f"in use by job 12, which was given another GPU and does not keep to it: tail (pid {started.pid}, 3.1 GiB)"
    assert told.problem == words
    assert told.leave is None, "the job that keeps to its own GPU does not have to leave for it"
    assert pair.left_behind() == []


def test_a_gang_is_on_all_its_gpus(tmp_path: Path, started: GpuProcess) -> None:
    pair = Pair(tmp_path)
    pair.jobs = {GPU: "12", SECOND: "12"}
    pair.set(processes=(started,))
    assert pair.after(15).problem is None and pair.left_behind() == []


def test_a_process_whose_job_has_ended_is_left_behind_after_a_while(tmp_path: Path, started: GpuProcess) -> None:
    pair = Pair(tmp_path)
    pair.jobs = {GPU: "12", SECOND: "12"}
    pair.set(processes=(started,))
    pair.after(5)
    pair.jobs = {}
    pair.after(3)
    assert pair.left_behind() == [], "its end may just be under way"
    pair.after(5)
    assert pair.left_behind() == [started.pid]
    pair.set(processes=())
    pair.after(1)
    assert pair.left_behind() == []
