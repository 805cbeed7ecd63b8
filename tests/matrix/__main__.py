"""The fault matrix: what a real rig does when its GPUs fail, played on the fake driver.

    python tests/matrix                          run all and print the table
    python tests/matrix --write docs/telemetry.md     and put it between the page's two marks
    python tests/matrix heat xid-79              some of it

Each scenario gets a rig of its own (daemon, workers, sampler, embedded Redis) with two RTX 3090, a running job, and a kernel
log of its own. Times are from the fault to what is told, as the rig's records say it.
"""

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "system"), str(TESTS), str(TESTS.parent)]

from conftest import Rig  # noqa: E402 - the rig of tests/system
from fake_nvml import scenarios  # noqa: E402
from fake_nvml.fakenvml import FakeNvml, build  # noqa: E402
from fake_nvml.scenarios import KernelLogFile  # noqa: E402
from until import until  # noqa: E402

from daemon import process_tree, quarantine, telemetry  # noqa: E402
from daemon.contention import LASTS_S  # noqa: E402
from daemon.facts import Ledger  # noqa: E402
from daemon.samples import SlotNow  # noqa: E402
from daemon.settings import Settings  # noqa: E402
from daemon.situation import Facts  # noqa: E402
from jobs.model import State  # noqa: E402

BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"
WITHIN_S = 60.0


@dataclass
class Scene:
    """One rig, its driver and its job, and what was seen when."""

    rig: Rig
    fake: FakeNvml
    log: KernelLogFile
    job: str = ""
    gpu: int = 0
    began: float = 0.0
    seen: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.rig.store)

    @property
    def uuid(self) -> str:
        return self.fake.uuid(self.gpu)

    @property
    def live(self) -> telemetry.Live:
        return telemetry.latest(self.rig.settings.home, now=time.time())

    @property
    def slot(self) -> SlotNow:
        return self.live.slots[self.uuid]

    def facts(self) -> Facts:
        return self.ledger.facts(time.time(), self.rig.settings)

    def child(self) -> int:
        """The job's own program."""
        return until(lambda: next(iter(process_tree.children(self.rig.child(self.uuid))), 0), within_s=30)

    def events(self) -> list[telemetry.GpuEvent]:
        return telemetry.events(self.rig.settings.home, self.began - 1, 2e9)

    @property
    def passed_s(self) -> float:
        """Since the fault."""
        return time.time() - self.began

    def until_looked(self) -> None:
        """The daemon has had a whole look at what is told by now, and has done what it would do."""
        now = time.time()
        until(
            lambda: (self.rig.store.last_beat("rig") or {}).get("at", 0.0) > now,
            within_s=WITHIN_S,
            evidence=self.rig.evidence,
        )

    def expect(self, words: str, check: Callable[[], object]) -> None:
        """Wait for it, and note how long after the fault it came."""
        until(check, within_s=WITHIN_S, evidence=self.rig.evidence)
        self.seen.append((words, time.time() - self.began))

    def expect_goes_on(self) -> None:
        """The job runs on: it has saved what it had not saved before."""
        before = self._count()
        self.expect("the job goes on", lambda: self._count() > before)

    def _count(self) -> int:
        """How far the job is, by the file in which it saves."""
        path = self.rig.folder(self.job).checkpoints / "count"
        return int(path.read_text()) if path.exists() else 0

    def expect_out(self) -> None:
        self.expect("GPU out of service", lambda: (held := quarantine.read(self.rig.store, "rig").get(self.uuid)) and held.active)  # fmt: skip

    def expect_event(self, kind: str, code: int | None = None) -> None:
        name = f"XID {code}" if code else kind
        self.expect(f"event “{name}”", lambda: any(e.kind == kind and e.code == code for e in self.events()))

    def expect_moved(self) -> None:
        """The job died of it, as the driver's error ends it, and runs on the other GPU."""
        os.kill(self.child(), signal.SIGKILL)
        other = self.fake.uuid(1 - self.gpu)
        self.expect("the job runs on the other GPU", lambda: (job := self.rig.job(self.job)).state is State.RUNNING and job.slots == (other,))  # fmt: skip


def heat(scene: Scene) -> None:
    """at its thermal limit, 94 °C"""
    scenarios.heat(scene.fake, scene.gpu)
    scene.expect("reason in the live view", lambda: "sw_thermal_slowdown" in scene.slot.throttle_reasons)
    scene.expect_goes_on()


