"""Build, load and script the fake libnvidia-ml.so.1.

fake = FakeNvml.create(folder, build(folder), ["3090", "3090"])
subprocess.Popen(argv, env=fake.env())         # children get the fake driver
fake.busy(0); fake.xid(0, 79); fake.lose(0)    # and see each change at once
"""

import ctypes
import hashlib
import mmap
import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from fake_nvml import layout
from fake_nvml.layout import FUNCTIONS, State

SOURCE = Path(__file__).with_name("fakenvml.c")
COMPILER = (
    "gcc",
    "-O1",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wl,-soname,libnvidia-ml.so.1",
)
XID_EVENT = 8
GPU_IS_LOST = 15
KIND_BITS = {"C": 1, "G": 2, "M": 4}


@dataclass(frozen=True)
class Profile:
    """What one model of GPU answers."""

    name: str
    brand: int
    arch: int
    capability: tuple[int, int]
    memory_bytes: int
    reserved_bytes: int
    limit_mw: int
    min_mw: int
    max_mw: int
    thresholds_c: tuple[int, ...]  # by NVML's threshold number; 0: not supported
    fans: int
    ecc: bool
    mig: int  # 0: not supported, 1: off
    max_clocks_mhz: tuple[int, int, int, int]  # graphics, SM, memory, video
    pcie_generation: int


PROFILES = {
    "3090": Profile(
        name="NVIDIA GeForce RTX 3090",
        brand=5,
        arch=7,
        capability=(8, 6),
        memory_bytes=24 << 30,
        reserved_bytes=340 << 20,
        limit_mw=350_000,
        min_mw=100_000,
        max_mw=366_000,
        thresholds_c=(98, 95, 0, 93, 65, 83, 91),
        fans=2,
        ecc=False,
        mig=0,
        max_clocks_mhz=(2100, 2100, 9751, 1950),
        pcie_generation=4,
    ),
    "4090": Profile(
        name="NVIDIA GeForce RTX 4090",
        brand=5,
        arch=8,
        capability=(8, 9),
        memory_bytes=24 << 30,
        reserved_bytes=434 << 20,
        limit_mw=450_000,
        min_mw=150_000,
        max_mw=600_000,
        thresholds_c=(95, 92, 0, 90, 65, 84, 90),
        fans=2,
        ecc=False,
        mig=0,
        max_clocks_mhz=(3105, 3105, 10_501, 2415),
        pcie_generation=4,
    ),
    "3060": Profile(
        name="NVIDIA GeForce RTX 3060",
        brand=5,
        arch=7,
        capability=(8, 6),
        memory_bytes=12 << 30,
        reserved_bytes=300 << 20,
        limit_mw=170_000,
        min_mw=100_000,
        max_mw=212_000,
        thresholds_c=(98, 95, 0, 93, 65, 83, 91),
        fans=2,
        ecc=False,
        mig=0,
        max_clocks_mhz=(2130, 2130, 7501, 1950),
        pcie_generation=4,
    ),
    "h200": Profile(
        name="NVIDIA H200",
        brand=14,
        arch=9,
        capability=(9, 0),
        memory_bytes=143_771 << 20,
        reserved_bytes=614 << 20,
        limit_mw=700_000,
        min_mw=200_000,
        max_mw=700_000,
        thresholds_c=(),
        fans=0,
        ecc=True,
        mig=1,
        max_clocks_mhz=(1980, 1980, 3201, 1545),
        pcie_generation=5,
    ),
}


def build(folder: Path, hide: Sequence[str] = ()) -> Path:
    """Compile the library once per content; returns its path. `hide` leaves symbols out, as an older driver does."""
    header = layout.header()
    key = hashlib.sha256((SOURCE.read_text() + header + repr(sorted(hide))).encode()).hexdigest()[:12]
    target = folder / f"nvml-{key}"
    library = target / "libnvidia-ml.so.1"
    if library.exists():
        return library
    target.mkdir(parents=True, exist_ok=True)
    (target / "layout.h").write_text(header)
    argv = [*COMPILER, f"-I{target}", str(SOURCE), "-o", str(library), "-lpthread"]
    if hide:
        (target / "hide.map").write_text("{ local: " + " ".join(f"{symbol};" for symbol in hide) + " };\n")
        argv.append(f"-Wl,--version-script={target / 'hide.map'}")
    subprocess.run(argv, check=True)
    return library


