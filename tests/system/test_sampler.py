"""The real sampler process and the real nvidia-ml-py on the fake driver: what it records, what it survives, what it costs."""

import ctypes.util
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fake_nvml.fakenvml import FakeNvml, build
from until import until

from daemon.gpus import discover
from daemon.process_tree import is_alive
from daemon.samples import STATES, SlotNow, database_path
from daemon.telemetry import Live, events, latest, summarize

LOST = STATES.index("lost")
LATE = "one round may be late, on a machine that others use too"
no_real_driver = pytest.mark.skipif(
    ctypes.util.find_library("nvidia-ml") is not None, reason="this machine has an NVIDIA driver"
)


MakeFake = Callable[..., FakeNvml]
MakeSampler = Callable[..., "Sampler"]


@dataclass
class Sampler:
    """A sampler process on a home."""

    home: Path
    env: dict[str, str]
    arguments: tuple[str, ...] = ()
    process: "subprocess.Popen[bytes]" = field(init=False)

    def start(self) -> "Sampler":
        argv = [sys.executable, "-m", "daemon.sampler", "--home", str(self.home), *self.arguments]
        with (self.home / "sampler.log").open("ab") as log:
            self.process = subprocess.Popen(argv, env=self.env, stderr=log)
        return self

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=10)

    def live(self) -> Live:
        return latest(self.home, now=time.time())

    def slot(self, uuid: str) -> SlotNow:
        return self.live().slots[uuid]

    def next(self, count: int = 1) -> Live:
        """The live view after so many more rounds."""
        seen: set[float | None] = {self.live().at}
        while len(seen) <= count:
            seen.add(until(lambda: (at := self.live().at) not in seen and at, evidence=self.log))
        return self.live()

    def until_state(self, uuid: str, state: str) -> None:
        until(lambda: self.live().slots and self.slot(uuid).state == state, evidence=self.log)

    def rows(self, uuid: str, column: str = "state") -> dict[int, Any]:
        """A saved column by second."""
        with closing(sqlite3.connect(database_path(self.home))) as database:
            statement = f"SELECT ts, {column} FROM s JOIN gpu USING (gid) WHERE uuid = ? ORDER BY ts"
            return dict(database.execute(statement, (uuid,)).fetchall())

    def log(self) -> str:
        return (self.home / "sampler.log").read_text() + str(self.live())


@pytest.fixture
def start(tmp_path: Path) -> Iterator[MakeSampler]:
    """Starts samplers on one home, and ends them after the test."""
    started: list[Sampler] = []

    def make(fake: FakeNvml | None = None, *arguments: str) -> Sampler:
        sampler = Sampler(tmp_path, fake.env() if fake else dict(os.environ), arguments).start()
        started.append(sampler)
        return sampler

    yield make
    for sampler in started:
        sampler.process.kill()
        sampler.process.wait()


@dataclass
class Eight:
    """A sampler on eight busy GPUs, and what the driver had been asked when it began."""

    fake: FakeNvml
    sampler: Sampler
    calls: dict[str, int]
    at: float


@pytest.fixture(scope="module", autouse=True)
def eight(fake_nvml_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Eight]:
    """Runs beside all tests of this file, for the last ones to look at."""
    fake = FakeNvml.create(fake_nvml_folder, build(fake_nvml_folder), ["3090"] * 8)
    for index in range(8):
        fake.busy(index)
        fake.processes(index, [(os.getpid(), 8 << 30, "C"), (1, 200 << 20, "CG")])
    sampler = Sampler(tmp_path_factory.mktemp("eight"), fake.env()).start()
    until(lambda: sampler.live().at, evidence=sampler.log)
    yield Eight(fake, sampler, *calls_now(fake, sampler))
    sampler.process.kill()
    sampler.process.wait()


def calls_now(fake: FakeNvml, sampler: Sampler) -> tuple[dict[str, int], float]:
    """The call counters between two rounds, and the moment of the one before."""
    at = sampler.next().at
    calls = fake.all_calls()
    assert at is not None
    return (calls, at) if sampler.live().at == at else calls_now(fake, sampler)


def missing_seconds(seconds: dict[int, Any]) -> int:
    return max(seconds) - min(seconds) + 1 - len(seconds)


