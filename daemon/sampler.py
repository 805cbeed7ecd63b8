"""The sampler's process: reads every GPU once a second, and nothing else.

    python -m daemon.sampler --home DIR [--cpu-slots N] [--retry-s S]    sample until SIGTERM
    python -m daemon.sampler --inventory                                 print the GPUs as JSON
    python -m daemon.sampler --checkup                                   and what may be wrong with them

It is a process of its own so that a wedged driver takes nobody along: when `gpu-now.json` gets older than 5 s, its
parent kills it and starts another. It dies with its parent, changes nothing on a GPU, and needs no privileges.
"""

import argparse
import json
import os
import select
import signal
import socket
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from daemon.driver import Driver, checkup, inventory
from daemon.kernel_log import KernelLog, KernelXid, bus_key
from daemon.machine import Machine
from daemon.owner import Whose
from daemon.recorder import Recorder
from daemon.samples import now_path, publish, unsaved_rows
from daemon.upgrade import UpgradeWatch
from jobs.process import die_with_parent
from jobs.rundir import read_json

HOLD = "the NVIDIA driver was replaced while in use: jobs start again after a reboot"
#: How long NVML's word on an XID waits for the kernel's.
KERNEL_FIRST_S = 2.0
SAVE_EVERY_S, THOROUGHLY_EVERY_S, PRUNE_EVERY_S = 10, 5, 3600
UPGRADE_CHECK_S = 60.0
NICENESS = 10
#: What the kernel's log said while no sampler could note it is read for so long.
LOOK_BACK_S = 600.0
JOB_MARK = b"OVERNIGHT_JOB_ID="
RIG_MARK = "OVERNIGHT_MARK"


