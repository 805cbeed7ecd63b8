"""What goes wrong on a rig, played on the fake driver: one function for each, to be called while everything runs."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fake_nvml.fakenvml import FakeNvml

#: Clock-event reasons, as NVML has them.
POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x004, 0x008, 0x020, 0x040, 0x080
#: The place of each reason's counter in `throttled_ns`.
COUNTER = {POWER_CAP: 0, SW_THERMAL: 1, HW_THERMAL: 2, POWER_BRAKE: 3}
VERSION_MISMATCH = 18
UNEQUAL = ("3090", "4090", "3060", "h200")


@dataclass(frozen=True)
class KernelLogFile:
    """The kernel's log as a file, for a sampler that was given its path."""

    path: Path

    def xid(self, fake: FakeNvml, index: int, code: int, *, pid: int | None = None, text: str = "") -> None:
        """The line that the kernel writes for an XID."""
        bus = fake.gpu[index].bus_id.decode().lower().removeprefix("0000").partition(".")[0]
        who = f"pid={pid}, name=python, " if pid else "pid='<unknown>', name=<unknown>, "
        self.line(f"NVRM: Xid (PCI:{bus}): {code}, {who}{text or 'GPU has fallen off the bus.'}")

    def line(self, text: str) -> None:
        """Any line."""
        with self.path.open("a") as file:
            file.write(f"6,1234,{time.monotonic_ns() // 1000},-;{text}\n")


def heat(fake: FakeNvml, index: int, temp: int = 94) -> None:
    """At its thermal limit: hot, slow, and the counters of the driver run."""
    fake.busy(index, power_mw=250_000, temp=temp, mhz=1200)
    fake.gpu[index].fan = 100
    throttle(fake, index, SW_THERMAL)


def throttle(fake: FakeNvml, index: int, *reasons: int) -> None:
    """Slowed down by these from now on; by nothing when none is named."""
    gpu = fake.gpu[index]
    gpu.reasons = sum(reasons)
    for reason, place in COUNTER.items():
        fake.count_throttling(index, place, reason in reasons)


def foreign_process(fake: FakeNvml, index: int, pid: int, memory_bytes: int = 6 << 30, kinds: str = "G") -> None:
    """Somebody plays a game, or computes, beside us."""
    mine = [(p.pid, p.memory, "C") for p in fake.gpu[index].process[: fake.gpu[index].process_count]]
    fake.processes(index, [*mine, (pid, memory_bytes, kinds)])


def fall_off_the_bus(fake: FakeNvml, index: int, log: KernelLogFile | None = None) -> None:
    """XID 79: each call fails from now on."""
    if log:
        log.xid(fake, index, 79)
    fake.lose(index, xid=79)


def firmware_timeout(fake: FakeNvml, index: int, log: KernelLogFile | None = None) -> None:
    """XID 119: whoever asks waits for seconds."""
    if log:
        log.xid(fake, index, 119, text="Timeout after 6s of waiting for RPC response from GPU0 GSP!")
    fake.xid(index, 119)


def hang(fake: FakeNvml, function: str = "Utilization", seconds: float = 60.0) -> None:
    """The driver is wedged: this call blocks whoever makes it. 0 frees it."""
    fake.slow(function, round(seconds * 1e6))


def upgrade_driver(fake: FakeNvml) -> None:
    """A package manager exchanges the library under everybody: who has it goes on, who is new is refused."""
    draft = fake.library.with_name(f".new.{os.getpid()}")
    shutil.copy2(fake.library, draft)
    draft.replace(fake.library)
    fake.state.init_ret = VERSION_MISMATCH


def ask_for_reset(fake: FakeNvml, index: int, action: int = 1) -> None:
    """XID 154, and the driver asks for a recovery until it gets one."""
    fake.xid(index, 154)
    fake.gpu[index].recovery = action


def poor_riser(fake: FakeNvml, index: int) -> None:
    """Four lanes instead of sixteen, and packets that are sent again."""
    fake.gpu[index].pcie_width, fake.gpu[index].pcie_replays = 4, 1234


def memory_errors(fake: FakeNvml, index: int, count: int = 2) -> None:
    """A server card's double-bit errors."""
    fake.gpu[index].ecc_uncorrected = count
    fake.xid(index, 48)


#: By the name under which the fault matrix shows them.
SCENARIOS: dict[str, Callable[[FakeNvml, int], None]] = {
    "heat": heat,
    "power brake": lambda fake, index: throttle(fake, index, HW_SLOWDOWN, POWER_BRAKE),
    "falls off the bus (XID 79)": fall_off_the_bus,
    "firmware timeout (XID 119)": firmware_timeout,
    "driver asks for a reset (XID 154)": ask_for_reset,
    "double-bit errors (XID 48)": memory_errors,
    "poor riser": poor_riser,
}
