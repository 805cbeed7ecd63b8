"""GPUs that are out of service for a fault: who is put there, who returns. The daemon's side of `daemon.faults`.

A GPU leaves quarantine by a person (`overnight gpus release`), or by a check that passed: at once where the GPU is only
suspect, after a reboot otherwise, and the second time within a day by a person only. Kept in Redis, over restarts.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from daemon import telemetry
from daemon.faults import DIFFERENT_WITHIN_S, LOST, Fault, Policy, fault_in, suspects
from daemon.plan import Facts
from daemon.samples import SlotNow
from daemon.settings import Settings
from daemon.store import Store
from daemon.supervisor import MARK, mark
from daemon.telemetry import GpuEvent

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: A second fault within this time: no check lets the GPU back, a person does.
STRIKES_WITHIN_S = 86_400.0
#: An XID so soon after the loss of a GPU says why it was lost.
EXPLAINED_WITHIN_S = 10.0
CHECK_TIMEOUT_S = 120.0
#: The check has this long to be started after a reboot: the sampler must have seen the GPU.
CHECK_EVERY_S = 3600.0
BY_HAND, BY_CHECK = "hand", "check"
#: How the planner's reason for such a GPU begins.
OUT_OF_SERVICE = "out of service"


@dataclass(frozen=True)
class Quarantine:
    """One GPU's record. It stays when the GPU returns: a second fault soon after weighs more."""

    slot: str
    at: float
    reason: str
    evidence: str = ""
    boot_id: str = ""
    #: A check may let it back without a reboot.
    suspect: bool = False
    strikes: int = 1
    check_asked: bool = False
    checked_at: float | None = None
    check_result: str = ""
    released_at: float | None = None
    released_by: str = ""

    @property
    def active(self) -> bool:
        """Whether the GPU is out of service."""
        return self.released_at is None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read what `asdict` wrote."""
        return cls(**record)

    def released(self, by: str, now: float) -> Self:
        """It takes jobs again."""
        return replace(self, released_at=now, released_by=by, check_asked=False)


def imposed(before: Quarantine | None, fault: Fault, *, boot_id: str) -> Quarantine:
    """The record after a fault; the same one when it tells nothing new."""
    if before is not None and before.active:
        tells_why = before.reason == LOST and fault.code is not None and fault.at - before.at <= EXPLAINED_WITHIN_S
        return replace(before, reason=fault.words, evidence=fault.evidence[:500]) if tells_why else before
    if before is not None and before.released_at is not None and fault.at <= before.released_at:
        return before  # told before the GPU was released: whoever released it knew
    again = before is not None and fault.at - before.at <= STRIKES_WITHIN_S
    return Quarantine(
        slot=fault.slot,
        at=fault.at,
        reason=fault.words,
        evidence=fault.evidence[:500],
        boot_id=boot_id,
        suspect=fault.policy is Policy.SUSPECT,
        strikes=before.strikes + 1 if again and before is not None else 1,
    )


def wants_check(held: Quarantine, *, boot_id: str, now: float) -> bool:
    """Whether a check is due: asked for by hand, for a suspect at once, for others once after a reboot."""
    if not held.active:
        return False
    if held.check_asked:
        return True
    if held.strikes > 1 or (held.checked_at is not None and now - held.checked_at < CHECK_EVERY_S):
        return False
    return held.suspect or (bool(boot_id) and boot_id != held.boot_id and not held.checked_at)


def well(now: SlotNow | None) -> bool:
    """Whether the sampler sees nothing wrong with the GPU."""
    return now is not None and now.state == "ok" and not now.recovery_action


def boot_id() -> str:
    """The name of this boot of the machine; empty where there is none."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def read(store: Store, rig: str) -> dict[str, Quarantine]:
    """Every GPU's record, those that have returned too."""
    return {slot: Quarantine.from_json(record) for slot, record in store.quarantines(rig).items()}


def impose(store: Store, rig: str, fault: Fault) -> None:
    """Take a GPU out of service."""
    before = read(store, rig).get(fault.slot)
    here = boot_id()
    after = _change(store, rig, fault.slot, lambda held: imposed(held, fault, boot_id=here))
    if after is not None and after.active and after != before:
        log.error("%s is taken out of service: %s", fault.slot, fault.words)


def release(store: Store, rig: str, slot: str, *, by: str, now: float) -> bool:
    """Put a GPU back into service; whether it was out of it."""
    before = read(store, rig).get(slot)
    if before is None or not before.active:
        return False
    _change(store, rig, slot, lambda held: held.released(by, now) if held and held.active else held)
    log.warning("%s is in service again (by %s)", slot, by)
    return True


def ask_for_check(store: Store, rig: str, slot: str) -> bool:
    """Let the daemon check a GPU that is out of service; whether it is."""
    after = _change(
        store,
        rig,
        slot,
        lambda held: replace(held, check_asked=True, check_result="") if held and held.active else held,
    )
    return after is not None and after.active