def brake(scene: Scene) -> None:
    """the power supply brakes it"""
    scenarios.throttle(scene.fake, scene.gpu, scenarios.HW_SLOWDOWN, scenarios.POWER_BRAKE)
    scene.expect("reason in the live view", lambda: "hw_power_brake_slowdown" in scene.slot.throttle_reasons)
    scene.expect("its seconds are counted", lambda: scene.slot.throttled_s.get("power_brake", 0) > 0)
    scene.expect_goes_on()


def foreign(scene: Scene) -> None:
    """somebody's process takes 6 GiB beside the job"""
    scenarios.foreign_process(scene.fake, scene.gpu, os.getpid(), kinds="C")
    scene.expect("process in the live view", lambda: os.getpid() in [p.pid for p in scene.slot.processes])
    scene.expect("no new job beside it", lambda: scene.facts().slots[scene.gpu].problem)
    scene.expect_goes_on()
    scene.expect(
        "its memory told apart from the job's for half a minute",
        lambda: scene.slot.foreign_memory_bytes and scene.passed_s > LASTS_S + 10,
    )
    scene.rig.cancel(scene.job)
    ended = scene.rig.until_ended(scene.job)
    used = ended.attempts[-1].usage
    assert used.get("contended_s", 0) >= LASTS_S and "pid" in used["contended_by"], used
    scene.seen.append((f"the job's record: {used['contended_s']:.0f} s used by others, too", 0.0))


def xid_31(scene: Scene) -> None:
    """the job's own mistake: XID 31 with its pid in the kernel's log"""
    scene.log.xid(scene.fake, scene.gpu, 31, pid=scene.child(), text="MMU Fault")
    scene.expect("event with the job's number", lambda: any(e.job == scene.job for e in scene.events()))
    scene.until_looked()
    assert scene.facts().slots[scene.gpu].problem is None
    scene.seen.append(("the GPU stays in service", 0.0))


def xid_79(scene: Scene) -> None:
    """falls off the bus: XID 79, then each call fails"""
    scenarios.fall_off_the_bus(scene.fake, scene.gpu, scene.log)
    scene.expect_event("xid", 79)
    scene.expect_out()
    scene.expect_moved()


def lost(scene: Scene) -> None:
    """lost without a word"""
    scene.fake.lose(scene.gpu, xid=None)
    scene.expect_event("lost")
    scene.expect_out()
    scene.expect_moved()


def xid_48(scene: Scene) -> None:
    """double-bit memory errors: XID 48 by NVML alone"""
    scenarios.memory_errors(scene.fake, scene.gpu)
    scene.expect_event("xid", 48)
    scene.expect_out()
    scene.expect_moved()


def xid_109(scene: Scene) -> None:
    """suspect: XID 109, and the check passes"""
    scene.log.xid(scene.fake, scene.gpu, 109, text="Context switch timeout")
    scene.expect_event("xid", 109)
    scene.expect_out()
    scene.rig.cancel(scene.job)
    scene.expect("checked when free, and back in service", lambda: not quarantine.read(scene.rig.store, "rig")[scene.uuid].active)  # fmt: skip


def xid_119(scene: Scene) -> None:
    """its firmware is silent: XID 119"""
    scenarios.firmware_timeout(scene.fake, scene.gpu, scene.log)
    scene.expect_event("xid", 119)
    scene.expect("it is asked no more", lambda: scene.slot.state == "stale")
    scene.expect_out()
    scene.expect_moved()


def reset(scene: Scene) -> None:
    """the driver asks for a reset (XID 154)"""
    scenarios.ask_for_reset(scene.fake, scene.gpu)
    scene.expect("no new job for it", lambda: scene.facts().slots[scene.gpu].problem)
    scene.expect_goes_on()
    scene.fake.gpu[scene.gpu].recovery = 0
    scene.expect("after the reset: in service", lambda: scene.facts().slots[scene.gpu].problem is None)


def hang(scene: Scene) -> None:
    """the driver is wedged: every call blocks; the kernel says why (XID 119) while nobody can note it"""
    first = scene.live.pid
    scenarios.hang(scene.fake)
    scene.expect("sampler told stale", lambda: scene.live.stale)
    scene.log.xid(scene.fake, scene.gpu, 119, text="Timeout after 6s of waiting for RPC response from GPU0 GSP!")
    scene.expect_goes_on()
    scene.expect("sampler ended", lambda: first is not None and not process_tree.is_alive(first))
    scenarios.hang(scene.fake, seconds=0)
    scene.expect("driver free again: sampled anew", lambda: not scene.live.stale and scene.live.pid != first)
    scene.expect_event("xid", 119)