class Sampler:
    """One round per `tick`: read, record, publish. Trouble of the driver or the disk ends none."""

    def __init__(
        self,
        home: Path,
        *,
        cpu_slots: int | None,
        retry_s: float,
        kernel_log: Path | None = None,
        upgrade_check_s: float = UPGRADE_CHECK_S,
        whose: Whose | None = None,
    ) -> None:
        self._now_path = now_path(home)
        self._driver = Driver(retry_s=retry_s, watch_xids=True, whose=whose)
        self._kernel_xids: SimpleQueue[KernelXid] = SimpleQueue()
        before = read_json(self._now_path) or {}
        self._kernel_log = KernelLog(self._kernel_xids, path=kernel_log, since=_interrupted_at(before, now=time.time()))
        self._kernel_log.start()
        self._upgrades = UpgradeWatch(upgrade_check_s)
        self._upgrades.start()
        #: NVML's, which wait for the kernel's word on the same: only that names the process.
        self._waiting_xids: deque[tuple[float, str, int]] = deque()
        self._recorder = Recorder(home)
        self._recorder.adopt(unsaved_rows(before))
        self._cpu_slots = cpu_slots
        self._machine: Machine | None = None
        self._states: dict[str, str] = {}
        self._driver_problem: str | None = None
        self._disk_problems: dict[str, str] = {}
        self._ticks = 0

    def tick(self, *, now: float, at: float) -> None:
        """Sample the second of `now` (wall clock); `at` is the monotonic clock."""
        due, self._ticks = self._ticks, self._ticks + 1
        self._sample_gpus(int(now), at, thoroughly=due % THOROUGHLY_EVERY_S == 0)
        self._sample_machine(int(now))
        self._note_xids(now, at)
        self._note_changes(now)
        if due % SAVE_EVERY_S == 0 or self._recorder.has_events:
            self._write("saved", lambda: self._recorder.save(now=now))
        if due % PRUNE_EVERY_S == 0:
            self._write("pruned", lambda: self._recorder.prune(now=now))
        self._write("published", lambda: publish(self._now_path, self._live(now)))

    def close(self, *, now: float) -> None:
        """Save what waits."""
        self._kernel_log.end()
        self._upgrades.end()
        self._write("saved", lambda: self._recorder.save(now=now))
        self._recorder.close()

    def _sample_gpus(self, ts: int, at: float, *, thoroughly: bool) -> None:
        for uuid, sample in self._driver.read(ts, at=at, thoroughly=thoroughly).items():
            card = self._driver.cards[uuid]
            self._recorder.know(card.identity)
            self._recorder.add(uuid, sample)
            if thoroughly:
                self._recorder.see(ts, uuid, card.processes)

    def _sample_machine(self, ts: int) -> None:
        if self._machine is None:
            wanted = self._cpu_slots if self._cpu_slots is not None else int(not self._driver.cards)
            if not wanted:
                return
            self._machine = Machine(wanted)
        for slot, sample in self._machine.read(ts).items():
            self._recorder.know(self._machine.identity(slot))
            self._recorder.add(slot, sample)

    def _note_xids(self, now: float, at: float) -> None:
        while not self._kernel_xids.empty():
            xid = self._kernel_xids.get()
            by_bus = {bus_key(card.gpu.bus_id): uuid for uuid, card in self._driver.cards.items() if card.gpu.bus_id}
            if uuid := by_bus.get(xid.bus):
                self._note_xid(xid.at or now, at, uuid, "kernel", xid.code, xid.text, xid.pid)
        while not self._driver.xids.empty():
            uuid, code = self._driver.xids.get()
            self._waiting_xids.append((at, uuid, code))
        patience_s = KERNEL_FIRST_S if self._kernel_log.source else 0.0
        waiting, self._waiting_xids = self._waiting_xids, deque()
        for since, uuid, code in waiting:
            # a GPU that is gone has no time to wait: its XID must stand before its loss
            if at - since >= patience_s or self._driver.cards[uuid].state in ("lost", "stale"):
                self._note_xid(now, at, uuid, "nvml", code, f"XID {code}")
            else:
                self._waiting_xids.append((since, uuid, code))

    def _note_xid(
        self, now: float, at: float, uuid: str, source: str, code: int, text: str, pid: int | None = None
    ) -> None:
        job = job_of(pid) if pid else None
        if self._recorder.note(now, uuid, source, "xid", text, code, pid=pid, job=job):
            _say(
                f"GPU {uuid} reported XID {code} ({source}{f', pid {pid}' if pid else ''}{f', job {job}' if job else ''})"
            )
        self._driver.silence(uuid, code, at=at)

    def _note_changes(self, now: float) -> None:
        for uuid, card in self._driver.cards.items():
            if card.state != self._states.get(uuid, "ok"):
                text = "answers again" if card.state == "ok" else card.reason
                self._recorder.note(now, uuid, "nvml", "recovered" if card.state == "ok" else card.state, text)
                _say(f"GPU {card.gpu.index} ({uuid}) is {card.state}: {text}")
            self._states[uuid] = card.state
        if self._driver.problem != self._driver_problem:
            self._driver_problem = self._driver.problem
            text = self._driver_problem or "The NVIDIA driver answers."
            if self._driver.cards:  # on a rig without GPUs, no driver is no event
                self._recorder.note(now, None, "nvml", "driver", text)
            _say(text)

    def _live(self, now: float) -> dict[str, object]:
        """What `gpu-now.json` says; as a file that is young, it is the heartbeat too."""
        slots = {uuid: card.now().to_json() for uuid, card in self._driver.cards.items()}
        if self._machine:
            slots |= {slot: self._machine.now(slot).to_json() for slot in self._machine.slots}
        return {
            "at": now,
            "pid": os.getpid(),
            "source": "nvml" if self._driver.cards else "cpu",
            "problem": " ".join(filter(None, [self._driver.problem, *self._disk_problems.values()])) or None,
            "hold": HOLD if self._driver.replaced or self._upgrades.replaced else None,
            "kernel_log": self._kernel_log.source,
            "slots": slots,
            "unsaved": self._recorder.unsaved(),
        }

    def _write(self, what: str, action: Callable[[], None]) -> None:
        """Full disks come and go: say so, keep the rows, and go on."""
        try:
            action()
            self._disk_problems.pop(what, None)
        except (sqlite3.Error, OSError) as error:
            problem = f"Telemetry cannot be {what} ({error})."
            if self._disk_problems.get(what) != problem:
                _say(problem)
            self._disk_problems[what] = problem