def test_two_gpus_are_sampled_once_a_second_and_saved_at_the_end(fake_nvml: MakeFake, start: MakeSampler) -> None:
    fake = fake_nvml(["3090", "h200"])
    fake.busy(0)
    fake.processes(0, [(10, 5 << 30, "C"), (11, 6 << 20, "CG"), (12, 7 << 20, "G")])
    sampler = start(fake)
    until(lambda: sampler.live().at, evidence=sampler.log)
    live = sampler.next(3)
    assert (live.source, live.problem, live.stale, live.pid) == ("nvml", None, False, sampler.process.pid)
    busy, idle = live.slots[fake.uuid(0)], live.slots[fake.uuid(1)]
    assert (busy.utilization_ratio, busy.power_w, busy.power_limit_w, busy.fan_ratio) == (0.97, 345.0, 350.0, 0.68)
    assert (busy.memory_used_bytes, busy.memory_total_bytes) == ((5 << 30) + (13 << 20), 24 << 30)
    assert busy.throttle_reasons == ("sw_power_cap",)
    assert [(p.pid, p.kind) for p in busy.processes] == [(10, "C"), (11, "C+G"), (12, "G")]
    assert (idle.fan_ratio, idle.throttle_reasons, idle.recovery_action, idle.processes) == (None, (), 0, ())

    assert sampler.stop() == 0
    for index in range(2):
        assert missing_seconds(sampler.rows(fake.uuid(index))) <= 1, LATE
    counter_mj = sampler.rows(fake.uuid(0), "energy_mj")
    _, start_s, *_, end_s = counter_mj
    usage = summarize(sampler.home, [fake.uuid(0)], start_s + 0.5, end_s + 0.5)
    assert usage.energy_j == pytest.approx((counter_mj[end_s] - counter_mj[start_s]) / 1000)
    assert (usage.energy_method, usage.coverage) == ("counter", 1)


def test_a_lost_gpu_keeps_no_other_from_going_on_and_may_come_back(fake_nvml: MakeFake, start: MakeSampler) -> None:
    fake = fake_nvml(["3090", "3090"])
    sampler = start(fake, "--retry-s", "0.5")
    sampler.until_state(fake.uuid(0), "ok")
    fake.lose(0)
    sampler.until_state(fake.uuid(0), "lost")
    lost, well = sampler.slot(fake.uuid(0)), sampler.slot(fake.uuid(1))
    assert (lost.power_w, lost.name) == (None, "NVIDIA GeForce RTX 3090")
    assert (well.state, well.power_w) == ("ok", 25.0)
    sampler.next()
    fake.recover(0)
    sampler.until_state(fake.uuid(0), "ok")
    # The watch for XIDs, which the loss had broken off, has begun anew, and knows both.
    until(lambda: 31 in xids_after(31, fake, sampler), evidence=sampler.log)

    assert sampler.stop() == 0
    assert LOST in sampler.rows(fake.uuid(0)).values()
    assert set(sampler.rows(fake.uuid(1)).values()) == {STATES.index("ok")}
    assert 79 in xids(sampler, fake.uuid(0))
    kinds = [event.kind for event in events(sampler.home, 0, time.time(), slots=[fake.uuid(0)])]
    assert [kind for kind in kinds if kind != "xid"] == ["lost", "recovered"]


def xids_after(code: int, fake: FakeNvml, sampler: Sampler) -> list[int | None]:
    """What GPU 0 is known to have reported, after it reports once more."""
    fake.xid(0, code)
    return xids(sampler, fake.uuid(0))


def xids(sampler: Sampler, uuid: str) -> list[int | None]:
    return [event.code for event in events(sampler.home, 0, time.time(), slots=[uuid]) if event.kind == "xid"]


def test_an_xid_right_after_the_first_reading_is_not_missed(fake_nvml: MakeFake, start: MakeSampler) -> None:
    fake = fake_nvml(["3090", "3090"])
    sampler = start(fake)
    until(lambda: fake.calls("Utilization"), evidence=sampler.log)  # the first thing that is read
    fake.xid(1, 48)
    until(lambda: 48 in xids(sampler, fake.uuid(1)), evidence=sampler.log)


