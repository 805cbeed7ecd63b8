"""XIDs from the kernel's log, what each one leads to, and how a GPU leaves quarantine."""

import os
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue

import pytest
from until import until

from daemon.faults import DIFFERENT_JOBS, LOST, XIDS, Fault, Policy, fault_in, fault_of, suspects, xid_of
from daemon.kernel_log import KernelLog, KernelXid, bus_key, parse
from daemon.quarantine import STRIKES_WITHIN_S, Quarantine, imposed, wants_check, well
from daemon.samples import SlotNow
from daemon.telemetry import GpuEvent
from daemon.upgrade import library_exchanged

GPU, BOOT, NEXT_BOOT = "GPU-a", "boot-1", "boot-2"
NOW = 1_800_000_000.0


def event(code: int | None, kind: str = "xid", at: float = NOW) -> GpuEvent:
    return GpuEvent(at, GPU, "kernel", kind, code, "NVRM: Xid ...")


def fault(policy: Policy = Policy.QUARANTINE, at: float = NOW) -> Fault:
    return Fault(GPU, "XID 79: the GPU has fallen off the bus", policy, at, 79, "NVRM: Xid ...")


# -- the kernel's log


@pytest.mark.parametrize(
    ("line", "bus", "code", "pid"),
    [
        ("NVRM: Xid (PCI:0000:05:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.", "0:5:0", 79, None),
        ("6,1,2,-;NVRM: Xid (PCI:0000:65:00): 31, pid=1234, name=python, Ch 00000008, MMU Fault", "0:65:0", 31, 1234),
        ("NVRM: Xid (PCI:0000:65:00): 13, pid='4321', name=python3, Graphics SM Warp Exception", "0:65:0", 13, 4321),
        ("NVRM: Xid (0000:03:00): 119, Timeout after 6s of waiting for RPC response", "0:3:0", 119, None),
        ("NVRM: Xid (PCI:0001:c4:00): 48, pid=9, name=x, DBE", "1:c4:0", 48, 9),
        ("NVRM: GPU 0000:05:00.0: GPU has fallen off the bus.", "0:5:0", 79, None),
        ("NVRM: GPU at PCI:0000:05:00: GPU has fallen off the bus", "0:5:0", 79, None),
    ],
)  # fmt: skip
def test_the_kernels_lines_are_read(line: str, bus: str, code: int, pid: int | None) -> None:
    found = parse(line)
    assert found is not None and (found.bus, found.code, found.pid) == (bus, code, pid)


@pytest.mark.parametrize(
    "line",
    ["", "NVRM: loading NVIDIA UNIX x86_64 Kernel Module", "usb 1-1: Xid 79", "NVRM: GPU at PCI:0000:05:00: GPU-1"],
)
def test_other_lines_say_nothing(line: str) -> None:
    assert parse(line) is None


def test_the_drivers_address_and_the_kernels_are_one() -> None:
    assert bus_key("00000000:05:00.0") == bus_key("0000:05:00") == bus_key("05:00.0")