class StopSignal:
    """SIGTERM and SIGINT as something to wait for, so that none interrupts a round."""

    def __init__(self) -> None:
        self._received, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        signal.set_wakeup_fd(self._sender.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def wait(self, delay_s: float) -> bool:
        """Whether one came within the delay."""
        return bool(select.select([self._received], [], [], delay_s)[0])


def job_of(pid: int) -> str | None:
    """The job that a process belongs to, by the mark in its environment; None when it is gone or not ours."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    found = [entry.partition(b"=")[2] for entry in entries if entry.startswith(JOB_MARK)]
    return found[0].decode(errors="replace") if found else None


def _interrupted_at(before: Mapping[str, Any], *, now: float) -> float | None:
    """When the sampler before this one spoke last, where that is not long ago."""
    at = before.get("at")
    return at if isinstance(at, float) and 0 <= now - at <= LOOK_BACK_S else None


def own_mark() -> str:
    """The mark that this rig's processes carry (daemon.supervisor), as the daemon gave it to this one, too."""
    value = os.environ.get(RIG_MARK)
    return f"{RIG_MARK}={value}" if value else ""


def run(
    home: Path,
    *,
    cpu_slots: int | None,
    retry_s: float,
    kernel_log: Path | None = None,
    upgrade_check_s: float = UPGRADE_CHECK_S,
) -> None:
    """Sample in the middle of each second until a stop signal or the parent's end. A late round is skipped."""
    stop, parent = StopSignal(), os.getppid()
    die_with_parent(signal.SIGTERM, parent)
    os.nice(NICENESS)
    sampler = Sampler(
        home,
        cpu_slots=cpu_slots,
        retry_s=retry_s,
        kernel_log=kernel_log,
        upgrade_check_s=upgrade_check_s,
        whose=Whose(own_mark(), parent),
    )
    sampler.tick(now=time.time(), at=time.monotonic())
    while not stop.wait(until_next_round_s(time.time())) and os.getppid() == parent:
        sampler.tick(now=time.time(), at=time.monotonic())
    sampler.close(now=time.time())


def until_next_round_s(now: float) -> float:
    """From `now` to the middle of a second that has had no round: there, no jitter makes one second two or none."""
    delay_s = (0.5 - now) % 1.0
    return delay_s if delay_s > 0.05 else delay_s + 1.0


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m daemon.sampler", description="Sample every GPU once a second.")
    parser.add_argument("--home", type=Path, help="folder of telemetry.sqlite and gpu-now.json")
    parser.add_argument("--inventory", action="store_true", help="print the GPUs as JSON and end")
    parser.add_argument("--checkup", action="store_true", help="print what may be wrong with them as JSON and end")
    parser.add_argument("--cpu-slots", type=int, metavar="N", help="CPU slots to sample (default: 1 without a GPU)")
    parser.add_argument("--retry-s", type=float, default=30.0, metavar="S", help="when a lost GPU is asked again")
    parser.add_argument("--kernel-log", type=Path, metavar="FILE", help="instead of /dev/kmsg or the journal")
    parser.add_argument("--upgrade-check-s", type=float, default=UPGRADE_CHECK_S, metavar="S", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.checkup:
        die_with_parent(signal.SIGTERM, os.getppid())
        log = KernelLog(SimpleQueue(), path=options.kernel_log)
        print(json.dumps({**checkup(), "kernel_log": log.source}))
        log.end()
    elif options.inventory:
        die_with_parent(signal.SIGTERM, os.getppid())
        print(json.dumps(asdict(inventory())))
    elif options.home:
        run(
            options.home,
            cpu_slots=options.cpu_slots,
            retry_s=options.retry_s,
            kernel_log=options.kernel_log,
            upgrade_check_s=options.upgrade_check_s,
        )
    else:
        parser.error("one of --home and --inventory is needed")


def _say(text: str) -> None:
    print(f"sampler: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