def test_an_xid_while_the_watch_changes_to_other_gpus_is_not_missed(fake_nvml: MakeFake, start: MakeSampler) -> None:
    fake = fake_nvml(["3090", "3090"])
    fake.lose(1, xid=None)
    sampler = start(fake, "--retry-s", "0.5")
    sampler.until_state(fake.uuid(0), "ok")
    fake.recover(1)
    sets = fake.calls("EventCreate")
    until(lambda: fake.uuid(1) in sampler.live().slots, evidence=sampler.log)
    # all the time until the new set is in use, and once a code: the same one within five seconds counts once
    codes = list(range(200, 230))
    for code in codes:
        fake.xid(0, code)
    until(lambda: fake.calls("EventCreate") > sets, evidence=sampler.log)
    fake.xid(1, 31)
    until(lambda: 31 in xids(sampler, fake.uuid(1)), evidence=sampler.log)
    until(lambda: set(codes) <= set(xids(sampler, fake.uuid(0))), evidence=sampler.log)


def test_what_the_kernel_said_while_no_sampler_could_note_it_is_noted_once(
    fake_nvml: MakeFake, start: MakeSampler, tmp_path: Path
) -> None:
    fake, log = fake_nvml(["3090"]), tmp_path / "kmsg"

    def say(code: int, at: float) -> None:
        microseconds = round((time.monotonic() - time.time() + at) * 1e6)
        with log.open("a") as file:
            file.write(f"3,77,{microseconds},-;NVRM: Xid (PCI:0000:01:00): {code}, pid=99, name=python, Timeout\n")

    log.touch()
    hung = start(fake, "--kernel-log", str(log))
    hung.until_state(fake.uuid(0), "ok")
    say(31, time.time())
    until(lambda: xids(hung, fake.uuid(0)) == [31], evidence=hung.log)
    fake.slow("Utilization", 60_000_000)
    at = until(lambda: (told := hung.live()).age_s and told.age_s > 1.6 and time.time())
    say(119, at)
    hung.process.kill()
    hung.process.wait()
    fake.slow("Utilization", 0)
    following = start(fake, "--kernel-log", str(log))
    until(lambda: 119 in xids(following, fake.uuid(0)), evidence=following.log)
    noted = {event.code: event for event in events(tmp_path, 0, time.time()) if event.kind == "xid"}
    assert noted[119].at == pytest.approx(at, abs=0.5) and noted[119].pid == 99
    assert following.slot(fake.uuid(0)).state == "stale", "its firmware is silent: it is not asked"
    say(48, time.time())
    until(lambda: 48 in xids(following, fake.uuid(0)), evidence=following.log)
    assert sorted(code or 0 for code in xids(following, fake.uuid(0))) == [31, 48, 119]


@pytest.fixture
def child() -> Iterator[int]:
    """A process that descends from the sampler's parent, as a job's do."""
    with subprocess.Popen(["tail", "-f", "/dev/null"]) as process:
        yield process.pid
        process.kill()


def test_processes_have_names_and_owners_and_others_beside_us_have_their_share(
    fake_nvml: MakeFake, start: MakeSampler, child: int
) -> None:
    fake = fake_nvml(["3090", "3090"])
    fake.processes(0, [(child, 5 << 30, "C"), (1, 2 << 30, "C")])  # pid 1 descends from nobody
    fake.gpu[0].process[1].sm = 40
    fake.processes(1, [(1, 1 << 30, "G")])
    sampler = start(fake)
    sampler.until_state(fake.uuid(0), "ok")
    both, alone = (sampler.slot(fake.uuid(index)) for index in (0, 1))
    assert [(one.pid, one.owner) for one in both.processes] == [(1, "other"), (child, "own")]
    assert both.processes[1].name == "tail"
    assert (both.own_memory_bytes, both.foreign_memory_bytes) == (5 << 30, 2 << 30)
    assert (alone.own_memory_bytes, alone.foreign_memory_bytes) == (0, 1 << 30)
    assert (both.foreign_utilization_ratio, alone.foreign_utilization_ratio) == (0.4, None)
    fake.processes(0, [(child, 5 << 30, "C")])
    until(lambda: sampler.slot(fake.uuid(0)).foreign_memory_bytes == 0, within_s=20, evidence=sampler.log)
    assert sampler.stop() == 0
    columns = [sampler.rows(fake.uuid(0), name).values() for name in ("own_mib", "foreign_mib", "foreign_util")]
    assert {(5120, 2048, 40), (5120, 0, None)} == set(zip(*columns, strict=True))