def reload(scene: Scene) -> None:
    """the driver is reloaded, counters begin at 0"""
    scene.fake.reload_driver()
    scene.expect("told stale", lambda: scene.slot.state == "stale")
    scene.expect("opened anew", lambda: scene.slot.state == "ok" and scene.live.problem is None)
    scene.expect_goes_on()


def upgrade(scene: Scene) -> None:
    """a package manager replaces the driver"""
    scenarios.upgrade_driver(scene.fake)
    scene.expect("queue held, with the reason", lambda: scene.facts().hold)
    scene.expect_goes_on()


def killed(scene: Scene) -> None:
    """the sampler is killed (`kill -9`)"""
    pid = scene.live.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    scene.expect("another one samples", lambda: scene.live.pid != pid and not scene.live.stale)
    scene.expect_goes_on()


SCENARIOS: dict[str, Callable[[Scene], None]] = {
    "heat": heat, "power-brake": brake, "foreign": foreign, "xid-31": xid_31, "xid-48": xid_48, "xid-79": xid_79,
    "lost": lost, "xid-109": xid_109, "xid-119": xid_119, "reset": reset, "hang": hang, "reload": reload,
    "upgrade": upgrade, "killed": killed,
}  # fmt: skip


@contextmanager
def stage(folder: Path) -> Iterator[Scene]:
    """A rig with a running job, on two busy cards."""
    home = Path(tempfile.mkdtemp(prefix="on-"))
    fake = FakeNvml.create(folder, build(folder), ["3090", "3090"])
    log = KernelLogFile(home.with_suffix(".kmsg"))
    log.path.touch()
    values = {"rig": "rig", "port": 0, "slots": "auto", "timezone": "UTC", "warm_start": False, "grace_s": 2.0,
              "kernel_log": log.path, "check_gpu": "true", "upgrade_check_s": 5.0}  # fmt: skip
    given = {f"OVERNIGHT_{name.upper()}": str(value) for name, value in values.items()}
    settings = Settings(home=home, **{**values, "check_gpu": ("true",)})
    rig = Rig(settings, {**given, "OVERNIGHT_HOME": str(home), **fake.env()})
    scene = Scene(rig, fake, log)
    try:
        rig.start()
        until(lambda: len(scene.live.slots) == 2 and not scene.live.stale, within_s=60, evidence=rig.evidence)
        scene.job = rig.count(100_000, 0.05)
        rig.until_printed(scene.job, "start 0", within_s=60)
        scene.gpu = next(n for n in range(2) if fake.uuid(n) == rig.job(scene.job).slots[0])
        fake.busy(scene.gpu)
        scene.began = time.time()
        yield scene
    finally:
        scenarios.hang(fake, seconds=0)
        rig.end()
        shutil.rmtree(home, ignore_errors=True)
        log.path.unlink(missing_ok=True)


def row(name: str, scene: Scene) -> str:
    told = "; ".join(f"{words} ({seconds:.1f} s)" if seconds else words for words, seconds in scene.seen)
    return f"| {name} | {(SCENARIOS[name].__doc__ or '').strip()} | {told} |"


def page(rows: list[str]) -> str:
    head = ["| scenario | what is played | what happened, and when after it |", "|---|---|---|"]
    made = f"{time.strftime('%Y-%m-%d')}, `python tests/matrix`, {len(os.sched_getaffinity(0))} cores shared with other work, "  # fmt: skip
    made += f"load {os.getloadavg()[0]:.1f}, Linux {platform.release()}, Python {platform.python_version()}"
    return "\n".join([f"Made {made}.", "", *head, *rows])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/matrix", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between the page's marks")
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended on the way out
    folder = Path(tempfile.mkdtemp(prefix="on-fake-"))
    rows, failed = [], []
    for name in wanted.names or SCENARIOS:
        with stage(folder) as scene:
            try:
                SCENARIOS[name](scene)
            except AssertionError as error:
                failed.append(name)
                print(f"{name}: {error}", file=sys.stderr)
                continue
            finally:
                print(f"{name}: {scene.seen}", flush=True)
            rows.append(row(name, scene))
    shutil.rmtree(folder, ignore_errors=True)
    text = page(rows)
    print(text)
    if wanted.write:
        before, _, rest = wanted.write.read_text().partition(BEGIN)
        wanted.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