def test_only_lines_after_the_start_are_told(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_text("NVRM: Xid (PCI:0000:05:00): 79, pid=1, name=x, old\n")
    found: SimpleQueue[KernelXid] = SimpleQueue()
    log = KernelLog(found, path=path)
    log.start()
    with path.open("a") as file:
        file.write("something else\nNVRM: Xid (PCI:0000:05:00): 31, pid=77, name=x, new\nNVRM: Xid (PCI:00")
    assert until(lambda: not found.empty() and found.get()).code == 31
    with path.open("a") as file:
        file.write("00:05:00): 13, pid=78, name=x, in two pieces\n")
    assert until(lambda: not found.empty() and found.get()).pid == 78
    log.end()
    log.join(5)


def test_a_log_that_may_not_be_read_is_no_trouble(tmp_path: Path) -> None:
    log = KernelLog(SimpleQueue(), path=tmp_path / "missing")
    log.start()
    log.join(5)
    assert log.source is None


# -- what follows from an event


def test_each_code_of_the_catalogue_has_words_and_a_policy() -> None:
    assert all(xid.words and xid.policy for xid in XIDS.values())
    assert xid_of(45).policy is Policy.NOTE  # our own kills cause it
    assert {xid_of(code).policy for code in (13, 31, 43)} == {Policy.JOB}
    assert {xid_of(code).policy for code in (48, 62, 64, 79, 95, 119, 120)} == {Policy.QUARANTINE}
    assert xid_of(4711).policy is Policy.SUSPECT


def test_a_lost_gpu_and_an_xid_are_faults_and_an_event_of_the_driver_is_none() -> None:
    lost = fault_in(event(None, "lost"))
    assert lost is not None and lost.policy is Policy.QUARANTINE
    assert fault_in(event(None, "recovered")) is None
    assert fault_in(GpuEvent(NOW, None, "nvml", "driver", None, "The driver was replaced")) is None


def test_the_gravest_explains_a_death_and_a_jobs_own_mistake_does_not() -> None:
    found = fault_of([event(43), event(94), event(79)])
    assert found is not None and found.code == 79
    assert fault_of([event(13), event(43), event(45)]) is None
    retried = fault_of([event(94)])
    assert retried is not None and retried.policy is Policy.RETRY


def test_errors_of_several_different_jobs_make_their_gpu_suspect() -> None:
    one_job_often = [(NOW - n, GPU, "1") for n in range(20)]
    assert suspects(one_job_often, now=NOW) == {}
    several = [(NOW - n, GPU, str(n)) for n in range(DIFFERENT_JOBS)]
    assert suspects(several, now=NOW) == {GPU: ["0", "1", "2"]}
    assert suspects(several, now=NOW + 90_000) == {}


# -- quarantine


def test_a_fault_is_kept_with_its_evidence_and_a_second_one_changes_nothing() -> None:
    held = imposed(None, fault(), boot_id=BOOT)
    assert held is not None and held.active and held.evidence == "NVRM: Xid ..."
    assert imposed(held, fault(at=NOW + 5), boot_id=BOOT) is held


def test_the_xid_that_comes_after_the_loss_says_why() -> None:
    lost = Fault(GPU, LOST, Policy.QUARANTINE, NOW, None, "the driver lost it")
    held = imposed(None, lost, boot_id=BOOT)
    assert imposed(held, fault(at=NOW + 2), boot_id=BOOT).reason == fault().words
    assert imposed(held, fault(at=NOW + 3600), boot_id=BOOT) is held


def test_what_was_known_at_the_release_does_not_count_again() -> None:
    held = imposed(None, fault(), boot_id=BOOT).released("hand", NOW + 100)
    assert imposed(held, fault(at=NOW + 99), boot_id=BOOT) is held
    again = imposed(held, fault(at=NOW + 101), boot_id=BOOT)
    assert again.active and again.strikes == 2


def test_a_fault_long_after_is_a_first_one() -> None:
    held = imposed(None, fault(), boot_id=BOOT).released("check", NOW + 100)
    assert imposed(held, fault(at=NOW + STRIKES_WITHIN_S + 1), boot_id=BOOT).strikes == 1


def test_a_check_is_due_after_a_reboot_for_a_suspect_at_once_and_by_hand_always() -> None:
    held = Quarantine(GPU, NOW, "XID 79", boot_id=BOOT)
    assert not wants_check(held, boot_id=BOOT, now=NOW)
    assert wants_check(held, boot_id=NEXT_BOOT, now=NOW)
    suspect = Quarantine(GPU, NOW, "XID 109", boot_id=BOOT, suspect=True)
    assert wants_check(suspect, boot_id=BOOT, now=NOW)
    assert wants_check(Quarantine(GPU, NOW, "XID 79", boot_id=BOOT, strikes=2, check_asked=True), boot_id=BOOT, now=NOW)


def test_the_second_time_within_a_day_only_a_person_lets_it_back() -> None:
    twice = Quarantine(GPU, NOW, "XID 79", boot_id=BOOT, strikes=2)
    assert not wants_check(twice, boot_id=NEXT_BOOT, now=NOW)


def test_a_check_that_failed_is_not_repeated_at_once() -> None:
    failed = Quarantine(GPU, NOW, "XID 109", boot_id=BOOT, suspect=True, checked_at=NOW)
    assert not wants_check(failed, boot_id=BOOT, now=NOW + 60)
    assert wants_check(failed, boot_id=BOOT, now=NOW + 3601)


def test_without_a_name_for_the_boot_nothing_counts_as_a_reboot() -> None:
    assert not wants_check(Quarantine(GPU, NOW, "XID 79", boot_id=BOOT), boot_id="", now=NOW)


def test_a_gpu_that_waits_for_a_reset_is_not_well() -> None:
    assert well(SlotNow("GPU", 0, recovery_action=0))
    assert not well(SlotNow("GPU", 0, recovery_action=1))
    assert not well(SlotNow("GPU", 0, state="suspect")) and not well(None)


# -- the check and the upgrade


def test_the_check_computes_and_compares(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "jobs.gpu_check", "--seconds", "0.1", "--device", "cpu"]
    assert subprocess.run(argv, capture_output=True, timeout=60).returncode == 0


def test_a_gpu_on_which_cuda_does_not_start_fails_the_check() -> None:
    argv = [sys.executable, "-m", "jobs.gpu_check", "--seconds", "0.1"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "GPU-none"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=env)
    assert (done.returncode, done.stdout) == (1, "CUDA cannot be initialised on it\n")


def test_an_exchanged_library_is_seen_in_the_memory_map(tmp_path: Path) -> None:
    old, new = tmp_path / "libnvidia-ml.so.580.1", tmp_path / "libnvidia-ml.so.580.2"
    old.touch()
    link = tmp_path / "libnvidia-ml.so.1"
    link.symlink_to(old.name)
    maps = tmp_path / "maps"
    line = "7f00-7f01 r-xp 00000000 08:01 42  "
    maps.write_text(f"{line}/usr/lib/libc.so.6\n{line}{old}\n")
    assert not library_exchanged(maps)
    new.touch()
    link.unlink()
    link.symlink_to(new.name)
    assert library_exchanged(maps)
    maps.write_text(f"{line}{old} (deleted)\n")
    assert library_exchanged(maps)
    assert not library_exchanged(tmp_path / "none")