def test_a_reloaded_driver_is_opened_anew(fake_nvml: MakeFake, start: MakeSampler) -> None:
    fake = fake_nvml(["3090", "3090"])
    sampler = start(fake)
    sampler.until_state(fake.uuid(1), "ok")
    fake.reload_driver()
    sampler.until_state(fake.uuid(1), "stale")
    assert "NVMLError_Uninitialized" in (sampler.live().problem or "")
    sampler.until_state(fake.uuid(1), "ok")
    assert sampler.live().problem is None
    assert fake.calls("Init") == 2


def test_a_gpu_whose_driver_call_takes_too_long_is_left_alone(fake_nvml: MakeFake, start: MakeSampler) -> None:
    fake = fake_nvml(["3090"])
    sampler = start(fake)
    sampler.until_state(fake.uuid(0), "ok")
    fake.slow("Reasons", 2_100_000)
    sampler.until_state(fake.uuid(0), "stale")
    asked = fake.calls("Reasons")
    sampler.next()
    assert fake.calls("Reasons") == asked


def test_a_wedged_sampler_shows_by_its_age_and_can_be_killed(fake_nvml: MakeFake, start: MakeSampler) -> None:
    fake = fake_nvml(["3090"])
    sampler = start(fake)
    sampler.until_state(fake.uuid(0), "ok")
    fake.slow("Utilization", 60_000_000)
    until(lambda: (sampler.live().age_s or 0) > 1.6)
    assert sampler.slot(fake.uuid(0)).state == "ok"
    sampler.process.kill()
    assert sampler.process.wait(timeout=5) == -signal.SIGKILL


def test_a_killed_sampler_leaves_a_readable_database_and_loses_no_second(
    fake_nvml: MakeFake, start: MakeSampler
) -> None:
    fake = fake_nvml(["3090"])
    killed = start(fake)
    first = until(lambda: killed.live().at or 0.0, evidence=killed.log)
    last = killed.next(2).at or 0.0
    killed.process.kill()
    killed.process.wait()
    saved = killed.rows(fake.uuid(0))
    usage = summarize(killed.home, [fake.uuid(0)], first, last)
    assert len(saved) == 1  # the others are in gpu-now.json
    assert usage.coverage == 1

    following = start(fake)
    following.next()
    assert int(last) in following.rows(fake.uuid(0))
    assert summarize(killed.home, [fake.uuid(0)], first, last).coverage == 1


def test_an_older_driver_is_read_with_older_calls(fake_nvml: MakeFake, start: MakeSampler) -> None:
    hidden = ["nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetTemperatureV", "nvmlDeviceGetFieldValues"]
    hidden += ["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetComputeRunningProcesses_v3"]
    fake = fake_nvml(["3090"], hide=hidden)
    fake.busy(0)
    fake.processes(0, [(10, 1 << 30, "C")])
    sampler = start(fake)
    sampler.until_state(fake.uuid(0), "ok")
    slot = sampler.slot(fake.uuid(0))
    assert (slot.temperature_c, slot.power_w, slot.power_limit_w, slot.throttle_reasons) == (
        71,
        345,
        350,
        ("sw_power_cap",),
    )
    assert slot.energy_j is not None
    assert [process.pid for process in slot.processes] == [10]


def test_drivers_with_garbled_process_lists_are_not_asked_for_them(fake_nvml: MakeFake, start: MakeSampler) -> None:
    fake = fake_nvml(["3090"], driver="535.54.03")
    fake.processes(0, [(10, 1 << 30, "C")])
    sampler = start(fake)
    sampler.until_state(fake.uuid(0), "ok")
    assert sampler.slot(fake.uuid(0)).processes == ()
    assert fake.calls("ComputeProcesses") == 0