class FakeNvml:
    """One fake machine: its driver and up to eight GPUs. Attributes of `gpu[i]` may be set at any time."""

    def __init__(self, library: Path, path: Path) -> None:
        self.library, self.path = library, path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(State))
        self.state = State.from_buffer(self._map)
        self.gpu = self.state.gpu

    @classmethod
    def create(cls, folder: Path, library: Path, gpus: Sequence[str], driver: str = "580.95.05") -> "FakeNvml":
        """A new machine with idle GPUs of the named profiles; its state lives in `folder`."""
        path = folder / f"nvml-state-{uuid4().hex}"
        path.write_bytes(bytes(ctypes.sizeof(State)))
        fake = cls(library, path)
        fake.state.gpu_count = len(gpus)
        fake.state.driver_version = driver.encode()
        fake.state.nvml_version = f"13.{driver}".encode()
        fake.state.cuda_version = 13000
        for index, name in enumerate(gpus):
            fake._fit(index, PROFILES[name])
            fake.idle(index)
        fake.state.magic = layout.MAGIC
        return fake

    def _fit(self, index: int, profile: Profile) -> None:
        gpu = self.gpu[index]
        gpu.uuid = f"GPU-{0xFA6E0000 + index:08x}-0000-4000-8000-{index:012d}".encode()
        gpu.name, gpu.bus_id = profile.name.encode(), f"00000000:{1 + index * 0x10:02X}:00.0".encode()
        gpu.brand, gpu.arch = profile.brand, profile.arch
        gpu.cc_major, gpu.cc_minor = profile.capability
        gpu.memory_total, gpu.memory_reserved = profile.memory_bytes, profile.reserved_bytes
        gpu.limit_mw = gpu.default_mw = profile.limit_mw
        gpu.min_mw, gpu.max_mw = profile.min_mw, profile.max_mw
        gpu.fan_count, gpu.fan_rpm, gpu.ecc, gpu.mig = profile.fans, 900, profile.ecc, profile.mig
        gpu.threshold[: len(profile.thresholds_c)] = profile.thresholds_c
        gpu.max_clock[:] = profile.max_clocks_mhz
        gpu.pcie_width, gpu.pcie_max_width, gpu.pcie_max_generation = 16, 16, profile.pcie_generation

    # ---- loading

    def env(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment in which a child process finds this driver."""
        env = dict(os.environ if base is None else base)
        folders = [str(self.library.parent), env.get("LD_LIBRARY_PATH", "")]
        return env | {"LD_LIBRARY_PATH": ":".join(filter(None, folders)), "FAKE_NVML_STATE": str(self.path)}

    def preload(self) -> ctypes.CDLL:
        """Load it into this process, before nvmlInit: glibc then finds it by its SONAME. One machine per process."""
        return ctypes.CDLL(str(self.library), mode=ctypes.RTLD_GLOBAL)

    # ---- scripting

    def uuid(self, index: int) -> str:
        return self.gpu[index].uuid.decode()

    def idle(self, index: int) -> None:
        """36 °C, P8, 25 W."""
        gpu = self.gpu[index]
        gpu.util, gpu.memory_busy, gpu.temp, gpu.fan = 0, 0, 36, 30
        gpu.pstate, gpu.reasons, gpu.pcie_generation = 8, 1, 1
        gpu.clock[:] = (210, 210, 405, 555)
        self.power(index, 25_000)

    def busy(self, index: int, util: int = 97, power_mw: int = 345_000, temp: int = 71, mhz: int = 1695) -> None:
        """As in training: power-capped, P2."""
        gpu = self.gpu[index]
        gpu.util, gpu.memory_busy, gpu.temp, gpu.fan = util, 45, temp, 68
        gpu.pstate, gpu.reasons, gpu.pcie_generation = 2, 4, gpu.pcie_max_generation
        gpu.clock[:] = (mhz, mhz, gpu.max_clock[2], gpu.clock[3])
        self.power(index, power_mw)

    def power(self, index: int, milliwatts: int) -> None:
        """Draw this much from now on; the energy counter goes on from where it is."""
        gpu, now = self.gpu[index], time.time_ns()
        if gpu.energy_since_ns:
            gpu.energy_mj += gpu.power_mw * (now - gpu.energy_since_ns) // 10**9
        gpu.energy_since_ns, gpu.power_mw = now, milliwatts

    def count_throttling(self, index: int, reason: int, on: bool) -> None:
        """Let the counter of nanoseconds throttled for this reason (0 to 3) run, or stop it where it is."""
        gpu, now = self.gpu[index], time.time_ns()
        if gpu.throttled_since_ns[reason]:
            gpu.throttled_ns[reason] += now - gpu.throttled_since_ns[reason]
        gpu.throttled_since_ns[reason] = now if on else 0

    def processes(self, index: int, rows: Iterable[tuple[int, int, str]]) -> None:
        """Rows of pid, bytes and kinds (letters of C, G, M)."""
        gpu, gpu_rows = self.gpu[index], list(rows)
        for slot, (pid, memory, kinds) in zip(gpu.process, gpu_rows, strict=False):
            slot.pid, slot.memory, slot.kinds = pid, memory, sum(KIND_BITS[kind] for kind in kinds)
        gpu.process_count = len(gpu_rows)
        gpu.memory_used = sum(memory for _, memory, _ in gpu_rows)

    def fail(self, index: int, function: str, ret: int) -> None:
        """Let one call on one GPU return an NVML error; 0 heals it."""
        self.gpu[index].ret[FUNCTIONS.index(function)] = ret

    def slow(self, function: str, delay_us: int) -> None:
        """Let a call block this long."""
        self.state.delay_us[FUNCTIONS.index(function)] = delay_us

    def field(self, index: int, field_id: int, value: int = 0, *, ret: int = 0, value_type: int = 3) -> None:
        """Script the answer for one field of the batch."""
        field = self.gpu[index].field[field_id]
        field.ret, field.type, field.value, field.set = ret, value_type, value, 1

    def xid(self, index: int, code: int) -> None:
        event = self.state.event[self.state.event_seq % layout.MAX_EVENTS]
        event.gpu, event.type, event.data = index, XID_EVENT, code
        self.state.event_seq += 1

    def lose(self, index: int, ret: int = GPU_IS_LOST, xid: int | None = 79) -> None:
        """The GPU falls off the bus: each call on it fails from now on."""
        if xid is not None:
            self.xid(index, xid)
        self.gpu[index].lost = ret

    def recover(self, index: int) -> None:
        self.gpu[index].lost = 0

    def reload_driver(self) -> None:
        """Every handle dies and the energy counters start again."""
        for gpu in self.gpu:
            gpu.energy_mj, gpu.energy_since_ns = 0, time.time_ns()
            gpu.throttled_ns[:] = (0,) * 4
        self.state.generation += 1

    def calls(self, function: str) -> int:
        """How often the library was asked for this, by all processes together."""
        return int(self.state.calls[FUNCTIONS.index(function)])

    def all_calls(self) -> dict[str, int]:
        return {name: int(count) for name, count in zip(FUNCTIONS, self.state.calls, strict=True)}
