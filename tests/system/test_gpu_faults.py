"""A real rig on the fake driver: GPUs that fail, are taken out of service, and return; each event with its evidence."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from fake_nvml import scenarios
from fake_nvml.fakenvml import FakeNvml
from fake_nvml.scenarios import KernelLogFile
from until import until

from api.cli import overnight
from daemon import process_tree, quarantine, telemetry
from daemon.explain import explain
from daemon.facts import Ledger
from daemon.telemetry import GpuEvent
from jobs.model import State
from jobs.rundir import read_json

MakeRig = Callable[..., Any]
MakeFake = Callable[..., FakeNvml]
WELL, BROKEN = "true", f"sh{os.pathsep}-c{os.pathsep}echo it failed the check; exit 1"


def faulty_rig(make_rig: MakeRig, fake_nvml: MakeFake, tmp_path: Path, check: str = WELL, cards: int = 1) -> Any:
    fake = fake_nvml(["3090"] * cards)
    log = KernelLogFile(tmp_path / "kmsg")
    log.path.touch()
    rig = make_rig(slots="auto", environment=fake.env(), kernel_log=log.path, check_gpu=check)
    until(lambda: all(state(rig, fake, n) == "ok" for n in range(cards)), within_s=30, evidence=rig.evidence)
    return rig, fake, log


def state(rig: Any, fake: FakeNvml, index: int) -> str | None:
    slot = telemetry.latest(rig.settings.home, now=time.time()).slots.get(fake.uuid(index))
    return slot.state if slot else None


def xids(rig: Any) -> list[GpuEvent]:
    return [event for event in telemetry.events(rig.settings.home, 0, 2e9) if event.kind == "xid"]


def held(rig: Any, fake: FakeNvml, index: int = 0) -> quarantine.Quarantine | None:
    return quarantine.read(rig.store, "rig").get(fake.uuid(index))


def until_held(rig: Any, fake: FakeNvml, index: int = 0) -> quarantine.Quarantine:
    return until(lambda: (one := held(rig, fake, index)) and one.active and one, within_s=20, evidence=rig.evidence)


def until_free(rig: Any, fake: FakeNvml) -> quarantine.Quarantine:
    return until(lambda: (one := held(rig, fake)) and not one.active and one, within_s=20, evidence=rig.evidence)


def command(rig: Any, *args: str) -> Any:
    address = until(lambda: read_json(rig.settings.home / "api.json"), within_s=20, evidence=rig.evidence)
    token = (rig.settings.home / "token").read_text().strip()
    return CliRunner(env={"OVERNIGHT_URL": address["url"], "OVERNIGHT_TOKEN": token}).invoke(overnight, list(args))


def test_an_idle_gpu_with_a_fatal_xid_gets_no_job_until_somebody_releases_it(
    make_rig: MakeRig, fake_nvml: MakeFake, tmp_path: Path
) -> None:
    rig, fake, log = faulty_rig(make_rig, fake_nvml, tmp_path)
    log.xid(fake, 0, 62, text="PMU halt")
    fake.xid(0, 62)
    found = until_held(rig, fake)
    assert found.reason == "XID 62: an internal micro-controller halted" and "PMU halt" in found.evidence
    [told] = xids(rig)  # NVML's word on the same is not told twice
    assert (told.source, told.code) == ("kernel", 62)
    job = rig.count(1, 0.01)
    facts = Ledger(rig.store).facts(time.time(), rig.settings)
    assert "out of service (XID 62" in (explain(facts, rig.job(job)) or "")

    # over a restart, too
    assert rig.stop() == 0
    rig.start()
    until(lambda: read_json(rig.settings.home / "api.json"), within_s=30, evidence=rig.evidence)
    assert "out of service since" in command(rig, "gpus").output
    assert rig.job(job).state is State.QUEUED

    assert command(rig, "gpus", "release", "0").exit_code == 0
    assert rig.until_ended(job).state is State.SUCCEEDED
    assert until_free(rig, fake).released_by == "hand"


def test_an_xid_names_the_job_whose_process_caused_it_and_the_gpu_stays(
    make_rig: MakeRig, fake_nvml: MakeFake, tmp_path: Path
) -> None:
    rig, fake, log = faulty_rig(make_rig, fake_nvml, tmp_path)
    job = rig.count(600, 0.05)
    rig.until_printed(job, "start 0")
    pid = until(lambda: next(iter(process_tree.children(rig.child(fake.uuid(0)))), 0), evidence=rig.evidence)
    log.xid(fake, 0, 31, pid=pid, text="MMU Fault")
    told = until(lambda: xids(rig), within_s=20, evidence=rig.evidence)
    assert [(one.code, one.pid, one.job) for one in told] == [(31, pid, job)]
    assert held(rig, fake) is None
    rig.cancel(job)
    rig.until_ended(job)


def test_a_suspect_gpu_returns_when_its_check_passes(make_rig: MakeRig, fake_nvml: MakeFake, tmp_path: Path) -> None:
    rig, fake, log = faulty_rig(make_rig, fake_nvml, tmp_path)
    log.xid(fake, 0, 109, text="Context switch timeout")
    found = until_free(rig, fake)
    assert (found.suspect, found.released_by) == (True, "check")


def test_a_check_that_fails_says_why_and_the_gpu_stays_out(
    make_rig: MakeRig, fake_nvml: MakeFake, tmp_path: Path
) -> None:
    rig, fake, log = faulty_rig(make_rig, fake_nvml, tmp_path, check=BROKEN)
    log.xid(fake, 0, 48, text="DBE")
    until_held(rig, fake)
    assert command(rig, "gpus", "check", "0").exit_code == 0
    found = until(lambda: (one := held(rig, fake)) and one.check_result and one, within_s=20, evidence=rig.evidence)
    assert found.active and found.check_result == "it failed the check"
    assert "A check: it failed the check." in command(rig, "gpus").output


def test_a_check_outlives_the_death_of_a_worker_and_not_that_of_the_daemon(
    make_rig: MakeRig, fake_nvml: MakeFake, tmp_path: Path
) -> None:
    well = tmp_path / "well"
    patient = os.pathsep.join(("sh", "-c", f"until [ -e {well} ]; do sleep 0.05; done"))
    rig, fake, log = faulty_rig(make_rig, fake_nvml, tmp_path, check=patient, cards=2)

    def checks() -> list[int]:
        mine = process_tree.children(rig.daemon.pid)  # not what the shell forks
        return [pid for pid, line in rig.processes().items() if str(well) in line and pid in mine]

    log.xid(fake, 0, 109, text="Context switch timeout")
    [check] = until(checks, within_s=20, evidence=rig.evidence)
    worker = rig.worker(fake.uuid(1))
    os.kill(worker, signal.SIGKILL)
    until(lambda: rig.worker(fake.uuid(1)) != worker, within_s=20, evidence=rig.evidence)
    assert checks() == [check]
    rig.daemon.kill()
    rig.daemon.wait()
    rig.start()
    until(lambda: not process_tree.is_alive(check), within_s=20, evidence=rig.evidence)
    well.touch()
    assert until_free(rig, fake).released_by == "check"


def test_a_gpu_in_service_is_not_checked(make_rig: MakeRig, fake_nvml: MakeFake, tmp_path: Path) -> None:
    rig, _, _ = faulty_rig(make_rig, fake_nvml, tmp_path)
    assert "in service" in command(rig, "gpus", "check", "0").output


def test_a_driver_that_asks_for_a_reset_gets_no_new_job_until_it_had_one(
    make_rig: MakeRig, fake_nvml: MakeFake, tmp_path: Path
) -> None:
    rig, fake, _ = faulty_rig(make_rig, fake_nvml, tmp_path)
    scenarios.ask_for_reset(fake, 0)
    ledger = Ledger(rig.store)
    until(lambda: ledger.facts(time.time(), rig.settings).slots[0].problem, within_s=20, evidence=rig.evidence)
    job = rig.count(1, 0.01)
    assert "a reset of the GPU" in (explain(ledger.facts(time.time(), rig.settings), rig.job(job)) or "")
    fake.gpu[0].recovery = 0
    assert rig.until_ended(job).state is State.SUCCEEDED


def test_a_driver_upgrade_holds_the_queue_and_what_runs_goes_on(
    make_rig: MakeRig, fake_nvml: MakeFake, tmp_path: Path
) -> None:
    fake = fake_nvml(["3090", "3090"])
    rig = make_rig(slots="auto", environment=fake.env(), upgrade_check_s=0.5)
    until(lambda: state(rig, fake, 1) == "ok", within_s=30, evidence=rig.evidence)
    running = rig.count(100, 0.05)
    rig.until_printed(running, "start 0")
    scenarios.upgrade_driver(fake)
    ledger = Ledger(rig.store)
    until(lambda: ledger.facts(time.time(), rig.settings).hold, within_s=20, evidence=rig.evidence)
    waiting = rig.count(1, 0.01)
    assert rig.until_ended(running).state is State.SUCCEEDED
    facts = ledger.facts(time.time(), rig.settings)
    assert "after a reboot" in (explain(facts, rig.job(waiting)) or "")
    assert rig.job(waiting).state is State.QUEUED and rig.job(waiting).attempt == 0