@no_real_driver
def test_without_a_driver_the_machine_is_sampled_and_the_reason_is_said(start: MakeSampler) -> None:
    sampler = start(None, "--cpu-slots", "2")
    until(lambda: sampler.live().at, evidence=sampler.log)
    live = sampler.next()
    assert (live.source, sorted(live.slots)) == ("cpu", ["cpu:0", "cpu:1"])
    assert live.problem == "No NVIDIA driver was found (NVMLError_LibraryNotFound): CPU slots are used."
    slot = live.slots["cpu:1"]
    assert slot.index == 1 and slot.energy_j is None and slot.power_w is None
    assert 0 < (slot.memory_used_bytes or 0) < (slot.memory_total_bytes or 0)
    assert 0 <= (slot.utilization_ratio or 0) <= 1
    assert sampler.stop() == 0
    assert summarize(sampler.home, ["cpu:0"], 0.0, time.time()).peak_memory_bytes


def test_it_ends_when_its_parent_is_killed(fake_nvml: MakeFake, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "daemon.sampler", "--home", str(tmp_path)]
    code = f"import subprocess, sys; print(subprocess.Popen({argv}).pid, flush=True); sys.stdin.read()"
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=fake_nvml(["3090"]).env()
    )
    with parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        until(lambda: latest(tmp_path, now=time.time()).at)
        parent.kill()
    until(lambda: not is_alive(pid))


@pytest.fixture
def with_driver(fake_nvml: MakeFake, monkeypatch: pytest.MonkeyPatch) -> MakeFake:
    """A fake machine that this process's children see."""

    def make(gpus: list[str]) -> FakeNvml:
        fake = fake_nvml(gpus)
        for name in ("LD_LIBRARY_PATH", "FAKE_NVML_STATE"):
            monkeypatch.setenv(name, fake.env()[name])
        return fake

    return make


def test_discovery_lists_gpus_with_what_scheduling_needs(with_driver: MakeFake) -> None:
    fake = with_driver(["3090", "h200"])
    fake.gpu[1].mig = 2
    first, second = discover().gpus
    assert (first.uuid, first.index, first.bus_id) == (fake.uuid(0), 0, "00000000:01:00.0")
    assert (first.name, first.memory_bytes, first.power_limit_w) == ("NVIDIA GeForce RTX 3090", 24 << 30, 350.0)
    assert (first.driver, first.mig, second.mig) == ("580.95.05", False, True)


def test_discovery_names_a_lost_gpu_and_lists_the_others(with_driver: MakeFake) -> None:
    fake = with_driver(["3090", "3090", "3090"])
    fake.lose(1)
    found = discover()
    assert [gpu.index for gpu in found.gpus] == [0, 2]
    assert found.problem == "GPU 1 does not answer (NVMLError_GpuIsLost): it is left out until it does."


def test_discovery_does_not_wait_for_a_wedged_driver(with_driver: MakeFake) -> None:
    with_driver(["3090"]).slow("Init", 60_000_000)
    found = discover(timeout_s=1.0)
    assert found.gpus == ()
    assert found.problem and "did not answer within 1 s" in found.problem


@no_real_driver
def test_discovery_without_a_driver_says_so() -> None:
    found = discover()
    assert found.gpus == ()
    assert found.problem == "No NVIDIA driver was found (NVMLError_LibraryNotFound): CPU slots are used."


def test_eight_gpus_cost_few_driver_calls_and_never_the_slow_ones(eight: Eight) -> None:
    calls, at = calls_now(eight.fake, eight.sampler)
    asked = {function: calls[function] - eight.calls[function] for function in calls}
    seconds = 8 * round(at - eight.at)
    assert seconds >= 8 * 5
    assert sum(asked.values()) - asked["EventWait"] <= 9 * seconds  # waiting for events asks no GPU
    assert calls["PcieThroughput"] == 0


def test_eight_gpus_have_a_row_for_every_second(eight: Eight) -> None:
    assert eight.sampler.stop() == 0
    for index in range(8):
        uuid = eight.fake.uuid(index)
        assert missing_seconds(eight.sampler.rows(uuid)) <= 1, LATE
        assert set(eight.sampler.rows(uuid, "power_mw").values()) == {345_000}