def _change(
    store: Store, rig: str, slot: str, step: Callable[[Quarantine | None], Quarantine | None]
) -> Quarantine | None:
    def plain(record: dict[str, Any] | None) -> dict[str, Any] | None:
        after = step(Quarantine.from_json(record) if record else None)
        return asdict(after) if after else None

    after = store.change_quarantine(rig, slot, plain)
    return Quarantine.from_json(after) if after else None


class Warden:
    """Follows the sampler's events in the daemon, and runs the checks. Never waits for a driver."""

    def __init__(self, settings: Settings, store: Store, *, began: float, boot: Callable[[], str] = boot_id) -> None:
        self._settings, self._store, self._boot = settings, store, boot
        self._since, self._last_event = began, 0
        self._marks: list[tuple[float, str, str]] = []
        self._checks: dict[str, tuple[subprocess.Popen[str], float]] = {}

    def look(self, facts: Facts) -> None:
        """Act on what has happened since the last look."""
        slots = {slot.slot.id: slot.job for slot in facts.slots if slot.slot.is_gpu}
        if not slots:
            return
        for event in telemetry.events(self._settings.home, self._since, facts.now + 60, after=self._last_event):
            self._last_event = max(self._last_event, event.id)
            if event.slot in slots:
                self._judge(event, event.job or slots[event.slot])
        for slot, jobs in suspects(self._marks, now=facts.now).items():
            self._marks = [mark for mark in self._marks if mark[1] != slot]
            words = f"jobs {', '.join(jobs)} had errors of their own on it"
            impose(self._store, self._settings.rig, Fault(slot, words, Policy.SUSPECT, facts.now))
        self._check(slots, facts.now)

    def pids(self) -> list[int]:
        """The checks that run."""
        return [process.pid for process, _ in self._checks.values()]

    def end(self) -> None:
        """Leave no check behind."""
        for process, _ in self._checks.values():
            process.kill()
            process.wait()
        self._checks.clear()

    def _judge(self, event: GpuEvent, job: str | None) -> None:
        fault = fault_in(event)
        if fault is None:
            return
        if fault.policy in (Policy.QUARANTINE, Policy.SUSPECT):
            impose(self._store, self._settings.rig, fault)
        elif fault.policy is Policy.JOB and job:
            self._marks = [mark for mark in self._marks if event.at - mark[0] <= DIFFERENT_WITHIN_S]
            self._marks.append((event.at, fault.slot, job))

    def _check(self, slots: Mapping[str, str | None], now: float) -> None:
        self._collect(now)
        held = {slot: one for slot, one in read(self._store, self._settings.rig).items() if slot in slots}
        live = telemetry.latest(self._settings.home, now=now)
        for slot, one in held.items():
            if slot in self._checks or slots[slot] or not wants_check(one, boot_id=self._boot(), now=now):
                continue
            if well(live.slots.get(slot)):
                self._checks[slot] = (self._start(slot), time.monotonic())
            elif one.check_asked:
                self._tell(slot, "the driver does not see it well", now)

    def _collect(self, now: float) -> None:
        for slot, (process, started) in list(self._checks.items()):
            if process.poll() is None:
                if time.monotonic() - started < CHECK_TIMEOUT_S:
                    continue
                process.kill()  # it may sit in the kernel: nobody waits for it
            del self._checks[slot]
            if process.returncode == 0:
                release(self._store, self._settings.rig, slot, by=BY_CHECK, now=now)
                continue
            said = _last_line(process) if process.returncode is not None else f"no end within {CHECK_TIMEOUT_S:g} s"
            log.error("the check of %s failed: %s", slot, said)
            self._tell(slot, said, now)

    def _tell(self, slot: str, result: str, now: float) -> None:
        def failed(held: Quarantine | None) -> Quarantine | None:
            if held is None or not held.active:  # somebody has released it meanwhile
                return held
            return replace(held, check_asked=False, checked_at=now, check_result=result)

        _change(self._store, self._settings.rig, slot, failed)

    def _start(self, slot: str) -> "subprocess.Popen[str]":
        argv = list(self._settings.check_gpu) or [sys.executable, "-m", "jobs.gpu_check"]
        pin = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": slot, "OVERNIGHT_GPU_UUID": slot}
        pin[MARK] = mark(self._settings)  # the next daemon finds it, should this one be killed
        log.info("%s is checked: %s", slot, " ".join(argv))
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **pin}, start_new_session=True,
        )  # fmt: skip


def words_of(held: Collection[Quarantine]) -> dict[str, str]:
    """For the planner: why each GPU that is out of service gets no job."""
    return {one.slot: f"{OUT_OF_SERVICE} ({one.reason})" for one in held if one.active}


def _last_line(process: "subprocess.Popen[str]") -> str:
    text = process.stdout.read() if process.stdout else ""
    lines = [line for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit status {process.returncode}")[:300]
